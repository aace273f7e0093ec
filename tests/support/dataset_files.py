"""Small datasets written in the format of each name that `load_dataset` knows."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images (N, channels, H, W) and their labels (N,), in the order of the file."""

    images: Pixels
    labels: Labels

    @property
    def sorted(self) -> Split:
        order = np.argsort(self.labels, kind="stable")
        return Split(self.images[order], self.labels[order])


@dataclass(frozen=True)
class Sets:
    train: Split
    test: Split


def random_sets(num_classes: int, *shape: int) -> Sets:
    """Every class twice in train and once in test, in no order."""
    rng = np.random.default_rng(num_classes)

    def split(per_class: int) -> Split:
        labels = rng.permutation(np.repeat(np.arange(num_classes), per_class))
        return Split(rng.integers(0, 256, (len(labels), *shape), np.uint8), labels)

    return Sets(split(2), split(1))


def smooth(split: Split) -> Split:
    """Images of one colour each, which JPEG keeps to a grey level or two."""
    return Split(np.broadcast_to(split.images[:, :, :1, :1], split.images.shape), split.labels)


def save_image(path: Path, pixels: Pixels) -> None:
    """Write (channels, H, W) in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(array)).save(path)


# --- pickles as Python 2 wrote them


def _string(text: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(text)) + text


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _array(pixels: Pixels) -> bytes:
    shape = b"".join(map(_number, pixels.shape))
    dtype = (
        b"cnumpy\ndtype\n" + _string(b"u1") + _number(0) + _number(1) + b"\x87R"
        b"(" + _number(3) + _string(b"|") + b"NNN" + _number(-1) + _number(-1) + _number(0) + b"tb"
    )
    made = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + _number(0) + b"\x85" + _string(b"b") + b"\x87R"
    )  # fmt: skip
    data = _string(pixels.tobytes())
    return made + b"(" + _number(1) + b"(" + shape + b"t" + dtype + b"\x89" + data + b"tb"


def python2_pickle(**content: Pixels | list[int] | list[str]) -> bytes:
    """A dict of arrays and lists in the opcodes of Python 2, whose strings are bytes."""

    def value(entry: Pixels | list[int] | list[str]) -> bytes:
        if isinstance(entry, np.ndarray):
            return _array(entry)
        items = (_string(i.encode()) if isinstance(i, str) else _number(i) for i in entry)
        return b"](" + b"".join(items) + b"e"

    items = (_string(key.encode()) + value(entry) for key, entry in content.items())
    return b"\x80\x02}(" + b"".join(items) + b"u."


class Payload:
    """What a hostile pickle is made of: reading it is to call `run`."""

    def __init__(self, run: Callable[..., Any], *arguments: object) -> None:
        self.run, self.arguments = run, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.run, self.arguments


# --- one writer for each layout


def _cifar_names(num_classes: int) -> list[str]:
    return [f"class{c}" for c in range(num_classes)]


def _cifar_batches(name: str, sets: Sets, ending: str) -> dict[str, Split]:
    if name == "cifar100":
        return {f"train{ending}": sets.train, f"test{ending}": sets.test}
    rows = np.array_split(np.arange(len(sets.train.labels)), 5)
    files = {
        f"data_batch_{batch}{ending}": Split(sets.train.images[r], sets.train.labels[r])
        for batch, r in enumerate(rows, start=1)
    }
    return {**files, f"test_batch{ending}": sets.test}


def write_cifar_binary(root: Path, name: str, sets: Sets) -> Path:
    ten = name == "cifar10"
    folder = root / ("cifar-10-batches-bin" if ten else "cifar-100-binary")
    folder.mkdir(parents=True, exist_ok=True)
    for file, split in _cifar_batches(name, sets, ".bin").items():
        label, pixels = split.labels[:, None], split.images.reshape(len(split.images), -1)
        records = np.hstack((label, pixels) if ten else (label // 5, label, pixels))
        (folder / file).write_bytes(records.astype(np.uint8).tobytes())
    names = _cifar_names(10 if ten else 100)
    names_file = "batches.meta.txt" if ten else "fine_label_names.txt"
    (folder / names_file).write_text("\n".join(names) + "\n\n")
    return folder


def write_cifar_python(root: Path, name: str, sets: Sets) -> Path:
    ten = name == "cifar10"
    fine = "" if ten else "fine_"
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir(parents=True, exist_ok=True)
    for file, split in _cifar_batches(name, sets, "").items():
        data = split.images.reshape(len(split.images), -1)
        labels = {f"{fine}labels": split.labels.tolist()}
        (folder / file).write_bytes(python2_pickle(data=data, **labels))
    names = {f"{fine}label_names": _cifar_names(10 if ten else 100)}
    (folder / ("batches.meta" if ten else "meta")).write_bytes(python2_pickle(**names))
    return folder


def idx_bytes(array: Pixels) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, sets: Sets, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, split in (("train", sets.train), ("t10k", sets.test)):
        for file, array in (
            (f"{stem}-images-idx3-ubyte", split.images[:, 0]),
            (f"{stem}-labels-idx1-ubyte", split.labels.astype(np.uint8)),
        ):
            content = idx_bytes(array)
            path = folder / (f"{file}.gz" if packed else file)
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def write_svhn(folder: Path, sets: Sets) -> Path:
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    for file, split in (("train", sets.train), ("test", sets.test)):
        labels = np.where(split.labels == 0, 10, split.labels).astype(np.uint8)[:, None]
        savemat(
            folder / f"{file}_32x32.mat",
            {"X": split.images.transpose(2, 3, 1, 0), "y": labels},
            do_compression=True,
        )
    return folder


def write_tree(folder: Path, sets: Sets, test: str = "test", suffix: str = ".png") -> Path:
    for name, split in (("train", sets.train), (test, sets.test)):
        for row, (pixels, label) in enumerate(zip(split.images, split.labels, strict=True)):
            save_image(folder / name / f"c{label:03}" / f"{row:04}{suffix}", pixels)
    return folder


def write_tinyimagenet(root: Path, sets: Sets) -> Path:
    folder = root / "tiny-imagenet-200"
    lines = []
    for row, (pixels, label) in enumerate(zip(sets.train.images, sets.train.labels, strict=True)):
        wnid = f"n{label:08}"
        save_image(folder / "train" / wnid / "images" / f"{wnid}_{row}.JPEG", pixels)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    for row, (pixels, label) in enumerate(zip(sets.test.images, sets.test.labels, strict=True)):
        save_image(folder / "val" / "images" / f"val_{row}.JPEG", pixels)
        lines.append(f"val_{row}.JPEG\tn{label:08}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def write_npz(path: Path, sets: Sets) -> Path:
    np.savez(
        path,
        train_images=sets.train.images,
        train_labels=sets.train.labels,
        test_images=sets.test.images,
        test_labels=sets.test.labels,
    )
    return path


class Layout(NamedTuple):
    """A dataset with a name of its own, and how its files are written under a root."""

    name: str
    write: Callable[[Path, Sets], Path]
    shape: tuple[int, int, int]
    num_classes: int

    def random_sets(self) -> Sets:
        return random_sets(self.num_classes, *self.shape)


def _cifar(name: str, write: Callable[[Path, str, Sets], Path], num_classes: int) -> Layout:
    return Layout(name, lambda root, sets: write(root, name, sets), (3, 32, 32), num_classes)


def _idx(name: str, folder: str, packed: bool) -> Layout:
    return Layout(name, lambda root, sets: write_idx(root / folder, sets, packed), (1, 28, 28), 10)


LAYOUTS = {
    "CIFAR-10 binary": _cifar("cifar10", write_cifar_binary, 10),
    "CIFAR-10 Python": _cifar("cifar10", write_cifar_python, 10),
    "CIFAR-100 binary": _cifar("cifar100", write_cifar_binary, 100),
    "CIFAR-100 Python": _cifar("cifar100", write_cifar_python, 100),
    "MNIST": _idx("mnist", "MNIST/raw", packed=False),
    "MNIST in the root": _idx("mnist", ".", packed=False),
    "MNIST gzip": _idx("mnist", "mnist", packed=True),
    "MNIST without raw": _idx("mnist", "MNIST", packed=True),
    "FashionMNIST gzip": _idx("fashionmnist", "FashionMNIST/raw", packed=True),
    "FashionMNIST without raw": _idx("fashionmnist", "FashionMNIST", packed=True),
    "FashionMNIST by its repository": _idx("fashionmnist", "fashion-mnist", packed=True),
    "SVHN": Layout("svhn", lambda root, sets: write_svhn(root / "svhn", sets), (3, 32, 32), 10),
}
