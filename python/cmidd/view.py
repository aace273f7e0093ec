"""How stored images become the images that networks see.

Most methods store what networks see. One that stores more in an image than one network input (IDC
packs four) names a view: a function of images and labels that is differentiable in the images. Its
name and settings stand in the record of the set, so that whoever uses the set sees the same.

The view `cells`, of IDC, NCFM and IDM, is here, so that it is there for files of other tools too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cmidd.resampling import resized

ViewFunction = Callable[..., tuple[Tensor, Tensor]]
"""Of images (N, ...), labels (N,) or (N, C), and settings by name: those that networks see."""

VIEWS: dict[str, ViewFunction] = {}


def register_view(name: str, function: ViewFunction) -> None:
    """Add a view that sets can name."""
    if VIEWS.setdefault(name, function) is not function:
        raise ValueError(f"name: a view {name} exists already; expected another name")


@dataclass(frozen=True)
class View:
    """A registered view with its settings, which are what JSON can hold."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What networks see of stored images, and its labels."""
        return VIEWS[self.name](images, labels, **self.settings)

    def as_record(self) -> dict[str, Any]:
        """For the record of a set."""
        return {"name": self.name, "settings": dict(self.settings)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> View | None:
        """The view that the record of a set names; None: networks see the images as they are."""
        about = record.get("view")
        if about is None:
            return None
        if not isinstance(about, dict) or not isinstance(about.get("settings"), dict):
            raise ValueError(f"expected a view with a name and settings, got {about!r}")
        if about.get("name") not in VIEWS:
            raise ValueError(
                f"expected a view of {', '.join(VIEWS) or '(none is registered)'}, got "
                f"{about.get('name')!r}; import the module of the method that made the set"
            )
        return cls(about["name"], about["settings"])


def cells(
    images: Tensor,
    labels: Tensor,
    *,
    factor: int,
    order: str = "rows",
    grey: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """The factor x factor cells of each image, enlarged bilinearly to the size of the image.

    All cells of the first image come first, and classes that are in order stay so.

    Args:
        images: (N, channels, height, width).
        labels: (N,) or (N, C); each cell has that of its image.
        factor: cells in a row and in a column.
        order: of the cells of an image: "rows" (left to right, then down) or "columns".
        grey: a number for each channel, of what is added at the right and below where `factor` does
            not divide the size.
    """
    count, channels, height, width = images.shape
    if type(factor) is not int or not 1 <= factor <= min(height, width):
        raise ValueError(
            f"factor: expected a whole number from 1 to {min(height, width)}, got {factor!r}"
        )
    if order not in _AXES:
        raise ValueError(f"order: expected {' or '.join(_AXES)}, got {order!r}")
    rows, columns = -(-height // factor), -(-width // factor)
    whole = images
    if (rows * factor, columns * factor) != (height, width):
        if grey is None or len(grey) != channels:
            raise ValueError(
                f"grey: expected {channels} numbers, as {factor} does not divide {height} x "
                f"{width}, got {grey!r}"
            )
        edge = _grey(images.device, images.dtype, tuple(grey)).view(1, -1, 1, 1)
        whole = edge.expand(count, -1, rows * factor, columns * factor).clone()
        whole[:, :, :height, :width] = images
    grid = whole.reshape(count, channels, factor, rows, factor, columns)
    small = grid.permute(_AXES[order]).flatten(0, 2)
    return resized(small, height, width), labels.repeat_interleave(factor**2, dim=0)


@functools.lru_cache(maxsize=64)  # a copy, for which the CPU would wait for a GPU
@torch.inference_mode(mode=False)
def _grey(device: torch.device, dtype: torch.dtype, grey: tuple[float, ...]) -> Tensor:
    return torch.tensor(grey, dtype=dtype, device=device)


_AXES = {"rows": (0, 2, 4, 1, 3, 5), "columns": (0, 4, 2, 1, 3, 5)}

register_view("cells", cells)


def check_factor(factor: int, size: tuple[int, int]) -> None:
    """Raise unless every one of factor x factor cells has pixels of an image of some size."""
    if any((factor - 1) * -(-side // factor) >= side for side in size):
        raise ValueError(
            f"factor: expected one that leaves pixels of {size[0]} x {size[1]} in every cell, got "
            f"{factor}"
        )


def view_of_cells(
    factor: int,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    order: str = "rows",
) -> View | None:
    """The view of normalised images that hold factor x factor cells; None of 1.

    Args:
        factor: cells in a row and in a column.
        size: height and width, to which grey of 0.5 is added where `factor` does not divide them.
        mean: of each channel, of pixels in [0, 1].
        std: of each channel, of pixels in [0, 1].
        order: of the cells of an image, "rows" or "columns".
    """
    if factor == 1:
        return None
    settings: dict[str, Any] = {"factor": factor, "order": order}
    if any(side % factor for side in size):
        settings["grey"] = [(0.5 - m) / s for m, s in zip(mean, std, strict=True)]
    return View("cells", settings)
