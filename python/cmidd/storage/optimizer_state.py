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
            place = torch.device("cpu") if word == "step" else device
            found[_NAMES.get(word, word)] = tensor.to(place)
    return found
