"""What a `CMIRegularizer` is made of, checked when it is given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from cmikernels.native import has_memory
from cmikernels.probabilities import check_probabilities


def as_sequence(networks: Any) -> Sequence[nn.Module]:
    """What is given for `networks`, in a form that an `nn.Module` does not take for its own."""
    if isinstance(networks, (str, os.PathLike)):
        raise TypeError(
            "networks: expected a module or a sequence of modules, got the path "
            f"{os.fspath(networks)!r}; load it with cmidd.Bank.load"
        )
    if isinstance(networks, (nn.ModuleList, list, tuple)):
        for number, network in enumerate(networks):
            check_module(number, network)
        return list(networks)
    if isinstance(networks, nn.Module):
        return [networks]
    has_numbers = hasattr(networks, "__len__") and hasattr(networks, "__getitem__")
    if not has_numbers or isinstance(networks, (Mapping, Tensor)):
        raise TypeError(
            f"networks: expected a module or a sequence of modules, got {type(networks).__name__}"
        )
    return cast("Sequence[nn.Module]", networks)


def check_module(number: int, network: object) -> None:
    """Raise unless network `number` of a sequence is a module."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"networks[{number}]: expected a module, got {type(network).__name__}")


_parts: WeakKeyDictionary[nn.Module, tuple[list[nn.Module], list[Tensor]]] = WeakKeyDictionary()
"""The modules inside a network and its parameters, which take 0.1 ms to find in a ResNet-18."""


def trains(network: nn.Module) -> bool:
    """Whether any module of a network is in training mode, or a parameter requires a gradient.

    Modules that are put into it after the first call are not seen.
    """
    if network not in _parts:
        inside = [module for module in network.modules() if module is not network]
        _parts[network] = inside, list(network.parameters())
    modules, parameters = _parts[network]
    return (
        network.training
        or any(module.training for module in modules)
        or any(parameter.requires_grad for parameter in parameters)
    )


def checked_centroids(centroids: Any, num_networks: int) -> Tensor:
    """Centroids as the buffer holds them; read here, so that no call has to."""
    if not isinstance(centroids, Tensor):
        raise TypeError(f"centroids: expected a tensor, got {type(centroids).__name__}")
    if centroids.requires_grad:
        raise ValueError(
            "centroids: they are taken as constants and get no gradient, but this tensor requires "
            "one; pass centroids.detach()"
        )
    if not centroids.is_floating_point():
        raise TypeError(f"centroids: expected a floating-point tensor, got {centroids.dtype}")
    if centroids.dim() not in (2, 3) or (centroids.dim() == 3 and len(centroids) != num_networks):
        raise ValueError(
            f"centroids: expected (C, M), or (networks, C, M) of {num_networks} networks, "
            f"got shape {tuple(centroids.shape)}"
        )
    if isinstance(centroids, nn.Parameter):  # which would join the module's parameters
        return checked_centroids(centroids.detach(), num_networks)
    if has_memory(centroids) and not centroids.is_meta:
        check_probabilities(centroids)
    return centroids


def check_count(name: str, number: object) -> None:
    """Raise unless it is a positive int."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}: expected an int, got {type(number).__name__}")
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
