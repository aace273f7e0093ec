"""What the loop in `distill.py` asks of a method.

A method gives the loss and its gradient with respect to the images, as often in an iteration as it
has `updates`. What else it optimises (a step size, labels) it lists in `learned`, with gradients in
the tensors' `.grad`. All that it draws depends on the seed, the iteration and the update alone, and
what it keeps from update to update begins anew in every iteration: images, what is learned, their
momentum and the iteration's number are everything that a checkpoint needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmidd.synthetic import SyntheticSet

if TYPE_CHECKING:
    from cmidd.datasets import Dataset


@dataclass(frozen=True, eq=False)
class Learned:
    """A leaf that is optimised beside the images, and the learning rate of its SGD."""

    tensor: Tensor
    lr: float


class Method(ABC):
    """The base of all methods; what follows is what most of them need not change."""

    spec: str
    """The architecture that the images are made for."""
    updates: int = 1
    """Of the images in one iteration."""
    suspects: tuple[str, ...] = ()
    """Options that can make the loss NaN, beside the rates of what is optimised."""

    @property
    def made_with(self) -> dict[str, Any]:
        """Records of files that it reads; a run goes on with the same ones alone."""
        return {}

    @property
    def learned(self) -> dict[str, Learned]:
        """What is optimised beside the images, by the name that checkpoints call it."""
        return {}

    @abstractmethod
    def step(self, images: Tensor, iteration: int, update: int = 0) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to `images` (N, ch, H, W); fills `.grad` of `learned`.

        Updates of an iteration come in order, from 0 on.
        """

    def constrain(self) -> None:  # noqa: B027
        """Bring what is learned back to where it may be, after the optimiser moved it."""

    def rows(self, iteration: int) -> Tensor | None:  # noqa: ARG002
        """The batch of images that an iteration begins with, as row numbers; None: all at once."""
        return None

    def numbers(self) -> dict[str, Tensor]:
        """More numbers for the log, as tensors of one element."""
        return {}

    def finished(self, made: SyntheticSet) -> SyntheticSet:
        """The distilled set with what the method adds to it."""
        return made


@dataclass(frozen=True)
class Published:
    """What is known of a method on a dataset with some number of images per class.

    Each mapping goes by the names of options and serves those that the user left at None.
    """

    loop: Mapping[str, Any] = field(default_factory=dict)
    """Options of the loop around the method: iterations, init, lr_images, how often it writes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method itself."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """Epochs and augmentation of networks that are trained on a set, where they are not DSA's."""
    origin: str = "as published"
    """Where these come from, in words for the user."""


@dataclass(frozen=True)
class CMIWeights:
    """Weights of CMI by dataset, for 10 and for 50 images per class."""

    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ours: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodEntry:
    """A method as the table of methods holds it."""

    make: Callable[..., Method]
    """Of dataset, labels, options, seed and device."""
    options: type
    """A frozen dataclass whose docstring is the help of the method's flags."""
    published: Callable[[Dataset, int], Published]
    """Of dataset and images per class."""
    cmi_weights: CMIWeights = field(default_factory=CMIWeights)


def given_network(network: str | None) -> str:
    """The architecture of a method's options, which `settle` has filled in."""
    if network is None:
        raise ValueError("network: expected an architecture, got None; methods.settle fills it in")
    return network
