from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.bank import Bank
from cmidd.datasets import Dataset
from cmidd.distill import CMIOptions, DistillOptions, distill
from cmidd.dm import DM, DMOptions
from cmidd.files import FileError, read_tensors, write_tensors
from cmidd.run import KIND as CHECKPOINT
from cmidd.run import RunFolder, read_log, versions
from cmidd.synthetic import SyntheticSet, start
from cmikernels import CMIRegularizer
from tests.cmidd.tiny import CLASSES, CPU, NETWORK, quiet, tiny_bank, tiny_dataset

DATASET = tiny_dataset()
OPTIONS = DistillOptions(ipc=2, iterations=8, report_every=2, checkpoint_every=3)
DM_OPTIONS = DMOptions(network=NETWORK, batch_real=4)
NO_CMI = CMIOptions()
CONFIG = {"method": "dm", "ipc": 2}


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distill") / "bank"
    tiny_bank(path, DATASET)
    return path


@pytest.fixture
def cmi(bank: Path) -> CMIOptions:
    return CMIOptions(bank=bank, cmi_weight=5.0)


def run(
    path: Path,
    options: DistillOptions = OPTIONS,
    cmi: CMIOptions = NO_CMI,
    *,
    dataset: Dataset = DATASET,
    resume: bool = False,
    say: Callable[[str], None] = quiet,
) -> SyntheticSet:
    folder = RunFolder(path, CONFIG, resume=resume)
    return distill("dm", dataset, options, cmi, DM_OPTIONS, folder, CPU, "the command", say)


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
        loss, gradient = method.step(images, iteration)
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
    tmp_path: Path, bank: Path, cmi: CMIOptions
) -> None:
    networks = CMIRegularizer(Bank.load(bank, CPU), 5.0, seed=OPTIONS.seed)
    result = run(tmp_path, replace(OPTIONS, report_every=1), cmi)
    first, labels = start(DATASET, 2, "real", OPTIONS.seed)
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
    result = run(tmp_path, replace(OPTIONS, lr_images=lr, momentum=momentum))
    expected, _, _ = by_hand(start(DATASET, 2, "real", 0)[0], 8, lr=lr, momentum=momentum)
    torch.testing.assert_close(result.images, expected, rtol=1e-4, atol=1e-5)


def test_the_step_size_is_ten_from_a_hundred_images_on(tmp_path: Path) -> None:
    options = replace(OPTIONS, ipc=100, iterations=2, init="noise")
    expected, _, _ = by_hand(start(DATASET, 100, "noise", 0)[0], 2, lr=10.0, ipc=100)
    torch.testing.assert_close(run(tmp_path, options).images, expected, rtol=1e-4, atol=1e-5)


def test_the_result_says_what_it_is(tmp_path: Path, bank: Path) -> None:
    run(tmp_path, cmi=CMIOptions(bank=bank, cmi_weight=5.0))
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
    run(tmp_path, replace(OPTIONS, report_every=3))
    assert [line["iteration"] for line in read_log(tmp_path / "log.jsonl")] == [2, 5, 7]


def test_a_run_depends_on_its_seed_alone(tmp_path: Path, cmi: CMIOptions) -> None:
    first = run(tmp_path / "a", cmi=cmi).images
    torch.manual_seed(3)
    assert torch.equal(run(tmp_path / "b", cmi=cmi).images, first)
    assert not torch.equal(run(tmp_path / "c", replace(OPTIONS, seed=1), cmi).images, first)


def test_reporting_and_saving_do_not_change_the_images(tmp_path: Path, cmi: CMIOptions) -> None:
    seldom = replace(OPTIONS, report_every=100, checkpoint_every=100)
    often = replace(OPTIONS, report_every=1, checkpoint_every=1)
    with_cmi_sometimes = replace(cmi, cmi_every=3)
    first = run(tmp_path / "a", seldom, with_cmi_sometimes).images
    assert torch.equal(run(tmp_path / "b", often, with_cmi_sometimes).images, first)


def test_a_run_can_start_from_the_result_of_another(tmp_path: Path) -> None:
    before = run(tmp_path / "a")
    init = f"file:{tmp_path / 'a' / 'result.safetensors'}"
    assert torch.equal(
        run(tmp_path / "b", replace(OPTIONS, init=init, iterations=0)).images, before.images
    )


# CMI


def test_cmi_lowers_the_cmi_of_the_result(tmp_path: Path, bank: Path, cmi: CMIOptions) -> None:
    last = []
    for weight in (1e-6, 100.0):
        path = tmp_path / f"{weight}"
        run(path, replace(OPTIONS, iterations=20), replace(cmi, cmi_weight=weight))
        last.append(read_log(path / "log.jsonl")[-1]["cmi"])
    assert last[1] < last[0] / 2


def test_without_a_bank_there_is_no_cmi(tmp_path: Path) -> None:
    assert run(tmp_path).record["cmi_weight"] == 0
    assert {line["cmi"] for line in read_log(tmp_path / "log.jsonl")} == {0}


def test_cmi_of_one_image_per_class_is_left_out_and_said_so(
    tmp_path: Path, cmi: CMIOptions
) -> None:
    said: list[str] = []
    options = replace(OPTIONS, ipc=1)
    result = run(tmp_path / "a", options, cmi, say=said.append)
    assert "CMI of one image per class is 0" in said[0]
    assert "left out" in said[0]
    assert result.record["cmi_weight"] == 0
    assert torch.equal(result.images, run(tmp_path / "b", options).images)


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
    tmp_path: Path, bank: Path, cmi: CMIOptions, ipc: int
) -> None:
    said: list[str] = []
    options = replace(OPTIONS, ipc=ipc, report_every=1)
    result = run(tmp_path, options, replace(cmi, cmi_centroids="real"), say=said.append)
    images, labels = start(DATASET, ipc, "real", OPTIONS.seed)
    networks = Bank.load(bank, CPU)
    number = CMIRegularizer(networks, 1.0, seed=OPTIONS.seed).draw(0)[0]
    expected = real_cmi(images, labels, networks, number)
    assert read_log(tmp_path / "log.jsonl")[0]["cmi"] == pytest.approx(expected, rel=1e-3)
    assert result.record["cmi_weight"] == 5.0
    assert said == ["class centroids of the real images, by 3 networks"]


@pytest.mark.parametrize("ipc", [1, 2])
def test_other_centroids_are_an_error(tmp_path: Path, cmi: CMIOptions, ipc: int) -> None:
    with pytest.raises(ValueError, match="cmi_centroids: expected own or real, got 'mean'"):
        run(tmp_path, replace(OPTIONS, ipc=ipc), replace(cmi, cmi_centroids="mean"))


def test_cmi_can_be_applied_every_third_step(tmp_path: Path, bank: Path, cmi: CMIOptions) -> None:
    networks = CMIRegularizer(Bank.load(bank, CPU), 5.0, seed=OPTIONS.seed)
    first, labels = start(DATASET, 2, "real", OPTIONS.seed)

    def sometimes(images: Tensor, iteration: int) -> Tensor:
        since = iteration % 3
        return networks(images if since == 0 else images.detach(), labels, step=iteration - since)

    result = run(tmp_path, replace(OPTIONS, report_every=1), replace(cmi, cmi_every=3))
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
    result = run(
        tmp_path / "run", replace(OPTIONS, iterations=1), cmi, dataset=dataset, say=said.append
    )
    expected = "weight of CMI: 18000 (published for 10 images per class, the nearest)"
    assert said == [expected]
    assert result.record["cmi_weight"] == 18000


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
        run(tmp_path / "run", cmi=changed, dataset=dataset)
    assert not (tmp_path / "run").exists()


# What is not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("at", range(2, 8))
def test_a_loss_or_image_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float, where: str, at: int
) -> None:
    step = DM.step

    def failing(self: DM, images: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        loss, gradient = step(self, images, iteration)
        if iteration >= at:
            (loss if where == "loss" else gradient).fill_(bad)
        return loss, gradient

    monkeypatch.setattr(DM, "step", failing)
    options = replace(OPTIONS, report_every=4, checkpoint_every=2)
    with pytest.raises(FloatingPointError, match=r"iteration .*(nan|inf).* lower lr_images"):
        run(tmp_path, options)
    monkeypatch.undo()
    tensors, record = read_tensors(tmp_path / "checkpoint.safetensors", CHECKPOINT)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert record["iteration"] == at // 2 * 2
    assert not (tmp_path / "result.safetensors").exists()
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()
    expected = run(tmp_path / "whole", options)
    assert torch.equal(run(tmp_path, options, resume=True).images, expected.images)


# Resuming


class StopError(Exception):
    """In the place of a kill."""


def run_until(
    count: int, path: Path, options: DistillOptions, cmi: CMIOptions, patch: pytest.MonkeyPatch
) -> bool:
    """Whether a run was stopped at its write number `count`."""
    calls = 0

    def failing(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                raise StopError
            return write(*arguments)

        return call

    with patch.context() as within:
        within.setattr(os, "fsync", failing(os.fsync))
        within.setattr(Path, "replace", failing(Path.replace))
        within.setattr(RunFolder, "log", failing(RunFolder.log))
        try:
            run(path, options, cmi)
        except StopError:
            return True
    return False


@pytest.mark.parametrize("momentum", [0.5, 0.0])
def test_a_run_stopped_at_any_write_goes_on_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cmi: CMIOptions, momentum: float
) -> None:
    options = replace(OPTIONS, momentum=momentum)
    run(tmp_path / "whole", options, cmi)
    whole = [(tmp_path / "whole" / n).read_bytes() for n in ("result.safetensors", "log.jsonl")]
    stops = 0
    while run_until(stops + 1, path := tmp_path / f"{stops + 1}", options, cmi, monkeypatch):
        stops += 1
        run(path, options, cmi, resume=True)
        assert [(path / n).read_bytes() for n in ("result.safetensors", "log.jsonl")] == whole
        assert not list(path.glob(".*.partial"))
    # Configuration, two checkpoints (with the log before them), result; four lines of the log.
    assert stops == 3 + 2 * 4 + 3 + 4


def test_a_resumed_run_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    step = DM.step

    def counted(self: DM, images: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        steps.append(iteration)
        if len(steps) == 8:
            raise StopError
        return step(self, images, iteration)

    monkeypatch.setattr(DM, "step", counted)
    with pytest.raises(StopError):
        run(tmp_path)
    run(tmp_path, resume=True)
    assert steps == [*range(8), 6, 7]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.delattr(DM, "step")
    said: list[str] = []
    after = run(tmp_path, resume=True, say=said.append)
    assert torch.equal(after.images, before.images)
    assert said == [f"{tmp_path} is finished already"]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"momentum": torch.zeros(6, 1, 8, 8)},
        {"images": torch.zeros(1, 1, 8, 8)},
        {"images": torch.zeros(6, 1, 8, 8), "momentum": torch.zeros(6, 1, 8, 1)},
    ],
)
def test_a_checkpoint_of_other_images_is_an_error_and_stays(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    RunFolder(tmp_path, CONFIG, resume=False).load_checkpoint()
    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, CHECKPOINT, tensors, {"iteration": 3, "log_bytes": 0})
    before = path.read_bytes()
    with pytest.raises(FileError, match=rf"{tmp_path}: expected a checkpoint with images of shape"):
        run(tmp_path, resume=True)
    assert path.read_bytes() == before
