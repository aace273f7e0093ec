"""Training of classifiers, one or several at once, for the bank and for evaluation.

Several networks of one architecture are one stack: every parameter has a leading axis (K, ...), the
forward pass is mapped over it, and the loss is the sum over networks, so that each sees exactly its
own gradient. SGD works element by element and needs no change:

    v <- momentum v + gradient + weight_decay w,    w <- w - lr v

Everything drawn (first weights, order of images, augmentation) is drawn for each network from its
own seed, so a network is the same whether it is trained alone or in a stack, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from cmidd.augment import Draw, Strategy, augment, draw
from cmidd.networks import Network, at_a_time, build_network, initialize
from cmidd.seeds import generator


@dataclass(frozen=True)
class Recipe:
    """How networks are trained.

    Args:
        epochs: passes over the images
        lr: learning rate of SGD
        momentum: of SGD
        weight_decay: of SGD
        batch_size: images a step
        drop_at: share of the epochs after which the learning rate is a tenth; 1: never
        augmentation: operations such as color_crop_cutout_flip_scale_rotate, or none
    """

    epochs: int
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    drop_at: float = 0.5
    augmentation: str = "none"


class Stack:
    """K networks of one architecture, their states side by side."""

    def __init__(
        self, spec: str, shape: Sequence[int], num_classes: int, states: list[dict[str, Tensor]]
    ) -> None:
        self.network = build_network(spec, shape[0], shape[1], num_classes)
        self.state = {name: torch.stack([s[name] for s in states]) for name in states[0]}
        trained = dict(self.network.named_parameters())
        self.parameters = [self.state[name].requires_grad_() for name in trained]
        self.size = len(states)
        self._compiled: Callable[[dict[str, Tensor], Tensor], Tensor] | None = None
        self._compiled_for = 0
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
    ) -> Stack:
        """Networks as their seeds initialise them."""
        states = []
        for seed in seeds:
            network = build_network(spec, shape[0], shape[1], num_classes)
            initialize(network, generator(seed, "first weights"))
            states.append({k: v.detach().to(device) for k, v in network.state_dict().items()})
        return cls(spec, shape, num_classes, states)

    def compile(self, images: int) -> None:
        """Compile the network, if it is one alone, for so many images at once.

        Inductor fuses norms, activations and pooling, forward and backward, but cannot be
        differentiated twice. Other numbers of images are left alone: code for any would round
        differently, and which code serves would depend on what came before.
        """
        self._compiled, self._compiled_for = torch.compile(self._alone, dynamic=False), images

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `(K, N, C)` of images `(K, N, channels, height, width)`, a batch for each."""
        if self.size == 1:
            alone: Callable[[dict[str, Tensor], Tensor], Tensor] = self._alone
            twice = images.requires_grad  # which is asked for where gradients are differentiated
            if self._compiled and images.shape[1] == self._compiled_for and not twice:
                alone = self._compiled
            return alone(self.state, images[0])[None]
        logits: Tensor = vmap(self._one)(self.state, images)
        return logits

    def _alone(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        return self._one({name: tensor[0] for name, tensor in state.items()}, images)

    def _one(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.network, state, (images,))
        return logits

    def states(self) -> list[dict[str, Tensor]]:
        """The state of each network alone."""
        return [
            {name: tensor.detach()[k] for name, tensor in self.state.items()}
            for k in range(self.size)
        ]

    def at_a_time(self, images: Tensor) -> int:
        """How many images (N, channels, height, width) to put through all networks together."""
        if images.device.type != "cpu" or self.size > 1 or self.sees_batches:
            return len(images)
        return at_a_time(images.device, images.shape[-1], len(images))

    @torch.no_grad()
    def accuracy(self, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
        """Share of images that each network gets right."""
        self.network.eval()
        right, count = torch.zeros(self.size, dtype=torch.int64), 0
        for images, labels in batches:
            found = self(images.expand(self.size, *images.shape)).argmax(dim=2)
            right += (found == labels).sum(dim=1).cpu()
            count += len(labels)
        return (right.double() / count).tolist()


def train(
    stack: Stack,
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    mirror: bool = True,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Train every network of the stack, in place.

    A step's batch goes through one network alone in parts that suit a CPU, whose gradients add up.

    Args:
        stack: networks, on the images' device.
        images: `(N, channels, height, width)`, normalised.
        labels: `(N,)`, or `(N, C)` of probabilities.
        seeds: of each network.
        recipe: the hyper-parameters.
        mirror: whether images may be flipped; else "flip" is left out of the augmentation.
        on_epoch: called with the number of finished epochs and the mean loss of the last, for which
            a GPU has to wait.
    """
    stack.network.train()
    strategy = Strategy.parse(recipe.augmentation, mirror=mirror)
    optimizer = torch.optim.SGD(
        stack.parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    for epoch in range(recipe.epochs):
        if epoch == math.ceil(recipe.epochs * recipe.drop_at):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr / 10
        orders = torch.stack(
            [torch.randperm(len(images), generator=generator(s, "order", epoch)) for s in seeds]
        )
        total = torch.zeros((), device=images.device)
        for step, rows in enumerate(torch.split(orders, recipe.batch_size, dim=1)):  # (K, B)
            x = images[rows.to(images.device)]  # (K, B, channels, height, width)
            x = _augmented(x, strategy, seeds, epoch, step)
            y = labels[rows.to(labels.device)]
            optimizer.zero_grad()
            for part in torch.split(torch.arange(rows.shape[1]), stack.at_a_time(images)):
                some = slice(int(part[0]), int(part[-1]) + 1)
                logits, targets = stack(x[:, some]).flatten(0, 1), y[:, some].flatten(0, 1)
                loss = F.cross_entropy(logits, targets, reduction="sum")
                (loss / rows.shape[1]).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            optimizer.step()
        if on_epoch is not None:
            on_epoch(epoch + 1, total.item() / (len(images) * stack.size))


def _augmented(
    images: Tensor, strategy: Strategy, seeds: Sequence[int], epoch: int, step: int
) -> Tensor:
    """One operation for each network's batch, parameters for each image."""
    if not strategy.operations:
        return images
    draws = [
        draw(
            strategy, images.shape[1], generator(s, "augmentation", epoch, step), one_operation=True
        )
        for s in seeds
    ]
    of_all = Draw(torch.cat([d.operations for d in draws]), torch.cat([d.numbers for d in draws]))
    return augment(images.flatten(0, 1), strategy, of_all).view_as(images)


def fresh_and_trained(
    spec: str,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    mirror: bool = True,
    on_epoch: Callable[[int, float], None],
) -> Stack:
    """Networks made and trained together, one for each seed."""
    stack = Stack.fresh(spec, images.shape[1:], num_classes, seeds, images.device)
    train(stack, images, labels, seeds, recipe, mirror=mirror, on_epoch=on_epoch)
    return stack


def at_once(spec: str, device: torch.device, asked: int | None) -> int:
    """How many networks to train together where the user does not say.

    On a CPU one network fills the cores, and mapped convolutions are slower than plain ones; on a
    GPU small networks are bound by launches, which a stack shares.
    """
    if asked is not None:
        return asked
    return 1 if device.type == "cpu" or "batch" in spec else 5


def network_of(
    spec: str, shape: Sequence[int], num_classes: int, state: dict[str, Tensor]
) -> Network:
    """A network of its own around a state, which it shares and does not copy."""
    network = build_network(spec, shape[0], shape[1], num_classes)
    network.load_state_dict(state, assign=True)
    return network
