"""Gradients of classes by the weights of a network, and what a distance of them gives the images.

    g_c(images) = mean over images of d cross-entropy(network(image), c) / d parameters

`GradientsClassByClass` is for a CPU and `GradientsVmapped` for a GPU; both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vjp, vmap

from cmidd.parcel import sent
from cmidd.stack import Stack
from cmikernels.precision import computing

_LossOfClass = Callable[..., Tensor]

Distance = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Of synthetic gradients (C, P): the loss and its derivative (C, P)."""


class GradientsClassByClass:
    """Gradients of one class, in parts of few images: plain convolutions, maps that stay in caches.

    For a CPU, where one batch of a class's real images takes much longer than its parts, and for
    classes of which a GPU has no room. Memory follows `part`, not the images of a class.
    """

    classes = 1

    def __init__(self, stack: Stack, names: Sequence[str], part: int) -> None:
        self.stack, self.weights = stack, [stack.state[name] for name in names]  # (1, ...) each
        self.part = part

    def __call__(self, images: Tensor, classes: Sequence[int], counts: Sequence[int]) -> Tensor:
        """`(1, P)`, as `GradientsVmapped` gives it, of images of one class."""
        del counts
        total: tuple[Tensor, ...] = ()
        for x, y in self._parts(images, classes):
            gradients = self._share(x, y, len(images))
            total = torch._foreach_add(total, gradients) if total else gradients
        return _joined(total)

    def match(
        self,
        images: Tensor,
        classes: Sequence[int],
        counts: Sequence[int],
        distance: Distance,
    ) -> tuple[Tensor, Tensor]:
        """The loss of synthetic images and its derivative by them.

        A class of several parts goes through the network once more: its gradient has to be there
        as a whole before a part can be differentiated.
        """
        parts = self._parts(images, classes)
        if len(parts) > 1:
            loss, derivative = distance(self(images, classes, counts))
        of_images: list[Tensor] = []
        for x, y in parts:
            x = x.detach().requires_grad_()
            gradients = _joined(self._share(x, y, len(images)))
            if len(parts) == 1:
                loss, derivative = distance(gradients.detach())
            of_images += torch.autograd.grad(gradients, x, derivative)
        return loss, torch.cat(of_images)

    def _parts(self, images: Tensor, classes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        (of_all,) = classes
        labels = torch.full((len(images),), of_all, device=images.device)
        pairs = zip(torch.split(images, self.part), torch.split(labels, self.part), strict=True)
        return list(pairs)

    def _share(self, images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, ...]:
        """Of the mean over `count` images, with a graph where these require gradients."""
        logits = self.stack(images[None])[0]
        loss = F.cross_entropy(logits, labels, reduction="sum") / count
        return torch.autograd.grad(loss, self.weights, create_graph=images.requires_grad)


class _Layout(NamedTuple):
    """Images of C classes beside each other, n of each, on their device."""

    classes: Tensor  # (C,)
    rows: Tensor  # (C, n), of the images
    share: Tensor  # (C, n), of each in the mean of its class: 0 for those that fill up


class GradientsVmapped:
    """Gradients of several classes at once; the smaller ones are filled up with images of weight 0.

    A GPU launches as much for all of them as for one.
    """

    def __init__(self, stack: Stack, names: Sequence[str], classes: int) -> None:
        self.network, self.names, self.classes = stack.network, names, classes
        self.precision = stack.precision
        self.state = {name: tensor.detach()[0] for name, tensor in stack.state.items()}
        self._layouts: dict[tuple[tuple[int, ...], ...], _Layout] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor, classes: Sequence[int], counts: Sequence[int]) -> Tensor:
        """`(C, P)` of images that stand class by class, so many of each of C classes."""

        def gradient(of_class: _LossOfClass, *data: Tensor) -> dict[str, Tensor]:
            # grad would keep a second-order graph; nobody differentiates these again.
            loss, pull_back, *_ = vjp(lambda weights: of_class(weights, *data), self._weights())
            found: dict[str, Tensor] = pull_back(torch.ones_like(loss), create_graph=False)[0]
            return found

        return self._mapped(gradient, images, classes, counts)

    def match(
        self,
        images: Tensor,
        classes: Sequence[int],
        counts: Sequence[int],
        distance: Distance,
    ) -> tuple[Tensor, Tensor]:
        """The losses of the classes' synthetic images and their derivative by the images."""

        def gradient(of_class: _LossOfClass, *data: Tensor) -> dict[str, Tensor]:
            found: dict[str, Tensor] = grad(of_class)(self._weights(), *data)
            return found

        x = images.detach().requires_grad_()
        synthetic = self._mapped(gradient, x, classes, counts)
        loss, derivative = distance(synthetic.detach())
        return loss, torch.autograd.grad(synthetic, x, derivative)[0]

    def _weights(self) -> dict[str, Tensor]:
        return {name: self.state[name] for name in self.names}

    def _mapped(
        self,
        gradient: Callable[..., dict[str, Tensor]],
        images: Tensor,
        classes: Sequence[int],
        counts: Sequence[int],
    ) -> Tensor:
        layout = self._layout(images, classes, counts)

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
            with computing(self.precision, x.device.type, network=True):
                logits = functional_call(self.network, {**self.state, **weights}, (x,)).to(x.dtype)
            return F.cross_entropy(logits, y.expand(len(x)), reduction="none") @ share

        of_all = vmap(partial(gradient, loss))
        gradients = of_all(images[layout.rows], layout.classes, layout.share)
        return torch.cat([gradients[name].flatten(1) for name in self.names], dim=1)

    def _layout(self, images: Tensor, classes: Sequence[int], counts: Sequence[int]) -> _Layout:
        """How images of these classes are laid out; made once for each number of them."""
        kind = tuple(classes), tuple(counts)
        if kind not in self._layouts:
            sizes = torch.tensor(counts)[:, None]
            place = torch.arange(max(counts))
            rows = sizes.cumsum(0) - sizes + place.minimum(sizes - 1)
            share = (place < sizes).to(images.dtype) / sizes
            layout = _Layout(torch.tensor(classes), rows, share)
            self._layouts[kind] = sent(layout, images.device)
        return self._layouts[kind]


def _joined(gradients: Sequence[Tensor]) -> Tensor:
    """`(1, P)` of the gradients `(1, ...)` of parameters."""
    return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
