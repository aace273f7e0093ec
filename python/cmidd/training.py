"""Training of classifiers, one or several at once, for the bank and for evaluation.

Several networks of one architecture are a stack, and the loss is the sum over networks, so that
each sees exactly its own gradient. SGD and AdamW work element by element and need no change:

    SGD      v <- momentum v + gradient + weight_decay w,    w <- w - lr v
    AdamW    w <- (1 - lr weight_decay) w - lr m / (sqrt(s) + 1e-8)

where m and s are the averages of the gradient over about 10 steps and of its square over 1000.

Everything drawn (first weights, order of images, augmentation) is drawn for each network from its
own seed, so a network is the same whether it is trained alone or in a stack, on a GPU up to
rounding. `training_draws.py` draws it, `training_batches.py` makes batches by it, `Training` learns
from them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from cmidd import ranks
from cmidd.augment import Strategy
from cmidd.captured import Captured, has_graphs
from cmidd.datasets.streamed import Images, taken
from cmidd.options.recipe import Recipe
from cmidd.progress import Readout
from cmidd.stack import Stack, optimizer_of
from cmidd.training_batches import EpochPlan, StepPlan, batches_of, learned_of, plans_on
from cmidd.training_draws import EpochDraws, draw_epochs
from cmikernels.precision import computing

LONG = 256 * 3 * 64 * 64
"""Numbers in a batch from which on ranks share a step of a network on a GPU."""


def ranks_share_steps(images: Images, batch_size: int) -> bool:
    """Whether ranks share the steps of a network on batches of these images."""
    # Shorter steps on a GPU would take no less with a sum over ranks (docs/guide/scaling.md).
    numbers = min(batch_size, len(images)) * math.prod(images.shape[1:])
    return ranks.count() > 1 and (images.device.type == "cpu" or numbers >= LONG)


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


class Training:
    """Networks with the optimizer that they learn by; called as often as there is what to learn.

    On a GPU steps on images that are there are captured, and done again as long as images, labels
    and the state of the optimizer stay where they are.
    """

    def __init__(
        self,
        stack: Stack,
        recipe: Recipe,
        strategy: Strategy,
        *,
        objective: Objective = cross_entropy,
        repeats: bool | None = None,
        shared: bool = False,
        seen: Callable[[Tensor], Tensor] | None = None,
        teach: Teach | None = None,
    ) -> None:
        """Prepare to train every network of the stack, in place.

        Args:
            stack: networks, on the images' device.
            recipe: the hyper-parameters.
            strategy: how images are augmented.
            objective: what is minimised, a sum over networks and images.
            repeats: whether the objective may be captured: it does the same on the device for all
                batches of a size, and nothing on the CPU; None: cross-entropy may.
            shared: whether ranks share the images of each step; for one network, whose gradients
                are then added up.
            seen: what networks see of the images of a batch; None: they are that already.
            teach: puts what a teacher makes of each batch in the place of its targets; not of
                batches that ranks share.
        """
        if shared and teach is not None:
            raise ValueError("teach: expected it where ranks do not share the images of a step")
        self.stack, self.recipe, self.strategy = stack, recipe, strategy
        self.objective, self.shared, self.seen, self.teach = objective, shared, seen, teach
        self.device = stack.parameters[0].device
        if repeats is None:
            repeats = objective is cross_entropy
        elsewhere = shared or teach is not None or stack.is_compiled
        float32 = stack.parameters[0].dtype == torch.float32  # as rates on a device are
        self.captures = repeats and not elsewhere and float32 and has_graphs(self.device)
        self.optimizer = optimizer_of(stack, recipe, rate_on_device=self.captures)
        self.rate, self.has_state_of_others = recipe.lr, False
        self.total = torch.zeros((), device=self.device)  # loss of an epoch so far
        self._captured: Captured[StepPlan] | None = None
        self._captured_of: tuple[Images, ...] = ()

    def __call__(
        self,
        images: Images,
        labels: Tensor,
        epochs: Iterable[EpochDraws],
        *,
        on_epoch: Callable[[int, float], None] | None = None,
        done: Progress | None = None,
        stopping: Callable[[], bool] = _never,
    ) -> Progress | None:
        """Train as `train` says."""
        done = done or Progress()
        self.stack.network.train()
        self._begin(done)
        read, size = Readout(), len(images) * self.stack.size
        plans = (
            EpochPlan.of(
                drawn, images, self.recipe, self.strategy, seen=self.seen, shared=self.shared
            )
            for drawn in epochs
        )
        for epoch, plan in enumerate(plans_on(self.device, plans), done.epoch):
            self._set_rate(self.recipe.lr_in(epoch))
            first_step = done.step if epoch == done.epoch else 0
            self.total.fill_(done.loss if first_step else 0.0)
            steps = self._steps(images, labels, plan, epoch, first_step)
            for step, _ in enumerate(steps, first_step + 1):
                if stopping():
                    kept = [dict(self.optimizer.state[each]) for each in self.stack.parameters]
                    return Progress(epoch, step, self.total.item(), kept)
            if on_epoch is not None:
                on_epoch(epoch + 1, read(self.total) / size)
        return None

    def _begin(self, done: Progress) -> None:
        """Give the optimizer the state of training that is done, or that of none."""
        parameters, state = self.stack.parameters, self.optimizer.state
        if not done.optimizer and self.has_state_of_others:
            state.clear()
            self._captured = None
        elif not done.optimizer:
            for tensor in [tensor for each in parameters for tensor in state[each].values()]:
                tensor.zero_()
        self.has_state_of_others = bool(done.optimizer)
        for each, given in zip(parameters, done.optimizer, strict=False):
            if self.captures:  # also the counter of steps, which else stays on the CPU
                given = {name: tensor.to(self.device) for name, tensor in given.items()}
            if any(state[each].get(name) is not tensor for name, tensor in given.items()):
                self._captured = None
                state[each].update(given)

    def _set_rate(self, rate: float) -> None:
        if rate == self.rate:
            return
        self.rate = rate
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _steps(
        self, images: Images, labels: Tensor, plan: EpochPlan, epoch: int, first: int
    ) -> Iterator[None]:
        """The steps of an epoch from `first` on, each done when it is asked for."""
        if self.captures and (isinstance(images, Tensor) or images.are_at_hand):
            step_again = self._captured_on(images, labels)
            for step in plan.steps[first:]:
                step_again(step)
                yield
            return
        classes = self.stack.num_classes
        for x, y, places, size in batches_of(
            images, labels, plan, classes, first=first, seen=self.seen
        ):
            if self.teach is not None and x.numel():
                y = self.teach(epoch, places, x, y, classes)
            self._learn(x, y, size)
            yield

    def _captured_on(self, images: Images, labels: Tensor) -> Captured[StepPlan]:
        """The steps on these images, whose graphs serve as long as all is where it was."""
        of, seen, classes = (images, labels), self.seen, self.stack.num_classes
        if self._captured is None or [*map(_place, of)] != [*map(_place, self._captured_of)]:
            self._captured_of, itself = of, weakref.proxy(self)  # no circle keeps its memory

            def step(plan: StepPlan) -> None:
                x, y = learned_of(taken(images, plan.rows), labels, plan, classes, seen=seen)
                itself._learn(x, y, x.shape[1])

            self._captured = Captured(step, self.device)
        return self._captured

    def _learn(self, images: Tensor, targets: Tensor, size: int) -> None:
        """A step on a batch, or on this rank's share of one of `size` images.

        It goes through a network in parts that suit the device, whose gradients add up.
        """
        self.optimizer.zero_grad()
        chunk = self.stack.images_per_chunk(images[0])
        for first in range(0, images.shape[1], chunk):
            some = slice(first, first + chunk)
            loss = self.objective(self.stack, images[:, some], targets[:, some])
            with computing(self.stack.precision, self.device.type):
                (loss / size).backward()  # type: ignore[no-untyped-call]
            self.total += loss.detach()
        if self.shared:
            ranks.add_up_gradients(self.stack.parameters)
        self.optimizer.step()


def _place(tensor: Images) -> tuple[Hashable, ...]:
    """Equal for tensors that are the same to a graph."""
    if not isinstance(tensor, Tensor):
        return (id(tensor),)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


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

    Args:
        stack: networks, on the images' device.
        images: `(N, channels, height, width)`.
        labels: `(N,)`, or `(N, C)` of probabilities.
        recipe: the hyper-parameters.
        strategy: how images are augmented.
        epochs: what was drawn by `draw_epochs` for the recipe and the strategy, from the first
            epoch on that is not done.
        objective: as of `Training`, like `shared`, `seen` and `teach`.
        on_epoch: called with the number of finished epochs and the mean loss of the last; of one
            up to a second before it on a GPU, which would have to be waited for.
        done: what the stack has been trained already; its state of the optimizer is changed in
            place.
        stopping: asked after each step whether to end there.
        shared: see there.
        seen: see there.
        teach: see there.
    """
    training = Training(
        stack, recipe, strategy, objective=objective, shared=shared, seen=seen, teach=teach
    )
    return training(images, labels, epochs, on_epoch=on_epoch, done=done, stopping=stopping)


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
