"""Who computes CMI in the benchmarks, and the three ways in which each is asked to.

A provider makes a loss, `loss(features, classes) -> scalar`, from features `(C, n, M)` with no
classes, or `(N, M)` with a ClassIndex. A new provider is one entry in `PROVIDERS`.

    value           no gradient wanted
    value+gradient  forward and backward through autograd
    forward         forward alone, a gradient wanted later
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness.race import Contender
from cmikernels import ClassIndex, fused_cmi
from cmikernels.backends import choose_backend

Loss = Callable[[Tensor, ClassIndex | None], Tensor]


def published(features: Tensor, classes: ClassIndex | None) -> Tensor:
    """Compute the published expression (arXiv 2412.09945): every step a full-size tensor."""
    rows = features.reshape(-1, features.shape[-1])  # (N, M)
    probabilities = rows.softmax(dim=1)
    if classes is None:
        per_class = probabilities.reshape(features.shape)  # (C, n, M)
        log_centroids = per_class.mean(dim=1, keepdim=True).log()
        targets = log_centroids.expand_as(per_class).reshape(rows.shape)
    else:  # the published code has equal classes only; this is the same, without a loop over them
        sums = rows.new_zeros(classes.num_classes, rows.shape[1])
        sums = sums.index_add(0, classes.labels, probabilities)
        log_centroids = (sums / classes.counts()[:, None]).log()
        targets = log_centroids.index_select(0, classes.labels)
    log_p = rows.log_softmax(dim=1)
    return F.kl_div(targets, log_p, reduction="batchmean", log_target=True)


def _compiled(mode: str | None = None) -> Loss:
    """Put `published` under torch.compile at its best: one fresh graph for each shape."""
    compiled: Loss = torch.compile(published, fullgraph=True, dynamic=False, mode=mode)
    return compiled


def _max_autotuned() -> Loss:
    """Let the compiler time its own choices of tiles, but not record CUDA graphs.

    Its graphs own their outputs, so that the next call would overwrite a gradient kept in `.grad`,
    and they copy inputs that change from call to call; `replay.py` gives every provider a graph.
    """
    return _compiled("max-autotune-no-cudagraphs")


def _through(backend: str | None) -> Callable[[], Loss]:
    def loss(features: Tensor, classes: ClassIndex | None) -> Tensor:
        return fused_cmi(features, classes, backend=backend)

    return lambda: loss


@dataclass(frozen=True)
class Provider:
    """A way of computing CMI: its name in tables, its colour in plots, how to make its loss."""

    label: str
    color: str  # of Okabe and Ito's palette, which colour-blind readers can tell apart
    make: Callable[[], Loss]
    may_be_missing: bool = False  # it needs what a machine may lack, such as a C++ compiler
    ours: bool = False
    backend: str | None = None  # the one of ours that it asks for by name

    def obstacle(self, device_type: str) -> str | None:
        """Why the backend it asks for cannot serve such tensors; None when it can."""
        if self.backend is None:
            return None
        try:
            choose_backend(self.backend, device_type)
        except ValueError as error:
            return str(error)
        return None


PROVIDERS: dict[str, Provider] = {
    "published": Provider("published, eager", "#D55E00", lambda: published),
    "compile": Provider("published, torch.compile", "#E69F00", _compiled, may_be_missing=True),
    "compile-max-autotune": Provider(
        "published, max-autotune", "#CC79A7", _max_autotuned, may_be_missing=True
    ),
    "cmikernels": Provider("cmikernels", "#0072B2", _through(None), ours=True),
    "triton": Provider(
        "cmikernels, Triton", "#56B4E9", _through("triton"), ours=True, backend="triton"
    ),
    "cuda": Provider("cmikernels, CUDA", "#009E73", _through("cuda"), ours=True, backend="cuda"),
}
USUAL = ("published", "compile", "cmikernels")  # ours by its fastest backend, whatever the device


def gpu_backends(device_type: str) -> list[str]:
    """Names of the GPU's backends that can serve tensors of that device type here."""
    return [
        name
        for name, provider in PROVIDERS.items()
        if provider.backend is not None and provider.obstacle(device_type) is None
    ]


def make_losses(
    names: Sequence[str],
    features: Tensor,
    classes: ClassIndex | None,
    report: Callable[[str], None],
) -> dict[str, Loss]:
    """Make the losses of these providers, each run once (that is when compilers compile).

    One that cannot run here is left out, and `report` gets a line that says why.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # the cache of shapes is short, and past its end compile means eager
    losses = {}
    for name in names:
        obstacle = PROVIDERS[name].obstacle(features.device.type)
        if obstacle is not None:
            report(f"{name} left out: {obstacle}")
            continue
        try:
            loss = PROVIDERS[name].make()
            loss(features.detach().requires_grad_(), classes).backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            if not PROVIDERS[name].may_be_missing:
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            report(f"{name} left out: {type(error).__name__}: {lines[0] if lines else ''}")
            continue
        losses[name] = loss
    return losses


def contend(
    loss: Loss, mode: str, inputs: Sequence[Tensor], classes: ClassIndex | None = None
) -> Contender:
    """Put the loss into one of the three modes; inputs require a gradient and are taken in turn."""
    turns = itertools.cycle(inputs)

    def fresh() -> Tensor:
        features = next(turns)
        features.grad = None
        return features

    def value(features: Tensor) -> Tensor:
        with torch.no_grad():
            return loss(features, classes)

    def forward(features: Tensor) -> Tensor:
        return loss(features, classes)

    def value_and_gradient(features: Tensor) -> None:
        loss(features, classes).backward()  # type: ignore[no-untyped-call]

    run = {"value": value, "forward": forward, "value+gradient": value_and_gradient}[mode]
    return Contender(run, fresh)
