from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.first_images import first_images
from cmidd.methods.dm import DM
from cmidd.options.cmi import CMIOptions
from cmidd.pretrained.bank import Bank
from cmidd.regularization import with_chunk
from cmidd.run import prepare
from cmidd.storage.run_folder import read_log, versions
from cmidd.storage.tensor_file import read_tensors
from cmidd.synthetic import SyntheticSet
from cmikernels import CMIRegularizer
from tests.support.steps import step
from tests.support.tiny import (
    CLASSES,
    CONFIG,
    CPU,
    DM_OPTIONS,
    OPTIONS,
    tiny_bank,
    tiny_dataset,
    tiny_run,
)

DATASET = tiny_dataset()


def by_hand(
    images: Tensor,
    iterations: int,
    regularizer: Callable[[Tensor, int], Tensor] | None = None,
    *,
    lr: float = 1.0,
    momentum: float = 0.5,
    ipc: int = 2,
) -> tuple[Tensor, list[float], list[float]]:
    """Images after some steps, and the losses and values of CMI on the way."""
    labels = torch.arange(len(CLASSES)).repeat_interleave(ipc)
    method = DM(DATASET, labels, DM_OPTIONS, OPTIONS.seed, CPU)
    velocity = torch.zeros_like(images)
    losses, values = [], []
    for iteration in range(iterations):
        loss, gradient = step(method, images, iteration)
        losses.append(float(loss))
        if regularizer is not None:
            x = images.detach().requires_grad_()
            value = regularizer(x, iteration)
            values.append(value.item())
            if value.requires_grad:
                gradient = gradient + torch.autograd.grad(value, x)[0]
        velocity = momentum * velocity + gradient
        images = images - lr * velocity
    return images, losses, values


def test_the_loop_is_sgd_with_momentum_on_loss_and_weighted_cmi(
    tmp_path: Path, bank_file: Path, cmi: CMIOptions
) -> None:
    networks = CMIRegularizer(Bank.load(bank_file, CPU), 5.0, seed=OPTIONS.seed)
    result = tiny_run(tmp_path, replace(OPTIONS, report_every=1), cmi)
    first, labels = first_images(DATASET, 2, "real", OPTIONS.seed)
    images, losses, values = by_hand(first, 8, lambda x, k: networks(x, labels, step=k))
    torch.testing.assert_close(result.images, images, rtol=1e-4, atol=1e-5)
    log = read_log(tmp_path / "log.jsonl")
    assert [line["loss"] for line in log] == pytest.approx(losses, rel=1e-4)
    assert [line["weighted_cmi"] for line in log] == pytest.approx(values, rel=1e-3)
    assert [line["cmi"] for line in log] == pytest.approx([v / 5 for v in values], rel=1e-3)


@pytest.mark.parametrize(("lr", "momentum"), [(0.25, 0.0), (3.0, 0.9)])
def test_step_size_and_momentum_are_those_asked_for(
    tmp_path: Path, lr: float, momentum: float
) -> None:
    result = tiny_run(tmp_path, replace(OPTIONS, lr_images=lr, momentum=momentum))
    expected, _, _ = by_hand(first_images(DATASET, 2, "real", 0)[0], 8, lr=lr, momentum=momentum)
    torch.testing.assert_close(result.images, expected, rtol=1e-4, atol=1e-5)


def test_the_step_size_is_ten_from_a_hundred_images_on(tmp_path: Path) -> None:
    options = replace(OPTIONS, ipc=100, iterations=2, init="noise")
    expected, _, _ = by_hand(first_images(DATASET, 100, "noise", 0)[0], 2, lr=10.0, ipc=100)
    torch.testing.assert_close(tiny_run(tmp_path, options).images, expected, rtol=1e-4, atol=1e-5)


def test_the_result_says_what_it_is(tmp_path: Path, bank_file: Path) -> None:
    tiny_run(tmp_path, cmi=CMIOptions(bank=bank_file, cmi_weight=5.0))
    loaded = SyntheticSet.load(tmp_path / "result.safetensors")
    expected = {
        **DATASET.describe(),
        "class_names": list(CLASSES),
        "ipc": 2,
        "method": "dm",
        "cmi_weight": 5.0,
        "seed": 0,
        "command": "the command",
        "config": CONFIG,
        "versions": versions(),
    }
    assert expected.items() <= loaded.record.items()
    assert loaded.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_log_has_a_line_every_so_often_and_the_last(tmp_path: Path) -> None:
    tiny_run(tmp_path, replace(OPTIONS, report_every=3))
    assert [line["iteration"] for line in read_log(tmp_path / "log.jsonl")] == [2, 5, 7]


def test_a_run_depends_on_its_seed_alone(tmp_path: Path, cmi: CMIOptions) -> None:
    first = tiny_run(tmp_path / "a", cmi=cmi).images
    torch.manual_seed(3)
    assert torch.equal(tiny_run(tmp_path / "b", cmi=cmi).images, first)
    assert not torch.equal(tiny_run(tmp_path / "c", replace(OPTIONS, seed=1), cmi).images, first)


def test_reporting_and_saving_do_not_change_the_images(tmp_path: Path, cmi: CMIOptions) -> None:
    seldom = replace(OPTIONS, report_every=100, checkpoint_every=100)
    often = replace(OPTIONS, report_every=1, checkpoint_every=1)
    with_cmi_sometimes = replace(cmi, cmi_every=3)
    first = tiny_run(tmp_path / "a", seldom, with_cmi_sometimes).images
    assert torch.equal(tiny_run(tmp_path / "b", often, with_cmi_sometimes).images, first)


def test_a_run_can_start_from_the_result_of_another(tmp_path: Path) -> None:
    before = tiny_run(tmp_path / "a")
    init = f"file:{tmp_path / 'a' / 'result.safetensors'}"
    assert torch.equal(
        tiny_run(tmp_path / "b", replace(OPTIONS, init=init, iterations=0)).images, before.images
    )


def test_a_run_can_start_from_the_checkpoint_of_another(tmp_path: Path) -> None:
    tiny_run(tmp_path / "a", replace(OPTIONS, iterations=4))
    checkpoint = tmp_path / "a" / "checkpoint.safetensors"
    images = read_tensors(checkpoint, "checkpoint")[0]["images"]
    start = replace(OPTIONS, init=f"file:{checkpoint}", iterations=0)
    assert torch.equal(tiny_run(tmp_path / "b", start).images, images)
    with pytest.raises(ValueError, match="expected 9 images, got 6"):
        tiny_run(tmp_path / "c", replace(start, ipc=3))
    other = tiny_dataset("other")
    with pytest.raises(ValueError, match="expected dataset other"):
        tiny_run(tmp_path / "d", start, dataset=other)


def test_a_run_does_not_go_on_with_another_bank(
    tmp_path: Path, bank_file: Path, cmi: CMIOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SyntheticSet, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            tiny_run(tmp_path / "run", cmi=cmi)
    tiny_bank(tmp_path / "other", tiny_dataset(), seed=1)
    other = replace(cmi, bank=tmp_path / "other")
    with pytest.raises(ValueError, match="was begun with another bank than the one that is there"):
        tiny_run(tmp_path / "run", cmi=other, resume=True)
    result = tiny_run(tmp_path / "run", cmi=cmi, resume=True)
    assert result.record["made_with"]["bank"]["seed"] == 0


def test_cmi_lowers_the_cmi_of_the_result(tmp_path: Path, bank_file: Path, cmi: CMIOptions) -> None:
    last = []
    for weight in (1e-6, 100.0):
        path = tmp_path / f"{weight}"
        tiny_run(path, replace(OPTIONS, iterations=20), replace(cmi, cmi_weight=weight))
        last.append(read_log(path / "log.jsonl")[-1]["cmi"])
    assert last[1] < last[0] / 2


def test_without_a_bank_there_is_no_cmi(tmp_path: Path) -> None:
    assert tiny_run(tmp_path).record["cmi_weight"] == 0
    assert all(line.keys() == {"iteration", "loss"} for line in read_log(tmp_path / "log.jsonl"))


@pytest.mark.parametrize(
    ("device", "size", "asked", "together"),
    [("cpu", 32, None, 50), ("cpu", 64, None, 50), ("meta", 32, None, 512), ("meta", 64, None, 128),
     ("meta", 224, None, 50),
     ("cpu", 32, 7, 7), ("meta", 32, 7, 7)],
)  # fmt: skip
def test_more_images_go_through_the_network_of_cmi_at_once_where_there_is_a_gpu(
    device: str, size: int, asked: int | None, together: int
) -> None:
    place = torch.device(device)  # meta stands for a GPU
    options = CMIOptions(Path("bank"), cmi_chunk=asked)
    assert with_chunk(options, place, size, is_used=True).cmi_chunk == together
    assert with_chunk(CMIOptions(), place, size, is_used=False) == CMIOptions(cmi_chunk=50)


def test_the_images_that_go_at_once_are_in_the_configuration_as_they_always_were(
    tmp_path: Path, cmi: CMIOptions
) -> None:
    for name, options in (("without", None), ("with", cmi)):
        run = prepare("dm", DATASET, OPTIONS, DM_OPTIONS, options, device=CPU)
        assert run.folder(tmp_path / name).config["cmi_chunk"] == 50


def test_cmi_of_one_image_per_class_is_left_out_and_said_so(
    tmp_path: Path, cmi: CMIOptions
) -> None:
    said: list[str] = []
    options = replace(OPTIONS, ipc=1)
    result = tiny_run(tmp_path / "a", options, cmi, say=said.append)
    assert "CMI of one image per class is 0" in said[0]
    assert "left out" in said[0]
    assert result.record["cmi_weight"] == 0
    assert torch.equal(result.images, tiny_run(tmp_path / "b", options).images)


def real_cmi(images: Tensor, labels: Tensor, bank: Bank, number: int) -> float:
    """KL from the mean probabilities of all real images of the class, by the book."""
    network = bank[number].double()
    train = DATASET.train
    real = network.embed(DATASET.to_input(train.images, torch.float64)).softmax(1)
    centroids = torch.stack([real[train.labels == c].mean(0) for c in range(len(CLASSES))])
    p = network.embed(images.double()).softmax(1)
    return float((p * (p / centroids[labels]).log()).sum(1).mean())


@pytest.mark.parametrize("ipc", [1, 2])
def test_centroids_of_real_images_are_means_over_all_of_them(
    tmp_path: Path, bank_file: Path, cmi: CMIOptions, ipc: int
) -> None:
    said: list[str] = []
    options = replace(OPTIONS, ipc=ipc, report_every=1)
    result = tiny_run(tmp_path, options, replace(cmi, cmi_centroids="real"), say=said.append)
    images, labels = first_images(DATASET, ipc, "real", OPTIONS.seed)
    networks = Bank.load(bank_file, CPU)
    number = CMIRegularizer(networks, 1.0, seed=OPTIONS.seed).draw(0)[0]
    expected = real_cmi(images, labels, networks, number)
    assert read_log(tmp_path / "log.jsonl")[0]["cmi"] == pytest.approx(expected, rel=1e-3)
    assert result.record["cmi_weight"] == 5.0
    assert said == ["class centroids of the real images, by 3 networks"]


@pytest.mark.parametrize("ipc", [1, 2])
def test_other_centroids_are_an_error(tmp_path: Path, cmi: CMIOptions, ipc: int) -> None:
    with pytest.raises(ValueError, match="cmi_centroids: expected own or real, got 'mean'"):
        tiny_run(tmp_path, replace(OPTIONS, ipc=ipc), replace(cmi, cmi_centroids="mean"))


def test_cmi_can_be_applied_every_third_step(
    tmp_path: Path, bank_file: Path, cmi: CMIOptions
) -> None:
    networks = CMIRegularizer(Bank.load(bank_file, CPU), 5.0, seed=OPTIONS.seed)
    first, labels = first_images(DATASET, 2, "real", OPTIONS.seed)

    def sometimes(images: Tensor, iteration: int) -> Tensor:
        since = iteration % 3
        return networks(images if since == 0 else images.detach(), labels, step=iteration - since)

    result = tiny_run(tmp_path, replace(OPTIONS, report_every=1), replace(cmi, cmi_every=3))
    images, _, values = by_hand(first, 8, sometimes)
    torch.testing.assert_close(result.images, images, rtol=1e-4, atol=1e-5)
    found = [line["weighted_cmi"] for line in read_log(tmp_path / "log.jsonl")]
    assert found == pytest.approx(values, rel=1e-3)
    assert all(found)


def test_the_published_weight_is_taken_and_said(tmp_path: Path) -> None:
    dataset = tiny_dataset("svhn")
    tiny_bank(tmp_path / "bank", dataset)
    said: list[str] = []
    cmi = CMIOptions(bank=tmp_path / "bank")
    result = tiny_run(
        tmp_path / "run", replace(OPTIONS, iterations=1), cmi, dataset=dataset, say=said.append
    )
    origin = "published for svhn at 10 images per class, the nearest to your 2"
    assert said[0] == f"weight of CMI: 18000, {origin}"
    assert result.record["cmi_weight"] == 18000


def test_images_that_leave_the_range_of_the_data_are_warned_of_once(tmp_path: Path) -> None:
    said: list[str] = []
    tiny_run(tmp_path, replace(OPTIONS, lr_images=1e6), say=said.append)
    (warning,) = said
    assert re.fullmatch(
        r"warning: iteration 1: images left the range of the data: the largest value is \S+ "
        r"standard deviations from the mean.*; lr_images 1e\+06 may be too large",
        warning,
    )


@pytest.mark.parametrize("trouble", ["no weight", "no bank", "another dataset"])
def test_what_cannot_begin_leaves_no_folder(tmp_path: Path, cmi: CMIOptions, trouble: str) -> None:
    dataset = tiny_dataset("other") if trouble == "another dataset" else DATASET
    changed = {
        "no weight": replace(cmi, cmi_weight=None),
        "no bank": replace(cmi, bank=tmp_path / "none"),
        "another dataset": cmi,
    }[trouble]
    message = {
        "no weight": "cmi_weight: none is known for dm on tiny",
        "no bank": f"{tmp_path}/none: expected a file with a bank of networks, found none",
        "another dataset": f"bank: {cmi.bank}: expected dataset other as other has it, got tiny",
    }[trouble]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tiny_run(tmp_path / "run", cmi=changed, dataset=dataset)
    assert not (tmp_path / "run").exists()


def test_options_of_cmi_without_a_bank_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bank: expected the file of a bank"):
        tiny_run(tmp_path / "run", cmi=CMIOptions(cmi_weight=3.0))
