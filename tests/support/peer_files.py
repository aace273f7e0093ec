"""Distilled sets as other tools write them, by the calls of those tools, and converted ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmidd.exchange import convert
from cmidd.options.exchange import ConvertOptions
from cmidd.synthetic import SyntheticSet

IPC, CLASSES = 2, 10
LABELS = torch.arange(CLASSES).repeat_interleave(IPC)
ACCURACIES = {"ConvNet": [np.float64(0.25), np.float64(0.5)]}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape: int, seed: int = 0) -> Tensor:
    """Numbers from 0 to 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def write_res(path: Path, *images: Tensor, labels: Tensor = LABELS) -> Path:
    """DC, DSA, DM, IDM, IID: an entry for each experiment, and accuracies that are numpy's."""
    data = [[each, labels] for each in images]
    torch.save({"data": data, "accs_all_exps": ACCURACIES}, path)
    return path


def write_pair(
    folder: Path, images: Tensor, labels: Tensor, lr: Tensor | None = None, *, it: str = "best"
) -> Path:
    """MTT and, with the step size, DATM; labels and step size are leaves that were optimised."""
    torch.save(images, folder / f"images_{it}.pt")
    torch.save(labels, folder / f"labels_{it.removeprefix('zca_')}.pt")
    if lr is not None:
        torch.save(lr, folder / f"lr_{it}.pt")
    return folder / f"images_{it}.pt"


def write_idc(path: Path, images: Tensor, labels: Tensor = LABELS) -> Path:
    """IDC and NCFM."""
    torch.save([images, labels], path)
    return path


def write_idm(path: Path, images: Tensor, labels: Tensor = LABELS) -> Path:
    """IDM's best set."""
    with path.open("wb") as file:
        pickle.dump((images.detach(), labels.detach()), file)
    return path


def write_kip(path: Path, images: Tensor, labels: Tensor = LABELS) -> Path:
    """KIP: channels last, and one-hot labels less their mean."""
    targets = np.eye(CLASSES, dtype=np.float32)[labels.numpy()] - 1 / CLASSES
    np.savez(path, images=images.permute(0, 2, 3, 1).numpy(), labels=targets)
    return path


def write_pictures(folder: Path, images: Tensor, name: Callable[[int, int], str]) -> Path:
    """SRe2L and RDED: uint8 images as files of these names, of class and number."""
    for row, image in enumerate(images):
        path = folder / name(row // IPC, row % IPC)
        path.parent.mkdir(parents=True, exist_ok=True)
        array = image.permute(1, 2, 0).numpy()
        Image.fromarray(array.squeeze(-1) if array.shape[2] == 1 else array).save(path)
    return folder


def sre2l(c: int, k: int) -> str:
    return f"new{c:03d}/class{c:03d}_id{k:03d}.jpg"


def rded(c: int, k: int) -> str:
    return f"{c:05d}/class{c:05d}_id{k:05d}.jpg"


def converted(source: Path, dataset: str = "cifar10", **options: Any) -> SyntheticSet:
    """The set, as it comes back from its file."""
    out = source.parent / "set.safetensors"
    convert(ConvertOptions(source, out, dataset, **options)).save(out)
    return SyntheticSet.load(out)


IMAGES = pixels(len(LABELS), 1, 28, 28)


def error_of(source: Path, dataset: str = "mnist", **options: Any) -> str:
    """The line that converting ends with."""
    told = {"factor": 1, "space": "pixels", **options}
    with pytest.raises((ValueError, OSError)) as raised:
        convert(ConvertOptions(source, Path("out"), dataset, **told))
    text = str(raised.value)
    assert "\n" not in text
    return text


WRITERS: dict[str, Callable[[Path], Path]] = {
    "res.pt": lambda folder: write_res(folder / "res.pt", IMAGES),
    "images_best.pt": lambda folder: write_pair(folder, IMAGES, LABELS),
    "data.pt": lambda folder: write_idc(folder / "data.pt", IMAGES),
    "acc.pkl": lambda folder: write_idm(folder / "acc.pkl", IMAGES),
    "kip.npz": lambda folder: write_kip(folder / "kip.npz", IMAGES),
}
