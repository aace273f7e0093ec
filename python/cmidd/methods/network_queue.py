"""The queue of networks of IDM, which train on real images between iterations.

Networks are numbered in the order in which they come: three before iteration 0, and one more in it
and in every `push_interval`-th iteration after it. A queue that is full loses its oldest one. So
the number of an iteration says which are there, and the seed says what weights they began with:
only networks that have trained are kept, and stand in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cmidd import ranks
from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images
from cmidd.networks import Network, draw_weights
from cmidd.options.idm import IDMOptions
from cmidd.options.recipe import Recipe
from cmidd.parcel import sent
from cmidd.seeds import generator, seed_of
from cmidd.stack import Stack
from cmidd.training import Progress, Training, ranks_share_steps
from cmidd.training_draws import EpochDraws, draw_epoch

FIRST = 3
"""Networks that are there before the first iteration."""


@dataclass(eq=False)
class TrainedNetwork:
    """A network that has trained: tensors with a leading axis of 1, as a stack has them."""

    weights: dict[str, Tensor]
    velocity: dict[str, Tensor]  # SGD's buffer of each
    meter: Tensor  # images that it trained on, and how many of them it recognised before


class NetworkQueue:
    """The networks, each with its momentum and its accuracy on the images that it trained on."""

    def __init__(
        self,
        network: Network,
        dataset: Dataset,
        images: Images,
        options: IDMOptions,
        seed: int,
        precision: str,
    ) -> None:
        """Begin with networks that have not trained.

        Args:
            network: one like them, on their device, whose weights do not matter.
            dataset: the real images.
            images: all of them, on that device.
            options: of the method.
            seed: of all draws.
            precision: of the training.
        """
        self.dataset, self.images, self.options, self.seed = dataset, images, options, seed
        shape, state = dataset.shape, network.state_dict()
        self.stack = Stack(options.network, shape, dataset.num_classes, [state], precision)
        self.names = [name for name, _ in network.named_parameters()]
        self.like = self.stack.parameters[0].detach()  # of the type and device of all
        self.labels = dataset.train.labels.to(self.like.device)
        self.recipe = Recipe(
            1, options.lr_net, batch_size=options.batch_net, drop_at=1.0, precision=precision
        )
        self.strategy = Strategy.parse(self.recipe.augmentation)
        self.velocity = [torch.zeros_like(each) for each in self.stack.parameters]
        self.right = torch.zeros((), dtype=torch.int64, device=self.like.device)
        self.training = Training(
            self.stack,
            self.recipe,
            self.strategy,
            objective=self._loss,
            repeats=True,
            shared=ranks_share_steps(images, options.batch_net),
            seen=partial(dataset.to_input, dtype=self.like.dtype),
        )
        self.trained: dict[int, TrainedNetwork] = {}
        self.due = 0  # the iteration that may follow

    def numbers(self, iteration: int) -> range:
        """The networks that are there in an iteration."""
        come = FIRST + iteration // self.options.push_interval + 1
        return range(max(0, come - self.options.queue_size), come)

    def draw(self, iteration: int) -> tuple[int, dict[int, Tensor]]:
        """The network that images are matched in; those that train, with rows of real images."""
        numbers, draws = self.numbers(iteration), generator(self.seed, "queue", iteration)
        matched = numbers[int(torch.randint(len(numbers), (), generator=draws))]
        places = torch.randperm(len(numbers), generator=draws)[: self.options.networks_trained]
        chosen = [numbers[place] for place in places.tolist()]
        return matched, {number: self._draw_rows(iteration, number) for number in chosen}

    def _draw_rows(self, iteration: int, number: int) -> Tensor:
        """Those of batch after batch; all real images come before any comes again."""
        seeds, count = [seed_of(self.seed, "training", iteration, number)], len(self.images)
        wanted = self.options.steps_net * self.options.batch_net
        passes = range(-(-wanted // count))
        orders = [draw_epoch(seeds, count, self.recipe, self.strategy, k).order for k in passes]
        return torch.cat(orders, dim=1)[0, :wanted]

    def begin(self, iteration: int) -> None:
        """Let go of networks that are not there any more; iteration 0 begins afresh."""
        if iteration == 0:
            self.trained.clear()
        elif iteration != self.due:
            raise RuntimeError(
                f"iteration {iteration}: each but the first comes after the one before it, and "
                f"{self.due} is due"
            )
        self.due, there = iteration + 1, self.numbers(iteration)
        self.trained = {number: each for number, each in self.trained.items() if number in there}

    def weights(self, number: int) -> dict[str, Tensor]:
        """Those of a network as it is."""
        if number in self.trained:
            return {name: each[0] for name, each in self.trained[number].weights.items()}
        return draw_weights(self.stack.network, generator(self.seed, "network", number))

    def accuracy(self, number: int) -> Tensor:
        """Share of images that a network recognised in its training; 0 where there was none."""
        if number not in self.trained:
            return self.like.new_zeros(())
        seen, right = self.trained[number].meter.to(self.like.dtype)
        share: Tensor = right / seen
        return share

    def train(self, rows_of: Mapping[int, Tensor]) -> None:
        """Train some networks, one after another, each on its rows of real images."""
        for number, rows in rows_of.items():
            if number not in self.trained:
                self.trained[number] = self._fresh(number)
            self._train(self.trained[number], rows)

    def _fresh(self, number: int) -> TrainedNetwork:
        there = sent(self.weights(number), self.like.device)
        weights = {name: each[None].to(self.like) for name, each in there.items()}
        velocity = {name: torch.zeros_like(each) for name, each in weights.items()}
        meter = torch.zeros(2, dtype=torch.int64, device=self.like.device)
        return TrainedNetwork(weights, velocity, meter)

    @torch.no_grad()
    def _train(self, network: TrainedNetwork, rows: Tensor) -> None:
        there = [*self.stack.state.values(), *self.velocity]
        kept = [network.weights[name] for name in self.stack.state]
        kept += [network.velocity[name] for name in self.names]
        torch._foreach_copy_(there, kept)
        self.right.zero_()
        with torch.enable_grad():
            self.training(
                self.images,
                self.labels,
                [EpochDraws(rows[None], [])],
                done=Progress(optimizer=[{"momentum_buffer": each} for each in self.velocity]),
            )
        if self.training.shared:
            ranks.add_up(self.right)
        network.meter += torch.stack([torch.full_like(self.right, len(rows)), self.right])
        torch._foreach_copy_(kept, there)

    def _loss(self, stack: Stack, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy; counts the images that the network recognises."""
        logits, targets = stack(x).flatten(0, 1), y.flatten()
        self.right += (logits.argmax(dim=1) == targets).sum()
        return F.cross_entropy(logits, targets, reduction="sum")

    def state(self) -> dict[str, Tensor]:
        """Of the networks that have trained, one after another; nothing before iteration 0."""
        if not self.due:
            return {}
        trained = self.trained.values()
        state = {
            "due": torch.tensor(self.due),
            "networks": torch.tensor([*self.trained]),
            "meters": torch.stack([each.meter for each in trained]),
        }
        for name in self.names:
            state[f"weights {name}"] = torch.cat([each.weights[name] for each in trained])
            state[f"velocity {name}"] = torch.cat([each.velocity[name] for each in trained])
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the networks back; of nothing, begin afresh."""
        self.trained, self.due = {}, 0
        if not state:
            return
        if damage := self._damage(state):
            raise ValueError(
                f"expected the state of a queue of {self.options.network}, got {damage}"
            )
        there = {name: tensor.to(self.like.device) for name, tensor in state.items()}
        for k, number in enumerate(state["networks"].tolist()):
            weights, velocity = (
                {name: there[f"{word} {name}"][k : k + 1].clone() for name in self.names}
                for word in ("weights", "velocity")
            )
            self.trained[number] = TrainedNetwork(weights, velocity, there["meters"][k].clone())
        self.due = int(state["due"])

    def _damage(self, state: Mapping[str, Tensor]) -> str:
        """What in a state is not as `state` gives it; nothing where all is."""
        count = state.get("networks", torch.empty(0)).numel()
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "due": ((), torch.int64),
            "networks": ((count,), torch.int64),
            "meters": ((count, 2), torch.int64),
        }
        for name in self.names:
            of_name = (count, *self.stack.state[name].shape[1:]), self.like.dtype
            expected |= {f"weights {name}": of_name, f"velocity {name}": of_name}
        if state.keys() != expected.keys():
            return ", ".join(state)
        for name, tensor in state.items():
            if (tuple(tensor.shape), tensor.dtype) != expected[name]:
                return f"{name} {tuple(tensor.shape)} of {tensor.dtype}"
        due, numbers = int(state["due"]), state["networks"].tolist()
        there = self.numbers(due - 1) if due > 0 else ()
        if not numbers or len({*numbers}) < count or not {*numbers} <= {*there}:
            return f"networks {numbers} before iteration {due}"
        seen, right = state["meters"].unbind(dim=1)
        if bool(((seen <= 0) | (right < 0) | (right > seen)).any()):
            return f"meters {state['meters'].tolist()}"
        return ""

    def state_bytes(self, iterations: int) -> int:
        """Of the state after so many iterations, at most."""
        networks = iterations * self.options.networks_trained
        networks = min(networks, len(self.numbers(max(0, iterations - 1))))
        return 2 * networks * sum(tensor.nbytes for tensor in self.stack.state.values())
