"""Gradients of classes by the parameters of layers, in a network that all classes share.

The images of all classes go through the network together, forward and back. With the maps x that
they bring to a layer, and the derivative d of the loss by what the layer makes of these,

    convolution    dL/dw[o, i, k] = sum over images and places p of d[o, p] x[i, stride p + k]
    linear layer   dL/dw[o, i]    = sum over images of d[o] x[i]
    bias           dL/db[o]       = sum over images and places p of d[o, p]

where the sums go over the images of a class. Any other layer, and a convolution that has groups,
dilation or another padding than zeros, is mapped over the classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, vmap

from cmikernels.precision import computing

Named = dict[str, Tensor]


class _Asked(NamedTuple):
    """A place in the graph, and the gradients that follow from the loss's derivative there."""

    place: Tensor | GradientEdge
    gradients: Callable[[Tensor], Named]


class LayerGradients:
    """Gradients of classes by some parameters of a network, whose layers are changed to tell them.

    The forward is in `precision`; the caller computes in it too, which the way back goes by. In
    tf32 a matrix product that takes the place of a convolution rounds as this would, and so do its
    derivatives; those of linear layers stay float32.
    """

    def __init__(self, network: nn.Module, names: Collection[str], precision: str) -> None:
        self.network, self.names, self.precision = network, names, precision
        self._classes, self._twice = 1, False  # of the call under way
        self._asked: list[_Asked] = []
        all_own = [layer.parameters(recurse=False) for layer in network.modules()]
        if sum(len([*own]) for own in all_own) > len([*network.parameters()]):
            raise ValueError("network: expected layers that share no parameters")
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in names)
        for prefix, layer in network.named_modules():
            own = {
                key: f"{prefix}.{key}".lstrip(".")
                for key, parameter in layer.named_parameters(recurse=False)
                if parameter.requires_grad
            }
            if own and (_is_linear(layer) or _has_windows(layer)):
                layer.register_forward_hook(partial(self._note, own))
            elif own and any(layer.children()):
                raise ValueError(
                    f"network: expected parameters in layers, got some of {prefix or 'the whole'}, "
                    "which has layers in it"
                )
            elif own:
                layer.forward = partial(self._mapped, own, copy.copy(layer))

    def __call__(
        self, images: Tensor, loss: Callable[[Tensor], Tensor], classes: int, *, twice: bool
    ) -> Named:
        """Gradients `(classes, ...)` by each parameter.

        Args:
            images: those of a class beside each other, of each as many.
            loss: of logits; a sum over images.
            classes: how many there are.
            twice: whether the gradients are to be differentiated by the images.
        """
        asked: list[_Asked] = []
        self._classes, self._twice, self._asked = classes, twice, asked
        try:
            with torch.enable_grad():
                with computing(self.precision, images.device.type, network=True):
                    logits = self.network(images)
                value = loss(logits.to(images.dtype))
        finally:
            self._asked = []
        places: Any = [each.place for each in asked]
        derivatives = torch.autograd.grad(value, places, create_graph=twice)
        found: Named = {}
        with torch.set_grad_enabled(twice):
            for each, derivative in zip(asked, derivatives, strict=True):
                for name, gradient in each.gradients(derivative).items():
                    found[name] = found[name] + gradient if name in found else gradient
            if missing := [name for name in self.names if name not in found]:
                raise ValueError(f"network: expected it to use {', '.join(missing)}")
            return {name: found[name].to(images.dtype) for name in self.names}

    def _note(
        self, own: dict[str, str], layer: nn.Module, given: tuple[Tensor], out: Tensor
    ) -> None:
        """Ask for the derivative by what a layer makes, before that is changed in place."""
        maps, version = given[0], given[0]._version

        def gradients(derivative: Tensor) -> Named:
            if maps._version != version:
                raise RuntimeError("network: expected what enters a layer to stay as it was there")
            return self._of_layer(own, layer, maps, derivative)

        self._asked.append(_Asked(get_gradient_edge(out), gradients))

    def _of_layer(
        self, own: dict[str, str], layer: nn.Module, maps: Tensor, derivative: Tensor
    ) -> Named:
        found, classes = {}, self._classes
        if "weight" in own:
            maps = maps.to(derivative.dtype)  # as the layer's arithmetic had them
            if isinstance(layer, nn.Linear):
                weight = linear_gradients(maps, derivative, classes)
            else:
                assert isinstance(layer, nn.Conv2d)
                if self._twice:
                    weight = convolution_gradients(layer, maps, derivative, classes, self.precision)
                else:
                    weight = convolution_gradients_once(layer, maps, derivative, classes)
            found[own["weight"]] = weight
        if "bias" in own:
            of_all = _by_class(derivative, classes)
            outputs = of_all.dim() - 1 if isinstance(layer, nn.Linear) else 2
            summed = [axis for axis in range(1, of_all.dim()) if axis != outputs]
            found[own["bias"]] = of_all.sum(summed)
        return found

    def _mapped(self, own: dict[str, str], layer: nn.Module, *given: Tensor | None) -> Tensor:
        """What a layer makes if each class has parameters of its own."""
        parameters: Named = {}
        for key, name in own.items():
            shared = layer.get_parameter(key).detach()
            parameters[key] = shared.expand(self._classes, *shared.shape).requires_grad_()
            self._asked.append(_Asked(parameters[key], partial(_named, name)))

        def of_class(parameters: Named, *maps: Tensor | None) -> Tensor:
            made: Tensor = functional_call(layer, parameters, maps)
            return made

        maps = [each if each is None else _by_class(each, self._classes) for each in given]
        axes = (0, *(None if each is None else 0 for each in maps))
        out: Tensor = vmap(of_class, in_dims=axes)(parameters, *maps)
        return out.flatten(0, 1)


def _by_class(tensor: Tensor, classes: int) -> Tensor:
    return tensor.view(classes, -1, *tensor.shape[1:])


def _named(name: str, gradient: Tensor) -> Named:
    return {name: gradient}


def _is_linear(layer: nn.Module) -> bool:
    """Whether it is a layer of `linear_gradients`."""
    return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward


def _has_windows(layer: nn.Module) -> bool:
    """Whether it is a convolution whose windows `convolution_gradients` takes."""
    return (
        isinstance(layer, nn.Conv2d)
        and type(layer).forward is nn.Conv2d.forward
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def linear_gradients(maps: Tensor, derivative: Tensor, classes: int) -> Tensor:
    """Gradients (C, out, in) of maps (C n, ..., in) and the derivative (C n, ..., out)."""
    outputs, inputs = (each.reshape(classes, -1, each.shape[-1]) for each in (derivative, maps))
    return outputs.mT @ inputs


def convolution_gradients_once(
    layer: nn.Conv2d, maps: Tensor, derivative: Tensor, classes: int
) -> Tensor:
    """`convolution_gradients` without a graph: torch's own, of the images of each class in turn."""
    weight = layer.weight.to(derivative.dtype)
    rest = (None, layer.stride, layer.padding, (1, 1), False, (0, 0), 1, (False, True, False))
    of_class: Any = torch.ops.aten.convolution_backward
    pairs = zip(derivative.chunk(classes), maps.chunk(classes), strict=True)
    return torch.stack([of_class(incoming, x, weight, *rest)[1] for incoming, x in pairs])


def convolution_gradients(
    layer: nn.Conv2d, maps: Tensor, derivative: Tensor, classes: int, precision: str
) -> Tensor:
    """Gradients (C, out, in, height, width) of maps (C n, in, ...), derivative (C n, out, ...).

    One matrix product of all classes, with derivatives of any order by both.
    """
    # Classes and images stay axes of their own, so that no step back copies windows.
    maps, padding = _by_class(maps, classes), cast("tuple[int, int]", layer.padding)
    if any(padding):
        maps = F.pad(maps, (padding[1], padding[1], padding[0], padding[0]))
    for axis in (0, 1):
        maps = maps.unfold(3 + axis, layer.kernel_size[axis], layer.stride[axis])
    windows = maps.permute(0, 2, 5, 6, 1, 3, 4)  # (C, in, height, width, n, ...)
    outputs = _by_class(derivative, classes).transpose(1, 2).flatten(2)  # (C, out, n ...)
    columns = windows.reshape(classes, -1, outputs.shape[2])
    return _product(outputs, columns.mT, precision).view(classes, -1, *windows.shape[1:4])


def _product(one: Tensor, other: Tensor, precision: str) -> Tensor:
    """one @ other, whose float32 is rounded as in convolutions, and so are its derivatives."""
    product: Tensor = _Product.apply(one, other, precision)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """`_product`. The derivative of a transposed matrix lies in memory as the matrix does."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, precision: str) -> Tensor:
        ctx.save_for_backward(one, other)
        ctx.precision = precision
        if precision != "tf32":  # float32 as in convolutions; of bfloat16 a GPU may add otherwise
            return one @ other
        with computing(precision, one.device.type, products=True):
            return one @ other

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        one, other = ctx.saved_tensors
        of_one, of_other, _ = ctx.needs_input_grad
        return (
            _product(incoming, other.mT, ctx.precision) if of_one else None,
            _product(incoming.mT, one, ctx.precision).mT if of_other else None,
            None,
        )
