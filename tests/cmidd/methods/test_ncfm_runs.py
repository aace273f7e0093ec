"""Whole runs of NCFM, and its settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmidd.first_images import first_images
from cmidd.methods import cmi_weight, evaluation_of, fill_in_published
from cmidd.methods.ncfm import NCFM
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.ncfm import NCFMOptions
from cmidd.options.recipe import PUBLISHED_RECIPE, Recipe
from cmidd.pretrained.bank import Bank
from cmidd.run import prepare
from cmidd.storage.run_folder import KIND as CHECKPOINT
from cmidd.storage.run_folder import read_log
from cmidd.storage.tensor_file import read_tensors
from cmikernels import fused_cmi
from tests.support.steps import step
from tests.support.tiny import (
    CPU,
    check_goes_on_from_its_result,
    ncfm_options,
    quiet,
    tiny_dataset,
    tiny_run,
)

RUN = DistillOptions(
    ipc=1, init="cells", iterations=4, lr_images=0.05, report_every=1, checkpoint_every=2
)


def test_a_run_moves_pixels_and_clamps_them(tmp_path: Path, bank_file: Path) -> None:
    options, dataset = ncfm_options(bank_file, patience=0), tiny_dataset()
    made = tiny_run(tmp_path, RUN, method=("ncfm", options))
    method = NCFM(dataset, torch.arange(3), options, 0, CPU)
    pixels = first_images(dataset, 1, "cells", 0, view=method.view)[0] * 0.25 + 0.5
    pixels.requires_grad_()
    theirs = torch.optim.AdamW(
        [pixels], 0.05 * 6**0.5, betas=(0.9**6, 0.999**6), weight_decay=5e-4 * 6**0.5
    )
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, factor=0.5, patience=0)
    sizes, black = [], False
    for iteration in range(4):
        with torch.no_grad():
            black = black or bool((pixels < 0).any())
            pixels.clamp_(0, 1)
        loss, gradient = step(method, (pixels.detach() - 0.5) / 0.25, iteration)
        pixels.grad = gradient / 0.25
        theirs.step()
        plateau.step(loss.item())
        sizes.append(theirs.param_groups[0]["lr"] / 6**0.5)
    assert black
    torch.testing.assert_close(
        made.images * 0.25 + 0.5, pixels.detach().clamp(0, 1), atol=1e-3, rtol=0
    )
    assert (len(made.images), len(made.seen().images)) == (3, 12)
    log = [line["lr_images"] for line in read_log(tmp_path / "log.jsonl")]
    assert log == pytest.approx(sizes)
    assert log[0] > log[-1]
    tensors, record = read_tensors(tmp_path / "checkpoint.safetensors", CHECKPOINT)
    assert tensors.keys() == {
        "images", "exp_avg of images", "exp_avg_sq of images", "step of images",
        "state of plateau",
    }  # fmt: skip
    assert record["made_with"]["matching_bank"]["seed"] == 0


def test_a_run_by_sgd_goes_on_to_the_same_bits(tmp_path: Path, bank_file: Path) -> None:
    """With the step size as often halved, of which the log tells what was asked for."""
    method = "ncfm", ncfm_options(bank_file, optimizer="sgd", patience=0)
    loop = replace(RUN, lr_images=1e-4)
    whole = tiny_run(tmp_path / "whole", loop, method=method)
    tiny_run(tmp_path / "run", replace(loop, iterations=2), method=method)
    (tmp_path / "run" / "result.safetensors").unlink()
    again = tiny_run(tmp_path / "run", loop, method=method, resume=True)
    assert torch.equal(again.images, whole.images)
    sizes = [
        [line["lr_images"] for line in read_log(tmp_path / name / "log.jsonl")]
        for name in ("whole", "run")
    ]
    assert sizes[0] == sizes[1]
    assert {round(1e-4 / size, 9) for size in sizes[0]} <= {1, 2, 4, 8}


def test_a_run_goes_on_from_its_result_and_from_no_other_view(
    tmp_path: Path, bank_file: Path
) -> None:
    check_goes_on_from_its_result(tmp_path, RUN, "ncfm", ncfm_options(bank_file))


def test_cmi_is_the_mean_over_decoded_images(bank_file: Path, cmi: CMIOptions) -> None:
    dataset = tiny_dataset()
    run = prepare("ncfm", dataset, RUN, ncfm_options(bank_file), cmi, device=CPU, say=quiet)
    gradient = torch.zeros_like(run.images)
    value = run.cmi.add(run.images, gradient, 1, logged=True)
    assert run.method.view is not None
    assert run.cmi._regularizer is not None
    (number,) = run.cmi._regularizer.draw(1)
    seen, labels = run.method.view(run.images, run.labels)
    expected = 5.0 * fused_cmi(Bank.load(bank_file, CPU)[number].embed(seen), labels, num_classes=3)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=0)
    assert value > 0  # of one stored image, which holds four
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, run.images)[0])


def settings_of(name: str, ipc: int, **given: Any) -> tuple[DistillOptions, NCFMOptions, str]:
    dataset, loop = tiny_dataset(name), DistillOptions(ipc=ipc)
    return fill_in_published("ncfm", dataset, ipc, loop, NCFMOptions(Path("bank"), **given))


@pytest.mark.parametrize(
    ("name", "ipc", "optimizer", "rate", "epochs"),
    [
        ("cifar10", 1, "adamw", 1e-3, 2000),
        ("cifar10", 50, "adamw", 1e-3, 2000),
        ("cifar100", 10, "sgd", 0.01, 2000),
        ("cifar100", 50, "adamw", 1e-3, 2000),
        ("tinyimagenet", 10, "adamw", 1e-3, 300),
        ("tinyimagenet", 50, "adamw", 1e-3, 40),
        ("fashionmnist", 10, "adamw", 1e-3, 2000),
    ],
)
def test_published_settings(name: str, ipc: int, optimizer: str, rate: float, epochs: int) -> None:
    loop, options, told = settings_of(name, ipc)
    assert (loop.iterations, loop.init, loop.momentum) == (20000, "cells", 0.5)
    assert (options.optimizer, loop.lr_images) == (optimizer, rate)
    assert (options.factor, options.batch_real, options.frequencies) == (2, 1024, 4096)
    assert (options.amplitude_weight, options.phase_weight) == (0.5, 0.5)
    assert (options.distance_weight, options.calibration_weight) == (300, 1)
    assert (options.weight_decay, options.patience) == (0.0 if optimizer == "sgd" else 5e-4, 500)
    assert options.augmentation == "idc:color_crop_cutout"
    assert ("not published for fashionmnist" in told) is (name == "fashionmnist")
    evaluation = evaluation_of("ncfm", tiny_dataset(name), ipc)
    assert replace(PUBLISHED_RECIPE, **evaluation) == (
        Recipe(epochs, 1e-3, 0.9, 0.01, 128, (0.2, 0.4, 0.6, 0.8),
               "idc:color_crop_flip_scale_rotate", None, 2.0, 0.5, "adamw")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ipc", "optimizer", "rate", "decay", "origin"),
    [
        ("cifar10", 10, None, 1e-3, 5e-4, "(as published, for factor 2)"),
        ("cifar100", 10, None, 0.01, 0.0, "(as published, for factor 2)"),
        ("cifar100", 10, "sgd", 0.01, 0.0, "(as published, for factor 2)"),
        (
            "cifar100", 10, "adamw", 1e-3, 5e-4,
            "; lr_images is that of adamw for other settings)",
        ),
        (
            "cifar10", 10, "sgd", 0.01, 0.0,
            "(as published, for factor 2; lr_images is that of sgd for CIFAR-100 at 10 images per "
            "class)",
        ),
        (
            "cifar100", 20, None, 0.01, 0.0,
            "(as published, for factor 2, for 10 images per class, the nearest to your 20)",
        ),
    ],
)  # fmt: skip
def test_a_step_size_is_that_of_its_optimizer_and_says_where_it_is_from(
    name: str, ipc: int, optimizer: str | None, rate: float, decay: float, origin: str
) -> None:
    given = {} if optimizer is None else {"optimizer": optimizer}
    loop, options, told = settings_of(name, ipc, **given)
    assert (loop.lr_images, options.weight_decay) == (rate, decay)
    assert told.endswith(origin)


def test_a_set_is_judged_as_one_of_the_nearest_published_size() -> None:
    epochs = {
        ipc: evaluation_of("ncfm", tiny_dataset("tinyimagenet"), ipc)["epochs"]
        for ipc in (1, 7, 10, 20, 40, 50)
    }
    assert epochs == {1: 2000, 7: 300, 10: 300, 20: 300, 40: 40, 50: 40}


def test_no_weight_of_cmi_is_known() -> None:
    with pytest.raises(
        ValueError, match=r"cmi_weight: none is known for ncfm on cifar10 \(only for digits"
    ):
        cmi_weight("ncfm", "cifar10", 10)
