"""State dicts that were trained elsewhere are read by their names, or named in one clear line."""

from __future__ import annotations

import argparse
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
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
    Large,
    Mobile,
    State,
    features_of,
    logits_of,
    put_torchvision_in_place,
    resnet_state,
    saved,
)

SHAPE, CLASSES = (3, 24, 24), 5
IMAGES = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an option, and not there unless a test puts another in its place."""
    monkeypatch.setitem(sys.modules, "torchvision.models", None)


def state_of(depth: int = 18, stem: int = 7) -> State:
    return resnet_state(depth, CLASSES, stem)


def loaded(path: Path, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    return network_of_file(path, shape, CLASSES)[1]


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


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("stem", [7, 3])
def test_a_state_dict_gives_the_network_that_computes_as_published(
    depth: int, stem: int, tmp_path: Path
) -> None:
    state = state_of(depth, stem)
    kind, network = network_of_file(saved(state, tmp_path / "file.pth"), SHAPE, CLASSES)
    assert kind == f"imagenet_resnet{depth}{':stem=small' if stem == 3 else ''}"
    network.double()
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


def with_odd_counters(state: State) -> State:
    return {n: t.float().view(1) if "num_batches" in n else t for n, t in state.items()}


def after(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def as_parameters(state: State) -> State:
    return {n: nn.Parameter(t) if t.is_floating_point() else t for n, t in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": OrderedDict,
    "older": without_counters,
    "odd counters": with_odd_counters,
    "parallel": lambda state: after("module.", state),
    "compiled": lambda state: after("module._orig_mod.", state),
    "compiled first": lambda state: after("_orig_mod.module.", state),
    "twice": lambda state: after("module.module._orig_mod._orig_mod.module.", state),
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "best": 0.5},
    "model": lambda state: {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "nested": lambda state: {"model": {"state_dict": after("module.", state)}},
    "half": in_half,
    "parameters": as_parameters,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_files_as_they_are_found_are_read(name: str, tmp_path: Path) -> None:
    found = read_state_dict(saved(WRAPPED[name](state_of()), tmp_path / "file.pt"))
    expected = without_counters(state_of())
    assert without_counters(found).keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == torch.float32
        wanted = tensor.half().float() if name == "half" else tensor
        assert torch.equal(found[key], wanted)


@pytest.mark.parametrize("name", ["older", "odd counters", "nested"])
def test_what_they_hold_is_a_network(name: str, tmp_path: Path) -> None:
    network = loaded(saved(WRAPPED[name](state_of()), tmp_path / "file.pt")).double()
    torch.testing.assert_close(network(IMAGES), logits_of(state_of(), IMAGES), rtol=1e-9, atol=1e-9)


def test_a_network_that_was_loaded_is_not_that_of_the_next_file(tmp_path: Path) -> None:
    states = state_of(), resnet_state(18, CLASSES, seed=1)
    networks = [loaded(saved(s, tmp_path / f"{k}.pt")).double() for k, s in enumerate(states)]
    for network, state in zip(networks, states, strict=True):
        torch.testing.assert_close(network(IMAGES), logits_of(state, IMAGES), rtol=1e-9, atol=1e-9)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    state = state_of()
    save_file(state, tmp_path / "file.safetensors")
    found = read_state_dict(tmp_path / "file.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


# --- networks of torchvision


@pytest.fixture
def torchvision(no_torchvision: None, monkeypatch: pytest.MonkeyPatch) -> None:
    put_torchvision_in_place(monkeypatch)


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
    assert not isinstance(loaded(saved(state_of(), tmp_path / "file.pth")), Mobile)


def test_torchvision_is_imported_for_other_networks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("cmidd.pretrained.state_dicts.importlib.import_module", asked.append)
    loaded(saved(state_of(), tmp_path / "file.pth"))
    assert not asked
    error_of(saved(Mobile(None, CLASSES).state_dict(), tmp_path / "other.pth"))
    assert asked == ["torchvision.models"]


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
    loaded(saved(state_of(), tmp_path / "other.pth"))


# --- files that are of something else


def changed(**changes: Tensor | None) -> Mapping[str, Tensor]:
    """The state of a ResNet-18 with other tensors, by names with _ for a dot, or without some."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: t for name, t in {**state_of(), **named}.items() if t is not None}


NEAREST = "nearest is imagenet_resnet18, for whose "


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (lambda: changed(fc__weight=torch.zeros(7, 512), fc__bias=torch.zeros(7)),
         "expected 5 classes as the dataset has, got imagenet_resnet18 of 7"),
        (lambda: changed(bn1__weight=None), f"{NEAREST}bn1.weight expected (64,), got none;"),
        (lambda: changed(more=torch.zeros(2)), f"{NEAREST}more expected none, got (2,);"),
        (lambda: changed(bn1__bias=torch.zeros(63)),
         f"{NEAREST}bn1.bias expected (64,), got (63,);"),
        (lambda: changed(fc__bias=torch.tensor(1.0)), f"{NEAREST}fc.bias expected (5,), got ();"),
        (lambda: changed(fc__weight=torch.zeros(5, 512).long()),
         f"{NEAREST}fc.weight expected (5, 512), got (5, 512) whole numbers;"),
        (lambda: changed(conv1__weight=torch.zeros(64, 3, 5, 5), bn1__weight=None),
         f"{NEAREST}conv1.weight expected (64, 3, 7, 7), got (64, 3, 5, 5) and 1 more differ;"),
        (lambda: changed(fc__bias=torch.full((5,), torch.nan)),
         "expected finite numbers, got NaN or Inf "),
        (lambda: changed(bn1__running_var=torch.full((64,), -9.0)),
         "expected 0 or more in bn1.running_var, got -9"),
        (lambda: changed(fc__weight=torch.full((5, 512), 3e38)), "expected finite logits of image"),
        (lambda: changed(bn1__num_batches_tracked=None, bn1__bias=torch.zeros(63)),
         f"{NEAREST}bn1.bias expected (64,), got (63,);"),
        (lambda: {3: torch.zeros(2)}, "expected names of tensors to be text, got int"),
        (dict, "expected a state dict, got an empty one"),
        (lambda: [torch.zeros(2)], "expected a state dict, got a list"),
        (lambda: torch.zeros(2), "expected a state dict, got a Tensor"),
        (lambda: {"epoch": 3, "weights": torch.zeros(2)},
         "expected 'epoch' to be a tensor, got int"),
        (lambda: {"a" * 10**5: 3}, "expected 'aaa"),
        (lambda: changed(fc__bias=torch.zeros(()).expand(10**9)),
         "expected 'fc.bias' of (1000000000,) numbers, and the file is too short for them"),
        (lambda: changed(fc__bias=torch.zeros(5).to_sparse()),
         "expected 'fc.bias' to be a plain tensor"),
    ],
)  # fmt: skip
def test_another_content_is_one_line_that_says_what_came(
    state: Callable[[], object], told: str, tmp_path: Path
) -> None:
    text = error_of(saved(state(), tmp_path / "file.pth"))
    assert told in text
    assert len(text) < 800


def test_numbers_that_stand_in_a_file_once_are_not_read_a_hundred_times(tmp_path: Path) -> None:
    once = torch.zeros(10**4, dtype=torch.int8)
    path = saved({f"name{k}": once for k in range(100)}, tmp_path / "file.pth")
    assert error_of(path).endswith("of (10000,) numbers, and the file is too short for them")


def test_grey_images_are_named(tmp_path: Path) -> None:
    text = error_of(saved(state_of(), tmp_path / "file.pth"), (1, 24, 24))
    assert f"{NEAREST}conv1.weight expected (64, 1, 7, 7), got (64, 3, 7, 7)" in text


@pytest.mark.parametrize("as_archive", [True, False])
@pytest.mark.parametrize("place", ["state_dict", "epoch"])
def test_nothing_in_a_file_is_executed(as_archive: bool, place: str, elsewhere: Path) -> None:
    content = {"state_dict": state_of(), "epoch": 0, place: Payload(os.system, "touch executed")}
    torch.save(content, "file.pth", _use_new_zipfile_serialization=as_archive)
    assert "system, which a file of weights has no use for, and which was not" in error_of(
        Path("file.pth")
    )
    assert not Path("executed").exists()


def test_a_whole_pickled_network_is_not_made(elsewhere: Path) -> None:
    torch.save(nn.Linear(2, 3), "file.pth")
    text = error_of(Path("file.pth"))
    assert "asks for torch.nn.modules.linear.Linear, which a file of weights" in text
    assert "save its state_dict() alone" in text


@pytest.mark.parametrize(("content", "told"), [(b"", "empty"), (b"weights", "of another kind")])
def test_a_file_of_neither_kind_is_told_what_is_read(
    content: bytes, told: str, elsewhere: Path
) -> None:
    Path("file").write_bytes(content)
    assert error_of(Path("file")) == (
        f"expected a bank, or a state dict of torch.save or safetensors; it is {told}"
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
