"""CMIRegularizer: what cannot be meant is refused with what came and what was expected."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmikernels import ClassIndex, CMIRegularizer
from tests.support.small_network import CHANNELS, RAGGED, make_images, make_network
from tests.support.tables import make_probabilities


def _call(network: nn.Module, classes: Tensor | ClassIndex = RAGGED, **options: Any) -> None:
    """What a user would write; every bad value of an argument has to be caught in it."""
    CMIRegularizer(network, **options)(make_images(33), classes)


def _centroids(network: nn.Module) -> None:
    CMIRegularizer(network).real_centroids([(make_images(1).detach(), torch.tensor([0]))], 1)


def _real(*arguments: Any) -> None:
    CMIRegularizer(NETWORK).real_centroids(*arguments)


def _unused() -> nn.Sequential:
    network = make_network()
    network[4].add_module("unused", nn.Identity())
    return network.eval()


def _partly_training() -> nn.Sequential:
    network = make_network()
    network[1].train()
    return network


NETWORK = make_network()
IMAGES = make_images(3).detach()
PROBABILITIES = make_probabilities((4, CHANNELS))
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "training mode": (
        lambda: _call(make_network().train()),
        ValueError,
        r"networks\[0\]: expected a frozen network.*eval\(\)\.requires_grad_\(False\)",
    ),
    "a part in training mode": (
        lambda: _call(_partly_training()),
        ValueError,
        r"networks\[0\]: expected a frozen network",
    ),
    "unfrozen parameters": (
        lambda: _call(make_network().requires_grad_()),
        ValueError,
        r"networks\[0\]: expected a frozen network",
    ),
    "a network that trains, for real centroids": (
        lambda: _centroids(make_network().train()),
        ValueError,
        r"networks\[0\]: expected a frozen network",
    ),
    "no networks": (
        lambda: _call(nn.ModuleList()),
        ValueError,
        "networks: expected at least one, got none",
    ),
    "too few labels": (
        lambda: _call(NETWORK, RAGGED[:5]),
        ValueError,
        "classes: expected one label for each of the 33 images, got 5",
    ),
    "chunk size 0": (
        lambda: _call(NETWORK, chunk_size=0),
        ValueError,
        "chunk_size: expected at least 1, got 0",
    ),
    "chunk size True": (
        lambda: _call(NETWORK, chunk_size=True),
        TypeError,
        "chunk_size: expected an int, got bool",
    ),
    "every 0": (lambda: _call(NETWORK, every=0), ValueError, "every: expected at least 1, got 0"),
    "no networks a step": (
        lambda: _call(NETWORK, networks_per_step=0),
        ValueError,
        "networks_per_step: expected at least 1, got 0",
    ),
    "too many networks a step": (
        lambda: _call(NETWORK, networks_per_step=2),
        ValueError,
        "networks_per_step: expected at most the 1 networks given, got 2",
    ),
    "centroids of one dimension": (
        lambda: _call(NETWORK, centroids=PROBABILITIES[0]),
        ValueError,
        r"centroids: expected \(C, M\), or \(networks, C, M\) of 1 networks, got shape \(5,\)",
    ),
    "centroids of other networks": (
        lambda: _call(NETWORK, centroids=PROBABILITIES.expand(2, 4, CHANNELS)),
        ValueError,
        r"centroids: expected .* of 1 networks, got shape \(2, 4, 5\)",
    ),
    "centroids of other channels": (
        lambda: _call(NETWORK, centroids=make_probabilities((5, 9)), chunk_size=50),
        ValueError,
        r"centroids: expected shape \(5, 5\), got \(5, 9\)",
    ),
    "centroids of fewer classes than the index": (
        lambda: _call(NETWORK, ClassIndex(RAGGED), centroids=PROBABILITIES),
        ValueError,
        "classes: expected the 4 classes that centroids are for, got a ClassIndex of 5",
    ),
    "a label beyond the centroids": (
        lambda: _call(NETWORK, RAGGED, centroids=PROBABILITIES),
        ValueError,
        r"centroids: expected a row for each of the 5 classes of the labels \(or more\), got 4",
    ),
    "unknown backend": (
        lambda: _call(NETWORK, backend="abacus"),
        ValueError,
        "backend: expected .*, got 'abacus'",
    ),
    "unknown layer": (
        lambda: _call(NETWORK, layer="block3"),
        ValueError,
        r"layer: expected .* of Sequential \(conv, norm, flatten, .*, head\), got 'block3'$",
    ),
    "a layer misspelt": (
        lambda: _call(NETWORK, layer="hiden"),
        ValueError,
        r"got 'hiden'; did you mean 'hidden'\?",
    ),
    "features misspelt": (
        lambda: _call(NETWORK, layer="feature"),
        ValueError,
        r"got 'feature'; did you mean 'features'\?",
    ),
    "a layer inside of another misspelt": (
        lambda: _call(_unused(), layer="hidden.unsed"),
        ValueError,
        r"head, \.\.\.\), got 'hidden\.unsed'; did you mean 'hidden\.unused'\?",
    ),
    "a layer of many": (
        lambda: _call(nn.Sequential(*[nn.ReLU() for _ in range(12)]).eval(), layer="12"),
        ValueError,
        r"of Sequential \(0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\), got '12'",
    ),
    "a path for networks": (
        lambda: CMIRegularizer("runs/bank.safetensors"),  # type: ignore[arg-type]
        TypeError,
        r"networks: expected a module or a sequence of modules, got the path "
        r"'runs/bank\.safetensors'; load it with cmidd\.Bank\.load",
    ),
    "a Path for networks": (
        lambda: CMIRegularizer(Path("bank.safetensors")),  # type: ignore[arg-type]
        TypeError,
        r"networks: .*got the path 'bank\.safetensors'; load it",
    ),
    "a list of paths": (
        lambda: CMIRegularizer([NETWORK, "bank.safetensors"]),  # type: ignore[list-item]
        TypeError,
        r"networks\[1\]: expected a module, got str",
    ),
    "a lazy sequence of something else": (
        lambda: _call(range(3)),  # type: ignore[arg-type]
        TypeError,
        r"networks\[\d\]: expected a module, got int",
    ),
    "a generator of networks": (
        lambda: CMIRegularizer(network for network in [NETWORK]),  # type: ignore[arg-type]
        TypeError,
        "networks: expected a module or a sequence of modules, got generator",
    ),
    "networks by name": (
        lambda: CMIRegularizer({"one": NETWORK}),  # type: ignore[arg-type]
        TypeError,
        "networks: expected a module or a sequence of modules, got dict",
    ),
    "temperature 0": (
        lambda: CMIRegularizer(NETWORK, temperature=0.0),
        ValueError,
        r"temperature: expected a number in .*, got 0\.0",
    ),
    "means of features as centroids": (
        lambda: CMIRegularizer(NETWORK, centroids=3 * PROBABILITIES),
        ValueError,
        r"centroids: expected probabilities.*got a row that sums to 3; were features averaged",
    ),
    "means of features as one network's centroids, later": (
        lambda: setattr(CMIRegularizer(NETWORK), "centroids", -PROBABILITIES[None]),
        ValueError,
        r"centroids: expected probabilities.*got an entry of -",
    ),
    "a list of centroids": (
        lambda: _call(NETWORK, centroids=[[0.5, 0.5]]),
        TypeError,
        "centroids: expected a tensor, got list",
    ),
    "centroids that want a gradient": (
        lambda: _call(NETWORK, centroids=nn.Parameter(PROBABILITIES)),
        ValueError,
        r"centroids: they are taken as constants.*pass centroids\.detach\(\)",
    ),
    "images that are a path": (
        lambda: CMIRegularizer(NETWORK)("images.pt", RAGGED),
        TypeError,
        "images: expected a tensor, got str",
    ),
    "a layer that is not reached": (
        lambda: _call(_unused(), layer="hidden.unused"),
        ValueError,
        "layer: 'hidden.unused' was not reached when the network ran",
    ),
    "real centroids of images alone": (
        lambda: _real(IMAGES),
        TypeError,
        "labels: expected the label of each image beside images, got None",
    ),
    "real centroids of too few labels": (
        lambda: _real(IMAGES, torch.tensor([0, 1])),
        ValueError,
        r"labels: expected one for each of the 3 images, got shape \(2,\)",
    ),
    "real centroids of a number of classes beside images": (
        lambda: _real(IMAGES, 5),
        TypeError,
        "labels: expected the label of each image beside images, got None",
    ),
    "real centroids of labels beside batches": (
        lambda: _real([(IMAGES, torch.tensor([0, 1, 1]))], torch.tensor([0, 1, 1])),
        TypeError,
        "labels: expected with a tensor of images only.*got Tensor beside list",
    ),
    "real centroids of labels that are a list": (
        lambda: _real(IMAGES, [0, 1, 1]),
        TypeError,
        "labels: expected a tensor of labels, got list",
    ),
    "real centroids of a path": (
        lambda: _real("train.pt"),
        TypeError,
        r"batches: expected images and their labels, or batches of both .*DataLoader\), got str",
    ),
    "real centroids of batches of images alone": (
        lambda: _real([IMAGES]),
        TypeError,
        "batches: expected pairs of images and labels, got Tensor",
    ),
    "real centroids of batches of three": (
        lambda: _real([(IMAGES, IMAGES, IMAGES)]),
        TypeError,
        "batches: expected pairs of images and labels, got tuple of 3",
    ),
    "real centroids of nothing": (
        lambda: _real([]),
        ValueError,
        "batches: expected images of every class, got none",
    ),
    "no linear layer": (
        lambda: _call(NETWORK[:2].eval()),
        ValueError,
        "layer: Sequential has no nn.Linear whose input .*name a submodule, or 'logits'",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_meant_is_an_error(what: str) -> None:
    call, error, message = BAD[what]
    with pytest.raises(error, match=message):
        call()


def test_a_network_that_trains_again_is_refused_in_the_next_step_and_none_is_kept() -> None:
    network = make_network()
    regularizer, images = CMIRegularizer(network), make_images(33)
    regularizer(images, RAGGED)
    changes: list[Callable[[nn.Sequential], object]] = [
        lambda each: each[1].train(),
        lambda each: each.train(),
        lambda each: each.eval()[-1].weight.requires_grad_(),
    ]
    for change in changes:
        change(network)
        with pytest.raises(ValueError, match=r"networks\[0\]: expected a frozen network"):
            regularizer(images, RAGGED)
    network.requires_grad_(False)
    regularizer(images, RAGGED)
    gone = weakref.ref(network)
    del network, regularizer
    gc.collect()
    assert gone() is None
