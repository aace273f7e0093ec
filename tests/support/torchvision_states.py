"""State dicts of ResNets by torchvision's names, and what such a network computes, written plainly.

Of the published description: names, shapes and layers owe nothing to the code that is tested. In
torchvision's place stands one whose networks are small.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmidd.pretrained.state_dicts import TORCHVISIONS

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
State = dict[str, Tensor]


def _shapes(depth: int, classes: int, stem: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of weights of convolutions, of norms (1-D) and of the last layer."""
    yield from (("conv1", (64, 3, stem, stem)), ("bn1", (64,)))
    channels, widened = 64, 4 if depth == 50 else 1
    for stage, count in enumerate(STAGES[depth]):
        width = 64 * 2**stage
        wide = widened * width
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            if depth == 50:
                yield f"{name}.conv1", (width, channels, 1, 1)
                yield f"{name}.bn1", (width,)
                yield f"{name}.conv2", (width, width, 3, 3)
                yield f"{name}.bn2", (width,)
                yield f"{name}.conv3", (wide, width, 1, 1)
                yield f"{name}.bn3", (wide,)
            else:
                yield f"{name}.conv1", (width, channels, 3, 3)
                yield f"{name}.bn1", (width,)
                yield f"{name}.conv2", (width, width, 3, 3)
                yield f"{name}.bn2", (width,)
            if block == 0 and channels != wide:
                yield f"{name}.downsample.0", (wide, channels, 1, 1)
                yield f"{name}.downsample.1", (wide,)
            channels = wide
    yield "fc", (classes, channels)


@cache
def resnet_state(depth: int, classes: int, stem: int = 7, seed: int = 0) -> State:
    """Random numbers, by which logits are neither large nor alike, made once."""
    rng = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in _shapes(depth, classes, stem):
        if len(shape) == 1:
            state[f"{name}.weight"] = torch.rand(shape, generator=rng) + 0.5
            state[f"{name}.bias"] = torch.randn(shape, generator=rng) / 10
            state[f"{name}.running_mean"] = torch.randn(shape, generator=rng) / 10
            state[f"{name}.running_var"] = torch.rand(shape, generator=rng) + 1
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        else:
            scale = (2 / torch.Size(shape[1:]).numel()) ** 0.5
            state[f"{name}.weight"] = torch.randn(shape, generator=rng) * scale
    state["fc.bias"] = torch.randn(classes, generator=rng)
    return state


def features_of(state: State, images: Tensor) -> Tensor:
    """What enters the last layer of the network of a state, in the precision of the images."""
    weights = {name: tensor.to(images.dtype) for name, tensor in state.items()}

    def convolved(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)

    def normed(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.{each}"][:, None, None]
            for each in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    is_large = weights["conv1.weight"].shape[-1] == 7
    x = normed(convolved(images, "conv1", 2 if is_large else 1), "bn1").relu()
    if is_large:
        x = F.max_pool2d(x, 3, 2, 1)
    for name in sorted({key.rpartition(".conv1")[0] for key in state if ".conv1." in key}):
        halves = 2 if name.endswith(".0") and not name.startswith("layer1") else 1
        last = 3 if f"{name}.conv3.weight" in state else 2
        inner = x
        for k in range(1, last + 1):
            stride = halves if k == last - 1 else 1  # the 3x3 of a bottleneck, else the first
            inner = normed(convolved(inner, f"{name}.conv{k}", stride), f"{name}.bn{k}")
            inner = inner.relu() if k < last else inner
        if f"{name}.downsample.0.weight" in state:
            x = normed(convolved(x, f"{name}.downsample.0", halves), f"{name}.downsample.1")
        x = (inner + x).relu()
    return x.mean((2, 3))


def logits_of(state: State, images: Tensor) -> Tensor:
    """Logits of the network of a state, in the precision of the images."""
    weight, bias = (state[f"fc.{each}"].to(images.dtype) for each in ("weight", "bias"))
    return features_of(state, images) @ weight.T + bias


def saved(content: object, path: Path) -> Path:
    """The file that torch.save makes of it."""
    torch.save(content, path)
    return path


# --- in torchvision's place


class Mobile(nn.Module):
    """A network with a name of torchvision's, and a classifier with dropout."""

    def __init__(self, weights: None, num_classes: int) -> None:
        super().__init__()
        assert weights is None
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


class Large(nn.Module):
    """One that takes no small images."""

    def __init__(self, weights: None, num_classes: int) -> None:
        super().__init__()
        assert weights is None
        self.features = nn.Conv2d(3, 4, 63)
        self.classifier = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


def put_torchvision_in_place(patch: pytest.MonkeyPatch) -> None:
    """As `torchvision.models`, networks by its names: alexnet takes no small images."""
    models = ModuleType("torchvision.models")
    for name in TORCHVISIONS:
        setattr(models, name, Large if name == "alexnet" else Mobile)
    patch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    patch.setitem(sys.modules, "torchvision.models", models)
