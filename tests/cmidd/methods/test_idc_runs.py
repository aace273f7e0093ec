"""Whole runs of IDC, and its settings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.first_images import first_images
from cmidd.methods import evaluation_of, fill_in_published
from cmidd.methods.idc import IDC
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.idc import IDCOptions
from cmidd.options.recipe import PUBLISHED_RECIPE
from cmidd.pretrained.bank import Bank
from cmidd.run import prepare
from cmidd.storage.run_folder import read_log
from cmikernels import fused_cmi
from tests.support.steps import step
from tests.support.tiny import (
    CPU,
    IDC_OPTIONS,
    check_goes_on_from_its_result,
    quiet,
    tiny_dataset,
    tiny_run,
)

RUN = DistillOptions(
    ipc=1, init="cells", iterations=3, lr_images=0.01, report_every=1, checkpoint_every=2
)


def test_a_run_stopped_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = "idc", IDC_OPTIONS
    tiny_run(tmp_path / "whole", RUN, method=method)
    train = IDC.train_network

    def stopping(self: IDC, images: Tensor, draws: Any) -> None:
        train(self, images, draws)
        if draws.iteration == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(IDC, "train_network", stopping)
        with pytest.raises(KeyboardInterrupt):
            tiny_run(tmp_path / "cut", RUN, method=method)
    result = tiny_run(tmp_path / "cut", RUN, method=method, resume=True)
    for name in ("result.safetensors", "log.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert result.record["ipc"] == 1
    assert (len(result.images), len(result.seen().images)) == (3, 12)
    pixels = result.images * 0.25 + 0.5
    assert (pixels > -1e-6).all()
    assert (pixels < 1 + 1e-6).all()


def test_a_run_clamps_and_takes_steps_on_pixels(tmp_path: Path) -> None:
    options = replace(RUN, lr_images=0.5)
    made = tiny_run(tmp_path, options, method=("idc", IDC_OPTIONS))
    dataset = tiny_dataset()  # of three classes, mean 0.5 and deviation 0.25
    method = IDC(dataset, torch.arange(3), IDC_OPTIONS, 0, CPU)
    pixels = first_images(dataset, 1, "cells", 0, view=method.view)[0] * 0.25 + 0.5
    velocity = torch.zeros_like(pixels)
    for iteration in range(3):
        pixels = pixels.clamp(0, 1)
        for update in range(2):
            gradient = step(method, (pixels - 0.5) / 0.25, iteration, update)[1] / 0.25
            velocity = 0.5**3 * velocity + gradient
            pixels = pixels - 0.5 * (1 + 0.5 + 0.25) * velocity
    assert (pixels < 0).any()
    torch.testing.assert_close(made.images * 0.25 + 0.5, pixels.clamp(0, 1), atol=1e-4, rtol=0)


def test_a_run_goes_on_from_its_result(tmp_path: Path) -> None:
    check_goes_on_from_its_result(tmp_path, RUN, "idc", IDC_OPTIONS)


def test_cmi_is_the_sum_over_classes_of_decoded_images_by_a_network_an_update(
    tmp_path: Path, cmi: CMIOptions
) -> None:
    weight, dataset = 5.0, tiny_dataset()
    run = prepare("idc", dataset, RUN, IDC_OPTIONS, cmi, device=CPU, say=quiet)
    assert cmi.bank is not None
    bank, images, networks = Bank.load(cmi.bank, CPU), run.images, set()
    for update in range(run.method.updates):
        gradient = torch.zeros_like(images)
        value = run.cmi.add(images, gradient, 1, update, logged=True)
        assert run.method.view is not None
        seen, labels = run.method.view(images, run.labels)
        assert run.cmi._regularizer is not None
        (number,) = run.cmi._regularizer.draw(run.method.updates + update)
        networks.add(number)
        of_classes = fused_cmi(bank[number].embed(seen), labels, num_classes=3, reduction="class")
        assert of_classes.min() > 0  # of one stored image, which holds four
        expected = weight * of_classes.sum()
        torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=0)
        (by_hand,) = torch.autograd.grad(expected, images)
        torch.testing.assert_close(gradient, by_hand, rtol=1e-3, atol=1e-6)
    tiny_run(tmp_path, RUN, cmi, method=("idc", IDC_OPTIONS))
    (line, *_) = read_log(tmp_path / "log.jsonl")
    assert line["weighted_cmi"] == pytest.approx(3 * weight * line["cmi"])


def filled_in(dataset: Dataset, ipc: int) -> tuple[DistillOptions, IDCOptions, str]:
    return fill_in_published("idc", dataset, ipc, DistillOptions(ipc=ipc), IDCOptions())


def sized(dataset: str, size: int) -> Dataset:
    real = tiny_dataset(dataset, channels=1 if "mnist" in dataset else 3)
    pixels = torch.zeros(*real.train.images.shape[:2], size, size, dtype=torch.uint8)
    return replace(
        real, train=replace(real.train, source=pixels), test=replace(real.test, source=pixels)
    )


@pytest.mark.parametrize(
    ("dataset", "size", "published"),
    [
        ("cifar10", 32, ("mse", 5e-3, 2000, 0.5)),
        ("cifar100", 32, ("mse", 5e-3, 2000, 0.5)),
        ("svhn", 32, ("mse", 5e-3, 500, 0.5)),
        ("mnist", 28, ("l1", 1e-4, 500, 0.0)),
        ("fashionmnist", 28, ("l1", 1e-4 * (28 / 32) ** 2, 500, 0.5)),
        ("tinyimagenet", 64, ("mse", 5e-3 * 4, 1000, 0.5)),
    ],
)
def test_published_settings_of_idc(dataset: str, size: int, published: tuple[Any, ...]) -> None:
    metric, rate, images_net, cutmix = published
    real = sized(dataset, size)
    for ipc in (1, 10, 20):
        loop, options, _ = filled_in(real, ipc)
        assert loop.lr_images == pytest.approx(rate * ipc / 10)
        assert (loop.iterations, loop.init, loop.momentum) == (2000, "cells", 0.5)
        assert (options.metric, options.images_net, options.cutmix_net) == (
            metric, images_net, cutmix
        )  # fmt: skip
        assert (options.factor, options.inner_steps) == (2, 100)
        assert (options.batch_real, options.batch_syn, options.batch_net) == (64, 128, 64)
        hole = "" if dataset == "mnist" else "_cutout"
        assert options.augmentation == f"idc:color_crop{hole}"
        evaluation = evaluation_of("idc", real, ipc)
        recipe = replace(PUBLISHED_RECIPE, **evaluation)
        assert (recipe.epochs, recipe.batch_size, recipe.cutmix) == (1000, 64, cutmix)
        assert [math.ceil(1000 * at) for at in recipe.drops] == [666, 833]
        assert recipe.drop_by == 5
    if dataset == "tinyimagenet":
        loop, _, _ = filled_in(real, 50)
        assert loop.lr_images == pytest.approx(1e-6 * 5 * 4)
