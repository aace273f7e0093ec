"""DC and DSA, gradient matching (Zhao et al., ICLR 2021; Zhao and Bilen, ICML 2021).

    loss = sum over classes of distance(g_c(A_c(synthetic)), g_c(A_c(real)))
    g_c(images) = mean over images of d cross-entropy(network(image), c) / d parameters

The network has fresh random weights in every iteration and trains on the synthetic images between
updates of the iteration. A_c is one augmentation drawn for class and update, used on both sides; DC
has none. The distance gives its derivative by the synthetic gradients itself, and autograd goes on
from there to the images. Gradients of classes come `InTurn` on a CPU and `Mapped` elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vjp, vmap
from torch.profiler import record_function

from cmidd.augment import DSA, Strategy, augment, draw
from cmidd.datasets import Dataset
from cmidd.methods.base import CMIWeights, Method, MethodEntry, Published, given_network
from cmidd.methods.gradient_distance import GradientDistance
from cmidd.networks import at_a_time, build_network, check_one_image, initialize
from cmidd.networks.usual import gradient_network
from cmidd.seeds import generator, seed_of
from cmidd.training import Recipe, Stack, train

# Images of 32 x 32 at once on a GPU, by what the usual ConvNet keeps of each: about 3 MB for a
# gradient, 12 MB for one that is differentiated again.
GPU_CHUNK, GPU_CHUNK_TWICE = 2560, 512

_LossOfClass = Callable[..., Tensor]


@dataclass(frozen=True)
class DCOptions:
    """What the method can be told.

    Args:
        network: architecture of the random networks; default: convnet, of depth 2 for images of
            8 x 8 and deeper from 64 x 64 on
        batch_real: real images per class and update
        outer_steps: updates of the images in one iteration; default as published for the ipc
        inner_epochs: of the network on the images between updates; default as published for the ipc
        metric: of gradients: rows (cosine of each output's weights), cosine (of all) or mse
        lr_net: step size of that training
        batch_net: images a step of it
        augmentation: DSA operations, or none; flip is left out where mirrored images change class
        compile: compile the network for its training and, on a CPU, for real images: a minute
            before the first iteration, faster after it
    """

    network: str | None = None
    batch_real: int = 256
    outer_steps: int | None = None
    inner_epochs: int | None = None
    metric: str = "rows"
    lr_net: float = 0.01
    batch_net: int = 256
    augmentation: str = "none"
    compile: bool = False


@dataclass(frozen=True)
class DSAOptions(DCOptions):  # noqa: D101
    __doc__ = DCOptions.__doc__

    augmentation: str = DSA


Distance = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Of synthetic gradients (C, P): the loss and its derivative (C, P)."""


class InTurn:
    """Gradients of one class, in parts of few images: plain convolutions, maps that stay in caches.

    For a CPU, where one batch of a class's real images takes much longer than its parts, and for
    classes of which a GPU has no room. Memory follows `part`, not the images of a class.
    """

    classes = 1

    def __init__(self, stack: Stack, names: Sequence[str], part: int) -> None:
        self.stack, self.weights = stack, [stack.state[name] for name in names]  # (1, ...) each
        self.part = part

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """`(1, P)`, as `Mapped` gives it, of images and labels of one class."""
        total: tuple[Tensor, ...] = ()
        for x, y in self._parts(images, labels):
            gradients = self._share(x, y, len(images))
            total = torch._foreach_add(total, gradients) if total else gradients
        return _joined(total)

    def match(self, images: Tensor, labels: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
        """The loss of synthetic images and its derivative by them.

        A class of several parts goes through the network once more: its gradient has to be there
        as a whole before a part can be differentiated.
        """
        parts = self._parts(images, labels)
        if len(parts) > 1:
            loss, derivative = distance(self(images, labels))
        of_images: list[Tensor] = []
        for x, y in parts:
            x = x.detach().requires_grad_()
            gradients = _joined(self._share(x, y, len(images)))
            if len(parts) == 1:
                loss, derivative = distance(gradients.detach())
            of_images += torch.autograd.grad(gradients, x, derivative)
        return loss, torch.cat(of_images)

    def _parts(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        labels = labels.to(images.device)
        pairs = zip(torch.split(images, self.part), torch.split(labels, self.part), strict=True)
        return list(pairs)

    def _share(self, images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, ...]:
        """Of the mean over `count` images, with a graph where these require gradients."""
        logits = self.stack(images[None])[0]
        loss = F.cross_entropy(logits, labels, reduction="sum") / count
        return torch.autograd.grad(loss, self.weights, create_graph=images.requires_grad)


class Mapped:
    """Gradients of several classes at once; the smaller ones are filled up with images of weight 0.

    A GPU launches as much for all of them as for one.
    """

    def __init__(self, stack: Stack, names: Sequence[str], classes: int) -> None:
        self.network, self.names, self.classes = stack.network, names, classes
        self.state = {name: tensor.detach()[0] for name, tensor in stack.state.items()}

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """`(C, P)` of images and labels (on the CPU) of C classes, class by class."""

        def gradient(of_class: _LossOfClass, *data: Tensor) -> dict[str, Tensor]:
            # grad would keep a second-order graph; nobody differentiates these again.
            loss, pull_back, *_ = vjp(lambda weights: of_class(weights, *data), self._weights())
            found: dict[str, Tensor] = pull_back(torch.ones_like(loss), create_graph=False)[0]
            return found

        return self._mapped(gradient, images, labels)

    def match(self, images: Tensor, labels: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
        """The losses of the classes' synthetic images and their derivative by the images."""

        def gradient(of_class: _LossOfClass, *data: Tensor) -> dict[str, Tensor]:
            found: dict[str, Tensor] = grad(of_class)(self._weights(), *data)
            return found

        x = images.detach().requires_grad_()
        synthetic = self._mapped(gradient, x, labels)
        loss, derivative = distance(synthetic.detach())
        return loss, torch.autograd.grad(synthetic, x, derivative)[0]

    def _weights(self) -> dict[str, Tensor]:
        return {name: self.state[name] for name in self.names}

    def _mapped(
        self, gradient: Callable[..., dict[str, Tensor]], images: Tensor, labels: Tensor
    ) -> Tensor:
        device = images.device
        classes, counts = torch.unique_consecutive(labels, return_counts=True)
        place, counts = torch.arange(int(counts.max())), counts[:, None]
        rows = counts.cumsum(0) - counts + place.minimum(counts - 1)  # (C, n)
        share = ((place < counts).to(images.dtype) / counts).to(device)  # (C, n)

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
            logits = functional_call(self.network, {**self.state, **weights}, (x,))
            return F.cross_entropy(logits, y.expand(len(x)), reduction="none") @ share

        of_all = vmap(partial(gradient, loss))
        gradients = of_all(images[rows.to(device)], classes.to(device), share)
        return torch.cat([gradients[name].flatten(1) for name in self.names], dim=1)


def _joined(gradients: Sequence[Tensor]) -> Tensor:
    """`(1, P)` of the gradients `(1, ...)` of parameters."""
    return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)


class GradientMatching(Method):
    """The updates of DC and DSA on one dataset."""

    suspects = ("lr_net",)

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: DCOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare updates of images whose labels are `labels`, ascending."""
        self.spec, self.updates, epochs = _checked(options)
        channels, size, _ = dataset.shape
        self.dataset, self.options, self.seed = dataset, options, seed
        self.device, self.dtype = device, dtype
        self.strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)
        self.recipe = Recipe(
            epochs, options.lr_net, 0.0, 0.0, options.batch_net, 1.0, options.augmentation
        )
        network = build_network(self.spec, channels, size, dataset.num_classes)
        check_one_image(network, self.spec)
        state = network.to(device, dtype).state_dict()
        self.stack = Stack(self.spec, dataset.shape, dataset.num_classes, [state])
        self.distance = GradientDistance(options.metric, state)
        self.labels = labels.cpu()
        counts = torch.bincount(self.labels, minlength=dataset.num_classes)
        self.offsets = [0, *counts.cumsum(0).tolist()]
        self.images = dataset.train.images.to(device)
        names = self.distance.names
        part = at_a_time(device, size, GPU_CHUNK_TWICE)
        together = min(
            at_a_time(device, size, GPU_CHUNK) // options.batch_real, part // int(counts.max())
        )
        self.gradients: InTurn | Mapped
        if device.type == "cpu" or not together:
            self.gradients = InTurn(self.stack, names, part)
        else:
            self.gradients = Mapped(self.stack, names, together)
        if options.compile:  # for the parts of a CPU; a GPU trains on whole batches
            whole = min(len(labels), options.batch_net)
            self.stack.compile(part if device.type == "cpu" else whole)
        self.due: tuple[int, int] | None = None  # iteration and update that may follow

    def step(self, images: Tensor, iteration: int, update: int = 0) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to the synthetic images, `(N, ch, H, W)`."""
        if update not in range(self.updates) or (update and (iteration, update) != self.due):
            raise RuntimeError(
                f"update {update} of iteration {iteration}: updates are 0 to {self.updates - 1}, "
                f"and each but the first comes after the one before it; the last were before "
                f"{self.due}"
            )
        self.due = iteration, update + 1
        if update == 0:
            with record_function("dc.network"):
                self.draw_network(iteration)
        else:
            with record_function("dc.inner_training"):
                self.train_network(images.detach(), iteration, update - 1)
        return self.match(images.detach(), iteration, update)

    @torch.no_grad()
    def draw_network(self, iteration: int) -> None:
        """Give the network the first weights of an iteration."""
        initialize(self.stack.network, generator(self.seed, "network", iteration))
        for name, tensor in self.stack.network.state_dict().items():
            self.stack.state[name].copy_(tensor)

    def train_network(self, images: Tensor, iteration: int, update: int) -> None:
        """What the network learns from the images after an update."""
        train(
            self.stack,
            images,
            self.labels.to(self.device),
            [seed_of(self.seed, "inner", iteration, update)],
            self.recipe,
            mirror=self.dataset.mirror,
        )

    def match(self, images: Tensor, iteration: int, update: int) -> tuple[Tensor, Tensor]:
        """Loss and gradient with the network as it is."""
        draws = generator(self.seed, "dsa", iteration, update)
        drawn = draw(self.strategy, self.dataset.num_classes, draws)
        real_rows = self.real_rows(iteration, update)
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for classes in torch.split(torch.arange(self.dataset.num_classes), self.gradients.classes):
            first, last = int(classes[0]), int(classes[-1]) + 1
            with record_function("dc.real_gradients"):
                chosen = torch.cat(real_rows[first:last])
                x = self.dataset.to_input(self.images[chosen.to(self.device)], self.dtype)
                labels = self.dataset.train.labels[chosen]
                real = self.gradients(augment(x, self.strategy, drawn, labels), labels)
            with record_function("dc.synthetic_gradients"):
                rows = slice(self.offsets[first], self.offsets[last])
                x, labels = images[rows].requires_grad_(), self.labels[rows]
                seen = augment(x, self.strategy, drawn, labels)
                distance = partial(self.distance, real=real)
                loss, of_seen = self.gradients.match(seen.detach(), labels, distance)
                losses.append(loss)
                gradients += torch.autograd.grad(seen, x, of_seen)
        return torch.stack(losses).sum(), torch.cat(gradients)

    def real_rows(self, iteration: int, update: int) -> list[Tensor]:
        """The real images of each class, as row numbers."""
        draws = generator(self.seed, "real", iteration, update)
        return [
            first + torch.randperm(last - first, generator=draws)[: self.options.batch_real]
            for first, last in itertools.pairwise(self.dataset.train.offsets.tolist())
        ]


def _checked(options: DCOptions) -> tuple[str, int, int]:
    """Network, updates and epochs; what cannot be computed with is refused."""
    for name in ("batch_real", "outer_steps", "inner_epochs", "batch_net"):
        value = getattr(options, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: expected a whole number from 1 on, got {value!r}")
    if not 0 <= options.lr_net < math.inf:
        raise ValueError(f"lr_net: expected at least 0, got {options.lr_net}")
    assert options.outer_steps is not None
    assert options.inner_epochs is not None
    return given_network(options.network), options.outer_steps, options.inner_epochs


# Images per class -> updates of the images in an iteration, and epochs of the network between two.
STEPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def steps(ipc: int) -> tuple[int, int]:
    """Updates in an iteration and epochs between two, as published or, for other `ipc`, ours.

    Ours are as many updates as images, 50 at most, and about 500 epochs in all, 50 at most between
    two; the published program refuses these numbers of images.
    """
    if ipc in STEPS:
        return STEPS[ipc]
    outer = min(ipc, 50)
    return outer, min(50, max(10, round(500 / outer)))


def _published(dataset: Dataset, ipc: int, init: str, evaluation: dict[str, Any]) -> Published:
    outer, inner = steps(ipc)
    network = gradient_network(dataset.shape.height)
    is_published = ipc in STEPS and network == "convnet"
    return Published(
        loop={
            "iterations": 1000,
            "init": init,
            "lr_images": 0.1,
            "report_every": 1,
            "checkpoint_every": 1,
        },
        options={"outer_steps": outer, "inner_epochs": inner, "network": network},
        evaluation=evaluation,
        origin="as published" if is_published else "as near to what is published as it goes",
    )


def published_dc(dataset: Dataset, ipc: int) -> Published:
    """Settings of DC; its sets are judged without augmentation but on MNIST."""
    evaluation: dict[str, Any] = {"epochs": 300, "augmentation": "none"}
    if dataset.name == "mnist":
        evaluation = {"epochs": 1000, "augmentation": "crop_scale_rotate"}
    return _published(dataset, ipc, "noise", evaluation)


def published_dsa(dataset: Dataset, ipc: int) -> Published:
    """Settings of DSA."""
    return _published(dataset, ipc, "real", {})


DC_ENTRY = MethodEntry(
    GradientMatching,
    DCOptions,
    published_dc,
    CMIWeights(published={"cifar10": (50000, 10000)}, ours={"digits": (10, 10)}),  # DSA's
)
# None of three weights for digits was better than another.
DSA_ENTRY = MethodEntry(
    GradientMatching,
    DSAOptions,
    published_dsa,
    CMIWeights(
        published={"svhn": (80000, 10000), "cifar10": (50000, 10000), "cifar100": (80000, 20000)},
        ours={"digits": (10, 10)},
    ),
)
