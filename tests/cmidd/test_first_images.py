from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.first_images import first_images, tiled
from cmidd.synthetic import SyntheticSet
from cmidd.view import view_of_cells
from tests.support.tiny import CLASSES, PER_CLASS, tiny_dataset

DATASET = tiny_dataset()


WHITENED = DATASET.whitened()


RECORD: dict[str, Any] = {**DATASET.describe(), "class_names": list(CLASSES)}


def a_set(ipc: int = 2, init: str = "noise", **changes: Any) -> SyntheticSet:
    return SyntheticSet(*first_images(DATASET, ipc, init, 0), {**RECORD, **changes})


def real_of(c: int) -> Tensor:
    return DATASET.to_input(DATASET.train.of_class(c))


@pytest.mark.parametrize("init", ["noise", "real", "mix"])
@pytest.mark.parametrize("ipc", [1, 2, PER_CLASS])
def test_a_start_has_ipc_images_of_each_class_in_order(init: str, ipc: int) -> None:
    images, labels = first_images(DATASET, ipc, init, 0)
    assert images.shape == (len(CLASSES) * ipc, *DATASET.shape)
    assert images.dtype == torch.float32
    assert labels.tolist() == [c for c in range(len(CLASSES)) for _ in range(ipc)]


@pytest.mark.parametrize("init", ["noise", "real", "mix"])
def test_a_start_depends_on_the_seed_alone(init: str) -> None:
    images, _ = first_images(DATASET, 2, init, 0)
    torch.manual_seed(1)
    assert torch.equal(first_images(DATASET, 2, init, 0)[0], images)
    assert not torch.equal(first_images(DATASET, 2, init, 1)[0], images)


def test_noise_is_normal() -> None:
    images, _ = first_images(DATASET, 500, "noise", 0)
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02


def test_real_takes_each_image_of_the_class_once() -> None:
    images, labels = first_images(DATASET, PER_CLASS, "real", 0)
    for c in range(len(CLASSES)):
        of_class = images[labels == c]
        same = (of_class[:, None] == real_of(c)[None]).flatten(2).all(2)
        assert same.sum(0).tolist() == same.sum(1).tolist() == [1] * PER_CLASS


def test_mix_is_between_two_real_images_of_the_class() -> None:
    images, labels = first_images(DATASET, 3, "mix", 0)
    shares = []
    for image, label in zip(images, labels.tolist(), strict=True):
        real = real_of(label).flatten(1)
        first, second = torch.meshgrid(*[torch.arange(PER_CLASS)] * 2, indexing="ij")
        a, difference = real[first.flatten()], (real[second.flatten()] - real[first.flatten()])
        length = difference.square().sum(1).clamp_min(1e-9)
        share = ((image.flatten() - a) * difference).sum(1) / length
        off = (a + share[:, None] * difference - image.flatten()).abs().amax(1)
        assert off.min() < 1e-5
        shares.append(float(share[off.argmin()]))
    assert all(-1e-5 <= share <= 1 + 1e-5 for share in shares)
    assert len({round(share, 3) for share in shares}) > len(shares) // 2


def test_a_start_from_a_file_is_its_images(tmp_path: Path) -> None:
    before = a_set(3)
    before.save(tmp_path / "set")
    images, labels = first_images(DATASET, 3, f"file:{tmp_path / 'set'}", 0)
    assert torch.equal(images, before.images)
    assert torch.equal(labels, before.labels)


@pytest.mark.parametrize("ipc", [2, 4])
def test_a_start_from_a_file_with_other_images_per_class_is_an_error(
    tmp_path: Path, ipc: int
) -> None:
    a_set(3).save(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"{tmp_path}/set: expected {3 * ipc} images"):
        first_images(DATASET, ipc, f"file:{tmp_path / 'set'}", 0)


def test_a_start_from_a_file_of_another_dataset_is_an_error(tmp_path: Path) -> None:
    a_set(dataset="other").save(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"{tmp_path}/set: expected dataset tiny .* got other"):
        first_images(DATASET, 2, f"file:{tmp_path / 'set'}", 0)


def test_cells_are_real_images_of_the_class_made_smaller_each_in_its_cell() -> None:
    view = view_of_cells(2, (8, 8), DATASET.mean, DATASET.std)
    images, labels = first_images(DATASET, 1, "cells", 0, view=view)
    assert images.shape == (3, 1, 8, 8)
    assert labels.tolist() == [0, 1, 2]
    taken = first_images(DATASET, 4, "real", 0)[0][:, :, ::2, ::2].view(3, 2, 2, 1, 4, 4)
    for i, j in itertools.product(range(2), range(2)):
        cell = images[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        assert torch.equal(cell, taken[:, i, j])
    assert not torch.equal(first_images(DATASET, 1, "cells", 1, view=view)[0], images)
    without = first_images(DATASET, 2, "cells", 0)[0]
    assert torch.equal(without, first_images(DATASET, 2, "real", 0)[0])


def test_smooth_cells_are_means_of_real_images_drawn_for_each_cell() -> None:
    view = view_of_cells(2, (8, 8), DATASET.mean, DATASET.std, order="columns")
    images, _ = first_images(DATASET, PER_CLASS, "smooth_cells", 0, view=view)
    for c in range(len(CLASSES)):
        of_class = images[c * PER_CLASS : (c + 1) * PER_CLASS]
        small = torch.nn.functional.avg_pool2d(real_of(c), 2)
        taken = []
        for i, j in itertools.product(range(2), range(2)):
            cells = of_class[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            near = (cells[:, None] - small[None]).abs().amax(dim=(2, 3, 4)) < 1e-5
            assert near.sum(0).tolist() == near.sum(1).tolist() == [1] * PER_CLASS
            taken.append(near.long().argmax(1).tolist())
        assert len(set(map(tuple, taken))) > 1  # a cell's are not those of the next
    without = first_images(DATASET, 2, "smooth_cells", 0)[0]
    assert {tuple(each.flatten().tolist()) for each in without[:2]} <= {
        tuple(each.flatten().tolist()) for each in real_of(0)
    }


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize(("size", "factor"), [(8, 1), (8, 2), (10, 3), (7, 2), (7, 3)])
def test_cells_lie_where_the_view_reads_them(size: int, factor: int, order: str) -> None:
    shades = torch.arange(1.0, 2 * factor**2 + 1).view(-1, 1, 1, 1).expand(-1, 3, size, size)
    stored = tiled(shades, factor, order)
    assert stored.shape == (2, 3, size, size)
    view = view_of_cells(factor, (size, size), (0.0,) * 3, (1.0,) * 3, order)
    seen = stored if view is None else view(stored, torch.arange(2))[0]
    assert torch.equal(seen[:, 0, 0, 0], shades[:, 0, 0, 0])  # the edge may hold grey


@pytest.mark.parametrize("init", ["real", "mix"])
def test_more_images_than_a_class_has_is_an_error_that_names_it(init: str) -> None:
    too_few = "class ant of tiny has 6 real images, fewer than 7; take fewer"
    with pytest.raises(ValueError, match=f"^ipc: {too_few} or start from noise$"):
        first_images(DATASET, PER_CLASS + 1, init, 0)
    with pytest.raises(ValueError, match=f"^random_real: {too_few}$"):
        first_images(DATASET, PER_CLASS + 1, init, 0, count_option="random_real")


@pytest.mark.parametrize("init", ["", "Real", "zeros", "file"])
def test_an_unknown_start_is_an_error(init: str) -> None:
    words = "init: expected noise, real, mix, cells, smooth_cells or file:PATH"
    with pytest.raises(ValueError, match=words):
        first_images(DATASET, 1, init, 0)


def test_a_whitening_of_another_eps_is_no_start(tmp_path: Path) -> None:
    images, labels = first_images(WHITENED, 2, "real", 0)
    SyntheticSet.of(WHITENED, images, labels).save(tmp_path / "set")
    with pytest.raises(ValueError, match=r"init: .*set: expected zca 0\.2 .* got 1\.6"):
        first_images(DATASET.whitened(0.2), 2, f"file:{tmp_path / 'set'}", 0)
