"""Small calls that reach every kernel of a GPU backend: what compute-sanitizer watches.

python -m tests.gpu.sanitize_case --backend triton

All inputs are made on the CPU and copied, so that hardly a kernel of torch's own runs, and every
result is compared with the reference backend on the CPU: a watched call must also be a right one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.harness.providers import PROVIDERS
from cmikernels import ClassIndex, class_centroids, fused_cmi

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "class", "none")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float64: 1e-9}


@dataclass(frozen=True)
class Case:
    """Features of classes of these sizes, labelled in any order if `shuffled`, and how to call."""

    layout: str
    sizes: Sequence[int]
    channels: int
    shuffled: bool
    dtype: torch.dtype = torch.float32
    reduction: str = "mean"
    given: bool = False  # centroids
    transposed: bool = False  # memory

    def __str__(self) -> str:
        """Give what differs, for the log."""
        parts = [self.layout, str(self.dtype).removeprefix("torch."), self.reduction]
        parts += [name for name in ("given", "transposed") if getattr(self, name)]
        return ", ".join(parts)


def cases(processors: int) -> Iterator[Case]:
    """Every layout with every dtype, and with every reduction, given centroids or not."""
    # The last three are the CUDA backend's: on an H200 several stages, clusters and slots.
    layouts = (
        ("equal small classes", (4,) * 9, 33, False),
        ("ragged small classes", (1, 9, 0, 4, 17), 65, True),
        ("more large classes than processors", (20,) * (processors + 1), 1000, False),
        ("few large classes", (300, 211), 129, True),
        ("rows wider than a tile", (5, 3, 9), 9001, True),
        ("many tiny classes", (2,) * (12 * processors + 1), 64, False),
        ("few large classes of whole packs", (300, 211), 256, True),
        ("one large class among tiny ones", (500, *(2,) * 100), 256, True),
    )
    for layout in layouts:
        yield from (Case(*layout, dtype=dtype) for dtype in DTYPES)
        for reduction in REDUCTIONS:
            yield from (Case(*layout, reduction=reduction, given=given) for given in (False, True))
        yield Case(*layout, transposed=True)


def check(case: Case, backend: str, device: torch.device) -> None:
    """Value, gradient and centroids on the device; raises where they are wrong."""
    rows = sum(case.sizes)
    generator = torch.Generator().manual_seed(rows)
    features = torch.randn(rows, case.channels, generator=generator, dtype=torch.float64)
    features = features.to(case.dtype)
    if case.transposed:
        features = features.t().contiguous().t()
    labels = torch.arange(len(case.sizes)).repeat_interleave(torch.tensor(case.sizes))
    if case.shuffled:
        labels = labels[torch.randperm(rows, generator=generator)]
    classes = ClassIndex(labels, len(case.sizes))
    centroids = None
    if case.given:
        centroids = torch.rand(len(case.sizes), case.channels, generator=generator).softmax(-1)
    results = []
    for where, name in ((torch.device("cpu"), "reference"), (device, backend)):
        index = classes.to(where)
        leaf = features.to(where).requires_grad_()
        value = fused_cmi(
            leaf,
            index,
            centroids=None if centroids is None else centroids.to(where),
            reduction=case.reduction,
            backend=name,
        )
        # Not 1, so that backward has work; not made on the device, see above.
        incoming = torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).view(value.shape)
        (gradient,) = torch.autograd.grad(value, leaf, incoming.to(where))
        means = class_centroids(leaf.detach(), index, backend=name)
        results.append([result.detach().cpu().double() for result in (value, gradient, means)])
    names = ("value", "gradient", "centroids")
    for name, exact, found in zip(names, *results, strict=True):
        _compare(f"{case}: {name}", exact, found, TOLERANCE[case.dtype])


def _compare(what: str, exact: Tensor, found: Tensor, tolerance: float) -> None:
    error = ((found - exact).norm() / exact.norm()).item()
    if not error <= tolerance:
        raise AssertionError(f"{what} is {error:.2g} off, more than {tolerance:g}")


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.sanitize_case", description=__doc__.split("\n\n")[0]
    )
    ours = [name for name, provider in PROVIDERS.items() if provider.backend]
    parser.add_argument("--backend", choices=ours, default="triton", help="whose (%(default)s)")
    parser.add_argument("--device", default="cuda", help="where (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one case of each small layout")
    args = parser.parse_args()
    device = torch.device(args.device)
    processors = 2
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    chosen = list(cases(processors))
    if args.quick:
        small = (case for case in chosen if sum(case.sizes) * case.channels < 10_000)
        chosen = list({case.layout: case for case in small}.values())
    for case in chosen:
        check(case, args.backend, device)
    print(f"{args.backend} on {device}: {len(chosen)} cases right")


if __name__ == "__main__":
    main()
