"""What a checkpoint holds of a run: everything that later iterations depend on.

images, and each extra parameter      by its name
momentum of images                    the buffer of SGD; likewise of each extra parameter
exp_avg of images                     any other state of an optimizer, by its own name
state of NAME                         what the method keeps across updates
losses                                of the updates that are done of the iteration under way
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cmidd import ranks
from cmidd.methods import Method
from cmidd.storage.optimizer_state import check_state, named, state_of
from cmidd.storage.run_folder import RunFolder
from cmidd.storage.tensor_file import FileError

_STATE = "state of "
_LOSSES = "losses"


@dataclass
class Place:
    """How far a run is."""

    iteration: int
    """Iterations that are done."""
    update: int = 0
    """Updates that are done of the next one, and their losses."""
    losses: list[Tensor] = field(default_factory=list)


def restore(
    folder: RunFolder,
    leaves: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    method: Method,
    input_records: Mapping[str, Any],
) -> Place:
    """Put a checkpoint back; where to go on."""
    checkpoint = ranks.from_first(lambda: folder.load_checkpoint(input_records))
    if checkpoint is None:
        return Place(0)
    tensors = checkpoint.tensors
    losses = list(tensors.pop(_LOSSES, torch.empty(0)).to(leaves["images"].device))
    of_method = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_STATE)}
    expected = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    of_leaves = {name: shape for name, shape in found.items() if " of " not in name}
    owners = {name.partition(" of ")[2] for name in found if " of " in name}
    if of_leaves != expected or not owners <= expected.keys():
        raise FileError(f"{folder.path}: expected a checkpoint with {expected}, got {found}")
    for name, leaf in leaves.items():
        with torch.no_grad():
            leaf.copy_(tensors[name])
        of_leaf = state_of(tensors, name, leaf.device)
        try:
            check_state(of_leaf, name, expected[name], type(optimizer))
        except ValueError as error:
            raise FileError(f"{folder.path}: {error}") from None
        optimizer.state[leaf].update(of_leaf)
    now = method.state()
    state = {}
    for key, tensor in of_method.items():
        name = key.removeprefix(_STATE)
        state[name] = tensor.to(now[name].device) if name in now else tensor
    missing = [f"{_STATE}{name}" for name in now if name not in state]
    if missing:
        raise FileError(f"{folder.path}: expected a checkpoint with {', '.join(missing)}")
    try:
        method.load_state(state)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise FileError(f"{folder.path}: {error}") from None
    return Place(checkpoint.iteration, checkpoint.update, losses)


def save(
    folder: RunFolder,
    place: Place,
    leaves: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    method: Method,
    about: Mapping[str, Any],
) -> None:
    """Write what `restore` puts back, which all ranks have alike."""
    if not ranks.is_first():
        return
    tensors = dict(leaves)
    for name, leaf in leaves.items():
        tensors |= named(optimizer.state[leaf], name)
    tensors |= {f"{_STATE}{name}": tensor for name, tensor in method.state().items()}
    if place.losses:
        tensors[_LOSSES] = torch.stack(place.losses)
    folder.save_checkpoint(place.iteration, tensors, about, update=place.update)
