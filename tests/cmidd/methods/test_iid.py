from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.plain.cmi import PlainCMI
from bench.plain.iid import PlainIID
from bench.plain.inputs import random_dataset, save_each, untrained_bank, write_bank
from cmidd.datasets import Dataset
from cmidd.methods import dm, iid
from cmidd.methods.dm import DM
from cmidd.methods.iid import IID, class_covariances, distance_to_centres
from cmidd.networks import freeze
from cmidd.options.dm import DMOptions
from cmidd.options.iid import IIDOptions
from cmidd.seeds import generator
from cmikernels import CMIRegularizer
from tests.support.compare import relative_error
from tests.support.steps import step
from tests.support.tiny import CPU

RAGGED = (7, 12, 4, 9, 6)  # real images of each class; batches of 8 take all of some
NETWORK = "convnet:depth=2,width=8"
BANK = "resnet18:width=4"
DSA = IIDOptions().augmentation
SEED, ITERATION = 3, 5
WEIGHT = 100.0  # of CMI
# With these each of the three terms is a good part of the loss and of its gradient.
WEIGHTS: dict[str, Any] = {"covariance_weight": 1.0, "centre_weight": 0.5}


@pytest.fixture(scope="module")
def bank(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("iid") / "bank.safetensors"
    write_bank(path, real_images(), BANK)
    return path


def real_images() -> Dataset:
    return random_dataset(RAGGED, 16)


def options_of(bank: Path | None, **changes: Any) -> IIDOptions:
    standard = IIDOptions(network=NETWORK, batch_real=8, centre_bank=bank, **WEIGHTS)
    return replace(standard, **changes)


def labels_of(counts: int | Sequence[int]) -> Tensor:
    of_classes = [counts] * len(RAGGED) if isinstance(counts, int) else counts
    return torch.arange(len(RAGGED)).repeat_interleave(torch.tensor(of_classes))


def images_of(counts: int | Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    shape = (len(labels_of(counts)), 3, 16, 16)
    return torch.randn(shape, generator=generator("synthetic", str(counts))).to(dtype)


def ours(
    bank: Path | None,
    counts: int | Sequence[int] = 2,
    dtype: torch.dtype = torch.float64,
    **changes: Any,
) -> IID:
    return IID(real_images(), labels_of(counts), options_of(bank, **changes), SEED, CPU, dtype)


def plain(
    bank: Path,
    counts: int | Sequence[int],
    dtype: torch.dtype,
    cmi: PlainCMI | None = None,
    **changes: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    options = options_of(bank, **changes)
    loop = PlainIID(real_images(), labels_of(counts), options, SEED, CPU, dtype, cmi=cmi)
    return loop.step(images_of(counts, dtype), ITERATION)


def regularizer() -> CMIRegularizer:
    networks = untrained_bank(BANK, 16, len(RAGGED))
    return CMIRegularizer([freeze(n.double()) for n in networks], WEIGHT, seed=SEED, chunk_size=20)


@pytest.mark.parametrize("augmentation", ["none", DSA])
@pytest.mark.parametrize("counts", [1, 10, (3, 1, 20, 2, 5)])
def test_a_step_is_the_plain_loops_in_float64(
    counts: int | Sequence[int], augmentation: str, bank: Path
) -> None:
    loop = ours(bank, counts, augmentation=augmentation)
    got = step(loop, images_of(counts), ITERATION)
    expected = plain(bank, counts, torch.float64, augmentation=augmentation)
    assert relative_error(got[0], expected[0]) < 1e-10
    assert relative_error(got[1], expected[2]) < 1e-10


def test_with_cmi_a_step_is_the_plain_loops_too(bank: Path, tmp_path: Path) -> None:
    files = save_each(untrained_bank(BANK, 16, len(RAGGED)), tmp_path)
    cmi = PlainCMI(files, BANK, WEIGHT, regularizer().draw)
    loss, value, expected = plain(bank, 10, torch.float64, cmi)
    images = images_of(10)
    ours_alone, gradient = step(ours(bank, 10), images, ITERATION)
    of_cmi = regularizer()(images.requires_grad_(), labels_of(10), step=ITERATION)
    gradient += torch.autograd.grad(of_cmi, images)[0]
    assert relative_error(ours_alone + of_cmi, loss + value) < 1e-10
    assert relative_error(gradient, expected) < 1e-10


@pytest.mark.parametrize("counts", [1, 10, 50])
def test_a_step_in_float32_is_near_the_plain_loops_in_float64(counts: int, bank: Path) -> None:
    got = step(ours(bank, counts, torch.float32), images_of(counts, torch.float32), ITERATION)
    expected = plain(bank, counts, torch.float64)
    assert relative_error(got[0], expected[0]) < 1e-5
    assert relative_error(got[1], expected[2]) < 1e-2


def test_every_term_is_a_part_of_the_gradient(bank: Path) -> None:
    whole = step(ours(bank), images_of(2), ITERATION)[1]
    for weight in WEIGHTS:
        changes: dict[str, Any] = {weight: 0.0}
        without = step(ours(bank, **changes), images_of(2), ITERATION)[1]
        assert relative_error(without, whole) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_its_weights_it_is_dm_and_needs_no_bank(dtype: torch.dtype) -> None:
    loop = ours(None, 10, dtype, covariance_weight=0, centre_weight=0)
    assert loop.input_records == {}
    of_dm = DMOptions(network=NETWORK, batch_real=8)
    expected = DM(real_images(), labels_of(10), of_dm, SEED, CPU, dtype)
    images = images_of(10, dtype)
    assert all(map(torch.equal, step(loop, images, 0), step(expected, images, 0)))


def test_one_image_per_class_moves_as_by_dm_and_needs_no_bank() -> None:
    of_dm = DM(real_images(), labels_of(1), DMOptions(NETWORK, batch_real=8), SEED, CPU)
    images = images_of(1, torch.float32)
    loss, gradient = step(ours(None, 1, torch.float32), images, 0)
    expected = step(of_dm, images, 0)
    assert torch.equal(gradient, expected[1])
    assert loss > expected[0]  # the covariance of the real images, which one image has nothing of


@pytest.mark.parametrize("counts", [2, (3, 1, 20, 2, 5)])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_size_of_chunks_changes_nothing(
    chunk: int, counts: int | Sequence[int], bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, gradient = step(ours(bank, counts), images_of(counts), 0)
    for module in (dm, iid):
        monkeypatch.setattr(module, "images_per_chunk", lambda *_: chunk)
    got = step(ours(bank, counts), images_of(counts), 0)
    assert relative_error(got[0], loss) < 1e-12
    assert relative_error(got[1], gradient) < 1e-12


def test_a_step_depends_on_its_draws_alone(bank: Path) -> None:
    images = images_of(2)
    loss, gradient = step(ours(bank), images, 7)
    used = ours(bank)
    step(used, images, 0)
    again = step(used, images, 7)
    assert torch.equal(again[0], loss)
    assert torch.equal(again[1], gradient)


def test_all_networks_of_the_bank_are_drawn(bank: Path) -> None:
    loop = ours(bank)
    assert {loop.draw(iteration, 0).centre_network for iteration in range(10)} == {0, 1, 2}


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    channels=st.integers(1, 4),
    positions=st.integers(1, 4),
    seed=st.integers(0, 100),
    shift=st.floats(-100, 100),
)
def test_statistics_are_sums_over_pairs_of_images_whatever_all_have_in_common(
    counts: list[int], channels: int, positions: int, seed: int, shift: float
) -> None:
    shape = (sum(counts), channels * positions)
    z = torch.randn(shape, generator=generator("features", seed)).double()
    covariances, distance = [], torch.zeros((), dtype=torch.float64)
    for part in torch.split(z, counts):
        pairs = [a - b for a, b in itertools.product(part, part)]
        products = [(p := pair.view(channels, positions)) @ p.T for pair in pairs]
        covariances.append(torch.stack(products).sum(0) / (2 * len(part) ** 2))
        distance += torch.stack(pairs).square().sum() / (2 * len(part))
    moved = z + shift
    found = class_covariances(moved, counts, channels)
    torch.testing.assert_close(found, torch.stack(covariances), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(distance_to_centres(moved, counts), distance, rtol=1e-9, atol=1e-9)


def test_bfloat16_on_the_real_branch_moves_what_is_matched_little() -> None:
    sizes = [32] * len(RAGGED)
    found = []
    for real_dtype in ("float32", "bfloat16"):
        options = options_of(None, network="convnet:depth=2,width=32", batch_real=32,
                             real_dtype=real_dtype, centre_weight=0)  # fmt: skip
        loop = IID(random_dataset(sizes, 32), labels_of(2), options, SEED, CPU)
        draws = loop.draw(0, 0)
        loop.load_network(draws.weights)
        found.append(loop.real_statistics(loop.plan(draws).real, sizes))
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < relative_error(rounded, exact) < 5e-3


def test_a_bank_is_asked_for_where_there_is_a_centre() -> None:
    with pytest.raises(ValueError, match=r"^centre_bank: expected the file of a bank.* is 0\.5; "):
        ours(None)


def test_a_bank_of_other_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    write_bank(path, random_dataset(RAGGED[:4], 16), BANK)
    with pytest.raises(ValueError, match=r"^centre_bank: .*: expected num_classes 5 .*, got 4"):
        ours(path)


def test_covariances_are_of_maps() -> None:
    changes: dict[str, Any] = {"network": "mlp", "centre_weight": 0}
    with pytest.raises(ValueError, match=r"^network: expected one whose embedding is of maps"):
        ours(None, **changes)
    loss, _ = step(ours(None, **changes, covariance_weight=0), images_of(2), 0)
    assert loss > 0


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_not_negative(name: str) -> None:
    negative: dict[str, Any] = {name: -1.0}
    with pytest.raises(ValueError, match=f"^{name}: expected at least 0, got -1"):
        IIDOptions(**negative)
