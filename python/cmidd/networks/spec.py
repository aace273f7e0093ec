"""Networks by one string: `name` or `name:option=value,option=value`, such as `convnet:depth=4`.

An architecture is a function of channels and size; its keyword-only arguments are its options, with
their defaults. A number takes any positive integer, a word one of `WORDS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import nn

from cmidd.networks.base import Network
from cmidd.networks.classic import alexnet, lenet, mlp, vgg11
from cmidd.networks.convnet import convnet
from cmidd.networks.imagenet_resnet import STEMS, imagenet_resnet18, imagenet_resnet50
from cmidd.networks.layers import ACTIVATIONS, NORMS, POOLINGS
from cmidd.networks.resnet import resnet18

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    function.__name__: function
    for function in (
        convnet, mlp, lenet, alexnet, vgg11, resnet18, imagenet_resnet18, imagenet_resnet50
    )
}  # fmt: skip
"""The features of each architecture, called with `channels, size, **options`."""

WORDS: dict[str, Collection[str]] = {
    "norm": NORMS,
    "activation": ACTIVATIONS,
    "pooling": POOLINGS,
    "stem": STEMS,
}


def options_of(name: str) -> dict[str, int | str]:
    """The options of the architecture `name` and their defaults, in the order they are printed."""
    parameters = inspect.signature(NETWORKS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def has_batch_norm(text: str) -> bool:
    """Whether a network of this spec normalises by statistics of batches."""
    spec = NetworkSpec.parse(text)
    return {**options_of(spec.name), **dict(spec.options)}.get("norm") == "batch"


@dataclass(frozen=True)
class NetworkSpec:
    """An architecture and its options that differ from the default, made by `parse`.

    Equal networks have equal specs and print the same: options stand in a fixed order, and those at
    their default are left out.
    """

    name: str
    options: tuple[tuple[str, int | str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> NetworkSpec:
        """Read `name` or `name:option=value,...`; what does not exist is a ValueError."""
        name, colon, tail = text.partition(":")
        if name not in NETWORKS:
            close = get_close_matches(name, NETWORKS, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            known = ", ".join(NETWORKS)
            raise ValueError(f"network {text!r}: no {name!r}; there are {known}{meant}")
        defaults = options_of(name)
        given: dict[str, int | str] = {}
        for item in tail.split(",") if colon else []:
            option, _, value = item.partition("=")
            if option not in defaults:
                known = (
                    f"its options are {', '.join(defaults)}" if defaults else "it has no options"
                )
                raise ValueError(f"network {text!r}: {name} has no option {option!r}; {known}")
            if option in given:
                raise ValueError(f"network {text!r}: {option} is given twice; give it once")
            given[option] = _value(text, option, value)
        return cls(
            name, tuple((o, given[o]) for o in defaults if given.get(o, defaults[o]) != defaults[o])
        )

    def __str__(self) -> str:
        options = ",".join(f"{option}={value}" for option, value in self.options)
        return f"{self.name}:{options}" if options else self.name


def _value(text: str, option: str, value: str) -> int | str:
    """The value of an option from its text."""
    if option in WORDS:
        if value not in WORDS[option]:
            known = ", ".join(WORDS[option])
            raise ValueError(f"network {text!r}: {option} is one of {known}, got {value!r}")
        return value
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ValueError(f"network {text!r}: {option} is a positive integer, got {value!r}")
    return int(value)


def network_outline(spec: str, channels: int, size: int, num_classes: int) -> Network:
    """A network for images (N, channels, size, size) on the device meta: shapes and no numbers."""
    for argument, value in (("channels", channels), ("size", size), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")
    parsed = NetworkSpec.parse(spec)
    with torch.device("meta"):  # shapes without numbers: no global generator moves
        features = NETWORKS[parsed.name](channels, size, **dict(parsed.options))
        pair = torch.empty(2, channels, size, size)  # batch norm refuses one image of one pixel
        return Network(features, features(pair).flatten(1).shape[1], num_classes)


def build_network(spec: str, channels: int, size: int, num_classes: int) -> Network:
    """A network on the CPU for images (N, channels, size, size), to be filled before its first use.

    Parameters are NaN until `initialize` or `load_state_dict` fills them. Nothing is drawn here.
    """
    network = network_outline(spec, channels, size, num_classes)
    network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    return network
