"""ClassIndex: rows sorted by class, built and checked once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from cmikernels import ClassIndex, fused_cmi
from tests.support.tables import (
    BACKENDS,
    CLASS_SIZES,
    DEVICE_OF,
    DEVICES,
    INTEGERS,
    make_features,
    make_labels,
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shuffle_seed", [None, 0], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("sizes", CLASS_SIZES.values(), ids=CLASS_SIZES)
def test_order_and_offsets_list_each_class(
    sizes: tuple[int, ...], shuffle_seed: int | None, device: str
) -> None:
    labels = make_labels(sizes, shuffle_seed)
    index = ClassIndex(labels.to(device), len(sizes))
    assert index.device.type == device
    assert index.largest == max(sizes)
    order = torch.arange(len(labels)) if index.order is None else index.order.cpu()
    assert sorted(order.tolist()) == list(range(len(labels)))
    offsets = index.offsets.tolist()
    for y, (begin, end) in enumerate(pairwise(offsets)):
        assert order[begin:end].tolist() == (labels == y).nonzero().flatten().tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_sorted_labels_need_no_order(device: str) -> None:
    assert ClassIndex(make_labels((3, 0, 4)).to(device)).order is None
    assert ClassIndex(torch.tensor([0, 2, 1], device=device)).order is not None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_dtype_gives_int64_parts(dtype: torch.dtype, device: str) -> None:
    index = ClassIndex(torch.tensor([2, 0, 1, 2]).to(dtype).to(device))
    assert index.labels.dtype == index.offsets.dtype == torch.int64
    assert index.order is not None
    assert index.order.dtype == torch.int64
    assert index.counts().tolist() == [1, 1, 2]


@pytest.mark.parametrize("device", DEVICES)
def test_strided_labels(device: str) -> None:
    labels = torch.tensor([[0, 9], [1, 9], [0, 9], [2, 9]], device=device)[:, 0]
    assert ClassIndex(labels).counts().tolist() == [2, 1, 1]


def test_number_of_classes_defaults_to_the_largest_label_and_one() -> None:
    assert ClassIndex(torch.tensor([0, 5, 3])).num_classes == 6


def test_classes_beyond_the_largest_label_are_empty() -> None:
    index = ClassIndex(torch.tensor([0, 1]), 4)
    assert index.num_classes == 4
    assert index.counts().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_no_labels_make_an_index_without_rows(device: str) -> None:
    index = ClassIndex(torch.empty(0, dtype=torch.int64, device=device), 3)
    assert (index.num_rows, index.num_classes) == (0, 3)
    assert index.offsets.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_labels_changed_afterwards_do_not_change_the_index(device: str) -> None:
    labels = torch.tensor([1, 0, 1], device=device)
    index = ClassIndex(labels)
    labels.fill_(0)
    assert index.labels.tolist() == [1, 0, 1]
    assert index.counts().tolist() == [1, 2]


def test_labels_are_not_modified() -> None:
    labels = torch.tensor([1, 0, 1])
    ClassIndex(labels)
    assert labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("origin", DEVICES)
def test_moving_keeps_everything(origin: str, device: str) -> None:
    index = ClassIndex(torch.tensor([1, 0, 1], device=origin)).to(device)
    assert index.device.type == device
    assert index.labels.tolist() == [1, 0, 1]
    assert index.order is not None
    assert index.order.tolist() == [1, 0, 2]
    assert index.largest == 2
    assert index.offsets.tolist() == [0, 1, 3]
    assert (index.num_rows, index.num_classes) == (3, 2)


def test_repr_says_what_it_holds() -> None:
    assert repr(ClassIndex(torch.tensor([1, 0, 1]))) == (
        "ClassIndex(num_rows=3, num_classes=2, gathered, device='cpu')"
    )
    assert "sorted" in repr(ClassIndex(torch.tensor([0, 1, 1])))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_index_serves_many_features(backend: str) -> None:
    labels = make_labels((3, 5, 0, 2), shuffle_seed=0)
    index = ClassIndex(labels).to(DEVICE_OF[backend])
    for seed in range(3):
        features = make_features(10, 7, seed=seed).to(DEVICE_OF[backend])
        by_index = fused_cmi(features, index, backend=backend)
        assert torch.equal(by_index, fused_cmi(features, labels.to(index.device), backend=backend))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1], TypeError, r"classes: expected a tensor of labels or a ClassIndex, got list"),
        (torch.zeros(3), TypeError, r"classes: expected labels of an integer dtype, got .*float32"),
        (torch.zeros(3).bool(), TypeError, r"classes: .*integer dtype, got .*bool"),
        (torch.zeros(3, 1).int(), ValueError, r"classes: .*shape \(N,\), got \(3, 1\)"),
        (torch.tensor(3), ValueError, r"classes: .*shape \(N,\), got \(\)"),
    ],
    ids=["list", "float", "bool", "matrix", "scalar"],
)
def test_labels_that_cannot_be_labels(labels: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ClassIndex(labels, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -2], r"classes: .*\[0, num_classes\).*, got -2"),
        ([0, 7], r"classes: .*= \[0, 3\), got 7"),
    ],
    ids=["negative", "too large"],
)
def test_labels_out_of_range_are_refused(labels: list[int], message: str, device: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassIndex(torch.tensor(labels, device=device), 3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_label_beyond_int64_is_refused(device: str) -> None:
    labels = torch.tensor([0, 2**63 + 5], dtype=torch.uint64).to(device)
    with pytest.raises(ValueError, match="classes: labels must lie in"):
        ClassIndex(labels, 3)


@pytest.mark.parametrize(
    ("num_classes", "error", "message"),
    [
        (2.0, TypeError, r"num_classes: expected an int, got float"),
        (True, TypeError, r"num_classes: expected an int, got bool"),
        (0, ValueError, r"num_classes: expected at least 1, got 0"),
        (-1, ValueError, r"num_classes: expected at least 1, got -1"),
    ],
)
def test_numbers_of_classes_that_cannot_be(
    num_classes: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ClassIndex(torch.tensor([0]), num_classes)  # type: ignore[arg-type]


@pytest.mark.parametrize("shuffle_seed", [None, 0], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("sizes", CLASS_SIZES.values(), ids=CLASS_SIZES)
def test_the_index_is_the_same_without_the_native_core(
    sizes: tuple[int, ...], shuffle_seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = make_labels(sizes, shuffle_seed)
    with_core = ClassIndex(labels, len(sizes))
    monkeypatch.setattr("cmikernels.class_index.native", None)
    without = ClassIndex(labels, len(sizes))
    assert with_core.offsets.tolist() == without.offsets.tolist()
    assert (with_core.order is None) == (without.order is None)
    if with_core.order is not None and without.order is not None:
        assert with_core.order.tolist() == without.order.tolist()
