from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmidd.datasets import Dataset, ImageSet, load_dataset, whitening
from cmidd.datasets.whitening import EPS, Whitening
from cmidd.first_images import first_images
from cmidd.pretrained.bank import Bank
from cmidd.report.features import LoadedBank, feature_parts
from cmidd.report.runs import read_runs
from cmidd.seeds import generator
from cmidd.storage.run_folder import KIND as CHECKPOINT
from cmidd.storage.tensor_file import write_tensors
from cmidd.synthetic import SyntheticSet
from tests.support.report_files import make_dataset, make_run
from tests.support.tiny import CPU, tiny_bank, tiny_dataset

DATASET = tiny_dataset()
WHITENED = DATASET.whitened()


def random_dataset(count: int, channels: int, height: int, width: int) -> Dataset:
    """Random images, neighbours alike, of one class, with unequal means and deviations."""
    rough = torch.rand(count, channels, height, width, generator=generator("whitening", count))
    images = (255 * (rough + rough.roll(1, 3)) / 2).to(torch.uint8)
    split = ImageSet.from_arrays(images, torch.zeros(count, dtype=torch.int64), 1)
    statistics = (0.5, 0.4, 0.3)[:channels], (0.1, 0.2, 0.3)[:channels]
    return Dataset("random", split, split, ("a",), *statistics, mirror=True)


def covariance_of(rows: Tensor) -> Tensor:
    """(D, D), in float64 and all at once."""
    centred = rows.double() - rows.double().mean(0)
    return centred.T @ centred / len(rows)


def root_of(covariance: Tensor, eps: float, power: float) -> Tensor:
    """(S + eps)^power in the eigenbasis."""
    values, basis = torch.linalg.eigh(covariance)
    root: Tensor = basis @ torch.diag((values + eps) ** power) @ basis.T
    return root


def rows_of(dataset: Dataset) -> Tensor:
    return dataset.to_input(dataset.train.images, torch.float64).flatten(1)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 4, 4), (3, 3, 5), (3, 1, 1)])
@pytest.mark.parametrize("eps", [EPS, 1e-3])
def test_variances_of_whitened_images_are_s_over_s_plus_eps(
    channels: int, height: int, width: int, eps: float
) -> None:
    dataset = random_dataset(300, channels, height, width)
    variances, basis = torch.linalg.eigh(covariance_of(rows_of(dataset)))
    whitened = rows_of(dataset.whitened(eps))
    torch.testing.assert_close(
        basis.T @ covariance_of(whitened) @ basis,
        torch.diag(variances / (variances + eps)),
        rtol=1e-5,
        atol=1e-5,
    )
    torch.testing.assert_close(
        whitened.mean(0), torch.zeros(len(variances)).double(), atol=1e-5, rtol=0
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.sampled_from([1, 3]), st.integers(1, 4), st.integers(1, 4))
def test_whitening_is_the_formula_in_float64_for_all_shapes(
    count: int, channels: int, height: int, width: int
) -> None:
    dataset = random_dataset(count, channels, height, width)
    rows = rows_of(dataset)
    found, mean_std = dataset.whitened(), sum(dataset.std) / channels
    expected = (rows - rows.mean(0)) @ root_of(covariance_of(rows), EPS / mean_std**2, -0.5)
    inputs = found.to_input(dataset.train.images, torch.float64)
    assert inputs.shape == dataset.train.images.shape
    torch.testing.assert_close(inputs.flatten(1), expected, rtol=1e-5, atol=1e-5)
    back = found.to_pixels(inputs)
    assert torch.equal((255 * back).round().byte(), dataset.train.images)


def test_whitening_is_that_of_pixels_from_0_to_1_as_published() -> None:
    dataset = replace(random_dataset(200, 3, 3, 3), std=(0.2, 0.2, 0.2))
    pixels = dataset.train.images.flatten(1).double() / 255
    expected = (pixels - pixels.mean(0)) @ root_of(covariance_of(pixels), 0.1, -0.5)
    found = rows_of(dataset.whitened())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 1024])
def test_sums_are_exact_whatever_the_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_dataset(600, 1, 5, 5).train.images
    images[:, 0, 0] = 255
    rows = images.flatten(1).long() - 128
    monkeypatch.setattr(whitening, "_BATCH", batch)
    total, products = whitening._sums(images)
    assert torch.equal(total.long(), rows.sum(0))
    assert torch.equal(products.long(), rows.T @ rows)


def test_a_batch_of_the_largest_products_is_added_without_rounding() -> None:
    images = torch.zeros(whitening._BATCH, 1, 1, 2, dtype=torch.uint8)  # 128 below grey
    images[0, 0, 0, 0] = 127
    _, products = whitening._sums(images)
    assert products.tolist() == [
        [1023 * 128**2 + 1, 1023 * 128**2 + 128],
        [1023 * 128**2 + 128, 2**24],
    ]


def test_whitening_is_the_same_with_more_threads() -> None:
    images = random_dataset(600, 3, 8, 8).train.images
    alone = whitening._sums(images)
    torch.set_num_threads(2)
    try:
        together = whitening._sums(images)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_pixels_that_never_change_stay_finite_and_come_back() -> None:
    digits = load_dataset("digits")
    flat = digits.train.images.flatten(1)
    constant = (flat == flat[0]).all(0)
    assert constant.any()
    found = digits.whitened()
    inputs = found.to_input(digits.train.images)
    assert inputs.isfinite().all()
    assert inputs.flatten(1)[:, constant].abs().max() < 1e-5
    assert torch.equal((255 * found.to_pixels(inputs)).round().byte(), digits.train.images)
    white = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    assert torch.equal((255 * found.to_pixels(found.to_input(white))).round().byte(), white)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_whitened_inputs_have_the_dtype_that_was_asked_for(dtype: torch.dtype) -> None:
    inputs = WHITENED.to_input(DATASET.test.images, dtype)
    assert inputs.dtype == dtype
    expected = WHITENED.to_input(DATASET.test.images, torch.float64)
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(inputs.double(), expected, rtol=tolerance, atol=tolerance)


def test_batches_and_starts_are_whitened() -> None:
    images = torch.cat([batch for batch, _ in WHITENED.batches(DATASET.test, CPU, 7)])
    torch.testing.assert_close(images, WHITENED.to_input(DATASET.test.images), rtol=0, atol=1e-5)
    started, _ = first_images(WHITENED, 2, "real", 0)
    plain, _ = first_images(DATASET, 2, "real", 0)
    torch.testing.assert_close(WHITENED.to_pixels(started), DATASET.to_pixels(plain))
    assert (started - plain).abs().max() > 0.1


def test_images_too_large_to_whiten_are_refused_at_once() -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"zca: .* at most 4,096 numbers, got 12,288.* 0\.6 GB"):
        Whitening.of(images, (0.5,) * 3, (0.2,) * 3, EPS)


@pytest.mark.parametrize("eps", [0, -1.0, float("nan"), float("inf")])
def test_an_eps_that_is_not_above_0_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match="zca: expected an eps above 0"):
        DATASET.whitened(eps)


def test_a_whitening_of_other_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tiny: whitening .* of \(3, 8, 8\), got .* 64 numbers"):
        replace(tiny_dataset(channels=3), whitening=WHITENED.whitening)
    assert WHITENED.whitening is not None
    with pytest.raises(ValueError, match=r"must have 64 numbers each, .* got \(2, 1, 4, 4\)"):
        WHITENED.whitening.apply(torch.zeros(2, 1, 4, 4))


# --- what was made from whitened images serves whitened images alone


def test_only_whitened_images_are_described_as_such() -> None:
    assert "zca" not in DATASET.describe()  # the bytes of files from before stay as they are
    assert WHITENED.describe() == {**DATASET.describe(), "zca": 1.6}


@pytest.mark.parametrize(
    ("dataset", "made_from", "message"),
    [
        (
            DATASET,
            WHITENED,
            r"expected images without whitening \(zca\) as tiny has them, got one made with",
        ),
        (
            WHITENED,
            DATASET,
            r"expected images with whitening \(zca\) as tiny has them, got one made without",
        ),
        (WHITENED, DATASET.whitened(0.2), r"expected zca 1\.6 as tiny has it, got 0\.2"),
    ],
    ids=["whitened for plain", "plain for whitened", "another eps"],
)
def test_what_was_made_in_another_space_is_refused(
    dataset: Dataset, made_from: Dataset, message: str, tmp_path: Path
) -> None:
    tiny_bank(tmp_path / "bank", made_from, networks=1, epochs=1)
    with pytest.raises(ValueError, match=message):
        dataset.check_made_for(Bank.load(tmp_path / "bank", CPU).record, "bank")
    SyntheticSet.of(made_from, *first_images(made_from, 1, "real", 0)).save(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        first_images(dataset, 1, f"file:{tmp_path / 'set'}", 0)


@pytest.mark.parametrize("dataset", [DATASET, WHITENED], ids=["plain", "whitened"])
def test_what_was_made_in_the_same_space_is_taken(dataset: Dataset, tmp_path: Path) -> None:
    bank = tiny_bank(tmp_path / "bank", dataset, networks=1, epochs=1)
    dataset.check_made_for(bank.record, "bank")
    images, labels = first_images(dataset, 1, "real", 0)
    SyntheticSet.of(dataset, images, labels).save(tmp_path / "set")
    assert torch.equal(first_images(dataset, 1, f"file:{tmp_path / 'set'}", 0)[0], images)


def test_records_from_before_whitening_are_of_plain_images() -> None:
    before = {k: v for k, v in DATASET.describe().items() if k != "zca"}
    DATASET.check_made_for(before, "bank")
    DATASET.check_made_for({**before, "zca": None}, "bank")
    with pytest.raises(ValueError, match=r"expected images with whitening \(zca\)"):
        WHITENED.check_made_for(before, "bank")


# --- reports


def a_run(path: Path, dataset: Dataset, *, finished: bool) -> Path:
    """A run on real images, of which the configuration says whether they are whitened."""
    make_run(path, replace(dataset, whitening=None), finished=False)
    config = path / "config.yaml"
    config.write_text(config.read_text() + f"zca: {dataset.whitening is not None}\n")
    images, labels = first_images(dataset, 2, "real", 0)
    SyntheticSet.of(dataset, images, labels).save(path / "result.safetensors")
    if not finished:
        write_tensors(
            path / "checkpoint.safetensors", CHECKPOINT, {"images": images}, {"iteration": 5}
        )
        (path / "result.safetensors").unlink()
    return path


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "going on"])
def test_a_report_shows_the_pixels_of_whitened_runs(tmp_path: Path, finished: bool) -> None:
    dataset = make_dataset(tmp_path)
    run = a_run(tmp_path / "run", dataset.whitened(), finished=finished)
    (read,), _ = read_runs([run], with_dataset=False)
    expected = dataset.to_pixels(first_images(dataset, 2, "real", 0)[0])
    torch.testing.assert_close(read.synthetic.pixels(), expected, rtol=0, atol=1e-4)


def test_a_report_shows_real_images_to_the_bank_as_runs_were_whitened(tmp_path: Path) -> None:
    whitened = make_dataset(tmp_path).whitened()
    run = a_run(tmp_path / "run", whitened, finished=True)
    runs, dataset = read_runs([run], with_dataset=True)
    assert dataset is not None
    images = dataset.test.images
    assert torch.equal(dataset.to_input(images), whitened.to_input(images))
    tiny_bank(tmp_path / "bank", whitened, networks=1, epochs=1)
    assert "t-SNE" in feature_parts(runs, LoadedBank.load(tmp_path / "bank", dataset, CPU))
    tiny_bank(tmp_path / "plain", replace(whitened, whitening=None), networks=1, epochs=1)
    with pytest.raises(ValueError, match=r"plain: expected images with whitening \(zca\) as"):
        LoadedBank.load(tmp_path / "plain", dataset, CPU)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "going on"])
@pytest.mark.parametrize("first", ["plain", "whitened"])
def test_a_report_of_runs_in_two_spaces_is_refused(
    tmp_path: Path, finished: bool, first: str
) -> None:
    dataset = make_dataset(tmp_path)
    runs = {
        "plain": a_run(tmp_path / "plain", dataset, finished=finished),
        "whitened": a_run(tmp_path / "whitened", dataset.whitened(), finished=finished),
    }
    order = sorted(runs, key=lambda name: name != first)
    with pytest.raises(ValueError, match=r"runs: expected zca .* make a report for each"):
        read_runs([runs[name] for name in order], with_dataset=False)
