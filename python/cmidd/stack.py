"""Several networks of one architecture, their states side by side.

Every tensor of the state has a leading axis (K, ...), so that an optimizer steps all networks at
once. They compute one after another: one alone keeps a CPU busy, and a GPU too unless its images
are few, while convolutions of several at once are grouped ones, which libraries are slower at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from cmidd.datasets.streamed import Images
from cmidd.device import precision_on
from cmidd.networks import (
    Network,
    NetworkSpec,
    build_network,
    draw_weights,
    has_batch_norm,
    images_per_chunk,
)
from cmidd.options.recipe import Recipe
from cmidd.seeds import generator
from cmikernels.precision import computing


class Stack:
    """K networks of one architecture, their states side by side."""

    def __init__(
        self,
        spec: str,
        shape: Sequence[int],
        num_classes: int,
        states: list[dict[str, Tensor]],
        precision: str = "float32",
    ) -> None:
        self.network = build_network(spec, shape[0], shape[1], num_classes)
        self.state = {name: torch.stack([s[name] for s in states]) for name in states[0]}
        trained = dict(self.network.named_parameters())
        self.parameters = [self.state[name].requires_grad_() for name in trained]
        self.size, self.num_classes = len(states), num_classes
        self.precision = precision  # of the forward and, in `train`, of the backward
        self._compiled: Callable[[dict[str, Tensor], Tensor], Tensor] | None = None
        self._compiled_for: frozenset[int] = frozenset()  # numbers of images
        self.sees_batches = len(trained) < len(self.state)
        if self.size > 1 and self.sees_batches:
            raise ValueError(
                f"network {spec}: expected one network at a time where layers keep statistics of "
                f"batches, got {self.size}"
            )

    @classmethod
    def fresh(
        cls,
        spec: str,
        shape: Sequence[int],
        num_classes: int,
        seeds: Sequence[int],
        device: torch.device,
        precision: str | None = None,
    ) -> Stack:
        """Networks as their seeds initialise them."""
        states = []
        for seed in seeds:
            network = build_network(spec, shape[0], shape[1], num_classes)
            network.load_state_dict(first_weights(network, seed))
            states.append({k: v.detach().to(device) for k, v in network.state_dict().items()})
        return cls(spec, shape, num_classes, states, precision_on(device, precision))

    def compile(self, *images: int) -> None:
        """Compile the network, if it is one alone, for any of these numbers of images at once.

        Inductor fuses norms, activations and pooling, forward and backward, but cannot be
        differentiated twice. Other numbers of images are left alone: code for any would round
        differently, and which code serves would depend on what came before.
        """
        self._compiled_for = frozenset(images)
        self._compiled = torch.compile(self._alone, dynamic=False)

    @property
    def is_compiled(self) -> bool:
        """Whether `compile` was called."""
        return self._compiled is not None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `(K, N, C)` of images `(K, N, channels, height, width)`, a batch for each."""
        with computing(self.precision, images.device.type, network=True):
            return self._logits(images).to(images.dtype)

    def _logits(self, images: Tensor) -> Tensor:
        if self.size == 1:
            alone: Callable[[dict[str, Tensor], Tensor], Tensor] = self._alone
            twice = images.requires_grad  # which is asked for where gradients are differentiated
            if self._compiled and images.shape[1] in self._compiled_for and not twice:
                alone = self._compiled
            return alone(self.state, images[0])[None]
        # Not [k], whose derivative fills zeros and copies, for each k.
        of_each = zip(*(tensor.unbind() for tensor in self.state.values()), images, strict=True)
        return torch.stack(
            [self._one(dict(zip(self.state, own, strict=True)), x) for *own, x in of_each]
        )

    def _alone(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        return self._one({name: tensor.squeeze(0) for name, tensor in state.items()}, images)

    def _one(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.network, state, (images,))
        return logits

    def states(self) -> list[dict[str, Tensor]]:
        """The state of each network alone."""
        return [
            {name: tensor.detach()[k] for name, tensor in self.state.items()}
            for k in range(self.size)
        ]

    def images_per_chunk(self, images: Images) -> int:
        """How many images (N, channels, height, width) to put through a network together."""
        if images.device.type != "cpu" or self.sees_batches:
            return max(1, len(images))
        return images_per_chunk(images.device, images.shape[-1], len(images))

    @torch.no_grad()
    def accuracy(self, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
        """Share of images that each network gets right."""
        self.network.eval()
        right, count = [], 0
        for images, labels in batches:
            found = self(images.expand(self.size, *images.shape)).argmax(dim=2)
            right.append((found == labels).sum(dim=1))
            count += len(labels)
        return (torch.stack(right).sum(dim=0).cpu().double() / count).tolist()


def first_weights(network: Network, seed: int) -> dict[str, Tensor]:
    """The state of such a network, on the CPU, that training by a seed begins with."""
    return draw_weights(network, generator(seed, "first weights"))


def networks_together(spec: str, device: torch.device, asked: int | None) -> int:
    """How many networks to train together where the user does not say.

    The step of several small ones on a GPU is one graph. A large one is trained alone, because
    several would fill the memory.
    """
    if asked is not None:
        return asked
    alone = "resnet" in NetworkSpec.parse(spec).name or has_batch_norm(spec)
    return 1 if device.type == "cpu" or alone else 5


def network_of(
    spec: str, shape: Sequence[int], num_classes: int, state: dict[str, Tensor]
) -> Network:
    """A network of its own around a state, which it shares and does not copy."""
    network = build_network(spec, shape[0], shape[1], num_classes)
    network.load_state_dict(state, assign=True)
    return network


def optimizer_of(
    stack: Stack, recipe: Recipe, *, rate_on_device: bool = False
) -> torch.optim.Optimizer:
    """What steps all networks of a stack, as a recipe says.

    With `rate_on_device` the learning rate is a tensor there, and torch's fused kernel reads it.
    """
    parameters = stack.parameters
    how: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if rate_on_device:
        how["fused"] = True
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, capturable=rate_on_device, **how)
    else:
        optimizer = torch.optim.SGD(parameters, momentum=recipe.momentum, **how)
    if rate_on_device:  # put there now: torch would look whether it is negative, and wait
        for group in optimizer.param_groups:
            group["lr"] = torch.full(
                (), recipe.lr, dtype=torch.float32, device=parameters[0].device
            )
    return optimizer
