"""Resampling whose gradient is gathered, beside torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cmidd import resampling
from cmidd.augment import Strategy, changes_of, draw
from cmidd.augment_operations import OPERATIONS, Amounts
from cmidd.resampling import resample, resized
from cmidd.seeds import generator
from cmikernels.changes.operations import REACH
from tests.support.tiny import CPU

SHAPES = [(32, 32), (9, 7), (6, 20), (1, 1), (28, 28)]


def gathered(images: Tensor, *numbers: Tensor) -> Tensor:
    out: Tensor = resampling._Resampled.apply(images, *numbers)  # type: ignore[no-untyped-call]
    return out


def images_of(count: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(count, 3, *size, dtype=torch.float64, generator=generator("images"))


def numbers_of(name: str, count: int, size: tuple[int, int], amounts: Amounts) -> list[Tensor]:
    """What `scale` and `rotate` make of numbers among which the first and the last ones are."""
    uniform = torch.rand(2, count, dtype=torch.float64, generator=generator("numbers"))
    uniform[:, 0], uniform[:, 1], uniform[:, 2] = 0.0, 1 - 2**-53, 0.5
    columns = OPERATIONS[name].parameters(uniform, amounts, *size)
    return [column.double().view(-1, 1, 1, 1) for column in columns]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize(
    ("name", "amounts"),
    [("scale", Amounts()), ("rotate", Amounts()), ("scale", Amounts(scale=1.9)),
     ("rotate", Amounts(rotate=0)), ("scale", Amounts(scale=1))],
)  # fmt: skip
def test_it_is_what_torch_makes_and_its_gradient_too(
    name: str, amounts: Amounts, size: tuple[int, int]
) -> None:
    numbers = numbers_of(name, 40, size, amounts)
    images, incoming = images_of(40, size).requires_grad_(), images_of(40, size)
    expected = resample(images, *numbers)
    got = gathered(images, *numbers)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    (of_expected,) = torch.autograd.grad(expected, images, incoming)
    (of_got,) = torch.autograd.grad(got, images, incoming)
    torch.testing.assert_close(of_got, of_expected, rtol=0, atol=1e-12)


def test_both_at_once_as_far_as_a_pixel_reaches() -> None:
    """Turned, stretched and sheared: any matrix whose inverse makes less than 2 of 1."""
    draws = generator("matrices")
    images = images_of(200, (12, 10)).requires_grad_()
    inverse = torch.randn(200, 2, 2, dtype=torch.float64, generator=draws)
    inverse *= 1.99 / inverse.abs().sum(2).amax(1)[:, None, None]
    (xx, xy), (yx, yy) = (row.unbind(1) for row in torch.linalg.inv(inverse).unbind(1))
    numbers = [n.view(-1, 1, 1, 1) for n in (xx, xy * 12 / 10, yx * 10 / 12, yy)]
    assert max(float(n.abs().max()) for n in numbers) > 5
    for function in (resample, gathered):
        out = function(images, *numbers)
        found = torch.autograd.grad(out, images, images.detach().flip(0))[0]
        if function is resample:
            expected = found
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_it_may_be_differentiated_any_number_of_times() -> None:
    numbers = numbers_of("rotate", 4, (5, 6), Amounts())

    def cubed(images: Tensor) -> Tensor:
        return gathered(images, *numbers).pow(3)

    images = images_of(4, (5, 6)).requires_grad_()
    assert torch.autograd.gradcheck(cubed, (images,), fast_mode=True)
    assert torch.autograd.gradgradcheck(cubed, (images,), fast_mode=True)


def test_float32_is_as_near_to_float64_as_torch_is() -> None:
    numbers = numbers_of("rotate", 40, (32, 32), Amounts())
    images, incoming = images_of(40, (32, 32)), images_of(40, (32, 32)).flip(0)

    def gradient(function: object, dtype: torch.dtype) -> Tensor:
        x = images.to(dtype).requires_grad_()
        out = function(x, *(n.to(dtype) for n in numbers))  # type: ignore[operator]
        return torch.autograd.grad(out, x, incoming.to(dtype))[0].double()

    exact = gradient(resample, torch.float64)
    errors = [(gradient(f, torch.float32) - exact).abs().max() for f in (gathered, resample)]
    assert errors[0] < 2 * errors[1]


def test_another_device_than_a_cpu_takes_it() -> None:
    images = torch.empty(3, 2, 8, 8, device="meta", requires_grad=True)
    out = resample(images, *torch.empty(4, 3, 1, 1, 1, device="meta"))
    assert "Resampled" in type(out.grad_fn).__name__
    assert torch.autograd.grad(out.sum(), images)[0].shape == images.shape


@pytest.mark.parametrize(
    ("name", "amounts", "size"),
    [("scale", Amounts(scale=2), (8, 8)), ("scale", Amounts(scale=0.5), (8, 8)),
     ("rotate", Amounts(rotate=90), (8, 8)), ("rotate", Amounts(), (8, 40))],
)  # fmt: skip
def test_a_gpu_is_asked_for_no_pixels_that_reach_farther(
    name: str, amounts: Amounts, size: tuple[int, int]
) -> None:
    strategy = Strategy.parse(name)
    drawn = draw(strategy, 2, generator("draw"))
    given = strategy, drawn, torch.arange(2), size, torch.float32
    assert len(changes_of(*given, CPU, amounts=amounts)) == 1
    with pytest.raises(ValueError, match=f"^augmentation: {name} spreads .* than 2; leave {name}"):
        changes_of(*given, torch.device("meta"), amounts=amounts)


def test_the_outputs_that_are_looked_at_are_all_that_may_have_a_pixel() -> None:
    reach = REACH
    for c in torch.linspace(3, 4, 1001, dtype=torch.float64).tolist():
        seen = range(math.floor(c) + 1 - reach // 2, math.floor(c) + 1 + reach // 2)
        assert {k for k in range(8) if abs(k - c) < reach / 2} <= {*seen}


@pytest.mark.parametrize(
    ("small", "size"), [((4, 4), (8, 8)), ((5, 4), (9, 7)), ((1, 3), (6, 3)), ((8, 8), (8, 8))]
)
def test_a_larger_image_is_what_torch_makes_and_its_gradient_too(
    small: tuple[int, int], size: tuple[int, int]
) -> None:
    images = images_of(5, small).requires_grad_()
    expected = resized(images, *size)
    rows, columns = (resampling._linear(*sides, images) for sides in zip(small, size, strict=True))
    got = rows @ images @ columns.mT
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    incoming = images_of(5, size)
    gradients = [torch.autograd.grad(out, images, incoming)[0] for out in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    there = resized(images.to("meta"), *size)
    assert there.shape == (5, 3, *size)
    assert "Upsample" not in type(there.grad_fn).__name__
