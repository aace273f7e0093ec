"""Features of several layers are those of each, by one pass through the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cmikernels.embedding import embed, embed_each

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A network whose forward goes through `embed`, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.head, self.unused, self.runs = nn.Linear(256, 2), nn.Linear(2, 2), 0

    def embed(self, images: Tensor) -> Tensor:
        self.runs += 1
        found: Tensor = self.body(images).flatten(1)
        return found

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.embed(images))
        return found


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 2))


@pytest.mark.parametrize(
    ("layers", "runs"),
    [
        (["features"], 1),
        (["body.0", "features", "body.1"], 1),
        (["body.0", "logits"], 1),
        (["logits", "features", "body.0", "features"], 2),
    ],
)
def test_each_is_what_embed_gives_with_maps_averaged(layers: list[str], runs: int) -> None:
    torch.manual_seed(0)
    network = Net()
    found = embed_each(network, IMAGES, layers)
    assert network.runs == runs
    assert len(found) == len(layers)
    for layer, features in zip(layers, found, strict=True):
        expected = embed(network, IMAGES, layer)
        if layer.startswith("body"):
            expected = expected.view(5, 4, 64).mean(2)
        torch.testing.assert_close(features, expected)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_without_embed_is_run_once_for_all() -> None:
    torch.manual_seed(0)
    network, calls = plain(), []
    network.register_forward_hook(lambda *_: calls.append(1))
    found = embed_each(network, IMAGES, ["features", "0", "2", "logits"])
    assert calls == [1]
    assert [tuple(each.shape) for each in found] == [(5, 144), (5, 4), (5, 144), (5, 2)]
    assert (found[1] < 0).any()  # as it left the layer, before the next one worked in place
    torch.testing.assert_close(found[0], embed(network, IMAGES))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("bodi.0", "layer: expected 'features', 'logits' or a submodule of Net .*'body.0'"),
        ("unused", "layer: 'unused' was not reached when the network ran"),
    ],
)
def test_a_layer_that_gives_nothing_is_named(layer: str, message: str) -> None:
    network = Net()
    with pytest.raises(ValueError, match=message):
        embed_each(network, IMAGES, ["features", layer])
    assert not any(module._forward_hooks for module in network.modules())
