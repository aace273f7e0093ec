"""What each tool writes, and how it is read.

    res       {"data": [[images, labels], ... one for each experiment], "accs_all_exps": ...}
    pair      images_*.pt, labels_*.pt and, of some tools, lr_*.pt: a tensor each
    idc       [images, labels]
    idm       (images, labels), pickled
    kip       images (N, H, W, C) and labels (N, C), or a list that begins with such images
    pictures  new000/*.jpg, 00000/*.jpg, 000_<class>/*.png: a folder for each class

Which space the numbers are in, and how many images are in one, `FORMATS` says where the tool has no
choice. Formats are told by what a file holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmidd.datasets.files import reading
from cmidd.exchange.picture_folders import read_folder
from cmidd.exchange.untrusted import (
    kind_of_file,
    load_arrays,
    load_pickle,
    load_torch,
    tensor_of,
)
from cmidd.options.exchange import ConvertOptions

_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Peer:
    """What a tool has written, as it wrote it."""

    format: str
    file: str
    """Its name, without the folder."""
    images: Tensor
    """`(N, channels, height, width)` float32, where it is as it should be."""
    labels: Tensor
    """`(N,)` int64, or `(N, C)` float32 of soft labels, where it is as it should be."""
    lr: float | None = None
    """The step size that was learned with them."""


class Source(NamedTuple):
    """A file, what it holds, and what is known beside it."""

    path: Path
    content: object
    options: ConvertOptions
    dataset: Callable[[], Mapping[str, Any]]
    """What the record of a set says of the dataset, for which images may have to be loaded."""

    def tensor(self, content: object, what: str) -> Tensor:
        """A plain tensor of the file."""
        with reading(self.path):
            return tensor_of(content, what, self.path.stat().st_size)

    def peer(self, format_name: str, images: Tensor, labels: Tensor) -> Peer:
        """The set of these images."""
        return Peer(format_name, self.path.name, images, labels)

    def unlike(self, expected: str) -> ValueError:
        """The error of a file that holds something else."""
        return ValueError(f"{self.path}: expected {expected}, got {_in_words(self.content)}")


class Format(NamedTuple):
    """How a format is read, and what all files of it have in common."""

    read: Callable[[Source], Peer]
    space: str | None = None
    """Of its images; None: it has to be told."""
    factor: int | None = None
    """Cells in a row of an image; None: it has to be told."""
    order: str = "rows"
    """Of the cells."""
    needs: str = ""
    """What has to be told, and how to find it out."""
    is_of_dc: bool = False
    """Whether its sets are evaluated as those of DC, DSA and DM are."""


def read_peer(options: ConvertOptions, dataset: Callable[[], Mapping[str, Any]]) -> Peer:
    """What is in the file that options name."""
    path = options.source
    if not path.exists():
        raise FileNotFoundError(f"source: expected a file or a folder, found none at {path}")
    _check_is_not_out(path, options)
    with reading(path):
        kind = "folder" if path.is_dir() else kind_of_file(path)
        content = _LOAD[kind](path)
        name = options.format or _format_of(kind, content)
    for option, of in {"labels": "pair", "lr": "pair", "experiment": "res"}.items():
        if getattr(options, option) is not None and name != of:
            raise ValueError(f"{option}: expected it with format {of} alone, got format {name}")
    return FORMATS[name].read(Source(path, content, options, dataset))


_LOAD: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path,
    "torch.save": load_torch,
    "pickle.dump": load_pickle,
    "numpy.savez": lambda path: load_arrays(path, ("images", "labels")),
}


def _format_of(kind: str, content: object) -> str:
    """The format of what a file of some kind holds."""
    match kind, content:
        case "folder", _:
            return "pictures"
        case "pickle.dump", (Tensor(), Tensor()):
            return "idm"
        case "numpy.savez", {"images": _}:
            return "kip"
        case "torch.save", {"data": list()}:
            return "res"
        case "torch.save", Tensor():
            return "pair"
        case "torch.save", [first, *_] if _is_channels_last(first):
            return "kip"
        case "torch.save", [Tensor(), Tensor()]:
            return "idc"
    raise ValueError(
        f"expected what one of {', '.join(FORMATS)} holds (cmidd convert --help says which tool "
        f"that is), got {_in_words(content)}"
    )


def _is_channels_last(content: object) -> bool:
    return (
        isinstance(content, Tensor)
        and not content.is_nested  # of which torch gives no shape
        and content.ndim == 4
        and content.shape[3] in _CHANNELS
        and content.shape[1] not in _CHANNELS
    )


def _check_is_not_out(path: Path, options: ConvertOptions) -> None:
    """Raise where the set would be written over a file that it is read from."""
    if options.out.exists() and options.out.samefile(path):
        raise ValueError(f"out: expected another file than {path}, which the set is read from")


def _in_words(content: object) -> str:
    if isinstance(content, dict):
        names = [repr(key)[:40] for key in list(content)[:5] if isinstance(key, str)]
        return f"a dict of {', '.join(names) or 'nothing that has a name'}"
    return f"a {type(content).__name__}"


# --- one reader for each format


def _two(source: Source, content: object) -> tuple[Tensor, Tensor]:
    """The images and labels that a list or tuple begins with."""
    if not isinstance(content, list | tuple) or len(content) < 2:
        raise source.unlike("a list of images and labels")
    return source.tensor(content[0], "images"), source.tensor(content[1], "labels")


def _read_res(source: Source) -> Peer:
    found = source.content.get("data") if isinstance(source.content, dict) else None
    if not isinstance(found, list) or not found:
        raise source.unlike("a dict with data, a list of experiments")
    chosen = source.options.experiment
    if (len(found) > 1 and chosen is None) or (chosen or 0) >= len(found):
        got = "" if chosen is None else f", got {chosen}"
        raise ValueError(
            f"experiment: expected one from 0 to {len(found) - 1}, which {source.path} holds{got}"
        )
    return source.peer("res", *_two(source, found[chosen or 0]))


def _read_idc(source: Source) -> Peer:
    return source.peer("idc", *_two(source, source.content))


def _read_idm(source: Source) -> Peer:
    return source.peer("idm", *_two(source, source.content))


def _read_pair(source: Source) -> Peer:
    images = source.tensor(source.content, "images")
    path = source.options.labels or _beside(source.path, "labels")
    if path is None or not path.is_file():
        place = "beside it" if path is None else f"at {path}"
        raise ValueError(f"labels: expected a file with those of {source.path}, found none {place}")
    _check_is_not_out(path, source.options)
    with reading(path):
        labels = tensor_of(load_torch(path), "labels", path.stat().st_size)
    return replace(source.peer("pair", images, labels), lr=_learned(source))


def _beside(path: Path, *words: str) -> Path | None:
    """The file that tools write with that of images: its name has another word in their place."""
    names = (path.name, path.name.replace("_zca", ""))
    found = [path.with_name(name.replace("images", word, 1)) for word in words for name in names]
    return next((each for each in found if each != path and each.is_file()), None)


def _learned(source: Source) -> float | None:
    """The step size as told, of the file that is told, or of that beside the images."""
    told = source.options.lr
    with suppress(ValueError):
        if told is not None:
            return _step_size(float(told), "lr")
    ours = source.path.with_name("lr.pt")  # as `cmidd export --pt` names it
    path = (_beside(source.path, "lr", "syn_lr") or ours) if told is None else Path(told)
    if told is None and not path.is_file():
        return None
    if not path.is_file():
        raise ValueError(f"lr: expected a number above 0 or a file of one, got {told}")
    _check_is_not_out(path, source.options)
    with reading(path):
        content = load_torch(path)
        if isinstance(content, Tensor) and content.numel() == 1:
            content = tensor_of(content, "a step size", path.stat().st_size).item()
        if isinstance(content, bool) or not isinstance(content, int | float):
            raise ValueError(f"expected a step size, got {_in_words(content)}")
        return _step_size(content, "a step size")


def _step_size(number: float, what: str) -> float:
    if not 0 < number < math.inf:
        raise ValueError(f"{what}: expected a number above 0, got {number:g}")
    return float(number)


def _read_kip(source: Source) -> Peer:
    match source.content:
        case {"images": images, **rest}:
            labels = rest.get("labels")
        case [images, *_]:
            labels = None
        case _:
            raise source.unlike("images (N, H, W, C)")
    found = source.tensor(images, "images")
    if found.ndim != 4:
        raise ValueError(f"{source.path}: expected images (N, H, W, C), got {tuple(found.shape)}")
    return source.peer(
        "kip", found.permute(0, 3, 1, 2), _classes_of_kip(source, labels, len(found))
    )


def _classes_of_kip(source: Source, labels: object, count: int) -> Tensor:
    """The largest of the labels, which are targets of a regression; else equally many of each."""
    if labels is not None:
        targets = source.tensor(labels, "labels")
        return targets.argmax(1) if targets.ndim == 2 and targets.shape[1] else targets
    num_classes = source.dataset()["num_classes"]
    per_class, rest = divmod(count, num_classes)
    if rest or not per_class:
        raise ValueError(
            f"{source.path}: expected equally many images of each of {num_classes} classes, got "
            f"{count}"
        )
    return torch.arange(num_classes).repeat_interleave(per_class)


def _read_pictures(source: Source) -> Peer:
    resize = source.options.size is not None
    return source.peer("pictures", *read_folder(source.path, source.dataset(), resize=resize))


FORMATS = {
    "res": Format(
        _read_res,
        space="normalised",
        order="columns",
        needs="1 for DC, DSA, DM, IID, CAFE and DataDAM, 2 for IDM with --aug",
        is_of_dc=True,
    ),
    "pair": Format(
        _read_pair,
        factor=1,
        needs="normalised (by DATM, MTT and DD-Ranking without ZCA), whitened (by those with ZCA) "
        "or pixels (images_zca_*.pt, of which MTT has undone the whitening)",
    ),
    "idc": Format(
        _read_idc, space="pixels", needs="the f of the run, in its arguments and often its folder"
    ),
    "idm": Format(
        _read_idm,
        space="normalised",
        order="columns",
        needs="2 where aug_True is in the name of its folder, else 1",
        is_of_dc=True,
    ),
    "kip": Format(
        _read_kip,
        factor=1,
        needs="standardised where nozca is in the name; whitened images (zca) cannot be read, "
        "because KIP divides each by a length that it does not keep",
    ),
    "pictures": Format(_read_pictures, space="pixels", factor=1),
}
"""What can be read, by name."""
