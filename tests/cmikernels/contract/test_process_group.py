"""Rows that lie on several ranks have the value and the gradients of rows in one process."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cmikernels import ClassIndex, CMILoss, class_centroids, cmi_value_and_grad, fused_cmi
from tests.support.ranks import on_ranks
from tests.support.tables import DEVICE_OF

CLASSES, CHANNELS = 5, 37
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
SPREADS = (1e-3, 0.3, 30.0)  # CMI of 4e-7 to 3


def rows(n: int, spread: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of unequal classes in any order; class 3 has one row, and 4 none."""
    drawing = torch.Generator().manual_seed(n)
    labels = torch.randint(3, (n,), generator=drawing)
    labels[n // 2] = 3
    centres = torch.randn(CLASSES, CHANNELS, generator=drawing, dtype=torch.float64)
    noise = torch.randn(n, CHANNELS, generator=drawing, dtype=torch.float64)
    return (centres[labels] + spread * noise).to(dtype), labels


def check(
    features: Tensor, labels: Tensor, own: slice, group: Any, backend: str, **options: Any
) -> None:
    """The part of one rank, whose rows are `own`, against all rows in one process."""
    options |= {"num_classes": CLASSES, "backend": backend}
    expected, of_whole, of_ones = one_process(features, labels, **options)
    _, exact, exact_of_ones = one_process(features.double(), labels, **options)

    options["process_group"] = group
    z, y = features[own].clone().requires_grad_(), labels[own]
    value = fused_cmi(z, y, **options)
    incoming = factors_of(value)
    (gradient,) = torch.autograd.grad(value, z, incoming, retain_graph=True)
    (again,) = torch.autograd.grad(value, z, incoming)
    assert torch.equal(gradient, again)
    value_at_once, at_once = cmi_value_and_grad(z, y, **options)
    assert torch.equal(value_at_once, value.detach())

    close = 1e-12 if features.dtype == torch.float64 else 1e-6
    # A centroid's sum is 1 up to 1e-16, and so is a row's KL to it.
    rounding = 1e-15 * options["weight"] * (len(features) if options["reduction"] == "sum" else 1)
    torch.testing.assert_close(value, expected, rtol=close, atol=rounding)
    for found, whole, true in ((gradient, of_whole, exact), (at_once, of_ones, exact_of_ones)):
        usual = float((whole - true).abs().max()) + close * float(true.abs().max()) + 1e-17
        assert not len(found) or (found - true[own]).abs().max() <= 2 * usual


def one_process(features: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Value, and its gradients with factors and with ones, in float64."""
    z = features.clone().requires_grad_()
    value = fused_cmi(z, labels, **options)
    (gradient,) = torch.autograd.grad(value, z, factors_of(value), retain_graph=True)
    (of_ones,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient.double(), of_ones.double()


def factors_of(value: Tensor) -> Tensor:
    """A gradient for the value, the same on all ranks."""
    return 1 + torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).to(value)


def _every_call(count: int) -> None:
    rank = dist.get_rank()
    bounds = [0, 20, 90] if count == 2 else [0, 20, 50, 90, 90]  # the last of four has no rows
    own = slice(bounds[rank], bounds[rank + 1])
    group = dist.group.WORLD
    for dtype, spread, reduction, given, backend in itertools.product(
        DTYPES, SPREADS, ("mean", "sum", "class"), (False, True), ("cpu", "reference")
    ):
        if backend == "reference" and dtype != torch.float64:
            continue  # alone it has centroids in float64, which no rank is sent
        features, labels = rows(90, spread, dtype)
        options: dict[str, Any] = {"temperature": 1.5, "weight": 7.0, "reduction": reduction}
        if given:
            others = features.double()[::2], labels[::2]
            options["centroids"] = class_centroids(*others, num_classes=CLASSES)
        try:
            check(features, labels, own, group, backend, **options)
        except AssertionError as error:
            case = f"rank {rank} {dtype} {spread} {reduction} given={given} {backend}"
            raise AssertionError(f"{case}: {error}") from None


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_are_one_process(count: int, tmp_path: Path) -> None:
    on_ranks(count, _every_call, tmp_path, count)


class _Counted:
    """Numbers and bytes of every all-reduce while it lasts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[tuple[int, int]] = []
        all_reduce = dist.all_reduce

        def counted(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
            self.sizes.append((tensor.numel(), tensor.numel() * tensor.element_size()))
            return all_reduce(tensor, *arguments, **named)

        monkeypatch.setattr(dist, "all_reduce", counted)


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dist.ProcessGroup]:
    """A group of this process alone, which sends itself what ranks would send."""
    # Without it gloo looks up the host's name, and warns where nobody knows it.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    where = f"file://{tmp_path / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("reduction", ["mean", "sum", "class"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_backend_takes_its_part(
    backend: str, dtype: torch.dtype, reduction: str, group: Any
) -> None:
    features, labels = (tensor.to(DEVICE_OF[backend]) for tensor in rows(30, 0.3, dtype))
    check(features, labels, slice(0, 30), group, backend, weight=3.0, reduction=reduction)


def test_what_is_sent(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _Counted(monkeypatch)
    features, labels = rows(90, 1.0, torch.float32)
    value = fused_cmi(features.requires_grad_(), labels, num_classes=CLASSES, process_group=group)
    of_classes = CLASSES * (CHANNELS + 1)
    assert counted.sizes == [(of_classes, 4 * of_classes), (CLASSES, 8 * CLASSES)]
    torch.autograd.grad(value, features)
    assert len(counted.sizes) == 2  # nothing backward


def test_equal_classes_and_an_index_need_no_number_of_classes(group: Any) -> None:
    features = torch.randn(3, 4, 7)
    expected = fused_cmi(features)
    torch.testing.assert_close(fused_cmi(features, process_group=group), expected)
    index = ClassIndex(torch.arange(3).repeat_interleave(4))
    criterion = CMILoss(process_group=group)
    torch.testing.assert_close(criterion(features.flatten(0, 1), index), expected)
    several = fused_cmi(features[None], reduction="class", process_group=group)
    torch.testing.assert_close(several, fused_cmi(features[None], reduction="class"))


def test_a_compiled_step_runs_it_between_its_graphs(group: Any) -> None:
    features, labels = rows(30, 1.0, torch.float32)

    @torch.compile(backend="eager")
    def loss(features: Tensor) -> Tensor:
        return 2 * fused_cmi(features, labels, num_classes=CLASSES, process_group=group)

    torch.testing.assert_close(loss(features), 2 * fused_cmi(features, labels, num_classes=CLASSES))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"reduction": "none"}, "reduction: expected mean, sum or class with process_group"),
        ({"num_classes": None}, "num_classes: expected a number with process_group"),
        ({"process_group": "gloo"}, "process_group: expected a group of torch.distributed"),
        (
            {"process_group": dist.GroupMember.NON_GROUP_MEMBER},
            "process_group: expected a group of torch.distributed that this process is part of",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(call: dict[str, Any], words: str, group: Any) -> None:
    features, labels = rows(30, 1.0, torch.float32)
    options = {"num_classes": CLASSES, "process_group": group, **call}
    for function in (fused_cmi, cmi_value_and_grad):
        with pytest.raises((TypeError, ValueError), match=words):
            function(features, labels, **options)


def test_a_second_derivative_is_refused(group: Any) -> None:
    features, labels = rows(30, 1.0, torch.float32)
    value = fused_cmi(features.requires_grad_(), labels, num_classes=CLASSES, process_group=group)
    with pytest.raises(RuntimeError, match="process_group: expected a first derivative"):
        torch.autograd.grad(value, features, create_graph=True)


def _train_together(alone: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.parallel.DistributedDataParallel(nn.Linear(CHANNELS, 8).double())
    inputs, labels = rows(90, 1.0, torch.float64)
    own = slice(0, 30) if dist.get_rank() == 0 else slice(30, 90)
    ranks = dist.get_world_size()
    features = network(inputs[own])
    loss = fused_cmi(features, labels[own], num_classes=CLASSES, process_group=dist.group.WORLD)
    torch.autograd.backward(loss * ranks)  # DistributedDataParallel divides by it
    torch.testing.assert_close(network.module.weight.grad, alone, rtol=1e-10, atol=1e-14)


def test_ddp_gives_the_gradient_of_one_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Linear(CHANNELS, 8).double()
    inputs, labels = rows(90, 1.0, torch.float64)
    torch.autograd.backward(fused_cmi(network(inputs), labels, num_classes=CLASSES))
    on_ranks(2, _train_together, tmp_path, network.weight.grad)
