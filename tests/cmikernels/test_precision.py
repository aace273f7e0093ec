"""Precision is set while networks compute, and everything is put back as it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cmikernels.precision import check_precision, computing, with_gradients
from tests.support.compare import relative_error
from tests.support.convolutions import Convolutions

BACKENDS: Any = torch.backends
HOLDERS = (BACKENDS, BACKENDS.cudnn, BACKENDS.cudnn.conv, BACKENDS.cuda.matmul)
VALUES = ("none", "ieee", "tf32")


def readings() -> list[str]:
    return [holder.fp32_precision for holder in HOLDERS]


def put(values: tuple[str, ...]) -> None:
    for holder, value in zip(HOLDERS, values, strict=True):
        holder.fp32_precision = value


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """torch's own settings before and after each test."""
    put(("none", "none", "tf32", "none"))
    yield
    put(("none", "none", "tf32", "none"))


def under_other_parents() -> list[list[str]]:
    """What attributes read as when those that they may inherit from change."""
    found = []
    for parent, value in itertools.product(HOLDERS[:2], VALUES):
        before = parent.fp32_precision
        parent.fp32_precision = value
        found.append(readings())
        parent.fp32_precision = before
    return found


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_every_setting_of_torch_is_put_back(precision: str) -> None:
    for settings in itertools.product(VALUES, repeat=len(HOLDERS)):
        put(settings)
        before = readings()
        with pytest.raises(KeyError), computing(precision, "cpu"):
            raise KeyError
        assert readings() == before
    put(("none", "none", "tf32", "none"))
    assert BACKENDS.cudnn.allow_tf32


@pytest.mark.parametrize("settings", [("none", "none"), ("tf32", "none"), ("tf32", "ieee")])
def test_what_was_inherited_is_inherited_again(settings: tuple[str, str]) -> None:
    for own in itertools.product(VALUES, repeat=2):
        put((*settings, *own))
        expected = under_other_parents()
        put((*settings, *own))
        with computing("float32", "cpu"):
            pass
        assert under_other_parents() == expected


@pytest.mark.parametrize(
    ("precision", "convolutions"), [("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", "ieee")]
)
def test_convolutions_alone_may_be_tf32_whatever_is_set(precision: str, convolutions: str) -> None:
    for settings in itertools.product(VALUES, repeat=len(HOLDERS)):
        put(settings)
        with computing(precision, "cpu"), computing(precision, "cpu", network=True):
            assert BACKENDS.cudnn.conv.fp32_precision == convolutions
            assert BACKENDS.cuda.matmul.fp32_precision == "ieee"


@pytest.mark.parametrize(
    ("precision", "both"), [("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", "ieee")]
)
def test_products_in_the_place_of_convolutions_are_tf32_with_them(
    precision: str, both: str
) -> None:
    for settings in itertools.product(VALUES, repeat=len(HOLDERS)):
        put(settings)
        before = readings()
        with computing("float32", "cpu"), computing(precision, "cpu", products=True):
            assert BACKENDS.cudnn.conv.fp32_precision == both
            assert BACKENDS.cuda.matmul.fp32_precision == both
        assert readings() == before


@pytest.mark.parametrize("own", [*itertools.product((True, False), repeat=2)])
def test_cudnn_repeats_its_bits_meanwhile_and_is_put_back(own: tuple[bool, bool]) -> None:
    cudnn = BACKENDS.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.deterministic, cudnn.benchmark = own
        with computing("tf32", "cpu"), computing("float32", "cpu", network=True):
            assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
        assert (cudnn.deterministic, cudnn.benchmark) == own
        with computing(None, "cpu"):
            assert (cudnn.deterministic, cudnn.benchmark) == own
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def test_none_leaves_what_the_caller_set() -> None:
    put(("none", "tf32", "none", "tf32"))
    before = readings()
    with computing(None, "cpu", network=True):
        assert readings() == before


def test_the_older_flag_is_not_read_while_it_would_raise() -> None:
    BACKENDS.cudnn.conv.fp32_precision = "ieee"
    with pytest.raises(RuntimeError, match="allow_tf32"):
        _ = BACKENDS.cudnn.allow_tf32
    with computing("tf32", "cpu"), computing("float32", "cpu", network=True):
        pass
    assert BACKENDS.cudnn.conv.fp32_precision == "ieee"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_torch_without_the_attribute_has_the_older_flags(
    precision: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn = SimpleNamespace(allow_tf32=before, deterministic=before, benchmark=before)
    matmul = SimpleNamespace(allow_tf32=before)
    older = SimpleNamespace(cudnn=cudnn, cuda=SimpleNamespace(matmul=matmul))
    monkeypatch.setattr(torch, "backends", older)
    with computing(precision, "cpu"):
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (precision == "tf32", False)
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (before, before)
    with computing(precision, "cpu", products=True):
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (precision == "tf32",) * 2
    with pytest.raises(KeyError), computing(precision, "cpu"):
        raise KeyError
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (before, before)


def test_autocast_is_on_around_networks_in_bfloat16_alone() -> None:
    images, filters = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3)
    for precision, network in itertools.product((None, "float32", "bfloat16"), (False, True)):
        with torch.autocast("cpu", torch.bfloat16):
            with computing(precision, "cpu", network=network):
                inside = conv2d(images, filters).dtype
            assert conv2d(images, filters).dtype == torch.bfloat16
        assert (inside == torch.bfloat16) == (precision == "bfloat16" and network)


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="precision: expected float32 or tf32 or bfloat16, got 'f"):
        check_precision("float16")
    with pytest.raises(ValueError, match="tf32 is of GPUs, got images on cpu; take float32"):
        check_precision("tf32", "cpu")
    check_precision("tf32", "cuda")


FILTERS = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def bent(images: Tensor) -> Tensor:
    return conv2d(conv2d(images, FILTERS).tanh(), FILTERS.transpose(0, 1)).sin().flatten(1)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_derivatives_taken_later_compute_in_the_precision(precision: str) -> None:
    images = torch.rand(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    put(("none", "none", "none", "none"))
    found = []
    for function in (bent, lambda x: with_gradients(bent, x, precision)):
        with Convolutions() as convolutions:
            (first,) = torch.autograd.grad(function(images).square().sum(), images,
                                           create_graph=True)  # fmt: skip
            (second,) = torch.autograd.grad(first.sin().sum(), images)
        found.append((first, second))
    for plain, ours in zip(*found, strict=True):
        assert relative_error(ours, plain) < 1e-12
    inside = {"float32": "ieee", "tf32": "tf32"}[precision]
    backward = {each.attribute for each in convolutions.seen if "backward" in each.op}
    assert backward == {inside}


def test_a_third_derivative_is_refused() -> None:
    images = torch.rand(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(with_gradients(bent, images, "float32").square().sum(), images,
                                   create_graph=True)  # fmt: skip
    with pytest.raises(RuntimeError, match="expected first and second derivatives in float32"):
        torch.autograd.grad(first.square().sum(), images, create_graph=True)


def test_a_device_without_autocast_is_computed_on_too() -> None:
    with computing("bfloat16", "meta", network=True):
        assert conv2d(torch.ones(1, 1, 2, 2, device="meta"), torch.ones(1, 1, 1, 1)).is_meta
