"""Gradients of classes by the weights of a network, and what a distance of them gives the images.

    g_c(images) = mean over images of d cross-entropy(network(image), c) / d parameters

`GradientsClassByClass` is for a CPU and `GradientsTogether` for a GPU; both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cmidd.methods.layer_gradients import LayerGradients
from cmidd.parcel import sent
from cmidd.stack import Stack

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
        """`(1, P)`, as `GradientsTogether` gives it, of images of one class."""
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
    """Images of C classes, n of each, on their device."""

    rows: Tensor | None  # (C n,), of the images; None: all as they are
    labels: Tensor  # (C n,)
    share: Tensor  # (C n,), of each in the mean of its class: 0 for those that fill up


class GradientsTogether:
    """Gradients of several classes at once; the smaller ones are filled up with images of weight 0.

    A GPU launches as much for all of them as for one, but for the first-order gradients of
    convolutions' weights, which are a launch for each class.
    """

    def __init__(self, stack: Stack, names: Sequence[str], classes: int) -> None:
        self.classes = classes
        network = deepcopy(stack.network)
        (state,) = stack.states()
        network.load_state_dict(state, assign=True)  # so it changes as the stack does
        self.gradients = LayerGradients(network, names, stack.precision)
        self._layouts: dict[tuple[tuple[int, ...], ...], _Layout] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor, classes: Sequence[int], counts: Sequence[int]) -> Tensor:
        """`(C, P)` of images that stand class by class, so many of each of C classes."""
        return self._of_classes(images, classes, counts, twice=False)

    def match(
        self,
        images: Tensor,
        classes: Sequence[int],
        counts: Sequence[int],
        distance: Distance,
    ) -> tuple[Tensor, Tensor]:
        """The losses of the classes' synthetic images and their derivative by the images."""
        x = images.detach().requires_grad_()
        synthetic = self._of_classes(x, classes, counts, twice=True)
        loss, derivative = distance(synthetic.detach())
        return loss, torch.autograd.grad(synthetic, x, derivative)[0]

    def _of_classes(
        self, images: Tensor, classes: Sequence[int], counts: Sequence[int], *, twice: bool
    ) -> Tensor:
        rows, labels, share = self._layout(images, classes, counts)

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, reduction="none") @ share

        x = images if rows is None else images[rows]
        return _joined(self.gradients(x, loss, len(classes), twice=twice).values())

    def _layout(self, images: Tensor, classes: Sequence[int], counts: Sequence[int]) -> _Layout:
        """How images of these classes are laid out; made once for each number of them."""
        kind = tuple(classes), tuple(counts)
        if kind not in self._layouts:
            sizes, most = torch.tensor(counts)[:, None], max(counts)
            place = torch.arange(most)
            rows = sizes.cumsum(0) - sizes + place.minimum(sizes - 1)
            share = (place < sizes).to(images.dtype) / sizes
            layout = _Layout(
                None if min(counts) == most else rows.flatten(),
                torch.tensor(classes).repeat_interleave(most),
                share.flatten(),
            )
            self._layouts[kind] = sent(layout, images.device)
        return self._layouts[kind]


def _joined(gradients: Iterable[Tensor]) -> Tensor:
    """`(C, P)` of the gradients `(C, ...)` of parameters."""
    return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
