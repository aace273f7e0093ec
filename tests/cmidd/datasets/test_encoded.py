"""Pictures that stay encoded give what all would, decoded, and no more are than are used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd import ranks
from cmidd.cli import main
from cmidd.datasets import Dataset, encoded, load_dataset
from cmidd.datasets.pictures import decode
from cmidd.datasets.streamed import StreamedImages, one_after_another, read_once, taken
from cmidd.loop import distill
from cmidd.options.pretrained import BankOptions
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.run import prepare
from cmidd.score import score_batches, train_batches
from cmidd.seeds import generator
from cmidd.synthetic import SyntheticSet
from tests.support.dataset_files import (
    Sets,
    Split,
    random_sets,
    save_image,
    smooth,
    write_tinyimagenet,
    write_tree,
)
from tests.support.ranks import on_ranks
from tests.support.tiny import CPU, DM_OPTIONS, NETWORK, OPTIONS, quiet

CLASSES, PER_CLASS, SIDE = 4, 6, 8
ONE_IMAGE = 3 * SIDE * SIDE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draws, splits = generator("pictures"), []
    for per_class in (PER_CLASS, 2):
        labels = torch.arange(CLASSES).repeat(per_class)
        pixels = torch.randint(0, 256, (len(labels), 3, SIDE, SIDE), generator=draws)
        splits.append(Split(pixels.to(torch.uint8).numpy(), labels.numpy()))
    return write_tree(tmp_path / "set", Sets(*splits))


@pytest.fixture
def decoded_rows(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The rows of pictures that are decoded, call by call."""
    rows: list[Tensor] = []

    def counted(pictures: Any, wanted: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        rows.append(wanted)
        return decode(pictures, wanted, *arguments, **settings)

    monkeypatch.setattr(encoded, "decode", counted)
    return rows


def in_memory(folder: Path) -> Dataset:
    data = load_dataset(f"folder:{folder}")
    assert isinstance(data.train.source, Tensor)
    return data


def on_demand(folder: Path, keep: int = 0) -> Dataset:
    data = load_dataset(f"folder:{folder}", keep_decoded=keep, on_demand=True)
    assert isinstance(data.train.source, StreamedImages)
    assert isinstance(data.test.source, StreamedImages)
    return data


@pytest.mark.parametrize("keep", [0, ONE_IMAGE, 5 * ONE_IMAGE + 1, 2**20])
def test_rows_are_those_of_the_decoded_images(folder: Path, keep: int) -> None:
    whole, images = in_memory(folder), on_demand(folder, keep).train.source
    expected = whole.train.images
    assert images.shape == expected.shape
    assert len(images) == len(expected)
    rows = torch.tensor([[3, 0, 3], [len(expected) - 1, 7, -1]])
    for _ in range(2):  # decoded, then in part kept
        assert torch.equal(images[rows], expected[rows])
        assert torch.equal(images[2:5], expected[2:5])
        assert torch.equal(images[:0], expected[:0])
        assert torch.equal(images[:], expected[:])


@pytest.mark.parametrize("keep", [0, 2**20])
def test_a_dataset_is_the_same_in_all_it_is_asked_for(folder: Path, keep: int) -> None:
    whole, data = in_memory(folder).holding_out(0.3), on_demand(folder, keep).holding_out(0.3)
    assert data.describe() == whole.describe()
    assert data.shape == whole.shape
    for c in range(CLASSES):
        assert torch.equal(data.train.of_class(c), whole.train.of_class(c))
    for part in ("train", "test"):
        ours, theirs = (
            list(each.batches(getattr(each, part), CPU, size=5)) for each in (data, whole)
        )
        for (images, labels), expected in zip(ours, theirs, strict=True):
            assert torch.equal(images, expected[0])
            assert torch.equal(labels, expected[1])
    rows = torch.tensor([[2, 1], [0, 2]])
    inputs, expected_inputs = data.inputs(data.train.source), whole.inputs(whole.train.source)
    assert torch.equal(taken(inputs, rows), taken(expected_inputs, rows))


def test_images_are_whitened_alike(folder: Path) -> None:
    ours, theirs = (data.whitened() for data in (on_demand(folder), in_memory(folder)))
    assert ours.whitening is not None
    assert theirs.whitening is not None
    assert torch.equal(ours.whitening.matrix, theirs.whitening.matrix)
    rows = torch.tensor([3, 5])
    found, expected = (taken(each.inputs(each.train.source), rows) for each in (ours, theirs))
    torch.testing.assert_close(found, expected)


def test_what_needs_all_images_at_once_says_how_many_it_is(folder: Path) -> None:
    images = on_demand(folder, 2**20).train.images
    assert torch.equal(images, in_memory(folder).train.images)
    with pytest.raises(
        ValueError, match=r"keep_decoded: ImageSet.images needs all of 24 .* at least 0.001 GiB"
    ):
        _ = on_demand(folder, 23 * ONE_IMAGE).train.images


def test_what_is_kept_is_decoded_once(folder: Path, decoded_rows: list[Tensor]) -> None:
    images = on_demand(folder, 2**20).train.source
    decoded_rows.clear()  # those of the mean
    for _ in range(3):
        images[torch.tensor([5, 2, 5])]
    assert not decoded_rows
    fresh = load_dataset(f"folder:{folder}", keep_decoded=4 * ONE_IMAGE, on_demand=True)
    decoded_rows.clear()
    for _ in range(3):
        fresh.train.source[torch.tensor([1, 0, 1])]
        fresh.train.source[torch.tensor([9, 8])]
    assert [rows.tolist() for rows in decoded_rows] == [[8, 9]] * 3


def test_what_is_read_once_is_not_kept_and_what_is_kept_is_not_decoded_again(
    tmp_path: Path, decoded_rows: list[Tensor]
) -> None:
    sets = random_sets(2, 3, 64, 64)
    write_tinyimagenet(tmp_path, Sets(smooth(sets.train), smooth(sets.test)))
    images = load_dataset("tinyimagenet", tmp_path, on_demand=True).train.source
    expected = images[torch.tensor([1, 2])]
    decoded_rows.clear()
    for _ in range(2):
        once = read_once(images)[torch.tensor([0, 1, 2])]
        assert torch.equal(once[1:], expected)
    assert [rows.tolist() for rows in decoded_rows] == [[0], [0]]
    assert torch.equal(images[torch.tensor([0])], once[:1])
    images[torch.tensor([0])]
    assert len(decoded_rows) == 3  # kept again by who asks as before


def test_no_more_than_a_batch_is_decoded_at_once(
    folder: Path, decoded_rows: list[Tensor], tmp_path: Path
) -> None:
    data = on_demand(folder)
    options = BankOptions(network=NETWORK, networks=1, epochs=2, batch_size=4)
    bank = tmp_path / "bank.safetensors"
    decoded_rows.clear()
    train_bank(bank, data, options, device=CPU, say=quiet)
    of_training = [len(rows) for rows in decoded_rows if len(rows) <= 4]
    assert sum(of_training) >= 2 * len(data.train)
    assert max(len(rows) for rows in decoded_rows) <= max(4, len(data.test))


def test_sets_too_large_to_keep_stay_encoded(folder: Path) -> None:
    train = CLASSES * PER_CLASS * ONE_IMAGE
    for keep, kind in ((train - 1, StreamedImages), (train, Tensor)):
        images = load_dataset(f"folder:{folder}", keep_decoded=keep).train.source
        assert isinstance(images, kind), keep


def test_banks_runs_and_scores_are_the_same(folder: Path, tmp_path: Path) -> None:
    made: dict[str, tuple[Tensor, Tensor, tuple[float, ...]]] = {}
    for name, data in (("memory", in_memory(folder)), ("demand", on_demand(folder))):
        place = tmp_path / name
        options = BankOptions(network=NETWORK, networks=1, epochs=1, batch_size=5)
        train_bank(place / "bank.safetensors", data, options, device=CPU, say=quiet)
        bank = Bank.load(place / "bank.safetensors", "cpu")
        score = score_batches(bank, lambda data=data: train_batches(data, CPU))  # type: ignore[misc]
        loop = replace(OPTIONS, lr_images=1.0)
        run = prepare("dm", data, loop, DM_OPTIONS, device=CPU, say=quiet)
        distill(run, run.folder(place / "run", resume=False), say=quiet)
        weights = torch.cat([each.flatten() for each in bank[0].state_dict().values()])
        made[name] = weights, SyntheticSet.load(place / "run").images, score.of_network
    for ours, theirs in zip(made["demand"][:2], made["memory"][:2], strict=True):
        assert torch.equal(ours, theirs)
    assert made["demand"][2] == made["memory"][2]


def test_evaluations_of_real_images_are_the_same_where_none_are_kept(
    folder: Path, tmp_path: Path
) -> None:
    results = []
    for keep in ("4", "0"):
        out = tmp_path / f"{keep}.json"
        main(["evaluate", f"--dataset=folder:{folder}", f"--keep_decoded={keep}", "--all_real",
              "--random_real=2", f"--networks={NETWORK}", "--epochs=2", "--all_real_epochs=2",
              "--repeats=1", "--device=cpu", f"--out={out}"])  # fmt: skip
        results.append(json.loads(out.read_text())["results"])
    assert [each["images"] for each in results[0]] == [2 * CLASSES, CLASSES * PER_CLASS]
    assert results[0] == results[1]


def test_a_broken_picture_is_named_when_it_is_asked_for(folder: Path) -> None:
    data = on_demand(folder)
    broken = sorted((folder / "test" / "c001").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:60])
    data.test.of_class(0)
    with pytest.raises(ValueError, match=str(broken)):
        data.test.of_class(1)
    batches = data.batches(data.test, CPU, size=2)
    next(batches)
    with pytest.raises(ValueError, match=str(broken)):
        next(batches)


def test_a_batch_is_decoded_ahead_and_no_more(folder: Path, decoded_rows: list[Tensor]) -> None:
    images = on_demand(folder).train.source
    decoded_rows.clear()
    asked: list[int] = []

    def batches() -> Iterator[Tensor]:
        for k in range(5):
            asked.append(k)
            yield torch.tensor([k])

    found = one_after_another(images, batches())
    for k in range(3):
        assert torch.equal(next(found), images[k : k + 1])
        assert asked == list(range(k + 2))
    found.close()  # type: ignore[attr-defined]
    assert asked == [0, 1, 2, 3]


def distil_of_a_rank(folder: Path, out: Path) -> None:
    """A run whose rank would fail if it decoded a picture of another rank's classes."""
    name = "tinyimagenet"
    data = load_dataset(name, folder, on_demand=True)
    mine = ranks.share_of(data.num_classes)

    def checked(pictures: Any, rows: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        assert {int(c) for c in data.train.labels[rows]} <= {*mine}
        return decode(pictures, rows, *arguments, **settings)

    loop = replace(OPTIONS, lr_images=1.0, init="noise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "decode", checked)
        run = prepare("dm", data, loop, DM_OPTIONS, device=CPU, say=quiet)
        distill(run, run.folder(out, resume=False), say=quiet)


def test_a_rank_decodes_the_pictures_of_its_classes_alone(tmp_path: Path) -> None:
    sets = random_sets(4, 3, 64, 64)
    write_tinyimagenet(tmp_path, Sets(smooth(sets.train), smooth(sets.test)))
    distil_of_a_rank(tmp_path, tmp_path / "one")
    on_ranks(2, distil_of_a_rank, tmp_path, tmp_path, tmp_path / "shared")
    one, shared = (SyntheticSet.load(tmp_path / name) for name in ("one", "shared"))
    assert torch.equal(shared.images, one.images)


def statistics_of_a_rank(folder: Path, expected: tuple[tuple[float, ...], ...]) -> None:
    """Mean and deviation, for which this rank decodes its half of the pictures."""
    asked: list[Tensor] = []

    def counted(pictures: Any, rows: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        asked.append(rows)
        return decode(pictures, rows, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "decode", counted)
        patch.setattr(ranks, "_store", object())  # as ranks of a command have
        data = load_dataset(f"folder:{folder}", on_demand=True)
    assert (data.mean, data.std) == expected
    assert torch.cat(asked).tolist() == [*ranks.share_of(len(data.train))]


def test_ranks_of_a_command_share_the_measuring_of_mean_and_deviation(
    folder: Path, tmp_path: Path
) -> None:
    data = in_memory(folder)
    on_ranks(2, statistics_of_a_rank, tmp_path, folder, (data.mean, data.std))


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for c in range(2):
            for k in range(2):
                grey = torch.full((1, 5, 6), 40 * c + k, dtype=torch.uint8)
                save_image(tmp_path / part / f"c{c}" / f"{k}.png", grey.numpy())
    data = load_dataset(f"folder:{tmp_path}", size=4, on_demand=True)
    assert data.shape == (1, 4, 4)
    assert data.train.images[:].flatten(1).float().mean(1).tolist() == [0, 1, 40, 41]
