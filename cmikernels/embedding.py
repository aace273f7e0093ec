"""Which of a network's tensors is the feature: its embedding, its logits or a named layer.

images (N, ...) -> network -> features (N, M), flattened
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cmikernels.precision import computing

_FEW = 8  # layers that a message lists


def embed(
    network: nn.Module, images: Tensor, layer: str = "features", precision: str | None = None
) -> Tensor:
    """Features `(N, M)` of images: see `layer` and `precision` of `CMIRegularizer`.

    The caller's autocast is off in here: the precision of CMI is its own choice.
    """
    with computing(precision, images.device.type, network=True):
        features = _outputs(network, images, [layer])[layer]
    return _in_dtype_of_images(features, images, precision).flatten(1)


def embed_each(
    network: nn.Module, images: Tensor, layers: Sequence[str], precision: str | None = None
) -> list[Tensor]:
    """Features `(N, M)` of several layers, in their order, by one pass through the network.

    Layers are named as for `embed`. Maps `(N, channels, ...)` of a named layer become the means of
    their channels over positions.
    """
    with computing(precision, images.device.type, network=True):
        found = _outputs(network, images, layers)
    features = []
    for layer in layers:
        output = _in_dtype_of_images(found[layer], images, precision)
        is_map = layer not in ("features", "logits") and output.dim() > 2
        features.append(output.flatten(2).mean(dim=2) if is_map else output.flatten(1))
    return features


def _in_dtype_of_images(features: Tensor, images: Tensor, precision: str | None) -> Tensor:
    """Features that the network computed in bfloat16 for speed, put back; of others a warning."""
    if precision == "bfloat16":  # of what the network computed; sums over features are float32
        features = features.to(images.dtype)
    if features.dtype in (torch.bfloat16, torch.float16):
        warnings.warn(
            f"features: a network in {features.dtype} has images and a gradient of them that are "
            "rounded too; use float32 networks, with precision='bfloat16' where that is enough",
            stacklevel=4,
        )
    return features


def _has_embed_method(network: nn.Module) -> bool:
    """Whether `embed` is a method; many networks have a layer of that name."""
    method = getattr(network, "embed", None)
    return callable(method) and not isinstance(method, nn.Module)


def _outputs(network: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """What a network makes of images at some layers; it runs once, or for its `embed` and again."""
    found: dict[str, Tensor] = {}
    embeds = "features" in layers and _has_embed_method(network)
    watched = {*layers} - {"logits"} - ({"features"} if embeds else set())
    with ExitStack() as hooks:
        for layer in sorted(watched):
            hooks.callback(_watch(network, layer, found).remove)
        if embeds:
            found["features"] = _run(network.embed, network, images)  # type: ignore[arg-type]
        if not found.keys() >= {*layers}:
            found["logits"] = _run(network, network, images)
    for layer in layers:
        if layer not in found:
            raise ValueError(f"layer: {layer!r} was not reached when the network ran")
    return found


def _watch(network: nn.Module, layer: str, found: dict[str, Tensor]) -> RemovableHandle:
    """Have a network keep what enters its last linear layer, or leaves the named one."""

    def keep_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[layer] = inputs[0]

    def keep_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found[layer] = output.clone()  # what comes next may work in place

    if layer != "features":
        return named_layer(network, layer).register_forward_hook(keep_output)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"layer: {type(network).__name__} has no nn.Linear whose input would be the "
            "features; name a submodule, or 'logits' for what the network returns"
        )
    return linear[-1].register_forward_pre_hook(keep_input)


def named_layer(network: nn.Module, layer: str) -> nn.Module:
    """The submodule of that name, or the error that tells which there are."""
    try:
        return network.get_submodule(layer)
    except AttributeError:
        names = [name for name, _ in network.named_modules() if name]
        children = [name for name, _ in network.named_children()][:_FEW]
        listed = ", ".join(children) + (", ..." if len(names) > len(children) else "")
        close = difflib.get_close_matches(layer, ["features", "logits", *names], 1)
        raise ValueError(
            f"layer: expected 'features', 'logits' or a submodule of {type(network).__name__} "
            f"({listed}), got {layer!r}" + (f"; did you mean {close[0]!r}?" if close else "")
        ) from None


def _run(function: Callable[[Tensor], Any], network: nn.Module, images: Tensor) -> Any:
    """What the network makes of images; its error in our words where the images are to blame."""
    try:
        return function(images)
    except RuntimeError as error:
        complaint = _wrong_images(network, images)
        if complaint is None or isinstance(error, torch.OutOfMemoryError):
            raise
        raise complaint from error


def _wrong_images(network: nn.Module, images: Tensor) -> TypeError | ValueError | None:
    """What of the images does not fit the network's weights, where those tell."""
    weights = next(network.parameters(), None)
    if weights is None:
        return None
    if images.device != weights.device:
        return ValueError(
            f"images: expected on the network's device {weights.device}, got {images.device}"
        )
    if images.dtype != weights.dtype:
        expected, got = (str(x.dtype).removeprefix("torch.") for x in (weights, images))
        return TypeError(f"images: expected {expected} as the network has, got {got}")
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    first = next((module for module in network.modules() if isinstance(module, layers)), None)
    if isinstance(first, nn.Linear):
        if first.in_features in (images.shape[-1], images[:1].numel()):
            return None
        what = f"{first.in_features} numbers each as the network's first linear layer takes"
    elif first is None or first.in_channels in images.shape[1:2]:
        return None
    else:
        what = f"{first.in_channels} channels as the network's first convolution takes"
    return ValueError(f"images: expected {what}, got shape {tuple(images.shape)}")
