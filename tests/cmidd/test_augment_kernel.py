"""Augmentation by the kernel for GPUs, interpreted without one, beside torch's operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmidd import augment as module
from cmidd.augment import Draw, Kernel, Parts, Strategy, augment, changes_of, draw
from cmidd.seeds import generator
from cmikernels.changes import operations
from cmikernels.changes.operations import change
from tests.support.tables import DEVICE_OF

pytest.importorskip("triton")

DEVICE = torch.device(DEVICE_OF["triton"])
META = torch.device("meta")
DSA = "color_crop_cutout_flip_scale_rotate"
SHAPES = [(3, 8, 8), (1, 5, 9), (2, 17, 17)]  # channels, height, width


@pytest.fixture
def _served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel serves the device of the tests, a CPU too."""
    assert not operations.serves(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(operations, "serves", lambda *_: True)


def images_of(count: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    drawn = torch.randn(count, *shape, dtype=torch.float64, generator=generator("images", *shape))
    return drawn.to(DEVICE, dtype)


def drawn_for(text: str, groups: int) -> tuple[Strategy, Draw]:
    strategy = Strategy.parse(text)
    return strategy, draw(strategy, groups, generator("draw"))


def three_orders(images: Tensor, strategy: Strategy, drawn: Draw) -> list[Tensor]:
    """Changed images, the gradient, the gradient of that for what came in, and that of this."""
    images = images.clone().requires_grad_()
    out = augment(images, strategy, drawn)
    incoming = images.detach().flip(0).requires_grad_()
    (gradient,) = torch.autograd.grad(out, images, incoming, create_graph=True)
    second = images.detach().square().requires_grad_()
    (again,) = torch.autograd.grad(gradient, incoming, second, create_graph=True)
    (third,) = torch.autograd.grad(again, second, incoming.detach())
    return [each.detach() for each in (out, gradient, again, third)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", [DSA, *DSA.split("_"), f"all:{DSA}", f"idc:{DSA}"])
def test_values_and_derivatives_are_those_of_torchs_operations(
    text: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, drawn = images_of(6, shape, torch.float64), drawn_for(text, 6)
    expected = three_orders(images, *drawn)
    monkeypatch.setattr(operations, "serves", lambda *_: True)
    for got, each in zip(three_orders(images, *drawn), expected, strict=True):
        torch.testing.assert_close(got, each, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_worse_than_torchs(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, drawn = images_of(12, (3, 12, 12), dtype), drawn_for(DSA, 12)
    exact, plain = (three_orders(each, *drawn) for each in (images.double(), images))
    monkeypatch.setattr(operations, "serves", lambda *_: True)
    found = three_orders(images, *drawn)
    for got, theirs, each in zip(found, plain, exact, strict=True):
        assert got.dtype == dtype
        errors = [float((one.double() - each).norm()) for one in (got, theirs)]
        assert errors[0] <= 1.5 * errors[1]


@pytest.mark.usefixtures("_served")
def test_bits_repeat_and_do_not_hang_on_the_other_images() -> None:
    images, (strategy, drawn) = images_of(12, (3, 8, 8), torch.float32), drawn_for(DSA, 12)
    one, two = (three_orders(images, strategy, drawn) for _ in range(2))
    assert all(map(torch.equal, one, two))
    alone = augment(images[5:7], strategy, drawn[5:7])
    assert torch.equal(alone, one[0][5:7])


@pytest.mark.usefixtures("_served")
def test_a_large_image_is_made_by_several_programs() -> None:
    images, drawn = images_of(2, (3, 20, 18), torch.float64), drawn_for(f"all:{DSA}", 2)
    got = augment(images, *drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "serves", lambda *_: False)
        torch.testing.assert_close(got, augment(images, *drawn), rtol=0, atol=1e-12)


def test_each_turn_of_dsa_is_one_launch_on_a_gpu() -> None:
    strategy, drawn = drawn_for(f"all:{DSA}_zoom", 5)
    turns = changes_of(strategy, drawn, torch.arange(5), (8, 8), torch.float32, META)
    assert [type(turn) for turn in turns] == [Kernel] * 6 + [Parts]
    assert [turn.colours for turn in turns if isinstance(turn, Kernel)] == [True] + [False] * 5
    strategy, drawn = drawn_for(DSA, 50)
    (turn,) = changes_of(strategy, drawn, torch.arange(50), (8, 8), torch.float32, META)
    assert isinstance(turn, Kernel)
    assert (turn.codes.dtype, turn.numbers.dtype) == (torch.int32, torch.float32)
    found = {module._CODES[strategy.operations[k]] for k in drawn.operations.flatten().tolist()}
    assert set(turn.codes.tolist()) == found == set(range(5))


def test_what_the_kernel_does_not_know_is_left_to_torch() -> None:
    strategy, drawn = drawn_for("crop_zoom", 20)
    for device, dtype in ((META, torch.float32), (torch.device("cpu"), torch.float32)):
        (turn,) = changes_of(strategy, drawn, torch.arange(20), (8, 8), dtype, device)
        assert isinstance(turn, Parts)


def test_shapes_alone_are_made_without_memory() -> None:
    images = torch.empty(4, 3, 8, 8, device=META, requires_grad=True)
    out = augment(images, *drawn_for(f"all:{DSA}", 4))
    assert out.shape == images.shape
    assert torch.autograd.grad(out.sum(), images)[0].shape == images.shape


def test_no_images_are_no_launch() -> None:
    images = torch.empty(0, 3, 8, 8, device=DEVICE)
    codes = torch.empty(0, dtype=torch.int32, device=DEVICE)
    assert change(images, codes, torch.empty(0, 4, device=DEVICE), colours=True).shape == (
        0,
        3,
        8,
        8,
    )
