"""The soft labels of a set: what they are of, their file, and training by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cmidd import ranks, teaching
from cmidd.augment import Strategy, augment
from cmidd.augment_operations import Amounts
from cmidd.datasets.whitening import Whitening
from cmidd.evaluate import evaluate_set
from cmidd.evaluation_file import EvaluationFile
from cmidd.first_images import first_images
from cmidd.interruption import Interrupted
from cmidd.label_file import KIND, SoftLabels
from cmidd.options.recipe import STUDENT_RECIPE, recipe_of
from cmidd.options.relabel import RelabelOptions
from cmidd.relabelling import Relabelling, relabel
from cmidd.seeds import seed_of
from cmidd.storage.growing_file import partial_path
from cmidd.storage.output import in_words
from cmidd.storage.tensor_file import FileError, bytes_of, metadata, record_of
from cmidd.synthetic import SyntheticSet
from cmidd.teaching import TeacherNetworks, objective_of
from cmidd.training import Progress, Stack, train
from cmidd.training_draws import draw_epoch, draw_epochs
from cmidd.training_file import TrainingFile
from tests.cmidd.test_teaching import a_teacher
from tests.support.ranks import on_ranks
from tests.support.signals import signalling
from tests.support.tiny import CPU, NETWORK, quiet, tiny_dataset

DATASET = tiny_dataset()
SET = SyntheticSet.of(DATASET, *first_images(DATASET, 3, "real", 0))
OPTIONS = RelabelOptions(epochs=3, batch_size=4, seed=7)
LONGEST = 3  # steps of an epoch


class Recorded(nn.Module):
    """A teacher that notes what it sees, and whose logits float16 holds exactly."""

    def __init__(self, after: Callable[[int], object] = lambda _: None) -> None:
        super().__init__()
        self.network, self.after = a_teacher(0, dtype=torch.float32), after
        self.saw: list[Tensor] = []
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.saw.append(images.clone())
        self.after(len(self.saw))
        logits: Tensor = self.network(images).half().float()
        return logits


def work(options: RelabelOptions = OPTIONS, *teachers: nn.Module) -> Relabelling:
    return Relabelling(SET, DATASET, teachers or [Recorded()], options, CPU)


def labelled(path: Path, *teachers: nn.Module, resume: bool = False, **changes: Any) -> SoftLabels:
    made = work(replace(OPTIONS, **changes), *teachers)
    return relabel(path, made, resume=resume, say=quiet)


@pytest.fixture(scope="module")
def path(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of labels."""
    where = tmp_path_factory.mktemp("labels") / "labels"
    labelled(where)
    return where


def trained(
    labels: SoftLabels, teacher: Any, stack: Stack, done: Progress | None = None, stop: int = 0
) -> Progress | None:
    """A stack that learns from a teacher what the images of `labels` are."""
    recipe = recipe_of({}, taught=labels.draws)
    strategy = Strategy.parse(recipe.augmentation)
    first = done.epoch if done else 0
    epochs = draw_epochs([labels.seed or 0] * stack.size, len(SET.labels), recipe, strategy, first)
    steps = iter(range(1, 100))
    return train(stack, SET.images, SET.labels, recipe, strategy, epochs, done=done, teach=teacher,
                 objective=objective_of(recipe), stopping=lambda: next(steps) == stop)  # fmt: skip


def fresh(*seeds: int) -> Stack:
    return Stack.fresh(NETWORK, DATASET.shape, 3, seeds or (1,), CPU)


def same(one: Stack, other: Stack, tolerance: float = 0.0) -> bool:
    pairs = [(one.state[name].detach(), other.state[name].detach()) for name in one.state]
    return all((a - b).abs().max().item() <= tolerance for a, b in pairs)


def dies(work: Callable[[], object]) -> None:
    """Do what kills the process, in one of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


# --- what is labelled


@pytest.mark.parametrize("zoom", [0.08, 0.5])
def test_labels_are_the_teachers_logits_on_the_images_that_are_drawn(
    tmp_path: Path, zoom: float
) -> None:
    """Images by hand: rows, then augmentation, then a rectangle pixel by pixel."""
    labels, teacher = labelled(tmp_path / "labels", zoom=zoom), Recorded()
    recipe, strategy = recipe_of({}, taught=labels.draws), Strategy.parse("all:zoom_flip")
    boxes = 0
    for epoch in range(3):
        drawn = draw_epoch([labels.seed or 0], 9, recipe, strategy, epoch)
        assert sorted(drawn.order[0].tolist()) == list(range(9))
        for step, rows in enumerate(torch.split(drawn.order[0], 4)):
            changes, amounts = drawn.augmentation[step], Amounts(zoom=zoom)
            images = augment(SET.images[rows], strategy, changes, amounts=amounts)
            (u, down, right), mixed = drawn.mixing[step].numbers[0].tolist(), images.clone()
            half = int(8 * (1 - u) ** 0.5) // 2
            for row in range(max(int(down * 8) - half, 0), min(int(down * 8) + half, 8)):
                for column in range(max(int(right * 8) - half, 0), min(int(right * 8) + half, 8)):
                    boxes += 1
                    for k, partner in enumerate(drawn.mixing[step].partners[0].tolist()):
                        mixed[k, :, row, column] = images[partner, :, row, column]
            expected = teacher(mixed).half()
            assert torch.equal(labels.of_epoch(epoch)[4 * step : 4 * step + 4], expected)
    assert boxes > 9


@pytest.mark.parametrize("together", [1, 2])
def test_an_evaluation_sees_the_images_that_were_labelled_and_learns_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    teacher, said = Recorded(), list[str]()
    labels = labelled(tmp_path / "labels", teacher)
    seeds = [seed_of(0, "evaluation", k) for k in range(2)]
    plain = fresh(*seeds)
    trained(labels, labels, plain)

    seen, learnt, call, loss = list[Tensor](), list[Tensor](), Stack.__call__, teaching.soft_loss

    def watched_call(stack: Stack, images: Tensor) -> Tensor:
        if stack.network.training:
            seen.append(images.clone())
        return call(stack, images)

    def watched_loss(found: Tensor, logits: Tensor, *others: Any) -> Tensor:
        learnt.append(logits.view(together, -1, 3))
        return loss(found, logits, *others)

    monkeypatch.setattr(Stack, "__call__", watched_call)
    monkeypatch.setattr(teaching, "soft_loss", watched_loss)
    (found,) = evaluate_set(SET, DATASET, NETWORK, repeats=2, teacher=labels, device="cpu",
                            together=together, say=said.append)  # fmt: skip
    expected = torch.cat([labels.of_epoch(epoch) for epoch in range(3)]).float()
    for of_network in torch.cat(seen, 1).view(2, 27, 1, 8, 8):
        assert torch.equal(of_network, torch.cat(teacher.saw))
    for of_network in torch.cat(learnt, 1).view(2, 27, 3):
        assert torch.equal(of_network, expected)
    assert found.accuracies == tuple(plain.accuracy(DATASET.batches(DATASET.test, CPU)))
    assert found.recipe == replace(STUDENT_RECIPE, epochs=3, batch_size=4, precision="float32")
    assert f"soft labels of {labels.path} (KL at temperature 20)" in said[0]


@pytest.mark.parametrize("networks", [1, 2])
def test_training_sees_the_images_that_were_labelled_and_learns_their_labels(
    tmp_path: Path, networks: int
) -> None:
    teacher, seen, learnt = Recorded(), [], []
    labels = labelled(tmp_path / "labels", teacher)

    def objective(stack: Stack, images: Tensor, targets: Tensor) -> Tensor:
        seen.append(images)
        learnt.append(targets)
        return stack(images).sum()

    recipe, strategy = recipe_of({}, taught=labels.draws), Strategy.parse("all:zoom_flip")
    epochs = draw_epochs([labels.seed or 0] * networks, 9, recipe, strategy)
    stack = fresh(*range(networks))
    stack.images_per_chunk = len  # type: ignore[method-assign,assignment]
    train(stack, SET.images, SET.labels, recipe, strategy, epochs, objective=objective,
          teach=labels)  # fmt: skip
    assert len(seen) == len(teacher.saw) == 3 * LONGEST
    again = Recorded()
    for images, targets, saw in zip(seen, learnt, teacher.saw, strict=True):
        for of_network, of_targets in zip(images, targets, strict=True):
            assert torch.equal(of_network, saw)
            assert torch.equal(of_targets[:, 0], again(saw))
            assert of_targets[:, 1].sum(1).allclose(torch.ones(len(saw)))


def test_training_by_the_file_is_training_with_the_teacher_in_the_loop(path: Path) -> None:
    labels, by_file, in_loop = SoftLabels.load(path), fresh(1, 2), fresh(1, 2)
    trained(labels, labels, by_file)
    trained(labels, TeacherNetworks([Recorded()]), in_loop)
    assert same(by_file, in_loop)
    assert not same(by_file, fresh(1, 2), 1e-3)


def test_labels_of_any_teacher_are_its_logits_but_for_rounding(tmp_path: Path) -> None:
    teachers = [a_teacher(k, dtype=torch.float32) for k in range(2)]
    labels = labelled(tmp_path / "labels", *teachers)
    by_file, in_loop = fresh(), fresh()
    trained(labels, labels, by_file)
    trained(labels, TeacherNetworks(teachers), in_loop)
    assert same(by_file, in_loop, 1e-4)


# --- the file


def test_the_size_that_is_told_is_that_on_disk(tmp_path: Path) -> None:
    said: list[str] = []
    made, path = work(), tmp_path / "labels"
    labels = relabel(path, made, command="the command", say=said.append)
    assert made.size("the command") == path.stat().st_size == labels.nbytes
    assert f"{path} takes {in_words(labels.nbytes)} (" in said[0]
    assert load_file(path)["logits"].shape == (3, 9, 3)
    assert load_file(path)["logits"].dtype == torch.float16


def test_labels_for_which_there_is_no_room_are_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=500))
    with pytest.raises(ValueError, match=r"out: .*labels takes .*has 500B free; lower epochs"):
        labelled(tmp_path / "labels")
    assert not list(tmp_path.iterdir())


def test_more_epochs_are_the_labels_of_a_longer_file(tmp_path: Path, path: Path) -> None:
    more, whole = tmp_path / "more", tmp_path / "whole"
    shutil.copy(path, more)
    labelled(more, epochs=5, resume=True)
    labelled(whole, epochs=5)
    assert more.read_bytes() == whole.read_bytes()
    with pytest.raises(ValueError, match=r"resume: .*\(epochs: 5 there, 3 now, which is fewer"):
        labelled(more, resume=True)
    with pytest.raises(ValueError, match=r"resume: .*\(seed: 7 there, 8 now\); give the same ones"):
        labelled(more, epochs=5, seed=8, resume=True)
    with pytest.raises(ValueError, match=r"resume: .*\(teachers: .* there"):
        labelled(more, a_teacher(1, dtype=torch.float32), epochs=5, resume=True)


@pytest.mark.parametrize("step", [1, LONGEST + 1, 2 * LONGEST + 2, 3 * LONGEST])
def test_labelling_that_is_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, path: Path, step: int
) -> None:
    def die(count: int) -> None:
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    killed = tmp_path / "labels"
    dies(lambda: labelled(killed, Recorded(die)))
    assert not killed.exists()
    teacher = Recorded()
    labelled(killed, teacher, resume=True)
    assert killed.read_bytes() == path.read_bytes()
    assert len(teacher.saw) == 3 * LONGEST - (step - 1) // LONGEST * LONGEST


def interrupted_at(step: int) -> Recorded:
    """A teacher that a signal interrupts in a step."""

    def interrupt(count: int) -> None:
        if count == step:
            signal.raise_signal(signal.SIGINT)

    return Recorded(interrupt)


@pytest.mark.parametrize(("step", "there"), [(LONGEST - 1, 0), (LONGEST, 1), (LONGEST + 1, 1)])
def test_a_signal_loses_the_epoch_under_way_at_most(
    tmp_path: Path, path: Path, step: int, there: int
) -> None:
    stopped, teacher = tmp_path / "labels", interrupted_at(step)
    with pytest.raises(Interrupted, match=f"interrupted after {there} of 3 epochs"):
        labelled(stopped, teacher)
    assert len(teacher.saw) == step
    said: list[str] = []
    relabel(stopped, work(), resume=True, say=said.append)
    assert (said[0] == f"{there} of 3 epochs are there already") == (there > 0)
    assert stopped.read_bytes() == path.read_bytes()


def test_a_signal_ends_labelling_after_an_epoch_of_one_step(tmp_path: Path) -> None:
    stopped, whole, teacher = tmp_path / "labels", tmp_path / "whole", interrupted_at(2)
    with pytest.raises(Interrupted, match="interrupted after 2 of 3 epochs"):
        labelled(stopped, teacher, batch_size=100)
    assert len(teacher.saw) == 2
    labelled(stopped, batch_size=100, resume=True)
    labelled(whole, batch_size=100)
    assert stopped.read_bytes() == whole.read_bytes()


def on_rank(folder: Path) -> None:
    teacher = Recorded()
    labelled(folder / "labels", teacher)
    assert len(teacher.saw) == LONGEST * (2 - ranks.number())


def test_ranks_share_the_epochs(tmp_path: Path, path: Path) -> None:
    on_ranks(2, on_rank, tmp_path, tmp_path)
    assert (tmp_path / "labels").read_bytes() == path.read_bytes()


def evaluated_on_rank(folder: Path) -> None:
    evaluation = partial(evaluate_set, SET, DATASET, NETWORK, repeats=2, device="cpu", say=quiet)
    (found,) = evaluation(teacher=SoftLabels.load(folder / "labels"))
    (folder / f"accuracies {ranks.number()}").write_text(str(found.accuracies))
    own = TeacherNetworks([a_teacher(ranks.number(), dtype=torch.float32)])
    with pytest.raises(ValueError, match="teacher: expected the same on all ranks, got "):
        evaluation(teacher=own)


def test_ranks_share_networks_that_learn_the_labels_of_one_file(tmp_path: Path, path: Path) -> None:
    shutil.copy(path, tmp_path / "labels")
    on_ranks(2, evaluated_on_rank, tmp_path, tmp_path)
    (alone,) = evaluate_set(SET, DATASET, NETWORK, repeats=2, teacher=SoftLabels.load(path),
                            device="cpu", say=quiet)  # fmt: skip
    for rank in range(2):
        assert (tmp_path / f"accuracies {rank}").read_text() == str(alone.accuracies)


def test_logits_that_float16_does_not_hold_are_an_error(tmp_path: Path) -> None:
    teacher = a_teacher(0, dtype=torch.float32)
    teacher.head.weight.data *= 1e6
    with pytest.raises(
        FloatingPointError, match=r"logits that are finite in float16, got .*epoch 1"
    ):
        labelled(tmp_path / "labels", teacher)
    with pytest.raises(ValueError, match=r"expected logits of 3 classes, got \(4, 8\) of 4 images"):
        labelled(tmp_path / "others", nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).eval())


@pytest.mark.parametrize("wrong", [{"cutmix": 2.0}, {"zoom": 2.0}])
def test_options_that_no_file_may_say_label_nothing(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name}: expected a .* got 2"):
        work(replace(OPTIONS, **wrong))


def test_labels_of_fewer_epochs_than_a_record_warms_up_for(tmp_path: Path) -> None:
    evaluation = {"soft_loss": "kl", "epochs": 100, "schedule": "cosine", "warm_up": 5}
    warm = replace(SET, record={**SET.record, "evaluation": evaluation})
    made = Relabelling(warm, DATASET, [Recorded()], OPTIONS, CPU)
    labels = relabel(tmp_path / "labels", made, say=quiet)
    assert labels.draws["epochs"] == 3


# --- files that cannot be used


def rewritten(path: Path, target: Path, record: dict[str, Any], **tensors: Tensor) -> None:
    """The file with another record or other tensors, and the checksum of the record as it is."""
    about = {**record_of(path), **record}
    del about["kind"], about["format"]
    content = {**load_file(path), **tensors}
    target.write_bytes(save(content, metadata=metadata(KIND, about)))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"epochs": 4}, "expected tensors"),
        ({"images": 8}, "expected tensors"),
        ({"epochs": 0}, "expected a record with images, num_classes"),
        ({"batch_size": "4"}, "expected a record with images, num_classes"),
        ({"batch_size": 0}, "expected a record with images, num_classes"),
        ({"cutmix": 2.0}, "cutmix from 0 to 1"),
        ({"zoom": 0.0}, "zoom above 0"),
        ({"seed": None}, "and the numbers set_crc32, seed and streams"),
        ({"seed": -1}, "the seed from 0 on"),
        ({"seed": 2**63}, "the seed from 0 on"),
        ({"held_out": "half"}, "a share held_out if any"),
        ({"held_out": 2.0}, "a share held_out if any"),
        ({"teachers": None}, "teachers by their checksums"),
        ({"teachers": ["one"]}, "teachers by their checksums"),
        ({"augmentation": "all:melt"}, "no operation 'melt'"),
        ({"streams": 1}, "drawn as today .streams 2., got streams 1; relabel the set"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    tmp_path: Path, path: Path, record: dict[str, Any], message: str
) -> None:
    other = tmp_path / "other"
    rewritten(path, other, record)
    with pytest.raises(FileError, match=rf"{other}: .*{message}"):
        SoftLabels.load(other)


def test_tensors_that_are_something_else_are_refused(tmp_path: Path, path: Path) -> None:
    there, other = load_file(path), tmp_path / "other"
    for name, tensor in {
        "logits": there["logits"].float(),
        "crc32 of logits": torch.zeros(2, dtype=torch.int64),
        "trained": torch.ones(3),
    }.items():
        rewritten(path, other, {}, **{name: tensor})
        with pytest.raises(FileError, match=rf"{other}: expected tensors"):
            SoftLabels.load(other)
    rewritten(path, other, {}, trained=torch.tensor([1, 0, 1], dtype=torch.uint8))
    with pytest.raises(FileError, match=rf"{other}: only 2 of 3 epochs are there"):
        SoftLabels.load(other)
    rewritten(path, other, {}, logits=there["logits"] + 1)
    labels = SoftLabels.load(other)
    with pytest.raises(FileError, match=r"a piece of logits of epoch 2: .*the file is damaged"):
        labels.of_epoch(1)
    broken = torch.full_like(there["logits"], torch.inf)
    crc32 = torch.tensor([zlib.crc32(bytes_of(each)) for each in broken])
    rewritten(path, other, {}, **{"logits": broken, "crc32 of logits": crc32})
    with pytest.raises(FileError, match=rf"{other}: expected finite labels, got others in epoch 1"):
        SoftLabels.load(other).of_epoch(0)


def test_a_file_that_is_cut_short_or_incomplete_is_refused(tmp_path: Path, path: Path) -> None:
    content, other = path.read_bytes(), tmp_path / "other"
    for length in [0, 7, 8, 100, len(content) // 2, len(content) - 1]:
        other.write_bytes(content[:length])
        with pytest.raises(FileError, match=str(other)):
            SoftLabels.load(other)
    other.replace(partial_path(other))
    with pytest.raises(FileNotFoundError, match="the set of soft labels is not complete; give"):
        SoftLabels.load(other)


def test_a_file_that_is_replaced_while_it_serves_is_noticed(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other"
    shutil.copy(path, other)
    labels = SoftLabels.load(other)
    labels.of_epoch(0)
    labelled(other.with_name("new"), seed=8).path.replace(other)
    with pytest.raises(FileError, match="another file has taken its place; begin again"):
        labels.of_epoch(1)


def test_labels_serve_their_own_set_and_recipe_alone(path: Path) -> None:
    labels = SoftLabels.load(path)
    recipe = recipe_of({}, taught=labels.draws)
    labels.check(SET, DATASET, replace(recipe, epochs=2))
    wrong: dict[str, tuple[Any, str]] = {
        "epochs": (4, "epochs: expected at most 3, which .* has labels for, got 4; leave it out"),
        "batch_size": (5, "batch_size: expected 4, which"),
        "augmentation": ("color", "augmentation: expected all:zoom_flip, which .*, got color"),
        "cutmix": (0.5, "cutmix: expected 1.0"),
        "zoom": (0.5, "zoom: expected 0.08"),
        "soft_loss": ("none", "recipe: expected soft_loss kl or mse"),
    }
    for name, (value, message) in wrong.items():
        changes: dict[str, Any] = {name: value}
        with pytest.raises(ValueError, match=message):
            labels.check(SET, DATASET, replace(recipe, **changes))
    moved = replace(SET, images=SET.images + 1e-3)
    with pytest.raises(ValueError, match=f"labels: {path} has those of another set"):
        labels.check(moved, DATASET, recipe)
    with pytest.raises(ValueError, match=f"labels: {path}: expected dataset other"):
        labels.check(SET, tiny_dataset("other"), recipe)
    with pytest.raises(ValueError, match=f"labels: {path}: expected one made with held_out"):
        labels.check(SET, DATASET.holding_out(0.5), recipe)


def test_labels_are_of_the_images_that_a_view_shows(tmp_path: Path) -> None:
    view = {"name": "cells", "settings": {"factor": 2}}
    of_cells = replace(SET, record={**SET.record, "view": view})
    teacher = Recorded()
    made = Relabelling(of_cells, DATASET, [teacher], replace(OPTIONS, augmentation="none"), CPU)
    labels = relabel(tmp_path / "labels", made, say=quiet)
    assert sum(len(images) for images in teacher.saw) == 3 * 4 * len(SET.labels)
    recipe = recipe_of({}, taught=labels.draws)
    labels.check(of_cells, DATASET, recipe)
    by_columns = {"name": "cells", "settings": {"factor": 2, "order": "columns"}}
    other = replace(of_cells, record={**SET.record, "view": by_columns})
    with pytest.raises(ValueError, match="has those of another set, or of this one before it was"):
        labels.check(other, DATASET, recipe)


def test_labels_are_of_the_images_as_they_are_whitened(tmp_path: Path) -> None:
    whitened = replace(DATASET, whitening=Whitening(torch.zeros(64), torch.eye(64), 0.1))
    a_set = SyntheticSet.of(whitened, SET.images, SET.labels)
    made = Relabelling(a_set, DATASET, [Recorded()], OPTIONS, CPU)
    labels = relabel(tmp_path / "labels", made, say=quiet)
    recipe = recipe_of({}, taught=labels.draws)
    labels.check(a_set, whitened, recipe)
    other = Whitening(torch.zeros(64), 2 * torch.eye(64), 0.1)
    with pytest.raises(ValueError, match="has those of another set, or of this one before it was"):
        labels.check(replace(a_set, whitening=other), replace(DATASET, whitening=other), recipe)
    with pytest.raises(ValueError, match="expected images without whitening"):
        labels.check(SET, DATASET, recipe)


def test_a_zoom_that_no_operation_reads_is_not_compared(tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labels", augmentation="flip")
    labels.check(SET, DATASET, replace(recipe_of({}, taught=labels.draws), zoom=0.5))


# --- training that is stopped


@pytest.mark.parametrize("at", [1, LONGEST, 2 * LONGEST - 1])
def test_training_by_soft_labels_goes_on_to_the_same_bits(
    tmp_path: Path, path: Path, at: int
) -> None:
    whole, cut, again = fresh(), fresh(), fresh()
    labels = SoftLabels.load(path)
    trained(labels, labels, whole)
    came_to = trained(labels, labels, cut, stop=at)
    assert came_to is not None
    TrainingFile(tmp_path / "file", {}).save(cut, came_to)
    done = TrainingFile(tmp_path / "file", {}).restore(again)
    assert trained(labels, SoftLabels.load(path), again, done) is None
    assert same(whole, again)


def evaluated(path: Path, labels: SoftLabels, *, resume: bool = False) -> list[str]:
    said: list[str] = []
    about = {"command": "the command", "versions": {}}
    file = EvaluationFile(path, {"dataset": "tiny", "seed": 0}, about, resume=resume)
    store = file.of(f"the set, {labels.about}", SET, labels)
    evaluate_set(SET, DATASET, NETWORK, repeats=2, teacher=labels, store=store, device="cpu",
                 say=said.append)  # fmt: skip
    return said


def test_an_evaluation_that_a_signal_stopped_goes_on_by_the_same_labels_alone(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "labels"
    shutil.copy(path, there)
    evaluated(tmp_path / "whole", SoftLabels.load(there))
    for name in ("cut", "other"):
        with monkeypatch.context() as patch:
            patch.setattr(Stack, "__call__", signalling(Stack.__call__, 5, signal.SIGINT))
            with pytest.raises(Interrupted):
                evaluated(tmp_path / name, SoftLabels.load(there))
    said = evaluated(tmp_path / "cut", SoftLabels.load(there), resume=True)
    assert said[1] == f"network 1 of 2 ({NETWORK}): going on in epoch 2"
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    there.unlink()
    said = evaluated(tmp_path / "other", labelled(there, seed=9), resume=True)
    assert "going on" not in " ".join(said)  # what had learned other labels begins anew


def test_an_evaluation_that_is_killed_goes_on_to_the_same_file(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, killed = SoftLabels.load(path), tmp_path / "killed"
    evaluated(tmp_path / "whole", labels)
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, 15, signal.SIGKILL))
        dies(lambda: evaluated(killed, labels))
    kept = json.loads(killed.read_text())["results"][0]["evaluations"][0]["accuracies"]
    assert len(kept) == 1
    evaluated(killed, SoftLabels.load(path), resume=True)
    assert killed.read_bytes() == (tmp_path / "whole").read_bytes()
