from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cmidd.exchange import export_png, export_pt
from cmidd.first_images import first_images
from cmidd.synthetic import SyntheticSet
from tests.support.tiny import CLASSES, tiny_dataset

DATASET = tiny_dataset()


WHITENED = DATASET.whitened()


RECORD: dict[str, Any] = {**DATASET.describe(), "class_names": list(CLASSES)}


def a_set(ipc: int = 2, init: str = "noise", **changes: Any) -> SyntheticSet:
    return SyntheticSet(*first_images(DATASET, ipc, init, 0), {**RECORD, **changes})


def whitened_set(**changes: Any) -> SyntheticSet:
    """Two whitened images of each class, soft labels and a learned step size."""
    made = SyntheticSet.of(WHITENED, *first_images(WHITENED, 2, "real", 0), {"learned_lr": 0.02})
    soft = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    return replace(made, soft_labels=soft, **changes)


@pytest.mark.parametrize("channels", [1, 3])
def test_exported_png_are_the_pixels_in_a_folder_for_each_class(
    tmp_path: Path, channels: int
) -> None:
    dataset = tiny_dataset(channels=channels)
    record = {**dataset.describe(), "class_names": list(CLASSES)}
    exported = SyntheticSet(*first_images(dataset, 2, "real", 0), record)
    export_png(exported, tmp_path)
    files = sorted(tmp_path.rglob("*.png"))
    names = ["000_ant", "001_bee", "002_cat"]
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        f"{name}/{number:04d}.png" for name in names for number in range(2)
    ]
    for file, pixels in zip(files, exported.pixels(), strict=True):
        array = np.atleast_3d(np.asarray(Image.open(file)))
        assert array.shape == (8, 8, channels)
        torch.testing.assert_close(
            torch.from_numpy(array.copy()).permute(2, 0, 1), (pixels * 255).round().byte()
        )


def test_exported_png_stay_in_the_folder_whatever_the_class_names(tmp_path: Path) -> None:
    names = ["..", "/etc", "a/../../b", ".", "", "a/b", "a_b", "a\0b", "x" * 300, "é\n"]
    images = torch.zeros(len(names), 1, 8, 8)
    out = tmp_path / "inner" / "out"
    export_png(
        SyntheticSet(images, torch.arange(len(names)), {**RECORD, "class_names": names}), out
    )
    assert [path for path in tmp_path.rglob("*.png") if path.parent.parent != out] == []
    assert len(list(out.glob("*/*.png"))) == len(names)


def test_classes_that_are_not_in_order_are_numbered_one_by_one(tmp_path: Path) -> None:
    images = torch.tensor([-2.0, -1, 0, 1, 2]).view(5, 1, 1, 1).expand(5, 1, 8, 8)
    labels = torch.tensor([1, 0, 1, 0, 1])
    export_png(SyntheticSet(images, labels, RECORD), tmp_path)
    for name, expected in (("000_ant", [64, 191]), ("001_bee", [0, 128, 255])):
        files = sorted((tmp_path / name).iterdir())
        assert [int(np.asarray(Image.open(file))[0, 0]) for file in files] == expected


def test_exported_tensors_are_what_scripts_of_the_field_load(tmp_path: Path) -> None:
    exported = a_set()
    export_pt(exported, tmp_path / "new")
    for name, tensor in (("images", exported.images), ("labels", exported.labels)):
        found = torch.load(tmp_path / "new" / f"{name}_best.pt", weights_only=True)
        assert torch.equal(found, tensor)
    assert not (tmp_path / "new" / "lr.pt").exists()  # none was learned


@pytest.mark.parametrize("rate", [0.013703810051083565, 1])
def test_a_learned_step_size_is_exported_beside_the_pair(rate: float, tmp_path: Path) -> None:
    export_pt(a_set(learned_lr=rate), tmp_path / "new")
    found = torch.load(tmp_path / "new" / "lr.pt", weights_only=True)
    assert (found.dtype, found.shape) == (torch.float32, ())
    assert found.item() == pytest.approx(rate)


def test_an_export_is_not_mixed_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    made = SyntheticSet(*first_images(DATASET, 1, "real", 0))
    for export in (export_png, export_pt):
        kind = export.__name__.removeprefix("export_")
        message = rf"^{kind}: .* is not empty; expected a new or an empty folder to export to"
        with pytest.raises(FileExistsError, match=message):
            export(made, tmp_path)
        with pytest.raises(NotADirectoryError, match=rf"^{kind}: .*mine is a file; expected a fol"):
            export(made, tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_exports_of_a_whitened_set(tmp_path: Path) -> None:
    made = whitened_set()
    export_pt(made, tmp_path / "pt")
    for name, tensor in (("images", made.images), ("labels", made.targets)):
        found = torch.load(tmp_path / "pt" / f"{name}_best.pt", weights_only=True)
        assert torch.equal(found, tensor)
    export_png(made, tmp_path / "png")
    export_png(a_set(2, "real"), tmp_path / "plain")
    for file in (tmp_path / "plain").rglob("*.png"):
        same = tmp_path / "png" / file.relative_to(tmp_path / "plain")
        assert np.array_equal(np.asarray(Image.open(same)), np.asarray(Image.open(file)))
