"""Images that do not fit the network are named, with what the network's weights expect."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cmikernels import CMIRegularizer
from tests.support.small_network import make_images, make_network
from tests.support.tables import make_labels

LABELS = make_labels((2, 2))
NETWORK = make_network(0, torch.float32)
IMAGES = make_images(4, torch.float32)
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2)).eval().requires_grad_(False)


def call(network: nn.Module, images: Tensor, chunk_size: int | None = 2, **options: str) -> Tensor:
    value: Tensor = CMIRegularizer(network, chunk_size=chunk_size, **options)(images, LABELS)  # type: ignore[arg-type]
    return value


@pytest.mark.parametrize("chunk_size", [None, 1, 50])
@pytest.mark.parametrize("layer", ["features", "logits", "conv"])
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bfloat16, torch.float16, torch.float64], ids=str
)
def test_images_of_another_dtype(dtype: torch.dtype, layer: str, chunk_size: int | None) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(TypeError, match=f"images: expected float32 as the network has, got {name}"):
        call(NETWORK, IMAGES.detach().to(dtype), chunk_size, layer=layer)


@pytest.mark.parametrize("chunk_size", [None, 1, 50])
def test_images_of_other_channels(chunk_size: int | None) -> None:
    message = r"images: expected 2 channels as the network's first convolution takes, got shape \("
    with pytest.raises(ValueError, match=message) as caught:
        call(NETWORK, torch.randn(4, 3, 4, 4), chunk_size)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_images_of_another_size_for_a_linear_layer() -> None:
    message = (
        r"images: expected 8 numbers each as the network's first linear layer takes, got .*7\)"
    )
    with pytest.raises(ValueError, match=message):
        call(LINEAR, torch.randn(4, 7))


def test_real_centroids_say_it_too() -> None:
    with pytest.raises(TypeError, match="images: expected float32 as the network has, got uint8"):
        CMIRegularizer(NETWORK).real_centroids([(IMAGES.detach().byte(), LABELS)], 2)


def test_images_on_another_device() -> None:
    with pytest.raises(ValueError, match="images: expected on the network's device meta, got cpu"):
        call(copy.deepcopy(LINEAR).to("meta"), torch.randn(4, 8))


class _Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no such luck") if len(images) else AssertionError


def test_an_error_of_the_network_itself_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match=r"^no such luck$"):
        call(_Fails().eval().requires_grad_(False), torch.randn(4, 8))


class _TakesBytes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.float() / 255)
        return logits


def test_a_network_that_converts_its_images_gets_them() -> None:
    images = torch.arange(32, dtype=torch.uint8).view(4, 8)
    assert call(_TakesBytes().eval().requires_grad_(False), images) > 0
