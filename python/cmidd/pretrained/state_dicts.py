"""State dicts of networks that were trained elsewhere, read with nothing in them executed.

A file of torch.save or safetensors holds tensors by the names that torchvision gives them. Which
network they are of is seen from all names and shapes: ResNet-18 and ResNet-50, with the stem for
ImageNet or the small one of SRe2L, are ours, and others are torchvision's, which is imported for a
file that is of none of ours. A file may hold the state dict beside the rest of a checkpoint, under
one of `_WRAPPERS`, and names may begin with what wrappers of modules add.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cmidd.exchange.untrusted import load_torch, tensor_of
from cmidd.networks import network_outline
from cmidd.networks.imagenet_resnet import torchvisions_name
from cmidd.storage.tensor_file import FileError

OURS = tuple(f"imagenet_resnet{depth}{stem}" for depth in (18, 50) for stem in ("", ":stem=small"))
TORCHVISIONS = ("mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5", "alexnet")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_COUNTER = "num_batches_tracked"  # which no output depends on, and older files lack
_EXPECTED = "expected a bank, or a state dict of torch.save or safetensors"
_STARTS = (b"PK", b"\x80")  # of torch.save, as an archive and before torch 1.6


class _Candidate(NamedTuple):
    """A network that a file may be of, without numbers: `tensors` are by the names in the file."""

    name: str
    network: nn.Module
    tensors: dict[str, Tensor]
    own_name: Callable[[str], str]

    def differences(self, found: Mapping[str, Tensor]) -> list[str]:
        """Names of tensors that are missing, too many or of another shape, but for counters."""
        return [
            name
            for name in {**self.tensors, **found}
            if _outline(self.tensors.get(name)) != _outline(found.get(name))
            and not name.endswith(_COUNTER)
        ]


_Outline = tuple[tuple[int, ...], bool] | None
"""Shape of a tensor that is there, and whether its numbers are whole ones."""


def _outline(tensor: Tensor | None) -> _Outline:
    return None if tensor is None else (tuple(tensor.shape), not tensor.is_floating_point())


def _in_words(outline: _Outline) -> str:
    if outline is None:
        return "none"
    shape, is_whole = outline
    return f"{shape} whole numbers" if is_whole else f"{shape}"


def network_of_file(
    path: Path, shape: tuple[int, int, int], num_classes: int
) -> tuple[str, nn.Module]:
    """The network whose state dict a file holds, on the CPU, and the name of its kind.

    Args:
        path: of the file.
        shape: channels, height and width of the images that it is to take.
        num_classes: how many logits it is to give.
    """
    channels, height, width = shape
    shape = channels, height, width  # which messages show as they are
    found = read_state_dict(path)
    nearest, obstacle = _nearest(found, shape, num_classes)
    wrong = nearest.differences(found)
    if wrong:
        classes = _classes(nearest, found, wrong)
        if classes is not None:
            raise FileError(
                f"{path}: expected {num_classes} classes as the dataset has, "
                f"got {nearest.name} of {classes}"
            )
        raise FileError(f"{path}: {_mismatch(nearest, found, wrong)}{obstacle}")
    state = {
        name: torch.zeros((), dtype=torch.int64) if name.endswith(_COUNTER) else found[name]
        for name in nearest.tensors
    }
    _check_numbers(path, state)
    network = copy.deepcopy(nearest.network).to_empty(device="cpu").eval()
    network.load_state_dict({nearest.own_name(name): tensor for name, tensor in state.items()})
    _check_takes(path, nearest.name, network, shape)
    return nearest.name, network


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, float32 or int64 on the CPU."""
    try:
        found = _tensors(_unwrapped(_unwrapped(_content(path))), path.stat().st_size)
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None
    if not found:
        raise FileError(f"{path}: expected a state dict, got an empty one")
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in found)), ""):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _tensors(content: Mapping[Any, Any], size: int) -> dict[str, Tensor]:
    """The tensors of a state dict, which have to find room in a file of `size` bytes."""
    found: dict[str, Tensor] = {}
    for name, each in content.items():
        if not isinstance(name, str):
            raise ValueError(f"expected names of tensors to be text, got {type(name).__name__}")
        found[name] = tensor_of(each, repr(name)[:100], size)
        size -= each.nbytes
    return found


def _unwrapped(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """What a checkpoint has the state dict as."""
    return next((content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)), content)


def _content(path: Path) -> Mapping[Any, Any]:
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"expected a safetensors file; it is damaged ({error})") from None
    if not start.startswith(_STARTS):
        raise ValueError(f"{_EXPECTED}; it is {'of another kind' if start else 'empty'}")
    content = load_torch(path, "weights")
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a state dict, got a {type(content).__name__}")
    return content


def _nearest(
    found: Mapping[str, Tensor], shape: tuple[int, int, int], num_classes: int
) -> tuple[_Candidate, str]:
    """The network that tensors are of, or else the nearest and why others are not known here."""

    def differing(candidate: _Candidate) -> int:
        return len(candidate.differences(found))

    nearest = min(_ours(shape, num_classes), key=differing)
    if not differing(nearest):
        return nearest, ""
    try:
        theirs = _torchvisions(importlib.import_module("torchvision.models"), num_classes)
    except Exception as error:  # one that does not fit torch ends with many an error
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        listed = ", ".join(TORCHVISIONS)
        return nearest, f"; {listed} need torchvision, which cannot be imported here ({why})"
    return min((nearest, *theirs), key=differing), ""


@cache
def _ours(shape: tuple[int, int, int], num_classes: int) -> tuple[_Candidate, ...]:
    candidates = []
    channels, size, _ = shape
    for spec in OURS:
        network = network_outline(spec, channels, size, num_classes)
        state = network.state_dict()
        own = {torchvisions_name(name): name for name in state}
        tensors = {theirs: state[name] for theirs, name in own.items()}
        candidates.append(_Candidate(spec, network, tensors, own.__getitem__))
    return tuple(candidates)


@cache
def _torchvisions(models: ModuleType, num_classes: int) -> tuple[_Candidate, ...]:
    candidates = []
    for name in TORCHVISIONS:
        with torch.device("meta"):  # where no weights are drawn
            network = getattr(models, name)(weights=None, num_classes=num_classes)
        candidates.append(_Candidate(name, network, dict(network.state_dict()), str))
    return tuple(candidates)


def _classes(nearest: _Candidate, found: Mapping[str, Tensor], wrong: Sequence[str]) -> int | None:
    """How many classes a state dict is of, where it differs in nothing else."""
    last = list(nearest.tensors)[-2:]  # weight and bias of the last layer
    if not set(wrong) <= set(last) <= found.keys() or not all(found[name].dim() for name in last):
        return None
    (weight, bias), expected = (found[name] for name in last), nearest.tensors[last[0]]
    alike = weight.shape[1:] == expected.shape[1:] and bias.shape == weight.shape[:1]
    return len(weight) if alike and len(weight) != len(expected) else None


def _mismatch(nearest: _Candidate, found: Mapping[str, Tensor], wrong: Sequence[str]) -> str:
    """What is wrong with a state dict, by the network that comes nearest to it."""
    name = wrong[0]
    expected, got = (_in_words(_outline(tensors.get(name))) for tensors in (nearest.tensors, found))
    more = f" and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
    in_a_line = name.encode("unicode_escape").decode()[:100]
    return (
        f"expected the state dict of one of {', '.join((*OURS, *TORCHVISIONS))}; nearest is "
        f"{nearest.name}, for whose {in_a_line} expected {expected}, got {got}{more}"
    )


def _check_numbers(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise FileError(f"{path}: expected finite numbers, got NaN or Inf in {name}")
        if name.endswith("running_var") and tensor.min() < 0:
            raise FileError(f"{path}: expected 0 or more in {name}, got {float(tensor.min()):g}")


def _check_takes(path: Path, name: str, network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Raise unless the network makes finite logits of an image of this shape."""
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, *shape))
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise FileError(f"{path}: {name} cannot take images of {shape}: {why}") from None
    if not logits.isfinite().all():
        raise FileError(f"{path}: expected finite logits of {name}, got NaN or Inf")
