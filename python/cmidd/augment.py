"""Differentiable siamese augmentation: groups of images, each changed by what was drawn for it.

`draw` names an operation and uniform numbers for each group, `augment` changes images by them. Real
and synthetic images of a class that share a `Draw` are changed alike. With u uniform in [0, 1):

    color    x + (u - 1/2) brightness;  then (x - m) u saturation + m, m the mean over channels;
             then (x - m) (u + contrast) + m, m the mean over all pixels
    crop     shifts by whole pixels, up to a share of each side; zeros come in
    cutout   a rectangle of a share of each side, its centre anywhere, becomes zero
    flip     left and right change places
    scale    the grid is stretched by u(1/scale, scale) along each side
    rotate   the grid is turned by u(-rotate, rotate) degrees
    zoom     a part of u(zoom, 1) of the area is stretched to the whole; the ratio of its sides is
             from 3:4 to 4:3, of those that fit, and its place anywhere
    shuffle  with probability 1/2 each, the upper and the lower half change places, and the left
             and the right one: halves only, whatever an image is put together of

A strategy is written `color_crop_flip`, one operation drawn for each group,
`all:color_crop_flip`, all of them in turn, or `idc:color_crop_flip_scale_rotate_cutout`, flip and
color, then one of crop, scale, rotate and zoom, then cutout and shuffle, of those that are named;
`none` changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cmidd.augment_operations import (
    ENDS,
    LATER,
    NUM_NUMBERS,
    OPERATIONS,
    PUBLISHED_AMOUNTS,
    Amounts,
    growth,
    whole,
)
from cmidd.parcel import sent
from cmidd.resampling import check_reach
from cmikernels.changes import operations as changes


@dataclass(frozen=True)
class Strategy:
    """Operations: each group gets one ("single"), all ("all") or as IDC has it ("idc")."""

    operations: tuple[str, ...]
    mode: Literal["single", "all", "idc"] = "single"

    def __post_init__(self) -> None:
        _check_names(self.operations)
        if len(set(self.operations)) < len(self.operations):
            raise ValueError(f"augmentation {self}: name each operation once")

    @classmethod
    def parse(cls, text: str, *, mirror: bool = True) -> Strategy:
        """Read `color_crop`, `all:color_crop`, `idc:color_crop` or `none`.

        Without `mirror` it is less "flip".
        """
        mode: Literal["single", "all", "idc"] = "single"
        names = text
        for prefix in ("all", "idc"):
            if text.startswith(f"{prefix}:"):
                mode, names = prefix, text.removeprefix(f"{prefix}:")
        operations = () if names == "none" else tuple(names.split("_"))
        strategy = cls(operations, mode)
        return strategy if mirror else strategy.without("flip")

    def without(self, *names: str) -> Strategy:
        """The strategy less the operations `names`, which need not be among its own."""
        _check_names(names)
        return Strategy(tuple(o for o in self.operations if o not in names), self.mode)

    def __str__(self) -> str:
        names = "_".join(self.operations) or "none"
        return names if self.mode == "single" else f"{self.mode}:{names}"


def _check_names(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in OPERATIONS:
            known = ", ".join(OPERATIONS)
            raise ValueError(
                f"augmentation: no operation {name!r}; join some of {known} by '_', or say 'none'"
            )


@dataclass(frozen=True, eq=False)
class Draw:
    """What was drawn for G groups, on the CPU."""

    operations: Tensor  # (G, steps) int64: indices into strategy.operations, applied in turn
    numbers: Tensor  # (G, NUM_NUMBERS or more) float64, uniform in [0, 1)

    def __getitem__(self, groups: slice) -> Draw:
        """Of some of the groups."""
        return Draw(self.operations[groups], self.numbers[groups])


def draw(
    strategy: Strategy, num_groups: int, generator: torch.Generator, *, one_operation: bool = False
) -> Draw:
    """Draw for `num_groups` groups; with `one_operation` only their numbers differ."""
    uniform = torch.rand(num_groups, 1 + NUM_NUMBERS, dtype=torch.float64, generator=generator)
    choice, numbers = uniform[:, :1], uniform[:, 1:]
    named = [place for place, name in enumerate(LATER) if name in strategy.operations]
    later = [OPERATIONS[name].numbers for name in LATER[: max(named, default=-1) + 1]]
    blocks = [torch.rand(num_groups, k, dtype=torch.float64, generator=generator) for k in later]
    numbers = torch.cat([numbers, *blocks], 1)
    count = len(strategy.operations)
    if strategy.mode == "idc":
        operations = _as_idc(strategy, choice[:1] if one_operation else choice)
        operations = operations.expand(num_groups, -1)
    elif strategy.mode == "all" or count == 0:
        operations = torch.arange(count).expand(num_groups, count)
    else:
        operations = whole(choice[:1] if one_operation else choice, count).long()
        operations = operations.expand(num_groups, 1)
    return Draw(operations, numbers)


_IN_TURN = (  # one of each
    ("flip",), ("color",), ("crop", "scale", "rotate", "zoom"), ("cutout",), ("shuffle",)
)  # fmt: skip


def _as_idc(strategy: Strategy, choice: Tensor) -> Tensor:
    """Indices `(n, steps)` of operations, of `choice` (n, 1) uniform in [0, 1)."""
    steps = []
    for names in _IN_TURN:
        there = [strategy.operations.index(name) for name in names if name in strategy.operations]
        if there:
            steps.append(torch.tensor(there)[whole(choice, len(there)).long()])
    return torch.cat(steps, 1) if steps else torch.empty(len(choice), 0, dtype=torch.int64)


def augment(
    images: Tensor,
    strategy: Strategy,
    drawn: Draw,
    groups: Tensor | None = None,
    *,
    amounts: Amounts = PUBLISHED_AMOUNTS,
) -> Tensor:
    """Change `images` (N, ch, H, W) by `drawn = draw(strategy, ...)`, differentiably.

    `groups` (N,), int64 on the CPU, is the group of each image. Without it every image is a group
    of its own where as many were drawn, and all are in the one group where one was drawn. Computes
    in float32 at least.
    """
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(
            "images must be one or more, floating point, (N, channels, height, width); "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    groups = _checked_groups(groups, len(images), len(drawn.numbers))
    like, device = (images.shape[2:], images.dtype), images.device
    turns = changes_of(strategy, drawn, groups, *like, device, amounts=amounts)
    return change(images, sent(turns, device))


class Part(NamedTuple):
    """An operation, and its parameters `(k, n)` for the n images that it changes."""

    operation: str
    parameters: Tensor


class Parts(NamedTuple):
    """A turn of one operation on all images, or of several on some of them each."""

    parts: list[Part]
    order: Tensor | None  # (N,): the images part by part; None: as they stand
    back: Tensor | None  # (N,): the place of each in that order


class Kernel(NamedTuple):
    """A turn that `cmikernels.changes` does in one launch."""

    codes: Tensor  # (N,): the operation of each image
    numbers: Tensor  # (N, ...): its parameters
    colours: bool  # whether COLOR is one of them


Turn = Parts | Kernel
"""What is done to all images in one turn."""


def changes_of(
    strategy: Strategy,
    drawn: Draw,
    groups: Tensor,
    size: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    amounts: Amounts = PUBLISHED_AMOUNTS,
) -> list[Turn]:
    """What is to be done to images, turn by turn, worked out on the CPU.

    Args:
        strategy: of the draw.
        drawn: by `draw(strategy, ...)`.
        groups: (N,) int64, the group of each image.
        size: height and width of the images.
        dtype: of the images.
        device: where they are.
        amounts: how far operations go.
    """
    if not len(groups):
        return []
    if device.type != "cpu":
        for name in strategy.operations:
            check_reach(name, growth(name, amounts, *size))
    numbers = drawn.numbers[groups]
    of_parameters = torch.promote_types(dtype, torch.float32)
    turns: list[Turn] = []
    for step in range(drawn.operations.shape[1]):
        operations = drawn.operations[groups, step]  # (N,)
        counts = operations.bincount(minlength=len(strategy.operations)).tolist()
        rows: Sequence[Tensor | slice]
        rows, order, back = [slice(None)] * len(counts), None, None
        if max(counts) < len(groups):
            order = operations.argsort(stable=True)
            rows, back = torch.split(order, counts), order.argsort()
        parts = [
            Part(name, _parameters(name, numbers[own], size, amounts).to(of_parameters))
            for name, own, count in zip(strategy.operations, rows, counts, strict=True)
            if count
        ]
        turn = Parts(parts, order, back)
        served = changes.serves(device, of_parameters)
        fused = served and all(part.operation in _CODES for part in parts)
        turns.append(_fused(turn, len(groups)) if fused else turn)
    return turns


_CODES = {
    "color": changes.COLOR,
    "crop": changes.CROP,
    "cutout": changes.CUTOUT,
    "flip": changes.FLIP,
    "scale": changes.AFFINE,
    "rotate": changes.AFFINE,
}


def _fused(turn: Parts, count: int) -> Kernel:
    """The same for the kernel."""
    codes = torch.empty(count, dtype=torch.int32)
    numbers = torch.zeros(count, changes.NUMBERS, dtype=turn.parts[0].parameters.dtype)
    order = torch.arange(count) if turn.order is None else turn.order
    rows = torch.split(order, [part.parameters.shape[1] for part in turn.parts])
    for part, own in zip(turn.parts, rows, strict=True):
        codes[own] = _CODES[part.operation]
        numbers[own, : len(part.parameters)] = part.parameters.T
    return Kernel(codes, numbers, any(part.operation == "color" for part in turn.parts))


def change(images: Tensor, turns: Sequence[Turn]) -> Tensor:
    """Change `images` (N, ch, H, W) by `turns = changes_of(...)`, on their device."""
    changed = images.to(torch.promote_types(images.dtype, torch.float32))
    for turn in turns:
        if isinstance(turn, Kernel):
            changed = changes.change(changed, turn.codes, turn.numbers, colours=turn.colours)
            continue
        parts, order, back = turn
        if order is None or back is None:
            changed = _apply(parts[0], changed)
            continue
        rows = torch.split(order, [each.parameters.shape[1] for each in parts])
        pieces = [
            _apply(each, changed.index_select(0, own))
            for each, own in zip(parts, rows, strict=True)
        ]
        changed = torch.cat(pieces).index_select(0, back)
    return changed.to(images.dtype)


def _checked_groups(groups: Tensor | None, num_images: int, num_groups: int) -> Tensor:
    """The group of each image."""
    if groups is None:
        if num_groups not in (1, num_images):
            raise ValueError(
                f"groups is needed to spread {num_images} images over {num_groups} drawn groups"
            )
        return (
            torch.arange(num_images) if num_groups == num_images else torch.zeros(num_images).long()
        )
    if groups.shape != (num_images,) or groups.dtype != torch.int64 or groups.device.type != "cpu":
        raise ValueError(
            f"groups must be {num_images} int64 on the CPU, one for each image, "
            f"got {groups.dtype} of shape {tuple(groups.shape)} on {groups.device}"
        )
    if not 0 <= int(groups.min()) <= int(groups.max()) < num_groups:
        raise ValueError(
            f"groups must be from 0 to {num_groups - 1}, as many as were drawn, "
            f"got {int(groups.min())} to {int(groups.max())}"
        )
    return groups


def _parameters(name: str, numbers: Tensor, size: Sequence[int], amounts: Amounts) -> Tensor:
    """Of an operation, `(k, n)` float64, by the `numbers` (n, ...) of images of this size."""
    operation, end = OPERATIONS[name], ENDS[name]
    u = numbers[:, end - operation.numbers : end].T
    return torch.stack([each.double() for each in operation.parameters(u, amounts, *size)])


def _apply(part: Part, images: Tensor) -> Tensor:
    """One operation on `images` (n, ch, H, W)."""
    return OPERATIONS[part.operation].apply(images, *part.parameters[:, :, None, None, None])
