"""Class-positive InfoNCE: its value, its gradients, and what it asks of its arguments."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmikernels import class_infonce
from tests.support.infonce import infonce_by_hand

INTEGERS = [torch.int64, torch.int32, torch.uint8, torch.int16, torch.uint16]


def rows(
    count: int,
    classes: int,
    channels: int = 5,
    *,
    of_keys: int = 12,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys with labels, a key of every class at least, in no order."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=draws)
    more = torch.randint(classes, (of_keys - classes,), generator=draws)
    key_labels = torch.cat([torch.arange(classes), more])
    key_labels = key_labels[torch.randperm(of_keys, generator=draws)]
    queries, keys = (
        torch.randn(n, channels, generator=draws, dtype=torch.float64) for n in (count, of_keys)
    )
    return queries.to(dtype), labels, keys.to(dtype), key_labels


def value_and_gradients(
    queries: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    leaves = [each.detach().clone().requires_grad_() for each in (queries, keys)]
    value = class_infonce(leaves[0], labels, leaves[1], key_labels, **options)
    of_queries, of_keys = torch.autograd.grad(value, leaves)
    return value.detach(), of_queries, of_keys


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_value_and_gradients_are_those_of_a_double_loop(data: Any) -> None:
    classes = data.draw(st.integers(1, 4))
    count, channels = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    of_keys = data.draw(st.integers(classes, 8))
    temperature = data.draw(st.sampled_from([0.05, 0.3, 1.0, 20.0]))
    chunk_size = data.draw(st.sampled_from([None, 1, 2, 5, 100]))
    seed = data.draw(st.integers(0, 999))
    queries, labels, keys, key_labels = rows(count, classes, channels, of_keys=of_keys, seed=seed)
    kinds = data.draw(st.sampled_from(INTEGERS)), data.draw(st.sampled_from(INTEGERS))
    options = {"temperature": temperature, "chunk_size": chunk_size}
    value, *gradients = value_and_gradients(
        queries, labels.to(kinds[0]), keys, key_labels.to(kinds[1]), **options
    )
    leaves = [each.detach().clone().requires_grad_() for each in (queries, keys)]
    expected = infonce_by_hand(leaves[0], labels, leaves[1], key_labels, temperature)
    close: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(value, expected.detach(), **close)
    for found, by_hand in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(found, by_hand, **close)
    alone = class_infonce(queries, labels, keys, key_labels, **options)  # without a gradient
    torch.testing.assert_close(alone, value, **close)
    least = [int((key_labels == label).sum()) for label in labels.tolist()]
    assert value >= sum(map(math.log, least)) / count - 1e-12


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("of", ["both", "queries", "keys"])
def test_first_and_second_derivatives_are_right(of: str, chunk_size: int | None) -> None:
    queries, labels, keys, key_labels = rows(5, 3, 3, of_keys=6)
    queries.requires_grad_(of != "keys")
    keys.requires_grad_(of != "queries")

    def value(queries: Tensor, keys: Tensor) -> Tensor:
        return class_infonce(
            queries, labels, keys, key_labels, temperature=0.5, chunk_size=chunk_size
        )

    assert torch.autograd.gradcheck(value, (queries, keys))
    assert torch.autograd.gradgradcheck(value, (queries, keys))


def test_a_gradient_may_be_asked_for_twice_and_is_scaled() -> None:
    queries, labels, keys, key_labels = rows(5, 3)
    queries.requires_grad_()
    value = class_infonce(queries, labels, keys, key_labels)
    (first,) = torch.autograd.grad(3 * value, queries, retain_graph=True)
    (second,) = torch.autograd.grad(value, queries)
    torch.testing.assert_close(first, 3 * second)


@pytest.mark.parametrize(
    ("dtype", "room"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_other_types_are_computed_in_float32(dtype: torch.dtype, room: float) -> None:
    queries, labels, keys, key_labels = rows(20, 4, 33, of_keys=40, dtype=dtype)
    value, *gradients = value_and_gradients(queries, labels, keys, key_labels)
    expected, *of_double = value_and_gradients(queries.double(), labels, keys.double(), key_labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for found, exact in zip(gradients, of_double, strict=True):
        assert found.dtype == dtype
        assert (found.double() - exact).norm() < room * exact.norm()


def test_autocast_does_not_round_cosines() -> None:
    given_rows = rows(20, 4, 33, of_keys=40, dtype=torch.float32)
    expected = value_and_gradients(*given_rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(*given_rows)
    assert all(map(torch.equal, found, expected))


def test_the_order_of_rows_does_not_matter() -> None:
    queries, labels, keys, key_labels = rows(30, 4, of_keys=20)
    value, of_queries, of_keys = value_and_gradients(queries, labels, keys, key_labels)
    draws = torch.Generator().manual_seed(1)
    p, q = (torch.randperm(n, generator=draws) for n in (30, 20))
    found = value_and_gradients(queries[p], labels[p], keys[q], key_labels[q], chunk_size=7)
    for one, other in zip(found, (value, of_queries[p], of_keys[q]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_strided_rows_are_those_of_their_copies() -> None:
    queries, labels, keys, key_labels = rows(8, 3, 6)
    wide = torch.stack([queries, queries + 1], dim=2)[..., 0]
    found = value_and_gradients(wide, labels, keys.T.contiguous().T, key_labels)
    expected = value_and_gradients(queries, labels, keys, key_labels)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_one_class_is_the_logarithm_of_its_keys_without_a_gradient() -> None:
    queries, _, keys, _ = rows(6, 1, of_keys=9)
    labels = torch.zeros(9, dtype=torch.int64)
    value, *gradients = value_and_gradients(queries, labels[:6], keys, labels)
    assert value.item() == pytest.approx(math.log(9), rel=1e-14)
    assert not any(each.any() for each in gradients)


def test_steps_down_the_gradient_bring_rows_to_keys_of_their_class() -> None:
    queries, labels, keys, key_labels = rows(12, 3, 8)
    keys = torch.eye(8, dtype=torch.float64)[key_labels] + 0.1 * keys
    for _ in range(50):
        _, gradient, _ = value_and_gradients(queries, labels, keys, key_labels)
        queries = queries - 2 * gradient * len(queries)
    nearest = (queries / queries.norm(dim=1, keepdim=True) @ keys.T).argmax(1)
    assert torch.equal(key_labels[nearest], labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [1e-6, 0.1, 1e6])
def test_value_and_gradients_are_finite_for_any_finite_rows(
    dtype: torch.dtype, temperature: float
) -> None:
    limits = torch.finfo(dtype)
    extremes = [0.0, limits.max, -limits.max, limits.tiny, limits.tiny * limits.eps, 1.0, -1e-30]
    queries = torch.tensor(extremes, dtype=dtype)[:, None].repeat(1, 4)
    queries[:, 1:3] *= torch.tensor([-0.5, 0.0], dtype=dtype)
    mixed = torch.tensor([limits.max, limits.tiny, 0.0, 1.0], dtype=dtype)
    keys = torch.cat([queries, mixed[None], torch.eye(4, dtype=dtype)])
    labels, key_labels = torch.arange(7) % 3, torch.arange(12) % 3
    options = {"temperature": temperature}
    found = value_and_gradients(queries, labels, keys, key_labels, **options)
    assert all(each.isfinite().all() for each in found)
    assert not found[1][0].any()  # of the row of zeros
    assert not found[2][0].any()


def test_the_length_of_a_row_changes_nothing_but_its_gradient() -> None:
    queries, labels, keys, key_labels = rows(6, 3, dtype=torch.float32)
    value, of_queries, of_keys = value_and_gradients(queries, labels, keys, key_labels)
    for factor in (2.0**-80, 2.0**100):
        found = value_and_gradients(queries * factor, labels, keys, key_labels)
        torch.testing.assert_close(found[0], value)
        torch.testing.assert_close(found[1] * factor, of_queries)
        torch.testing.assert_close(found[2], of_keys)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_not_hidden(bad: float) -> None:
    queries, labels, keys, key_labels = rows(6, 3)
    queries[2, 1] = bad
    assert class_infonce(queries, labels, keys, key_labels).isnan()


def test_no_queries_are_0_with_a_graph() -> None:
    queries, labels, keys, key_labels = rows(0, 3)
    found = value_and_gradients(queries, labels, keys, key_labels)
    assert found[0] == 0
    assert found[1].shape == queries.shape
    assert not found[2].any()


ERRORS: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "queries: expected a tensor, got list": ({"queries": [[1.0]]}, TypeError),
    r"queries: expected rows of .*\(N, M\), got shape \(4,\)": (
        {"queries": torch.ones(4)}, ValueError),
    r"keys: expected rows of at least one channel, .* got shape \(6, 0\)": (
        {"keys": torch.ones(6, 0)}, ValueError),
    "queries: expected float32, float64 or bfloat16, got float16": (
        {"queries": torch.ones(4, 3).half()}, TypeError),
    "keys: expected float32, float64 or bfloat16, got int64": (
        {"keys": torch.ones(6, 3).long()}, TypeError),
    "keys: expected a dense tensor, got one of layout sparse_coo": (
        {"keys": torch.ones(6, 3).to_sparse()}, TypeError),
    "keys: expected the queries' dtype float32, got float64": (
        {"keys": torch.ones(6, 3).double()}, TypeError),
    "keys: expected the 3 channels of the queries, got 2": (
        {"keys": torch.ones(6, 2)}, ValueError),
    "keys: expected on the queries' device cpu, got meta": (
        {"keys": torch.ones(6, 3, device="meta")}, ValueError),
    "query_labels: expected a tensor, got list": ({"query_labels": [0, 1, 0, 1]}, TypeError),
    "key_labels: expected labels of an integer dtype, got torch.float32": (
        {"key_labels": torch.ones(6)}, TypeError),
    r"key_labels: expected labels of shape \(N,\), got \(6, 1\)": (
        {"key_labels": torch.ones(6, 1).long()}, ValueError),
    "query_labels: expected one label for each of the 4 rows of queries, got 3": (
        {"query_labels": torch.zeros(3).long()}, ValueError),
    "key_labels: expected on the queries' device cpu, got meta": (
        {"key_labels": torch.zeros(6, device="meta").long()}, ValueError),
    "key_labels: expected a key of every class of the queries, got none of class -2, 7": (
        {"query_labels": torch.tensor([0, 7, 7, -2])}, ValueError),
    r"got none of class 10, .*, 17, \.\.\.$": (
        {"queries": torch.ones(9, 3), "query_labels": torch.arange(10, 19)}, ValueError),
    "temperature: expected a number, got str": ({"temperature": "1"}, TypeError),
    r"temperature: expected a number in \[1e-6, 1e6\], got 0": ({"temperature": 0}, ValueError),
    r"temperature: expected a number in .* got nan": ({"temperature": math.nan}, ValueError),
    "chunk_size: expected at least 1, got 0": ({"chunk_size": 0}, ValueError),
    "chunk_size: expected an int, got float": ({"chunk_size": 2.0}, TypeError),
}  # fmt: skip


@pytest.mark.parametrize("message", ERRORS)
def test_a_mistake_is_named(message: str) -> None:
    changes, error = ERRORS[message]
    arguments: dict[str, Any] = {
        "queries": torch.ones(4, 3),
        "query_labels": torch.tensor([0, 1, 0, 1]),
        "keys": torch.ones(6, 3),
        "key_labels": torch.arange(6) % 2,
    }
    with pytest.raises(error, match=message):
        class_infonce(**{**arguments, **changes})


def test_transforms_of_torch_func_are_refused() -> None:
    queries, labels, keys, key_labels = rows(4, 2)
    with pytest.raises(RuntimeError, match=r"queries: torch\.func\.grad, vjp, .* are refused"):
        torch.func.grad(lambda z: class_infonce(z, labels, keys, key_labels))(queries)
    with pytest.raises(RuntimeError, match=r"queries: torch\.func\.vmap is refused"):
        torch.vmap(lambda z: class_infonce(z, labels, keys, key_labels))(queries[None])


# What the pairs of all rows would take is far more than what a call may.
MEASURE = """
import sys, torch
from cmikernels import class_infonce
torch.set_num_threads(1)

def peak():  # bytes; ru_maxrss would start at the parent's
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if "VmHWM" in line) * 1024

def call(count, chunk_size):
    queries, keys = (torch.randn(count, 8, requires_grad=True) for _ in range(2))
    labels = torch.arange(count) % 10
    value = class_infonce(queries, labels, keys, labels, chunk_size=chunk_size)
    torch.autograd.grad(value, (queries, keys))

call(20, None)  # whatever is loaded at first use
before = peak()
call(4096, 64)
of_chunks = peak() - before
call(4096, None)
of_default = peak() - before
call(4096, 4096)
print(of_chunks, of_default, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_a_chunk() -> None:
    command = [sys.executable, "-c", MEASURE]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    of_chunks, of_default, of_all = map(int, finished.stdout.split())
    pairs = 4 * 4096**2
    assert of_all > 2 * pairs, "the measurement missed the pairs, so it proves nothing"
    assert of_chunks < pairs / 4
    assert of_default < pairs
