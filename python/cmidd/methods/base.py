"""What the loop in `loop.py` asks of a method.

A method gives a loss and its gradient with respect to the images, as often in an iteration as it
has `updates`. What it draws for an update it draws in `draw`: a function of seed, iteration and
update that gives plain tensors of the CPU, in which everything drawn for a class comes from its own
stream. The mathematics takes these draws as an argument, so it can be given others.

What else the method optimises (a step size, labels) it lists in `extra_parameters`, with gradients
in the tensors' `.grad`. What an update leaves for later ones it lists in `state`. A checkpoint,
between any two updates, holds the images, extra parameters, the optimizer's state, the method's
state and the numbers of iteration and update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from cmidd.datasets.known import KNOWN
from cmidd.options.fields import Options
from cmidd.synthetic import SyntheticSet
from cmidd.view import View

if TYPE_CHECKING:
    from cmidd.datasets import Dataset


@dataclass(frozen=True, eq=False)
class ExtraParameter:
    """A tensor that is optimised beside the images, and its learning rate."""

    tensor: Tensor
    """A leaf that requires a gradient."""
    lr: float
    """Its learning rate."""


class Method(ABC):
    """The base of all methods; what follows is what most of them need not change."""

    shares_work: bool = False
    """Whether ranks share the work, so that what each of them gives is to be added up."""
    network_spec: str
    """The architecture that the images are made for."""
    updates: int = 1
    """Updates of the images in one iteration."""
    options_that_may_diverge: tuple[str, ...] = ()
    """Options that can make the loss NaN, beside the learning rates of what is optimised."""
    view: View | None = None
    """How stored images become those that terms, evaluation and report see; None: as they are."""
    bank_draw: Literal["iteration", "update"] = "iteration"
    """How often networks of the bank are drawn: once an "iteration" or for every "update"."""
    term_factor: float = 1.0
    """What CMI and InfoNCE, means over images, are multiplied by beside their weights."""
    class_scale: Tensor | None = None
    """`(C,)` factors of the images' gradients, those of CMI and InfoNCE included; None: 1."""
    channel_scale: Tensor | None = None
    """`(channels,)` factors of them; None: 1."""

    @property
    def input_records(self) -> dict[str, Any]:
        """Records of the files this method reads. Resuming checks that they have not changed."""
        return {}

    @property
    def extra_parameters(self) -> dict[str, ExtraParameter]:
        """What is optimised beside the images, by the name that checkpoints call it."""
        return {}

    def draw(self, iteration: int, update: int) -> Any:
        """Everything that is drawn for an update, as tensors of the CPU."""
        return iteration, update

    @abstractmethod
    def loss_and_gradient(self, images: Tensor, draws: Any) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to `images` (N, ch, H, W), of what `draw` gave.

        It fills `.grad` of the extra parameters. Updates of an iteration come in order, from 0 on.
        Where ranks share the work, all of these are shares, which add up to the whole.
        """

    def optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        """What moves images and extra parameters: `groups` of one tensor and its lr each.

        A checkpoint holds the tensors of its state. Learning rates stay what they are, unless
        `take_step` changes them and the method's `state` holds what they are.
        """
        return torch.optim.SGD(groups, momentum=momentum)

    def take_step(self, optimizer: torch.optim.Optimizer, images: Tensor, loss: Tensor) -> None:  # noqa: ARG002
        """Move images and extra parameters by their gradients, in place.

        `loss` is that of the update, over all ranks.
        """
        optimizer.step()

    def constrain(self) -> None:  # noqa: B027
        """Project the extra parameters back into their valid range after a step."""

    def constrain_images(self, images: Tensor) -> None:  # noqa: B027
        """Project the images back into their valid range, in place, before an iteration."""

    def first_batch(self, iteration: int) -> Tensor | None:  # noqa: ARG002
        """The batch of images that an iteration begins with, as row numbers; None: all at once."""
        return None

    def log_values(self) -> dict[str, Tensor]:
        """More numbers for the log, as tensors of one element; all ranks ask for them together.

        One called distance is the part of the loss whose growth tells that a run diverges, where
        the weights of the others change as it goes on.
        """
        return {}

    def state(self) -> dict[str, Tensor]:
        """What is there after an update that later ones depend on, as tensors by name."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; of nothing, begin afresh."""
        if state:
            raise ValueError(f"expected no state of the method, got {', '.join(state)}")

    def state_bytes(self, iterations: int) -> int:  # noqa: ARG002
        """Bytes of `state` after so many iterations, at most."""
        return sum(tensor.nbytes for tensor in self.state().values())

    def finish(self, result: SyntheticSet) -> SyntheticSet:
        """The distilled set with what the method adds to it."""
        return result


@dataclass(frozen=True)
class Published:
    """What is known of a method on a dataset with some number of images per class.

    Each mapping goes by the names of options and serves those that the user did not give.
    """

    loop: Mapping[str, Any] = field(default_factory=dict)
    """Options of the loop around the method: iterations, init, lr_images, how often it writes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method itself."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """Epochs and augmentation of networks that are trained on a set, where they are not DSA's."""
    origin: str = "as published"
    """Where these come from, in words for the user."""


def origin_on(dataset: Dataset, whose: str, *, exact: bool = True) -> str:
    """The origin of settings that were published for standard datasets alone, in words.

    Args:
        dataset: that they are to serve.
        whose: published default it is, such as "DM's".
        exact: whether they were published as they are, and are not only near to what was.
    """
    if dataset.name in KNOWN:
        return "as published" if exact else "as near to what is published as it goes"
    near = "" if exact else "as near as it goes to "
    return f"not published for {dataset.name}; {near}{whose} published default, found on CIFAR-10"


@dataclass(frozen=True)
class CMIWeights:
    """Weights of CMI by dataset, for 10 and for 50 images per class."""

    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Those that the authors of CMI published."""
    ours: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Those that we found."""


@dataclass(frozen=True)
class MethodEntry:
    """A method as the table of methods holds it."""

    make: Callable[..., Method]
    """Makes the method, of dataset, labels, options, seed and device."""
    options: type[Options]
    """A frozen dataclass whose docstring is the help of the method's flags.

    The docstring of the file that it stands in is the help of the method.
    """
    published: Callable[[Dataset, int], Published]
    """Gives what is published, of dataset and images per class."""
    cmi_weights: CMIWeights = field(default_factory=CMIWeights)
    """Weights of CMI that are known."""
    published_on: Mapping[str, Callable[[Dataset, int], Published]] = field(default_factory=dict)
    """The same as `published` where an option of the method is one of these."""
    published_by: str = "base"
    """The name of that option."""

    def published_for(self, dataset: Dataset, ipc: int, options: Options) -> Published:
        """What is published where the user gave some options."""
        given = getattr(options, self.published_by, None)
        return self.published_on.get(str(given), self.published)(dataset, ipc)
