"""Which of a network's tensors is the feature: its embedding, its logits or a named layer.

images (N, ...) -> network -> features (N, M), flattened
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


def embed(network: nn.Module, images: Tensor, layer: str = "features") -> Tensor:
    """Features `(N, M)` of images: see `layer` of `CMIRegularizer`.

    Autocast is off in here: the gradient of CMI lives on differences between rows that bfloat16
    convolutions round away (16 to 59 % of error were measured).
    """
    with torch.autocast(images.device.type, enabled=False):
        if layer == "logits":
            features: Tensor = network(images)
        elif layer == "features" and _has_embed_method(network):
            features = network.embed(images)  # type: ignore[operator]
        else:
            features = _capture(network, images, layer)
    if features.dtype in (torch.bfloat16, torch.float16):
        warnings.warn(
            f"features: a network in {features.dtype} changes the method: the gradient of CMI is "
            "off by 16 % and more; use float32 networks",
            stacklevel=3,
        )
    return features.flatten(1)


def _has_embed_method(network: nn.Module) -> bool:
    """Whether `embed` is a method; many networks have a layer of that name."""
    method = getattr(network, "embed", None)
    return callable(method) and not isinstance(method, nn.Module)


def _capture(network: nn.Module, images: Tensor, layer: str) -> Tensor:
    """What enters the last linear layer, or leaves the named one."""
    captured: list[Tensor] = []

    def keep_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.append(inputs[0])

    def keep_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        captured.append(output.clone())  # what comes next may work in place

    if layer == "features":
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(
                f"layer: {type(network).__name__} has no nn.Linear whose input would be the "
                "features; name a submodule, or 'logits' for what the network returns"
            )
        handle = linear[-1].register_forward_pre_hook(keep_input)
    else:
        try:
            module = network.get_submodule(layer)
        except AttributeError:
            names = ", ".join(name for name, _ in network.named_children())
            raise ValueError(
                f"layer: expected 'features', 'logits' or a submodule of {type(network).__name__} "
                f"({names}, ...), got {layer!r}"
            ) from None
        handle = module.register_forward_hook(keep_output)
    try:
        network(images)
    finally:
        handle.remove()
    if not captured:
        raise ValueError(f"layer: {layer!r} was not reached when the network ran")
    return captured[-1]
