"""Training that a signal stopped, in a file beside the one it is for, and how it goes on.

    FILE.K.training: `state of NAME` (K, ...) of K networks trained together, and what the optimizer
                     keeps of parameter number P: `momentum of P`, or `exp_avg of P` and others;
                     `objective's NAME`, where what is minimised has a state of its own

K is the number of the first of them. The file's record describes these networks and what they learn
from; for others it is as if there were none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd.augment import Strategy
from cmidd.datasets.streamed import Images
from cmidd.interruption import Stop
from cmidd.options.recipe import Recipe
from cmidd.stack import Stack
from cmidd.storage.optimizer_state import named, state_of
from cmidd.storage.tensor_file import FileError, read_tensors, write_tensors
from cmidd.training import Objective, Progress, Teach, cross_entropy, train
from cmidd.training_draws import draw_epochs

KIND = "unfinished training"
_STATE, _OBJECTIVE = "state of ", "objective's "


def training_path(path: Path, number: int) -> Path:
    """Where training for the file `path` is kept when it is stopped, from network `number` on."""
    return path.with_name(f"{path.name}.{number}.training")


def is_training_begun(path: Path) -> bool:
    """Whether training for the file `path` is kept."""
    return any(path.parent.glob(f"{escape(path.name)}.*.training"))


class TrainingFile:
    """What is kept of one group of networks.

    Args:
        path: where.
        about: what tells the group from all others.
        objective: the state of what is minimised, whose tensors are changed in place when they are
            put back.
    """

    def __init__(
        self, path: Path, about: Mapping[str, Any], objective: Mapping[str, Tensor] | None = None
    ) -> None:
        self.path = path
        self.objective = {} if objective is None else objective
        self.about = json.loads(json.dumps(about))  # as a file gives it back

    def restore(self, stack: Stack) -> Progress | None:
        """Put back what is kept of these networks, if anything is; how far they were."""
        if not self.path.exists():
            return None
        try:
            tensors, record = read_tensors(self.path, KIND)
            if record.get("about") != self.about:
                return None
            with torch.no_grad():
                for name, tensor in stack.state.items():
                    tensor.copy_(tensors[_STATE + name])
                for name, tensor in self.objective.items():
                    tensor.copy_(tensors[_OBJECTIVE + name])
            device = stack.parameters[0].device
            kept = [state_of(tensors, str(k), device) for k in range(len(stack.parameters))]
            return Progress(record["epoch"], record["step"], record["loss"], kept)
        except (FileError, LookupError, RuntimeError) as error:
            raise FileError(
                f"{self.path}: expected training that was stopped, got something else ({error}); "
                "delete it to train these networks anew"
            ) from None

    def save(self, stack: Stack, done: Progress) -> None:
        """Keep what `restore` puts back."""
        tensors = {_STATE + name: tensor for name, tensor in stack.state.items()}
        tensors |= {_OBJECTIVE + name: tensor for name, tensor in self.objective.items()}
        for k, state in enumerate(done.optimizer):
            tensors |= named(state, str(k))
        record = {"about": self.about, "epoch": done.epoch, "step": done.step, "loss": done.loss}
        write_tensors(self.path, KIND, tensors, record)

    def discard(self) -> None:
        """Forget it, once the networks are kept elsewhere."""
        self.path.unlink(missing_ok=True)


def train_or_go_on(
    stack: Stack,
    images: Images,
    labels: Tensor,
    recipe: Recipe,
    strategy: Strategy,
    seeds: Sequence[int],
    *,
    kept: TrainingFile | None,
    stop: Stop,
    what: str,
    objective: Objective = cross_entropy,
    at_start: Callable[[Progress | None], None] | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    teach: Teach | None = None,
) -> None:
    """Train a fresh stack as `train` does, from where it was stopped.

    Args:
        stack: as its seeds initialise it.
        images: as of `train`, like all that is not named here.
        labels: of the images.
        recipe: the hyper-parameters.
        strategy: how images are augmented.
        seeds: of what is drawn for the networks.
        kept: where it is kept when it is stopped; None: nowhere.
        stop: whether to stop after the step under way.
        what: the networks, in words for messages.
        objective: what is minimised.
        at_start: told how far the networks are, None: not begun.
        on_epoch: told of each epoch.
        teach: what networks learn in the place of labels.

    Raises:
        Interrupted: it was stopped, and is kept.
    """
    done = None if kept is None else kept.restore(stack)
    if at_start is not None:
        at_start(done)
    epochs = draw_epochs(seeds, len(images), recipe, strategy, done.epoch if done else 0)
    came_to = train(
        stack,
        images,
        labels,
        recipe,
        strategy,
        epochs,
        objective=objective,
        on_epoch=on_epoch,
        done=done,
        stopping=lambda: stop.asked,
        teach=teach,
    )
    if came_to is None:
        return
    if kept is not None:
        kept.save(stack, came_to)
    steps = math.ceil(len(images) / recipe.batch_size)
    raise stop.interruption(
        f"interrupted after {came_to.epoch * steps + came_to.step} of {recipe.epochs * steps} "
        f"steps of {what}"
    )


def about_training(
    seeds: Sequence[int], spec: str, recipe: Recipe, data: Mapping[str, Any]
) -> dict[str, Any]:
    """What tells one group of networks from all others."""
    return {"seeds": list(seeds), "network": spec, "recipe": recipe.as_record(), "data": dict(data)}
