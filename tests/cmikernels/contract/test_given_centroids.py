"""Given centroids are probabilities, which is read once for each tensor and not for ever."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, class_centroids, cmi_value_and_grad, fused_cmi, probabilities
from tests.support.tables import make_features, make_labels, make_probabilities

LABELS = make_labels((4, 1, 6), shuffle_seed=0)
FEATURES = make_features(11, 8)
FUNCTIONS = [fused_cmi, cmi_value_and_grad]
EVEN = torch.full((3, 8), 1 / 8)


@pytest.fixture(autouse=True)
def _nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probabilities, "_reads", Counter())


def changed(row: int, column: int, value: float) -> Tensor:
    centroids = EVEN.clone()
    centroids[row, column] = value
    return centroids


NO_PROBABILITIES = {
    "means of features": (
        make_features((3, 4), 8).abs().mean(1) * 9,
        r"got a row that sums to .*; were features averaged, not their softmax\? class_centroids",
    ),
    "negative means of features": (make_features((3, 4), 8).mean(1), "got an entry of -"),
    "one negative entry": (changed(1, 2, -0.125), r"got an entry of -0\.125;"),
    "a sum too large": (changed(2, 0, 0.15), r"with the sum 1 \(within 0\.01\), got .* to 1\.025;"),
    "a sum too small": (changed(2, 0, 0.1), r"got a row that sums to 0\.975;"),
    "inf": (changed(0, 0, torch.inf), "got a row that sums to inf;"),
    "a negative entry beside NaN": (
        changed(1, 0, -1.0).index_fill(0, torch.tensor(0), torch.nan),
        "got an entry of -1;",
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("what", NO_PROBABILITIES)
def test_what_is_no_probability_is_refused(what: str, function: Callable[..., Any]) -> None:
    centroids, message = NO_PROBABILITIES[what]
    with pytest.raises(ValueError, match=f"centroids: expected probabilities.*{message}"):
        function(FEATURES, LABELS, centroids=centroids)


def test_groups_with_a_leading_axis_are_checked_too() -> None:
    centroids = EVEN.repeat(2, 1, 1)
    fused_cmi(make_features((2, 3, 4), 8), centroids=centroids)
    centroids[1, 2, 3] = 1.0
    with pytest.raises(ValueError, match=r"a row that sums to 1\.875"):
        fused_cmi(make_features((2, 3, 4), 8), centroids=centroids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("channels", [1, 10, 100_000])
def test_probabilities_of_every_dtype_are_taken(dtype: torch.dtype, channels: int) -> None:
    centroids = make_probabilities((3, channels)).to(dtype)
    assert fused_cmi(make_features(11, channels), LABELS, centroids=centroids).isfinite()


def test_means_made_in_bfloat16_are_taken() -> None:
    rows = make_features((3, 50), 2048).bfloat16().softmax(-1)
    assert fused_cmi(make_features(11, 2048), LABELS, centroids=rows.mean(1)).isfinite()


def test_a_class_without_rows_may_have_zeros() -> None:
    centroids = class_centroids(FEATURES, LABELS.clamp_max(1), num_classes=3)
    assert not centroids[2].any()
    assert fused_cmi(FEATURES, LABELS.clamp_max(1), centroids=centroids).isfinite()


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS.to(torch.uint16), LABELS.to(torch.int8)], ids=str
)
def test_too_few_centroids_for_the_labels_are_what_is_blamed(labels: Tensor) -> None:
    message = (
        r"centroids: expected a row for each of the 3 classes of the labels \(or more\), got 2"
    )
    for function in FUNCTIONS:
        with pytest.raises(ValueError, match=message):
            function(FEATURES, labels, centroids=EVEN[:2])
    compiled = torch.compile(
        lambda z, y, q: fused_cmi(z, y, centroids=q), backend="eager", fullgraph=True
    )
    with pytest.raises(ValueError, match=message):
        compiled(FEATURES, labels, EVEN[:2])


def test_a_negative_label_is_blamed_beside_centroids() -> None:
    with pytest.raises(ValueError, match=r"classes: labels must lie in .*, got -1"):
        fused_cmi(FEATURES, LABELS - 1, centroids=EVEN)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every tensor whose numbers are read."""
    seen: list[Tensor] = []
    read = probabilities._read

    def noting(centroids: Tensor) -> None:
        seen.append(centroids)
        read(centroids)

    monkeypatch.setattr(probabilities, "_read", noting)
    return seen


def test_a_tensor_is_read_once(reads: list[Tensor]) -> None:
    centroids, index = EVEN.clone(), ClassIndex(LABELS)
    for _ in range(3):
        fused_cmi(FEATURES, index, centroids=centroids)
        cmi_value_and_grad(FEATURES, index, centroids=centroids)
    assert len(reads) == 1


def test_a_tensor_that_was_changed_is_read_again(reads: list[Tensor]) -> None:
    centroids = EVEN.clone()
    fused_cmi(FEATURES, LABELS, centroids=centroids)
    centroids[0, 0] = 5
    with pytest.raises(ValueError, match="a row that sums to 5"):
        fused_cmi(FEATURES, LABELS, centroids=centroids)
    assert len(reads) == 2


def test_rows_of_a_tensor_that_was_read_are_not_read(reads: list[Tensor]) -> None:
    whole = EVEN.repeat(4, 1, 1)
    probabilities.check_probabilities(whole)
    for part in (whole[2], whole[1, :2], whole[:, 1:], whole[::2], whole[3][None]):
        probabilities.check_call(part)
    assert len(reads) == 1


def test_other_views_of_a_tensor_that_was_read_are_read(reads: list[Tensor]) -> None:
    whole = EVEN.repeat(4, 1, 1)
    probabilities.check_probabilities(whole)
    for view in (whole[..., :4], whole.view(-1), whole[0, :, 0], whole[0].T):
        with pytest.raises(ValueError, match="a row that sums to"):
            probabilities.check_call(view)
    probabilities.check_call(whole.as_strided((4, 8), (8, 1), 4))  # rows across two rows
    assert len(reads) == 1 + 4 + 1


def test_a_loop_with_a_new_tensor_in_every_step_stops_reading(reads: list[Tensor]) -> None:
    average = EVEN.clone()
    for _ in range(probabilities.MOST_READS + 5):
        average.lerp_(EVEN, 0.1)
        fused_cmi(FEATURES, LABELS, centroids=average)
        cmi_value_and_grad(FEATURES, LABELS, centroids=average)
    assert len(reads) == probabilities.MOST_READS
    other_shape = make_features((3, 4), 8).mean(1)[:, :5]
    with pytest.raises(ValueError, match="got an entry of -"):
        fused_cmi(FEATURES[:, :5], LABELS, centroids=other_shape)


def test_a_tensor_of_inference_mode_is_read_every_time(reads: list[Tensor]) -> None:
    with torch.inference_mode():
        centroids = EVEN.clone()
    for _ in range(2):
        fused_cmi(FEATURES, LABELS, centroids=centroids)
    assert len(reads) == 2


def test_tensors_that_are_gone_are_forgotten() -> None:
    gc.collect()
    before = len(probabilities._good)
    for _ in range(3):
        fused_cmi(FEATURES, LABELS, centroids=EVEN.clone())
    gc.collect()
    assert len(probabilities._good) == before
