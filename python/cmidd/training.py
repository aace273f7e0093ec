"""Training of classifiers, one or several at once, for the bank and for evaluation.

Several networks of one architecture are one stack: every parameter has a leading axis (K, ...), the
forward pass is mapped over it, and the loss is the sum over networks, so that each sees exactly its
own gradient. SGD and AdamW work element by element and need no change:

    SGD      v <- momentum v + gradient + weight_decay w,    w <- w - lr v
    AdamW    w <- (1 - lr weight_decay) w - lr m / (sqrt(s) + 1e-8)

where m and s are the averages of the gradient over about 10 steps and of its square over 1000.

Everything drawn (first weights, order of images, augmentation) is drawn for each network from its
own seed, so a network is the same whether it is trained alone or in a stack, up to rounding.
`training_draws.py` draws it, `training_batches.py` makes batches by it, `train` learns from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from cmidd import ranks
from cmidd.augment import Strategy
from cmidd.datasets.streamed import Images
from cmidd.device import precision_on
from cmidd.networks import (
    Network,
    build_network,
    draw_weights,
    has_batch_norm,
    images_per_chunk,
)
from cmidd.options.recipe import Recipe
from cmidd.progress import Readout
from cmidd.seeds import generator
from cmidd.training_batches import EpochPlan, batches_of, plans_on
from cmidd.training_draws import EpochDraws, draw_epochs
from cmikernels.precision import computing

LONG = 256 * 3 * 64 * 64
"""Numbers in a batch from which on ranks share a step of a network on a GPU."""


def ranks_share_steps(images: Images, batch_size: int) -> bool:
    """Whether ranks share the steps of a network on batches of these images."""
    # Shorter steps on a GPU would take no less with a sum over ranks (docs/guide/scaling.md).
    numbers = min(batch_size, len(images)) * math.prod(images.shape[1:])
    return ranks.count() > 1 and (images.device.type == "cpu" or numbers >= LONG)


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
        self._compiled_for: frozenset[int] = frozenset()
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
        if self.precision == "bfloat16":  # under vmap a CPU's autocast misses convolutions
            networks = [{name: tensor[k] for name, tensor in self.state.items()}
                        for k in range(self.size)]  # fmt: skip
            return torch.stack([self._one(*each) for each in zip(networks, images, strict=True)])
        logits: Tensor = vmap(self._one)(self.state, images)
        return logits

    def _alone(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        # Not [0], whose derivative fills zeros and copies.
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
        """How many images (N, channels, height, width) to put through all networks together."""
        if images.device.type != "cpu" or self.size > 1 or self.sees_batches:
            return len(images)
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


Objective = Callable[[Stack, Tensor, Tensor], Tensor]
"""Of networks, images (K, B, ...) and targets (K, B) or (K, B, C): the sum of losses of all.

Where networks are taught, targets are (K, B, 2, C): a teacher's logits, then probabilities.
"""

Teach = Callable[[int, slice, Tensor, Tensor, int], Tensor]
"""Of the epoch, places in its order, images (K, B, ...), targets and classes: what to learn."""


def cross_entropy(stack: Stack, images: Tensor, targets: Tensor) -> Tensor:
    """The sum of the cross-entropies of all networks and images."""
    return F.cross_entropy(stack(images).flatten(0, 1), targets.flatten(0, 1), reduction="sum")


@dataclass
class Progress:
    """How far training is: with the networks' state, all that the rest of it depends on."""

    epoch: int = 0  # epochs that are done
    step: int = 0  # steps that are done of the next one
    loss: float = 0.0  # sum over the images of these steps
    optimizer: list[dict[str, Tensor]] = field(default_factory=list)
    """The optimizer's state of each parameter of the stack; none before the first step."""


def _never() -> bool:
    return False


def train(
    stack: Stack,
    images: Images,
    labels: Tensor,
    recipe: Recipe,
    strategy: Strategy,
    epochs: Iterable[EpochDraws],
    *,
    objective: Objective = cross_entropy,
    on_epoch: Callable[[int, float], None] | None = None,
    done: Progress | None = None,
    stopping: Callable[[], bool] = _never,
    shared: bool = False,
    seen: Callable[[Tensor], Tensor] | None = None,
    teach: Teach | None = None,
) -> Progress | None:
    """Train every network of the stack, in place; how far it came, or None if it came to its end.

    A step's batch goes through one network alone in parts that suit a CPU, whose gradients add up.

    Args:
        stack: networks, on the images' device.
        images: `(N, channels, height, width)`.
        labels: `(N,)`, or `(N, C)` of probabilities.
        recipe: the hyper-parameters.
        strategy: how images are augmented.
        epochs: what was drawn by `draw_epochs` for the recipe and the strategy, from the first
            epoch on that is not done.
        objective: what is minimised, a sum over networks and images.
        on_epoch: called with the number of finished epochs and the mean loss of the last; of one
            up to a second before it on a GPU, which would have to be waited for.
        done: what the stack has been trained already; its state of the optimizer is changed in
            place.
        stopping: asked after each step whether to end there.
        shared: whether ranks share the images of each step; for one network, whose gradients are
            then added up.
        seen: what networks see of the images of a batch; None: they are that already.
        teach: puts what a teacher makes of each batch in the place of its targets; not of batches
            that ranks share.
    """
    if shared and teach is not None:
        raise ValueError("teach: expected it where ranks do not share the images of a step")
    done = done or Progress()
    stack.network.train()
    optimizer, read = _optimizer(stack.parameters, recipe), Readout()
    for parameter, state in zip(stack.parameters, done.optimizer, strict=False):
        optimizer.state[parameter].update(state)
    plans = (
        EpochPlan.of(drawn, images, recipe, strategy, seen=seen, shared=shared) for drawn in epochs
    )
    for epoch, plan in enumerate(plans_on(images.device, plans), done.epoch):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_in(epoch)
        first_step = done.step if epoch == done.epoch else 0
        total = torch.full((), done.loss if first_step else 0.0, device=images.device)
        batches = batches_of(images, labels, plan, stack.num_classes, first=first_step, seen=seen)
        for step, (x, y, places, size) in enumerate(batches, first_step):
            if teach is not None and x.numel():
                y = teach(epoch, places, x, y, stack.num_classes)
            optimizer.zero_grad()
            chunk = stack.images_per_chunk(images)
            for first in range(0, x.shape[1], chunk):
                some = slice(first, first + chunk)
                loss = objective(stack, x[:, some], y[:, some])
                with computing(stack.precision, images.device.type):
                    (loss / size).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            if shared:
                ranks.add_up_gradients(stack.parameters)
            optimizer.step()
            if stopping():
                kept = [dict(optimizer.state[parameter]) for parameter in stack.parameters]
                return Progress(epoch, step + 1, total.item(), kept)
        if on_epoch is not None:
            on_epoch(epoch + 1, read(total) / (len(images) * stack.size))
    return None


def _optimizer(parameters: list[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)


def fresh_and_trained(
    spec: str,
    images: Images,
    labels: Tensor,
    num_classes: int,
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    mirror: bool = True,
    objective: Objective = cross_entropy,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Stack:
    """Networks made and trained together, one for each seed."""
    shape, device = images.shape[1:], images.device
    stack = Stack.fresh(spec, shape, num_classes, seeds, device, recipe.precision)
    strategy = Strategy.parse(recipe.augmentation, mirror=mirror)
    epochs = draw_epochs(seeds, len(images), recipe, strategy)
    train(stack, images, labels, recipe, strategy, epochs, objective=objective, on_epoch=on_epoch)
    return stack


def first_weights(network: Network, seed: int) -> dict[str, Tensor]:
    """The state of such a network, on the CPU, that training by a seed begins with."""
    return draw_weights(network, generator(seed, "first weights"))


def networks_together(spec: str, device: torch.device, asked: int | None) -> int:
    """How many networks to train together where the user does not say.

    On a CPU one network fills the cores, and mapped convolutions are slower than plain ones; on a
    GPU small networks are bound by launches, which a stack shares.
    """
    if asked is not None:
        return asked
    return 1 if device.type == "cpu" or has_batch_norm(spec) else 5


def network_of(
    spec: str, shape: Sequence[int], num_classes: int, state: dict[str, Tensor]
) -> Network:
    """A network of its own around a state, which it shares and does not copy."""
    network = build_network(spec, shape[0], shape[1], num_classes)
    network.load_state_dict(state, assign=True)
    return network
