from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.plain.inputs import random_dataset, write_bank
from bench.plain.ncfm import PlainNCFM
from cmidd.datasets import Dataset
from cmidd.methods import ncfm
from cmidd.methods.ncfm import NCFM
from cmidd.options.ncfm import NCFMOptions
from cmidd.pretrained.bank import KIND as BANK
from cmidd.pretrained.bank import Bank
from cmidd.seeds import generator
from cmidd.storage.tensor_file import read_tensors, write_tensors
from tests.support.compare import relative_error
from tests.support.steps import step
from tests.support.tiny import CPU

RAGGED = (7, 12, 5)  # real images of each class; batches of 6 take all of some
CLASSES = len(RAGGED)
NETWORK = "convnet:depth=2,width=4"
SEED, ITERATION, PIXELS = 3, 5, 8
EVERYTHING = "idc:color_crop_cutout_flip_scale_rotate"


def dataset_of(pixels: int = PIXELS) -> Dataset:
    """Channels differ, so that one of them in the place of another is seen."""
    return replace(random_dataset(RAGGED, pixels), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


@pytest.fixture(scope="module")
def banks(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By pixels, a file of networks whose first and last weights are far from each other."""
    folder = tmp_path_factory.mktemp("ncfm")
    for pixels in (PIXELS, 10):
        write_bank(folder / f"{pixels}.safetensors", dataset_of(pixels), NETWORK)
    return {pixels: folder / f"{pixels}.safetensors" for pixels in (PIXELS, 10)}


def options_of(bank: Path, **changes: Any) -> NCFMOptions:
    given = {"optimizer": "adamw", "weight_decay": 5e-4, **changes}
    if given["optimizer"] == "sgd":
        given["weight_decay"] = changes.get("weight_decay", 0.0)
    return NCFMOptions(bank, **{"factor": 2, "batch_real": 6, "frequencies": 64, **given})


def labels_of(ipc: int) -> Tensor:
    return torch.arange(CLASSES).repeat_interleave(ipc)


def images_of(ipc: int, pixels: int = PIXELS, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = (CLASSES * ipc, 3, pixels, pixels)
    return torch.randn(shape, generator=generator("images", ipc)).to(dtype)


def ours(
    bank: Path, ipc: int, pixels: int = PIXELS, dtype: torch.dtype = torch.float64, **changes: Any
) -> NCFM:
    options = options_of(bank, **changes)
    return NCFM(dataset_of(pixels), labels_of(ipc), options, SEED, CPU, dtype)


def plain(bank: Path, ipc: int, pixels: int = PIXELS, **changes: Any) -> tuple[Tensor, Tensor]:
    options = options_of(bank, **changes)
    loop = PlainNCFM(dataset_of(pixels), labels_of(ipc), options, SEED, CPU, torch.float64)
    return loop.step(images_of(ipc, pixels), ITERATION)


@pytest.mark.parametrize("augmentation", ["none", "idc:color_crop_cutout", EVERYTHING])
@pytest.mark.parametrize("ipc", [1, 10])
def test_a_step_is_the_plain_loops_in_float64(
    ipc: int, augmentation: str, banks: dict[int, Path]
) -> None:
    bank = banks[PIXELS]
    loss, gradient = step(ours(bank, ipc, augmentation=augmentation), images_of(ipc), ITERATION)
    expected = plain(bank, ipc, augmentation=augmentation)
    assert relative_error(loss, expected[0]) < 1e-10
    assert relative_error(gradient, expected[1]) < 1e-10


@pytest.mark.parametrize(
    "changes",
    [
        {"factor": 1},
        {"factor": 3, "pixels": 10},  # a row and a column of grey are added twice
        {"batch_real": 100},
        {"amplitude_weight": 0.9, "phase_weight": 0.1},
        {"phase_weight": 1.0, "amplitude_weight": 0.0},
        {"distance_weight": 0.0},
        {"calibration_weight": 0.0},
        {"calibration_weight": 7.0},
    ],
    ids=str,
)
def test_other_settings_are_the_plain_loops(
    changes: dict[str, Any], banks: dict[int, Path]
) -> None:
    pixels = changes.get("pixels", PIXELS)
    loss, gradient = step(ours(banks[pixels], 2, **changes), images_of(2, pixels), ITERATION)
    expected = plain(banks[pixels], 2, **changes)
    assert relative_error(loss, expected[0]) < 1e-10
    assert relative_error(gradient, expected[1]) < 1e-10


@pytest.mark.parametrize("ipc", [1, 10])
def test_a_step_in_float32_is_near_the_plain_loops_in_float64(
    ipc: int, banks: dict[int, Path]
) -> None:
    loop = ours(banks[PIXELS], ipc, dtype=torch.float32)
    found = step(loop, images_of(ipc, dtype=torch.float32), ITERATION)
    expected = plain(banks[PIXELS], ipc)
    assert relative_error(found[0], expected[0]) < 1e-5
    assert relative_error(found[1], expected[1]) < 1e-3


@pytest.mark.parametrize("chunk", [1, 5, 9, 1000])
def test_the_size_of_chunks_changes_nothing(
    chunk: int, banks: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, gradient = step(ours(banks[PIXELS], 2), images_of(2), 0)
    monkeypatch.setattr(ncfm, "images_per_chunk", lambda *_: chunk)
    found = step(ours(banks[PIXELS], 2), images_of(2), 0)
    assert relative_error(found[0], loss) < 1e-12
    assert relative_error(found[1], gradient) < 1e-12


def test_a_step_depends_on_its_draws_alone(banks: dict[int, Path]) -> None:
    expected = step(ours(banks[PIXELS], 2), images_of(2), 7)
    used = ours(banks[PIXELS], 2)
    step(used, images_of(2), 0)
    assert all(map(torch.equal, step(used, images_of(2), 7), expected))


def test_weights_lie_between_the_first_and_the_last_of_all_networks(
    banks: dict[int, Path],
) -> None:
    loop, bank = ours(banks[PIXELS], 1), Bank.load(banks[PIXELS], CPU)
    draws = [loop.draw(iteration, 0) for iteration in range(20)]
    assert {each.trained for each in draws} == {0, 1, 2}
    shares = sorted(each.share for each in draws)
    assert 0 <= shares[0] < 0.2 < 0.8 < shares[-1] < 1
    for each in draws[:3]:
        last = loop.load_network(loop.plan(each)).state_dict()
        for name, tensor in loop.network.state_dict().items():
            first = bank.first_weights(each.trained)[name].double()
            expected = each.share * first + (1 - each.share) * last[name]
            torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-15)
            assert torch.equal(last[name], bank[each.trained].state_dict()[name].double())


@pytest.mark.parametrize("pixels", [8, 28])
def test_the_usual_network_serves_digits_and_fashion_mnist(pixels: int, tmp_path: Path) -> None:
    write_bank(tmp_path / "bank", dataset_of(pixels), "convnet:width=4")
    loop = ours(tmp_path / "bank", 2, pixels)
    loss, gradient = step(loop, images_of(2, pixels), 0)
    assert loss > 0
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()


def test_images_are_moved_by_one_step_of_adamw_on_pixels(banks: dict[int, Path]) -> None:
    """Which torch's own AdamW takes on the pixels, as long as two steps for each class."""
    loop, dataset = ours(banks[PIXELS], 1, weight_decay=0.5), dataset_of()
    mean, std = (
        torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1)
        for numbers in (dataset.mean, dataset.std)
    )
    images = images_of(1).requires_grad_()
    pixels = (images.detach() * std + mean).requires_grad_()
    optimizer = loop.optimizer([{"params": [images], "lr": 0.01}], 0.5)
    n = 2 * dataset.num_classes
    theirs = torch.optim.AdamW(
        [pixels], 0.01 * n**0.5, betas=(0.9**n, 0.999**n), weight_decay=0.5 * n**0.5
    )
    for iteration in range(4):
        loss, gradient = step(loop, images, iteration)
        assert loop.channel_scale is not None
        images.grad = gradient * loop.channel_scale.view(-1, 1, 1)
        loop.take_step(optimizer, images, loss)
        pixels.grad = step(loop, (pixels.detach() - mean) / std, iteration)[1] / std
        theirs.step()
        torch.testing.assert_close(images * std + mean, pixels, rtol=1e-9, atol=1e-9)


def test_a_gradient_moves_images_by_sgd_as_far_as_in_the_published_loops(
    banks: dict[int, Path],
) -> None:
    """Which step after each class by the one term, then after each by the other."""
    bank, momentum, images = banks[PIXELS], 0.5, images_of(1)
    loop = ours(bank, 1, optimizer="sgd")
    std = torch.tensor(dataset_of().std, dtype=torch.float64).view(-1, 1, 1)
    terms = [
        step(loop_of_one, images, 0)[1] / std
        for loop_of_one in (
            ours(bank, 1, calibration_weight=0.0),
            ours(bank, 1, distance_weight=0.0),
        )
    ]
    mine, pixels = (images.clone().requires_grad_() for _ in range(2))
    made = loop.optimizer([{"params": [mine], "lr": 1e-3}], momentum)
    theirs = torch.optim.SGD([pixels], 1e-3, momentum)
    for iteration in range(30):  # of which all but two see what the momentum still does
        moves = iteration < 2
        mine.grad = sum(terms, torch.zeros_like(images)) * moves
        loop.take_step(made, mine, torch.tensor(1.0))
        for term in terms:
            for c in range(CLASSES):
                pixels.grad = torch.zeros_like(term)
                pixels.grad[c] = term[c] * moves
                theirs.step()
    assert (pixels - images).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    torch.testing.assert_close((mine - images) * std, pixels - images, rtol=1e-7, atol=1e-12)
    assert loop.log_values()["lr_images"].item() == pytest.approx(1e-3, rel=1e-12)


def test_the_graph_of_one_term_is_freed_before_the_next(
    banks: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, losses = ours(banks[PIXELS], 2), []
    distance, calibration = loop.distance, loop.calibration

    def kept(*given: Any) -> Tensor:
        losses.append(distance(*given))
        return losses[-1]

    def after(*given: Any) -> Tensor:
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            losses[-1].backward()  # type: ignore[no-untyped-call]
        return calibration(*given)

    monkeypatch.setattr(loop, "distance", kept)
    monkeypatch.setattr(loop, "calibration", after)
    step(loop, images_of(2), 0)
    assert losses


def test_the_step_size_is_halved_where_the_loss_no_longer_falls(banks: dict[int, Path]) -> None:
    loop, images = ours(banks[PIXELS], 1, patience=2), images_of(1).requires_grad_()
    optimizer = loop.optimizer([{"params": [images], "lr": 0.1}], 0.5)
    sizes = []
    for loss in (5.0, 4.0, 4.0, 4.1, 3.9999, 3.0, 3.0, 3.0, 3.0):
        images.grad = torch.zeros_like(images)
        loop.take_step(optimizer, images, torch.tensor(loss))
        sizes.append(loop.log_values()["lr_images"].item())
    assert sizes == pytest.approx([0.1] * 4 + [0.05] * 4 + [0.025])
    again = ours(banks[PIXELS], 1, patience=2)
    other = again.optimizer([{"params": [images], "lr": 0.1}], 0.5)
    again.load_state(loop.state())
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert again.log_values()["lr_images"].item() == pytest.approx(0.025)
    assert torch.equal(again.state()["plateau"], loop.state()["plateau"])
    with pytest.raises(ValueError, match="expected the state of a step size, got velocity"):
        again.load_state({"velocity": torch.zeros(3)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 9}, "factor: expected one that leaves pixels of 8 x 8 in every cell, got 9"),
        ({"frequencies": 0}, "frequencies: expected at least 1, got 0"),
        ({"phase_weight": -1.0}, "phase_weight: expected at least 0, got -1.0"),
        ({"optimizer": "adam"}, "optimizer: expected sgd or adamw, got 'adam'"),
        ({"augmentation": "heat"}, "augmentation: no operation 'heat'"),
        (
            {"optimizer": "sgd", "weight_decay": 0.1},
            "weight_decay: expected adamw with it, or 0, got 0.1 with sgd",
        ),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], message: str, banks: dict[int, Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        ours(banks[PIXELS], 1, **options)


def test_whitened_images_are_refused(banks: dict[int, Path]) -> None:
    with pytest.raises(ValueError, match="zca: expected images without whitening"):
        NCFM(dataset_of().whitened(), labels_of(1), options_of(banks[PIXELS]), SEED, CPU)


def test_a_bank_of_other_images_is_refused(banks: dict[int, Path]) -> None:
    with pytest.raises(ValueError, match=r"^matching_bank: .*: expected shape .*8.*, got"):
        ours(banks[10], 1)


def test_a_bank_whose_first_weights_nobody_knows_is_refused(
    tmp_path: Path, banks: dict[int, Path]
) -> None:
    tensors, record = read_tensors(banks[PIXELS], BANK)
    del record["seed"]
    write_tensors(tmp_path / "bank", BANK, tensors, record)
    message = (
        r"^matching_bank: .*/bank: expected one that cmidd pretrain made, whose record has the "
        "seed of the first weights of its networks, got seed None"
    )
    with pytest.raises(ValueError, match=message):
        ours(tmp_path / "bank", 1)


def test_networks_with_batch_norm_are_refused(tmp_path: Path) -> None:
    """Statistics of batches between two networks are those of neither."""
    path = tmp_path / "bank"
    write_bank(path, dataset_of(), f"{NETWORK},norm=batch")
    with pytest.raises(ValueError, match=r"^matching_bank: expected one whose features depend on"):
        ours(path, 1)
