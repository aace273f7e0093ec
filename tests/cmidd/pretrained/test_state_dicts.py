"""State dicts that were trained elsewhere are read by their names, or named in one clear line."""

from __future__ import annotations

import argparse
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cmidd.networks import build_network
from cmidd.pretrained.state_dicts import OURS, TORCHVISIONS, network_of_file, read_state_dict
from cmikernels.embedding import embed
from tests.support.dataset_files import Payload
from tests.support.torchvision_states import (
    State,
    features_of,
    logits_of,
    resnet_state,
    saved,
)

SHAPE, CLASSES = (3, 24, 24), 5
STATES = {
    (depth, stem): resnet_state(depth, CLASSES, stem) for depth in (18, 50) for stem in (7, 3)
}
STATE = STATES[18, 7]
IMAGES = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an option, and not there unless a test puts another in its place."""
    monkeypatch.setitem(sys.modules, "torchvision.models", None)


def loaded(path: Path, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    return network_of_file(path, shape, CLASSES)


def error_of(path: Path, shape: tuple[int, int, int] = SHAPE) -> str:
    with pytest.raises(ValueError, match=r"^.+$") as raised:  # one line
        loaded(path, shape)
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


# --- what a file is of


@pytest.mark.parametrize(
    ("depth", "tensors", "parameters"), [(18, 122, 11_689_512), (50, 320, 25_557_032)]
)
def test_names_and_sizes_are_the_published_ones(depth: int, tensors: int, parameters: int) -> None:
    state = resnet_state(depth, 1000)
    assert len(state) == tensors
    network = build_network(f"imagenet_resnet{depth}", 3, 224, 1000)
    assert len(network.state_dict()) == tensors
    assert sum(each.numel() for each in network.parameters()) == parameters


@pytest.mark.parametrize(("depth", "stem"), STATES)
def test_a_state_dict_gives_the_network_that_computes_as_published(
    depth: int, stem: int, tmp_path: Path
) -> None:
    state = STATES[depth, stem]
    network = loaded(saved(state, tmp_path / "file.pth")).double()
    expected = logits_of(state, IMAGES)
    assert expected.std() > 0.1
    torch.testing.assert_close(network(IMAGES), expected, rtol=1e-9, atol=1e-9)
    features = embed(network, IMAGES)
    assert features.shape == (2, 2048 if depth == 50 else 512)
    torch.testing.assert_close(features, features_of(state, IMAGES), rtol=1e-9, atol=1e-9)


def in_half(state: State) -> State:
    return {name: t.half() if t.is_floating_point() else t for name, t in state.items()}


def without_counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


WRAPPED: dict[str, Any] = {
    "plain": OrderedDict(STATE),
    "older": without_counters(STATE),
    "parallel": {f"module.{name}": tensor for name, tensor in STATE.items()},
    "compiled": {f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()},
    "state_dict": {"epoch": 3, "state_dict": STATE, "best": 0.5},
    "model": {"model": STATE, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "nested": {"model": {"state_dict": {f"module.{k}": v for k, v in STATE.items()}}},
    "half": in_half(STATE),
    "parameters": {name: nn.Parameter(t) if t.is_floating_point() else t
                   for name, t in STATE.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_files_as_they_are_found_are_read(name: str, tmp_path: Path) -> None:
    found = read_state_dict(saved(WRAPPED[name], tmp_path / "file.pt"))
    expected = without_counters(STATE)
    assert without_counters(found).keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == torch.float32
        wanted = tensor.half().float() if name == "half" else tensor
        assert torch.equal(found[key], wanted)


@pytest.mark.parametrize("name", ["older", "nested"])
def test_what_they_hold_is_a_network(name: str, tmp_path: Path) -> None:
    network = loaded(saved(WRAPPED[name], tmp_path / "file.pt")).double()
    torch.testing.assert_close(network(IMAGES), logits_of(STATE, IMAGES), rtol=1e-9, atol=1e-9)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "file.safetensors")
    found = read_state_dict(tmp_path / "file.safetensors")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


# --- networks of torchvision


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


@pytest.fixture
def torchvision(no_torchvision: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose networks are small."""
    models = ModuleType("torchvision.models")
    for name in TORCHVISIONS:
        setattr(models, name, Large if name == "alexnet" else Mobile)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


def test_a_network_of_torchvision_is_found_by_its_tensors(
    torchvision: None, tmp_path: Path
) -> None:
    original = Mobile(None, CLASSES).eval()
    drawn = torch.get_rng_state()
    network = loaded(saved(original.state_dict(), tmp_path / "file.pth"))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert isinstance(network, Mobile)
    images = IMAGES.float()
    assert torch.equal(network(images), original(images))
    assert torch.equal(embed(network, images), original.features(images).mean((2, 3)))


def test_images_too_small_for_it_are_named(torchvision: None, tmp_path: Path) -> None:
    text = error_of(saved(Large(None, CLASSES).state_dict(), tmp_path / "file.pth"))
    assert text.startswith("alexnet cannot take images of (3, 24, 24): ")


def test_resnets_are_ours_beside_torchvision(torchvision: None, tmp_path: Path) -> None:
    assert not isinstance(loaded(saved(STATE, tmp_path / "file.pth")), Mobile)


def test_without_torchvision_the_line_says_what_needs_it(tmp_path: Path) -> None:
    text = error_of(saved(Mobile(None, CLASSES).state_dict(), tmp_path / "file.pth"))
    assert text.startswith(f"expected the state dict of one of {', '.join((*OURS, *TORCHVISIONS))}")
    assert "alexnet need torchvision, which cannot be imported here (ModuleNotFoundError" in text


def test_a_torchvision_that_does_not_fit_torch_is_told_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> ModuleType:
        raise RuntimeError(f"operator {name}::nms does not exist\nmore lines")

    monkeypatch.setattr("cmidd.pretrained.state_dicts.importlib.import_module", broken)
    text = error_of(saved({"weight": torch.zeros(3)}, tmp_path / "file.pth"))
    assert text.endswith("(RuntimeError: operator torchvision.models::nms does not exist)")
    loaded(saved(STATE, tmp_path / "other.pth"))


# --- files that are of something else


def changed(**changes: Tensor | None) -> Mapping[str, Tensor]:
    """The state of a ResNet-18 with other tensors, by names with _ for a dot, or without some."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: t for name, t in {**STATE, **named}.items() if t is not None}


NEAREST = "nearest is imagenet_resnet18, for whose "


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (changed(fc__weight=torch.zeros(7, 512), fc__bias=torch.zeros(7)),
         "expected 5 classes as the dataset has, got imagenet_resnet18 of 7"),
        (changed(bn1__weight=None), f"{NEAREST}bn1.weight expected (64,), got none;"),
        (changed(more=torch.zeros(2)), f"{NEAREST}more expected none, got (2,);"),
        (changed(bn1__bias=torch.zeros(63)), f"{NEAREST}bn1.bias expected (64,), got (63,);"),
        (changed(fc__bias=torch.tensor(1.0)), f"{NEAREST}fc.bias expected (5,), got ();"),
        (changed(fc__weight=torch.zeros(5, 512).long()),
         f"{NEAREST}fc.weight expected (5, 512), got (5, 512) whole numbers;"),
        (changed(conv1__weight=torch.zeros(64, 3, 5, 5), bn1__weight=None),
         f"{NEAREST}conv1.weight expected (64, 3, 7, 7), got (64, 3, 5, 5) and 1 more differ;"),
        (changed(fc__bias=torch.full((5,), torch.nan)), "expected finite numbers, got NaN or Inf "),
        (changed(bn1__running_var=torch.full((64,), -9.0)), "expected finite logits of imagenet_"),
        ({}, "expected a state dict, got an empty one"),
        ([torch.zeros(2)], "expected a state dict, got a list"),
        (torch.zeros(2), "expected a state dict, got a Tensor"),
        ({"epoch": 3, "weights": torch.zeros(2)}, "expected 'epoch' to be a tensor, got int"),
        ({"a" * 10**5: 3}, "expected 'aaa"),
        (changed(fc__bias=torch.zeros(()).expand(10**9)),
         "expected 'fc.bias' of (1000000000,) numbers, and the file is too short for them"),
        (changed(fc__bias=torch.zeros(5).to_sparse()), "expected 'fc.bias' to be a plain tensor"),
    ],
)  # fmt: skip
def test_another_content_is_one_line_that_says_what_came(
    state: object, told: str, tmp_path: Path
) -> None:
    text = error_of(saved(state, tmp_path / "file.pth"))
    assert told in text
    assert len(text) < 800


def test_grey_images_are_named(tmp_path: Path) -> None:
    text = error_of(saved(STATE, tmp_path / "file.pth"), (1, 24, 24))
    assert f"{NEAREST}conv1.weight expected (64, 1, 7, 7), got (64, 3, 7, 7)" in text


@pytest.mark.parametrize("as_archive", [True, False])
@pytest.mark.parametrize("place", ["state_dict", "epoch"])
def test_nothing_in_a_file_is_executed(as_archive: bool, place: str, elsewhere: Path) -> None:
    content = {"state_dict": STATE, "epoch": 0, place: Payload(os.system, "touch executed")}
    torch.save(content, "file.pth", _use_new_zipfile_serialization=as_archive)
    assert "system, which a file of weights has no use for, and which was not" in error_of(
        Path("file.pth")
    )
    assert not Path("executed").exists()


def test_a_whole_pickled_network_is_not_made(elsewhere: Path) -> None:
    torch.save(nn.Linear(2, 3), "file.pth")
    assert "asks for torch.nn.modules.linear.Linear, which a file of weights" in error_of(
        Path("file.pth")
    )


SMALL = {"fc.weight": torch.zeros(5, 3), "fc.bias": torch.zeros(5)}


@pytest.mark.parametrize("kind", ["archive", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0, 0.3, 0.7, 0.99])
def test_a_file_that_is_cut_short_is_named(kind: str, part: float, elsewhere: Path) -> None:
    path = Path("file")
    if kind == "safetensors":
        save_file(SMALL, path)
    else:
        torch.save(SMALL, path, _use_new_zipfile_serialization=kind == "archive")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"^file: .+$"):
        read_state_dict(path)


@pytest.mark.parametrize("kind", ["archive", "safetensors"])
def test_a_damaged_byte_never_gives_another_error(kind: str, elsewhere: Path) -> None:
    path = Path("file")
    if kind == "safetensors":
        save_file(SMALL, path)
    else:
        torch.save(SMALL, path)
    content = path.read_bytes()
    told: list[str] = []
    for place in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except ValueError as error:
            told.append(str(error))
    assert len(told) > 10
    assert all(text.startswith("file: ") and "\n" not in text for text in told)
