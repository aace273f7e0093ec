"""The state of an optimizer as tensors of a file.

momentum of NAME    SGD's buffer of the parameter NAME
exp_avg of NAME     any other state, by the optimizer's own name for it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_OF = " of "
_WORDS = {"momentum_buffer": "momentum"}
_NAMES = {word: name for name, word in _WORDS.items()}
_STEP = "step"
_ADAM = {_STEP, "exp_avg", "exp_avg_sq"}
_OF_ADAM = (_ADAM, _ADAM | {"max_exp_avg_sq"})
_KEPT: dict[type[torch.optim.Optimizer], tuple[set[str], ...]] = {
    torch.optim.SGD: ({"momentum_buffer"},),
    torch.optim.Adam: _OF_ADAM,
    torch.optim.AdamW: _OF_ADAM,
}
"""What optimizers keep of a parameter that has moved."""


def named(state: Mapping[str, Any], owner: str) -> dict[str, Tensor]:
    """The state of the parameter `owner`, by the names in a file."""
    found = {}
    for name, value in state.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(
                f"optimizer: expected tensors in its state, which a checkpoint can hold, got "
                f"{name} {value!r} of {owner}"
            )
        found[f"{_WORDS.get(name, name)}{_OF}{owner}"] = value
    return found


def state_of(tensors: Mapping[str, Tensor], owner: str, device: torch.device) -> dict[str, Tensor]:
    """What `named` was given, of the tensors of a file."""
    found = {}
    for key, tensor in tensors.items():
        word, _, whose = key.partition(_OF)
        if whose == owner:
            # A counter of steps stays on the CPU, where optimizers keep it.
            place = torch.device("cpu") if word == _STEP else device
            found[_NAMES.get(word, word)] = tensor.to(place)
    return found


def check_state(
    state: Mapping[str, Tensor],
    owner: str,
    shape: tuple[int, ...],
    optimizer: type[torch.optim.Optimizer],
) -> None:
    """Raise where this is no state of the parameter `owner`, which has not moved or has `shape`."""
    kept = _KEPT.get(optimizer)
    if kept and state and state.keys() not in kept:
        words = ", ".join(sorted(_WORDS.get(name, name) for name in kept[0]))
        found = ", ".join(sorted(_WORDS.get(name, name) for name in state))
        raise ValueError(f"expected a checkpoint with {words} of {owner}, got {found}")
    for name, tensor in state.items():
        expected = () if name == _STEP else shape
        if tensor.shape != expected:
            raise ValueError(
                f"expected a checkpoint with {_WORDS.get(name, name)}{_OF}{owner} of {expected}, "
                f"got {tuple(tensor.shape)}"
            )
