"""Whole runs of IDM, and its settings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.cli import main
from cmidd.cli.costs import disk_of, estimate
from cmidd.datasets import Dataset
from cmidd.divergence import signs_of_divergence
from cmidd.evaluate import evaluate_set
from cmidd.loop import distill
from cmidd.methods import evaluation_of, fill_in_published
from cmidd.methods.network_queue import NetworkQueue
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.idm import IDMOptions
from cmidd.options.iid import IIDOptions
from cmidd.options.recipe import DSA, Recipe
from cmidd.pretrained.bank import Bank
from cmidd.run import prepare
from cmidd.storage.run_folder import KIND as CHECKPOINT
from cmidd.storage.run_folder import read_log
from cmidd.storage.tensor_file import read_tensors
from cmidd.synthetic import SyntheticSet
from cmikernels import fused_cmi
from tests.support.tiny import (
    CPU,
    IDM_OPTIONS,
    NETWORK,
    check_goes_on_from_its_result,
    iid_options,
    quiet,
    tiny_dataset,
    tiny_run,
)

RUN = DistillOptions(
    ipc=1, init="smooth_cells", iterations=7, lr_images=0.05, report_every=1, checkpoint_every=2
)
FILES = ("result.safetensors", "log.jsonl")


@pytest.mark.parametrize("base", ["idm", "iid"])
def test_a_run_stopped_goes_on_to_the_bit(
    base: str, tmp_path: Path, bank_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method: Any = ("idm", IDM_OPTIONS) if base == "idm" else ("iid", iid_options(bank_file, "idm"))
    tiny_run(tmp_path / "whole", RUN, method=method)
    whole = [(tmp_path / "whole" / name).read_bytes() for name in FILES]
    train = NetworkQueue._train
    for at in (3, 8, 13):  # trained networks, two of an iteration
        calls = 0

        def stopping(self: NetworkQueue, *given: Any, at: int = at) -> None:
            nonlocal calls
            train(self, *given)
            calls += 1
            if calls == at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(NetworkQueue, "_train", stopping)
            with pytest.raises(KeyboardInterrupt):
                tiny_run(tmp_path / f"{at}", RUN, method=method)
        tiny_run(tmp_path / f"{at}", RUN, method=method, resume=True)
        assert [(tmp_path / f"{at}" / name).read_bytes() for name in FILES] == whole


def test_a_checkpoint_holds_the_networks_that_have_trained_and_its_size_is_told(
    tmp_path: Path,
) -> None:
    run = prepare("idm", tiny_dataset(), RUN, IDM_OPTIONS, device=CPU, say=quiet)
    tiny_run(tmp_path, RUN, method=("idm", IDM_OPTIONS))
    path = tmp_path / "checkpoint.safetensors"
    tensors, _ = read_tensors(path, CHECKPOINT)
    numbers = tensors["state of networks"]
    assert 2 <= len(numbers) <= IDM_OPTIONS.queue_size
    assert len(tensors["state of weights head.weight"]) == len(numbers)
    assert tensors["state of due"] == RUN.iterations
    files = sum((tmp_path / name).stat().st_size for name in FILES)
    files += 2 * path.stat().st_size  # of which one takes the place of the other
    assert 0.3 < disk_of(run) / files < 1.5


def test_the_cost_counts_the_queue_that_is_to_come_and_trying_it_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmidd.cli.costs.peak", lambda _: 1000)
    expected = tiny_run(tmp_path / "one", RUN, method=("idm", IDM_OPTIONS))
    run = prepare("idm", tiny_dataset(), RUN, IDM_OPTIONS, device=CPU, say=quiet)
    cost = estimate(run)
    tensors, _ = read_tensors(tmp_path / "one" / "checkpoint.safetensors", CHECKPOINT)
    (of_queue,) = {
        sum(each.nbytes for name, each in tensors.items() if name.startswith(f"state of {word} "))
        for word in ("weights", "velocity")
    }
    of_network = of_queue // len(tensors["state of networks"])
    to_come = IDM_OPTIONS.queue_size - IDM_OPTIONS.networks_trained
    assert cost.memory == 1000 + 3 * to_come * 2 * of_network
    assert cost.disk > 2 * IDM_OPTIONS.queue_size * 2 * of_network
    made = distill(run, run.folder(tmp_path / "two"), say=quiet)
    assert torch.equal(made.images, expected.images)


def test_what_is_made_shows_four_images_for_each_stored_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    main(
        ["distill", "idm", f"--network={NETWORK}", "--ipc=1", "--iterations=3", "--batch_real=8",
         "--factor=2", "--init=smooth_cells", "--steps_net=2", f"--out={out}", "--device=cpu"]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "ours, chosen by training images that were held out" in said
    assert re.search(r"about .* an iteration, .* for 3; memory .*B, disk .*B", said)
    made = SyntheticSet.load(tmp_path / "run")
    assert made.record["view"] == {"name": "cells", "settings": {"factor": 2, "order": "columns"}}
    assert (len(made.images), len(made.seen().images)) == (10, 40)
    main(["export", out, f"--png={tmp_path / 'png'}"])
    assert len(list((tmp_path / "png").rglob("*.png"))) == 40
    main(["report", out, f"--out={tmp_path / 'report.html'}"])
    page = (tmp_path / "report.html").read_text()
    assert "IDM, 1 image per class" in page
    assert "seen as 4 images each" in page


def test_a_run_goes_on_from_its_result(tmp_path: Path) -> None:
    check_goes_on_from_its_result(tmp_path, RUN, "idm", IDM_OPTIONS)


def test_networks_learn_while_images_are_made(tmp_path: Path) -> None:
    options = replace(RUN, iterations=40)
    method = replace(IDM_OPTIONS, push_interval=40, lr_net=0.1, steps_net=5)
    made = tiny_run(tmp_path, options, method=("idm", method))
    accuracies = [line["accuracy"] for line in read_log(tmp_path / "log.jsonl")]
    assert accuracies[0] == 0  # nothing has trained before the first iteration
    assert max(accuracies[20:]) > 0.6  # of three classes, brighter from one to the next
    (accuracy,) = evaluate_set(
        made, tiny_dataset(), NETWORK, repeats=1, recipe=Recipe(40), lr=0.1, device=CPU, say=quiet
    )
    assert accuracy.mean > 0.6


@pytest.mark.parametrize("base", ["idm", "iid"])
def test_a_loss_that_counts_cross_entropies_from_now_on_is_no_sign_of_divergence(
    base: str, tmp_path: Path, bank_file: Path
) -> None:
    options: Any = IDM_OPTIONS if base == "idm" else iid_options(bank_file, "idm")
    heavy = replace(options, accuracy_weight=100.0, steps_net=20, push_interval=40)
    said: list[str] = []
    loop = replace(RUN, iterations=6, lr_images=1e-6)
    tiny_run(tmp_path / "run", loop, method=(base, heavy), say=said.append)
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert log[0]["accuracy"] == 0
    assert max(line["loss"] for line in log) > 100 * log[0]["loss"]
    assert not [text for text in said if "grew" in text]
    assert signs_of_divergence(1.0, log) == []
    assert log[0]["distance"] <= log[0]["loss"]


def test_cmi_is_the_mean_over_decoded_images(cmi: CMIOptions) -> None:
    run = prepare("idm", tiny_dataset(), RUN, IDM_OPTIONS, cmi, device=CPU, say=quiet)
    assert cmi.bank is not None
    bank, gradient = Bank.load(cmi.bank, CPU), torch.zeros_like(run.images)
    value = run.cmi.add(run.images, gradient, 1, logged=True)
    assert run.method.view is not None
    assert run.cmi._regularizer is not None
    seen, labels = run.method.view(run.images, run.labels)
    (number,) = run.cmi._regularizer.draw(1)
    expected = 5.0 * fused_cmi(bank[number].embed(seen), labels, num_classes=3)
    assert expected > 0  # of one stored image, which holds four
    torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=0)
    (by_hand,) = torch.autograd.grad(expected, run.images)
    torch.testing.assert_close(gradient, by_hand, rtol=1e-3, atol=1e-6)


def filled_in(dataset: Dataset, ipc: int) -> tuple[DistillOptions, IDMOptions, str]:
    return fill_in_published("idm", dataset, ipc, DistillOptions(ipc=ipc), IDMOptions())


def sized(name: str, per_class: int) -> Dataset:
    """A dataset of 8 x 8 with so many real images of each of three classes."""
    real = tiny_dataset(name)
    rows: Tensor = torch.arange(len(real.train)).view(3, -1)[:, :1].expand(-1, per_class).flatten()
    return replace(real, train=real.train.chosen(rows))


@pytest.mark.parametrize(
    ("dataset", "ipc", "published"),
    [
        ("cifar10", 1, (5000, 0.5, 5, 10)),
        ("cifar10", 10, (256, 0.5, 30, 10)),
        ("cifar10", 50, (256, 0.1, 30, 10)),
        ("cifar100", 1, (5000, 0.5, 5, 10)),
        ("cifar100", 10, (256, 0.1, 30, 50)),
        ("cifar100", 50, (256, 0.1, 30, 10)),
        ("tinyimagenet", 1, (5000, 0.5, 5, 10)),
        ("tinyimagenet", 10, (256, 0.5, 30, 10)),
        ("tinyimagenet", 50, (256, 0.8, 30, 50)),
    ],
)
def test_published_settings(dataset: str, ipc: int, published: tuple[Any, ...]) -> None:
    real = sized(dataset, 2000)
    loop, options, said = filled_in(real, ipc)
    assert (loop.iterations, loop.init, loop.momentum) == (20000, "smooth_cells", 0.5)
    assert loop.lr_images == 0.2
    found = options.batch_real, options.accuracy_weight, options.push_interval, options.steps_net
    assert found == published
    assert (options.factor, options.queue_size, options.networks_trained) == (2, 100, 2)
    assert (options.batch_net, options.lr_net, options.augmentation) == (256, 0.01, DSA)
    assert evaluation_of("idm", real, ipc) == {"epochs": 1000, "augmentation": DSA}
    assert f"push_interval {options.push_interval}, " in said
    assert said.endswith("(as published)")


@pytest.mark.parametrize(("ipc", "near"), [(2, 10), (29, 10), (30, 50)])
def test_other_numbers_of_images_take_the_nearest_and_say_so(ipc: int, near: int) -> None:
    cifar10 = tiny_dataset("cifar10")
    _, options, said = filled_in(cifar10, ipc)
    assert options == filled_in(cifar10, near)[1]
    assert said.endswith(f"(as published for {near} images per class)")


def test_settings_for_other_sets_are_said_to_be_none_of_theirs() -> None:
    _, options, said = filled_in(sized("fashionmnist", 500), 10)
    assert said.endswith(
        "(not published for fashionmnist; IDM's for CIFAR-10, but batch_net is ours)"
    )
    assert filled_in(sized("svhn", 2000), 10)[2].endswith("IDM's for CIFAR-10)")  # which is large
    assert options.batch_net == 75
    assert options.accuracy_weight == 0.5
    assert filled_in(tiny_dataset("digits"), 1)[1].batch_net == 32


def test_iid_takes_idms_settings_on_it() -> None:
    def of(base: str, dataset: str, ipc: int) -> tuple[DistillOptions, IIDOptions, str]:
        real, given = sized(dataset, 2000), IIDOptions(base=base)
        return fill_in_published("iid", real, ipc, DistillOptions(ipc=ipc), given)

    for ipc in (1, 10, 50):
        loop, options, said = of("idm", "cifar10", ipc)
        of_idm = filled_in(sized("cifar10", 2000), ipc)
        assert (loop, options.of_idm()) == of_idm[:2]
        assert (options.covariance_weight, options.centre_weight) == (0.03, 0.01)
        assert ("(as published)" in said) == (ipc == 10)
        assert ("for CIFAR-10 at 10, all else: as published)" in said) == (ipc != 10)
    assert of("idm", "svhn", 20)[2].endswith(
        "(not published for svhn at 20 images per class; the weights are those for CIFAR-10 at 10, "
        "all else: not published for svhn; IDM's for CIFAR-10 for 10 images per class)"
    )
    loop, options, said = of("dm", "cifar10", 10)
    assert (loop.init, loop.lr_images, options.batch_real) == ("real", 1.0, 256)
    assert (options.queue_size, options.factor) == (None, None)
    assert "queue_size" not in said
