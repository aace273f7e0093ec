"""The plain loops by method, as `bench.loops` races them; a method without one is timed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from bench.plain.cmi import PlainCMI
from bench.plain.dc import PlainDC
from bench.plain.dm import PlainDM
from bench.plain.idc import PlainIDC
from bench.plain.idm import PlainIDM
from bench.plain.iid import PlainIID
from bench.plain.mtt import PlainMTT
from bench.plain.ncfm import PlainNCFM

Step = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
"""Of images, iteration and update: the loss, CMI included, and its gradient by the images."""


@dataclass(frozen=True)
class Rival:
    """The plain loop of a method."""

    make: Callable[..., tuple[Step, int]]
    """Of what a method is made of, and the regulariser: a step, and how many an iteration has."""
    with_cmi: bool = True
    """Whether both loops are timed with CMI, which some memory of its own goes into."""
    kept_bytes: Callable[[Sequence[int], int], int] | None = None
    """What it keeps at once, by the shape of all images and student steps, where that is much."""


def _dm(*given: Any, cmi: PlainCMI | None) -> tuple[Step, int]:
    return _of_one_update(PlainDM(*given, cmi=cmi))


def _iid(*given: Any, cmi: PlainCMI | None) -> tuple[Step, int]:
    return _of_one_update(PlainIID(*given, cmi=cmi))


def _of_one_update(loop: PlainDM | PlainIID) -> tuple[Step, int]:
    def step(images: Tensor, iteration: int, _: int) -> tuple[Tensor, Tensor]:
        loss, value, gradient = loop.step(images, iteration)
        return loss + value, gradient

    return step, 1


def _dc(*given: Any, cmi: PlainCMI | None) -> tuple[Step, int]:
    loop = PlainDC(*given, cmi=cmi)
    return loop.step, loop.options.outer_steps


def _mtt(*given: Any, cmi: None) -> tuple[Step, int]:
    loop = PlainMTT(*given)

    def step(images: Tensor, iteration: int, _: int) -> tuple[Tensor, Tensor]:
        found = loop.step(images, iteration)
        return found.loss, found.images

    return step, 1


def _idc(*given: Any, cmi: None) -> tuple[Step, int]:
    loop = PlainIDC(*given)
    return loop.step, loop.options.inner_steps


def _idm(*given: Any, cmi: None) -> tuple[Step, int]:
    loop = PlainIDM(*given)
    return lambda images, iteration, _: loop.step(images, iteration), 1


def _ncfm(*given: Any, cmi: None) -> tuple[Step, int]:
    loop = PlainNCFM(*given)
    return lambda images, iteration, _: loop.step(images, iteration), 1


def _graph_bytes(images: Sequence[int], student_steps: int) -> int:
    """Of all student steps: 3 MiB of an image of 32 x 32 and a step, as measured."""
    return (3 << 20) * student_steps * images[0] * prod(images[2:]) // 32**2


RIVALS = {
    "dm": Rival(_dm),
    "iid": Rival(_iid),
    "dc": Rival(_dc),
    "dsa": Rival(_dc),
    "mtt": Rival(_mtt, with_cmi=False, kept_bytes=_graph_bytes),
    "idc": Rival(_idc, with_cmi=False),
    "idm": Rival(_idm, with_cmi=False),
    "ncfm": Rival(_ncfm, with_cmi=False),
}
