"""A batch is what plain loops over the published formulas make of it, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.plain import recover as plain
from cmidd.augment_operations import ENDS, OPERATIONS, Amounts
from cmidd.datasets import Dataset
from cmidd.options.recover import RecoverCMIOptions
from cmidd.recovery import batch as module_of_batch
from cmidd.recovery import starts
from cmidd.recovery.batch import Batch
from cmidd.recovery.class_statistics import ClassStatistics
from cmidd.recovery.recover import Recovery
from cmidd.recovery.starts import perturbed
from cmidd.recovery.statistics import Statistics, watched
from cmidd.recovery.steps import draw_step
from cmikernels import fused_cmi
from tests.support import tiny
from tests.support.recovered import in_float64, recover_options, tiny_recovery
from tests.support.tiny import CPU, tiny_bank, tiny_dataset

WAYS: dict[str, dict[str, Any]] = {
    "sre2l": {"recipe": "sre2l", "bn_weight": 0.7},
    "cda": {"recipe": "cda", "curriculum_share": 0.8},
    "dwa": {"recipe": "dwa", "augmentation": "none", "start": "noise", "perturb_size": 0.5},
    "edc": {"recipe": "edc", "start": "noise", "batch_size": 4, "patches": 2},
}


class GivenStatistics(ClassStatistics):
    """Those of classes, as they are given for the norms as each teacher lists them."""

    def __init__(self, of_classes: list[list[Statistics]], places: list[list[int]]) -> None:
        self.of_classes, self.places = of_classes, places

    def of(self, labels: Tensor, teacher: int) -> list[Statistics]:
        assert labels.tolist() == [0, 0, 1, 1]
        return [self.of_classes[teacher][place] for place in self.places[teacher]]


def given_statistics(recovery: Recovery) -> GivenStatistics:
    """Random numbers in the place of the statistics of classes."""
    draws = torch.Generator().manual_seed(0)
    made, places = [], []
    for teacher in recovery.task.teachers:
        norms = plain.batch_norms(teacher)
        with watched(teacher) as seen:
            teacher(torch.zeros(1, *recovery.task.dataset.shape, dtype=torch.float64))
        places.append([norms.index(each.norm) for each in seen])
        channels = [norm.num_features for norm in norms]
        made.append(
            [
                Statistics(
                    torch.randn(n, dtype=torch.float64, generator=draws),
                    torch.rand(n, dtype=torch.float64, generator=draws),
                )
                for n in channels
            ]
        )
    return GivenStatistics(made, places)


def plain_loss(recovery: Recovery, batch: Batch, given: GivenStatistics) -> Callable[..., Tensor]:
    """The loss of a step by plain loops, of images and its number."""
    options, strategy = recovery.options, batch.strategy
    teachers = []
    for number, teacher in enumerate(recovery.task.teachers):
        own = copy.deepcopy(teacher)
        if options.perturb_steps:
            own = plain.moved_teacher(
                own, batch.images.detach(), batch.labels, options.perturb_steps,
                options.perturb_size,
            )  # fmt: skip
        of_classes = given.of_classes[number] if options.class_statistics else None
        weights = options.var_weight, options.average, of_classes, options.class_statistics
        teachers.append((own, plain.hooked(own, *weights)))

    def loss(images: Tensor, step: int) -> Tensor:
        drawn = draw_step(options, strategy, len(teachers), batch.item, step)
        seen = images
        if options.patches > 1:
            seen = plain.shuffled(seen, options.patches, drawn.patches.tolist())
        numbers = drawn.augmentation.numbers[0]
        if "zoom" in strategy.operations:
            u = numbers[ENDS["zoom"] - 4 : ENDS["zoom"], None]
            ends = options.zoom_from, options.zoom
            fall = options.iterations, options.curriculum_share, ends
            amounts = Amounts(zoom=plain.crop_scale(options.curriculum, step, *fall))
            top, high, left, wide = (
                int(n) for n in OPERATIONS["zoom"].parameters(u, amounts, *images.shape[2:])
            )
            flip = bool(numbers[ENDS["flip"] - 1] < 0.5)
            seen = plain.cropped(seen, (top, high, left, wide), flip=flip)
        seen = torch.roll(torch.roll(seen, drawn.roll[0], 2), drawn.roll[1], 3)
        teacher, hooks = teachers[drawn.teacher]
        weights = options.bn_weight, options.first_bn_weight
        return plain.loss_of(teacher, hooks, seen, batch.labels, *weights)

    return loss


@pytest.mark.parametrize("way", WAYS)
def test_loss_gradient_and_result_are_those_of_the_published_loops(way: str, teacher: Path) -> None:
    recovery = in_float64(tiny_recovery(recover_options(teacher, **WAYS[way])))
    given = given_statistics(recovery)
    batch = recovery.batch(0, given)
    first = batch.images.detach().clone()
    loss = plain_loss(recovery, batch, given)
    for step in range(2):  # the second has running averages, where there are some
        expected = loss(batch.images, step)
        found = batch.losses(step).total
        assert found.item() == pytest.approx(expected.item(), rel=1e-10)
        gradients = [torch.autograd.grad(each, batch.images)[0] for each in (found, expected)]
        error = (gradients[0] - gradients[1]).abs().max()
        assert error <= 1e-10 * gradients[1].abs().max()
        assert gradients[1].abs().max() > 1e-6
        assert batch.losses(step).total.item() == found.item()
        batch.step(step)
    again = recovery.batch(0, given)
    assert torch.equal(again.images, first)
    for step in range(recovery.options.iterations):
        again.step(step)
    options = recovery.options
    ends = again.least, again.most
    afresh = plain_loss(recovery, batch_with(recovery, first, given), given)
    result = plain.recovered(first, options.iterations, options.lr, ends, afresh)
    assert (again.images - result).abs().max() < 1e-7
    assert (again.images - first).abs().max() > 0.01


def batch_with(recovery: Recovery, first: Tensor, given: GivenStatistics) -> Batch:
    """A batch that begins with these images."""
    batch = recovery.batch(0, given)
    assert torch.equal(batch.images, first)
    return batch


def test_images_stay_in_the_range_of_pixels(teacher: Path) -> None:
    batch = tiny_recovery(recover_options(teacher, lr=10.0)).batch(0)
    for step in range(3):
        batch.step(step)
    assert batch.images.min().item() == batch.least.item() == -2.0  # (0 - .5) / .25
    assert batch.images.max().item() == batch.most.item() == 2.0
    pixels = batch.pixels()
    assert pixels.dtype == torch.uint8
    assert {0, 255} <= set(pixels.flatten().tolist())


def test_perturbed_weights_are_those_of_a_plain_loop(teacher: Path) -> None:
    recovery = in_float64(tiny_recovery(recover_options(teacher)))
    network, batch = recovery.task.teachers[0], recovery.batch(0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    moved = perturbed(network, batch.images.detach(), batch.labels, 4, 0.3)
    expected = plain.moved_teacher(network, batch.images.detach(), batch.labels, 4, 0.3)
    pairs = list(zip(moved.parameters(), expected.parameters(), strict=True))
    assert all((one - other).abs().max() < 1e-12 for one, other in pairs)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    old = torch.cat([parameter.flatten() for parameter in network.parameters()])
    new = torch.cat([parameter.flatten() for parameter in moved.parameters()])
    assert 0.2 < (new - old).norm() <= 0.3 + 1e-9
    assert not any(parameter.requires_grad for parameter in moved.parameters())


@pytest.mark.parametrize(
    ("by", "chunk", "perturb_steps"), [("teacher", 50, 0), ("bank", 4, 0), ("teacher", 4, 2)]
)
def test_cmi_is_that_of_whole_classes(
    by: str, chunk: int, perturb_steps: int, teacher: Path, tmp_path: Path
) -> None:
    cmi = RecoverCMIOptions(cmi_weight=30.0, cmi_chunk=chunk)
    if by == "bank":
        tiny_bank(tmp_path / "bank", tiny_dataset(), networks=1)
        cmi = replace(cmi, bank=tmp_path / "bank")
    options = recover_options(
        teacher, ipc=3, batch_size=7, bn_weight=0.1, perturb_steps=perturb_steps
    )
    recovery = in_float64(tiny_recovery(options, cmi))
    if by == "bank":
        assert recovery.task.bank is not None
        of_bank = copy.deepcopy(recovery.task.bank[0]).double()
        task = recovery.task._replace(bank=[of_bank])  # type: ignore[arg-type]
        recovery = replace(recovery, task=task)
    batch = recovery.batch(0)
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1]
    drawn = draw_step(recovery.options, batch.strategy, 2, 0, 3)
    network = recovery.task.teachers[drawn.teacher] if by == "teacher" else of_bank
    features = network.embed(batch.images)  # type: ignore[operator]
    expected = fused_cmi(features, batch.labels)
    found = batch.losses(3)
    assert found.cmi.item() == pytest.approx(expected.item(), rel=1e-10)
    assert expected > 0
    one, other = (torch.autograd.grad(each, batch.images)[0] for each in (found.cmi, expected))
    assert (one - other).abs().max() <= 1e-10 * other.abs().max()
    whole = found.classes + 0.1 * found.statistics + 30.0 * found.cmi
    assert found.total.item() == pytest.approx(whole.item(), rel=1e-12)


def test_the_images_of_a_class_depend_on_no_other(teacher: Path) -> None:
    for start in ("noise", "real"):
        pairs: dict[tuple[int, int], Tensor] = {}
        for size in (2, 4, 6):
            recovery = tiny_recovery(recover_options(teacher, start=start, batch_size=size))
            for item in range(len(recovery.batches)):
                labels, numbers = recovery.batches[item]
                images = recovery.batch(item).images.detach()
                for c, k, image in zip(labels.tolist(), numbers.tolist(), images, strict=True):
                    assert torch.equal(pairs.setdefault((c, k), image), image)
        assert len(pairs) == 6
        assert not torch.equal(pairs[0, 0], pairs[0, 1])


def test_real_starts_are_different_images_of_the_class(teacher: Path) -> None:
    data = tiny_dataset()
    recovery = tiny_recovery(recover_options(teacher, start="real", ipc=6, batch_size=6), None)
    for c in range(3):
        real = data.to_input(data.train.of_class(c))
        images = recovery.batch(c).images.detach()
        places = {int((real - image).abs().flatten(1).sum(1).argmin()) for image in images}
        assert places == set(range(6))
        assert all((real - image).abs().flatten(1).sum(1).min() == 0 for image in images)


def test_rded_chooses_for_each_class_of_a_batch(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def chosen(
        dataset: Dataset, network: nn.Module, label: int, count: int, *rest: object
    ) -> Tensor:
        asked.append((label, count, *rest))
        return label + torch.arange(count)[:, None, None, None] / 8 * torch.ones(*dataset.shape)

    monkeypatch.setattr(starts, "rded_images", chosen)
    monkeypatch.setattr(tiny, "PER_CLASS", 12)  # one image of the class for each cell
    options = recover_options(teacher, start="rded", rded_factor=2, ipc=3, batch_size=6, seed=5)
    images = tiny_recovery(options).batch(0).images
    assert images[:, 0, 0, 0].tolist() == [0, 0.125, 0.25, 1, 1.125, 1.25]
    assert asked == [(0, 3, 2, 5, CPU), (1, 3, 2, 5, CPU)]


def test_a_step_that_is_too_long_is_an_error(teacher: Path) -> None:
    batch = tiny_recovery(recover_options(teacher)).batch(1)
    with torch.no_grad():
        batch.images[0, 0, 0, 0] = torch.nan
    words = "batch 2: its images are NaN or Inf; take a"
    with pytest.raises(FloatingPointError, match=words):
        batch.pixels()
    with pytest.raises(FloatingPointError, match=words):
        batch.step(0)


def test_images_that_overflow_are_seen_before_they_are_clamped(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = tiny_recovery(recover_options(teacher)).batch(0)
    with torch.no_grad():
        batch.images.fill_(torch.finfo(torch.float32).max)
    monkeypatch.setattr(batch.optimizer, "step", lambda: batch.images.data.mul_(2))
    with pytest.raises(FloatingPointError, match="batch 1: its images are NaN or Inf"):
        batch.step(0)


def test_a_teacher_moves_when_it_is_first_drawn(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[nn.Module] = []

    def noted(network: nn.Module, *rest: Any) -> nn.Module:
        moved.append(network)
        return perturbed(network, *rest)

    monkeypatch.setattr(module_of_batch, "perturbed", noted)
    recovery = tiny_recovery(recover_options(teacher, perturb_steps=1, iterations=12))
    batch = recovery.batch(0)
    assert not moved
    for step in range(12):
        batch.step(step)
    assert len(moved) == 2
    assert {id(each) for each in moved} == {id(each) for each in recovery.task.teachers}
