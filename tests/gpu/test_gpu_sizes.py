"""What only a GPU has room for: sizes and strides beyond 32 bits, and memory by its own count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, cmi_value_and_grad, fused_cmi
from tests.support.compare import assert_gradient, assert_value
from tests.support.gpu_calls import HOW, needs_memory, value_and_gradient
from tests.support.oracle import Oracle
from tests.support.tables import (
    DTYPES,
    GPU,
    make_features,
    make_labels,
)

if not GPU:
    pytest.skip("needs a GPU that torch.cuda can use", allow_module_level=True)


def by_formula(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean and its gradient in float64, for more rows and classes than the oracle's loop is for."""
    log_p = features.detach().double().log_softmax(1)
    p = log_p.exp()
    sums = p.new_zeros(classes, p.shape[1]).index_add(0, labels, p)
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    d = log_p - (sums / counts[:, None]).log()[labels]
    kl = (p * d).sum(1, keepdim=True)
    return kl.mean(), p * (d - kl) / len(features)


CROWDS: dict[str, tuple[Sequence[int], int]] = {
    "classes beyond a 16-bit grid axis": ([y % 4 for y in range(70_000)], 16),
    "one large among 70,000 tiny": ([100_000] + [1 + y % 3 for y in range(70_000)], 16),
    "two million rows in a class": ([2_000_000], 16),
    "rows wider than any tile": ((3, 1, 0, 5), 100_000),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CROWDS)
def test_crowds(backend: str, name: str, dtype: torch.dtype) -> None:
    sizes, channels = CROWDS[name]
    labels = make_labels(sizes, shuffle_seed=0).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    z = torch.randn(len(labels), channels, generator=generator, device="cuda").to(dtype)
    z.requires_grad_()
    value, gradient = value_and_gradient(backend, z, ClassIndex(labels, len(sizes)))
    expected = by_formula(z, labels, len(sizes))
    assert_value(value, expected[0], dtype)
    assert_gradient(gradient, expected[1], dtype)


# Classes, how often a block of rows stands in each, its rows, channels.
ENORMOUS = {
    "small classes": (2**21 + 64, 1, 16, 64),
    "larger classes": (2**14 + 32, 1, 64, 2048),
    "few large classes": (8, 8193, 64, 512),
    "wide rows": (16, 340, 4, 100_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ENORMOUS)
def test_more_than_2_to_the_31_elements_in_every_shape(backend: str, name: str, how: str) -> None:
    """Every class is one block of rows repeated, so that the block's own answer is expected."""
    classes, repeats, rows, channels = ENORMOUS[name]
    elements = classes * repeats * rows * channels
    assert elements > 2**31
    needs_memory(2 * 2 * elements + 2**31)
    block = make_features(rows, channels, dtype=torch.bfloat16)
    shape = (classes, repeats * rows, channels)
    z = block.cuda().repeat(repeats, 1).expand(shape).contiguous()
    index = None
    if how == "index":
        index = ClassIndex(torch.arange(classes, device="cuda").repeat_interleave(repeats * rows))
        z = z.view(-1, channels)
    value, gradient = cmi_value_and_grad(z, index, reduction="class", backend=backend)
    oracle = Oracle(block, torch.zeros(rows, dtype=torch.int64))
    answers = gradient.view(classes, repeats, rows, channels)
    for y in (0, classes // 2, classes - 1):
        assert_value(value[y], oracle.value.cuda(), torch.bfloat16)
        for repeat in (0, repeats - 1):
            expected = (oracle.gradient() / repeats).cuda()
            assert_gradient(answers[y, repeat], expected, torch.bfloat16)
    assert (value == value[0]).all()
    for y in range(0, classes, max(1, classes // 256)):
        assert torch.equal(answers[y], answers[:1, :1].expand_as(answers[y : y + 1])[0])


FAR = 2**31 + 16
STRIDES = {
    "rows far apart": ((4, 64), (FAR, 1)),
    "columns far apart": ((4, 2), (1, FAR)),
    "first and last column far apart": ((4, 8), (1, FAR // 6)),
}


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("name", STRIDES)
def test_strides_beyond_32_bits(backend: str, name: str, shuffled: bool) -> None:
    shape, strides = STRIDES[name]
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    assert last > 2**31
    needs_memory(2 * last + 2**30)
    rows = make_features(*shape, dtype=torch.bfloat16)
    z = torch.empty(last + 1, dtype=torch.bfloat16, device="cuda").as_strided(shape, strides)
    z.copy_(rows)
    labels = torch.tensor([0, 1, 0, 1] if shuffled else [0, 0, 1, 1])
    value, gradient = value_and_gradient(
        backend, z.detach().requires_grad_(), ClassIndex(labels.cuda())
    )
    oracle = Oracle(rows, labels)
    assert_value(value.cpu(), oracle.value, rows.dtype)
    assert_gradient(gradient.cpu(), oracle.gradient(), rows.dtype)


CLASSES, ROWS_PER_CLASS, CHANNELS = 200, 50, 1024
CALLS: dict[str, Callable[[str, Tensor, Tensor], object]] = {
    "value": lambda backend, z, _: fused_cmi(z.detach(), backend=backend),
    "value and gradient": lambda backend, z, _: cmi_value_and_grad(z, backend=backend),
    "labels": lambda backend, z, labels: cmi_value_and_grad(
        z.flatten(0, 1), labels, backend=backend
    ),
    "autograd": lambda backend, z, _: value_and_gradient(
        backend, z, None, torch.full((), 2.0, device="cuda"), weight=3.0
    ),
    "row weights": lambda backend, z, _: value_and_gradient(
        backend, z, None, torch.rand(z.shape[:-1], device="cuda"), reduction="none"
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_extra_memory_is_the_gradient_and_little_more(backend: str, name: str) -> None:
    z = torch.randn(CLASSES, ROWS_PER_CLASS, CHANNELS, device="cuda").requires_grad_()
    labels = torch.arange(CLASSES, device="cuda").repeat(ROWS_PER_CLASS)
    CALLS[name](backend, z, labels)  # whatever is loaded at first use
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = CALLS[name](backend, z, labels)
    extra = torch.cuda.max_memory_allocated() - before
    assert kept is not None
    rows = CLASSES * ROWS_PER_CLASS
    gradient = 0 if name == "value" else 4 * rows * CHANNELS
    # Class sums and row statistics, twice over, and what an allocator rounds up to.
    beside = 2 * 4 * (CLASSES * CHANNELS + 4 * rows) + 4 * 2**20
    assert gradient <= extra <= gradient + beside
