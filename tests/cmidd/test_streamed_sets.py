"""Sets that stay in their file serve as the same sets in one tensor, in the memory of a batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cmidd.datasets import Dataset, ImageSet
from cmidd.datasets import streamed as of_streamed
from cmidd.datasets.streamed import StreamedImages
from cmidd.ddranking import comparisons
from cmidd.evaluate import NOWHERE, Store, evaluate_set, train_on
from cmidd.evaluation_file import EvaluationFile
from cmidd.exchange import export_png
from cmidd.first_images import first_images, random_real_set
from cmidd.interruption import Interrupted
from cmidd.label_file import checksum_of
from cmidd.options.recipe import Recipe, recipe_of
from cmidd.options.relabel import RelabelOptions
from cmidd.relabelling import Relabelling, relabel
from cmidd.score import score
from cmidd.seeds import generator
from cmidd.stack import Stack
from cmidd.synthetic import SyntheticSet
from cmidd.teaching import Teacher, TeacherNetworks
from tests.support.labels import Recorded
from tests.support.recovered import pixel_set
from tests.support.signals import signalling
from tests.support.tiny import CPU, NETWORK, quiet, tiny_bank, tiny_dataset

DATASET = tiny_dataset()
BATCH_NORM = "resnet18:width=4,norm=batch"
LABELS = Recipe(
    epochs=2, batch_size=5, augmentation="all:zoom_flip", cutmix=0.7, zoom=0.5, optimizer="adamw"
)


class Pair(NamedTuple):
    """The same set as its file is read, and as a tensor."""

    streamed: SyntheticSet
    whole: SyntheticSet


@pytest.fixture(autouse=True)
def _few_are_streamed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_streamed, "SMALL", 0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    real, order = DATASET.train, torch.randperm(18, generator=generator("order"))
    pixels, labels = real.images[order], real.labels[order]
    made = pixel_set(tmp_path_factory.mktemp("pair") / "set", DATASET, pixels, labels, 4)
    assert isinstance(made.source, StreamedImages)
    by_class = labels.argsort(stable=True)
    return Pair(made, replace(made, source=DATASET.to_input(pixels[by_class])))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The states of the networks that are tested."""
    found, accuracy = [], Stack.accuracy

    def noted(stack: Stack, *batches: Any) -> list[float]:
        found.append({name: each.detach().clone() for name, each in stack.state.items()})
        return accuracy(stack, *batches)

    monkeypatch.setattr(Stack, "accuracy", noted)
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def evaluated(
    made: SyntheticSet,
    network: str = NETWORK,
    recipe: Recipe | None = LABELS,
    teacher: Teacher | None = None,
    store: Store = NOWHERE,
    **more: Any,
) -> tuple[float, ...]:
    usual = {"repeats": 2, "together": 1, "device": CPU, "say": quiet, **more}
    (found,) = evaluate_set(
        made, DATASET, network, recipe=recipe, teacher=teacher, store=store, **usual
    )
    return found.accuracies


def labelled(made: SyntheticSet, path: Path) -> Teacher:
    options = RelabelOptions(epochs=2, batch_size=5)
    return relabel(path, Relabelling(made, DATASET, [Recorded()], options, CPU), say=quiet)


def test_images_of_a_set_are_still_one_tensor(pair: Pair) -> None:
    assert isinstance(pair.streamed.images, Tensor)
    assert pair.streamed.images.dtype == torch.float32
    assert torch.equal(pair.streamed.images, pair.whole.images)
    assert pair.streamed.images is pair.streamed.images
    assert torch.equal(pair.streamed.pixels(), pair.whole.pixels())


@pytest.mark.parametrize(("network", "together"), [(NETWORK, 1), (NETWORK, 2), (BATCH_NORM, 1)])
def test_networks_that_learn_labels_are_the_same(
    pair: Pair, trained: list[dict[str, Tensor]], network: str, together: int
) -> None:
    ours, theirs = (evaluated(made, network, together=together) for made in pair)
    assert ours == theirs
    assert len(trained) == 4 // together
    half = len(trained) // 2
    assert all(same(*each) for each in zip(trained[:half], trained[half:], strict=True))
    one, other = (
        train_on(made, DATASET, network, recipe=LABELS, device=CPU).state_dict() for made in pair
    )
    assert same(one, other)


@pytest.mark.parametrize("network", [NETWORK, BATCH_NORM])
def test_networks_that_learn_of_a_teacher_in_the_loop_are_the_same(
    pair: Pair, trained: list[dict[str, Tensor]], network: str
) -> None:
    recipe = replace(recipe_of({}, taught={}), epochs=2, batch_size=5, cutmix=0.7)
    for made in pair:
        evaluated(made, network, recipe, TeacherNetworks([Recorded()]), repeats=1)
    assert same(*trained)


def test_a_label_file_of_one_is_that_of_the_other_and_serves_it(
    tmp_path: Path, pair: Pair, trained: list[dict[str, Tensor]]
) -> None:
    ours, theirs = (labelled(made, tmp_path / f"{k}") for k, made in enumerate(pair))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    assert checksum_of(pair.streamed) == checksum_of(pair.whole)
    evaluated(pair.streamed, recipe=None, teacher=theirs, repeats=1)
    evaluated(pair.whole, recipe=None, teacher=ours, repeats=1)
    assert same(*trained)
    other = replace(pair.streamed, labels=pair.streamed.labels.flip(0))
    with pytest.raises(ValueError, match="has those of another set"):
        evaluated(other, recipe=None, teacher=theirs)


def test_an_evaluation_that_is_cut_goes_on_to_the_same_bits(
    tmp_path: Path, pair: Pair, trained: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(made: SyntheticSet, name: str, *, resume: bool = False) -> bytes:
        path = tmp_path / name
        file = EvaluationFile(path, {"seed": 0}, {"command": "the command"}, resume=resume)
        evaluated(made, BATCH_NORM, store=file.of("set", made))
        return path.read_bytes()

    whole = kept(pair.whole, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, 3, signal.SIGTERM))
        with pytest.raises(Interrupted, match="interrupted after 3 of 8 steps of network 1 of 2"):
            kept(pair.streamed, "cut")
    assert kept(pair.streamed, "cut", resume=True) == whole
    assert all(same(*each) for each in zip(trained[:2], trained[2:], strict=True))
    assert kept(pair.whole, "cut", resume=True) == whole  # which has nothing left to do
    assert len(trained) == 4


def test_scores_and_pictures_are_the_same(tmp_path: Path, pair: Pair) -> None:
    bank = tiny_bank(tmp_path / "bank", DATASET, networks=1, epochs=1)
    ours, theirs = (score(bank, made.source, made.labels) for made in pair)
    assert ours == theirs
    for name, made in zip(("ours", "theirs"), pair, strict=True):
        export_png(made, tmp_path / name)
    files = sorted(file.relative_to(tmp_path / "ours") for file in tmp_path.glob("ours/*/*"))
    assert len(files) == 18
    assert all(
        (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
        for file in files
    )


def test_real_images_are_streamed_and_are_those_that_were_drawn(pair: Pair) -> None:
    expected, labels = first_images(DATASET, 3, "real", 5)
    drawn = random_real_set(DATASET, [3] * 3, 5, "random_real")
    assert isinstance(drawn.source, StreamedImages)
    assert torch.equal(drawn.images, expected)
    assert torch.equal(drawn.labels, labels)
    fewer = random_real_set(DATASET, [3, 0, 1], 5, "ddranking")
    assert torch.equal(fewer.images, expected[[0, 1, 2, 6]])
    assert fewer.labels.tolist() == [0, 0, 0, 2]
    with pytest.raises(ValueError, match="ddranking: class bee of tiny has 6 real images"):
        random_real_set(DATASET, [3, 7, 1], 5, "ddranking")
    compared = comparisons("set", pair.streamed, DATASET, LABELS, real_recipe=LABELS)
    assert all(isinstance(each.images.source, StreamedImages) for each in compared.values())
    assert torch.equal(compared["real"].images.images, DATASET.to_input(DATASET.train.images))


BLACK = ImageSet.from_arrays(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.arange(2), 2)
LARGE = Dataset("large", BLACK, BLACK, ("a", "b"), (0.5,) * 3, (0.25,) * 3, mirror=True)
# Freed memory goes back to the system, so that what is counted is what is used.
USED_ALONE = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
# What a process takes beside mapped files for each use of a large set, at its peak, and what that
# takes as float32. What is taken once for all is taken by a small set first. The process makes no
# other large tensors, whose memory it would keep and take again.
USES = """
import sys, threading, torch
from pathlib import Path
from cmidd.evaluate import evaluate_set
from cmidd.evaluation_file import EvaluationFile
from cmidd.options.recipe import Recipe
from cmidd.options.relabel import RelabelOptions
from cmidd.relabelling import Relabelling, relabel
from cmidd.synthetic import SyntheticSet
from cmidd.networks import build_network, freeze, initialize
from cmidd.datasets import streamed
streamed.SMALL = 0  # so that a small set goes the same way
from tests.cmidd.test_streamed_sets import LARGE as data
folder = Path(sys.argv[1])
spec, recipe = "convnet:width=1,depth=3", Recipe(epochs=1, batch_size=32, augmentation="flip")
teacher = build_network(spec, 3, 64, 2)
initialize(teacher, torch.Generator())
freeze(teacher)
def anonymous():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
def evaluate(made, name):
    file = EvaluationFile(folder / f"{name}.json", {}, {"command": ""}, resume=False)
    store = file.of(name, made)
    evaluate_set(made, data, spec, repeats=1, recipe=recipe, device="cpu", store=store, say=str)
def label(made, name):
    options = RelabelOptions(epochs=1, batch_size=32, augmentation="flip")
    work = Relabelling(made, data, [teacher], options, "cpu")
    relabel(folder / f"{name}.labels", work, say=str)
for name in ("small", "large"):
    before, peaks, done = anonymous(), [0], threading.Event()
    def watch():
        while not done.wait(0.002): peaks[-1] = max(peaks[-1], anonymous() - before)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    made = SyntheticSet.load(folder / name)
    for use in (evaluate, label):
        peaks.append(0)
        use(made, name)
    done.set()
    watcher.join()
print(*peaks, made.source.shape.numel() * 4)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")
def test_memory_follows_a_batch_and_not_the_set(tmp_path: Path) -> None:
    for name, count in (("small", 64), ("large", 4096)):
        pixels = torch.arange(256, dtype=torch.uint8).repeat(count * 48).view(count, 3, 64, 64)
        pixel_set(tmp_path / name, LARGE, pixels, torch.arange(count) % 2, 32)
    done = subprocess.run(
        [sys.executable, "-c", USES, str(tmp_path)], env={**os.environ, **USED_ALONE},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    *peaks, as_float32 = map(int, done.stdout.split())
    assert len(peaks) == 3
    assert as_float32 == 4096 * 3 * 64 * 64 * 4
    assert max(peaks) < as_float32 / 4, peaks  # which the pixels are as they are
