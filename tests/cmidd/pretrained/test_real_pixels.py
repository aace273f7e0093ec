"""Networks that learn from real images which stay pixels are those that learn from all at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cmidd.cli import main
from cmidd.datasets import Dataset, ImageSet, streamed
from cmidd.datasets.streamed import StreamedImages
from cmidd.interruption import Interrupted
from cmidd.pretrained.bank import train_bank
from cmidd.pretrained.experts import train_experts
from cmidd.stack import Stack
from tests.support.signals import signalling
from tests.support.tiny import CPU, NETWORK, expert_options, quiet, tiny_dataset, tiny_options

DATASET = tiny_dataset(channels=3)
CHANGED = {"augmentation": "color_crop_flip", "networks": 2}

Train = Callable[[Path, Path, bool], Any]
"""Fills a file; what it needs is in a folder; whether it goes on."""


def plain(path: Path, folder: Path, resume: bool) -> None:
    options = tiny_options(**CHANGED, cutmix=0.5)
    train_bank(path, DATASET, options, CPU, resume=resume, say=quiet)


def together(path: Path, folder: Path, resume: bool) -> None:
    options = tiny_options(**CHANGED, together=2)
    train_bank(path, DATASET, options, CPU, resume=resume, say=quiet)


def tuned(path: Path, folder: Path, resume: bool) -> None:
    """Whose centroids take a pass over the images."""
    source = folder / "source"
    if not source.exists():
        train_bank(source, DATASET, tiny_options(networks=2), CPU, say=quiet)
    settings = {"objective": "mcmi", "from_bank": source, "mcmi_weight": -0.1, "network": None}
    train_bank(path, DATASET, tiny_options(**CHANGED | settings), CPU, resume=resume, say=quiet)


def experts(path: Path, folder: Path, resume: bool) -> None:
    options = expert_options(experts=2, augmentation="color_crop_flip")
    train_experts(path, DATASET, options, CPU, resume=resume, say=quiet)


@pytest.mark.parametrize("train", [plain, together, tuned, experts])
def test_files_have_the_same_bits_and_go_on_from_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Train
) -> None:
    at_once = DATASET.inputs(DATASET.train.source)
    assert isinstance(at_once, torch.Tensor)
    train(tmp_path / "at once", tmp_path, False)
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, 6, signal.SIGINT))
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", tmp_path, False)
    monkeypatch.setattr(streamed, "SMALL", 0)
    assert isinstance(DATASET.inputs(DATASET.train.source), StreamedImages)
    train(tmp_path / "pixels", tmp_path, False)
    train(tmp_path / "stopped", tmp_path, True)
    expected = (tmp_path / "at once").read_bytes()
    assert (tmp_path / "pixels").read_bytes() == expected
    assert (tmp_path / "stopped").read_bytes() == expected


def test_evaluations_of_real_images_are_the_same_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "--dataset=digits", "--all_real", f"--networks={NETWORK}", "--repeats=1",
             "--random_real=2", "--epochs=2", "--all_real_epochs=1", "--device=cpu"]  # fmt: skip
    main([*words, f"--out={tmp_path / 'at once'}"])
    monkeypatch.setattr(streamed, "SMALL", 0)
    main([*words, f"--out={tmp_path / 'pixels'}"])
    both = [json.loads((tmp_path / name).read_text()) for name in ("at once", "pixels")]
    assert both[0]["results"] == both[1]["results"]
    before = both[0]["results"]
    assert [each["images"] for each in before] == [20, 1438]
    with monkeypatch.context() as patch:  # all that is asked for is known by its checksum
        patch.setattr(Stack, "__call__", None)
        main([*words, f"--out={tmp_path / 'at once'}", "--resume"])
    assert json.loads((tmp_path / "at once").read_text())["results"] == before


def large(images: int) -> Dataset:
    """Images of 32 x 32 in colour, and a few to judge by."""
    pixels = torch.arange(256, dtype=torch.uint8).repeat(12 * images).view(images, 3, 32, 32)
    labels = torch.arange(10).repeat_interleave(images // 10)
    some = slice(None, None, images // 10)
    train, test = (
        ImageSet.from_arrays(pixels[rows], labels[rows], 10) for rows in (slice(None), some)
    )
    return Dataset("large", train, test, tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3, mirror=True)


# Freed memory goes back to the system, so that what is counted is what is used.
USED_ALONE = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
# What a process takes at its peak beside the pixels of a set, for a bank of one network. What is
# taken once for all is taken by a small set first.
PRETRAINING = """
import sys, threading
from pathlib import Path
from cmidd.options.pretrained import BankOptions
from cmidd.pretrained.bank import train_bank
from tests.cmidd.pretrained.test_real_pixels import large
def anonymous():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
options = BankOptions("convnet:width=2,depth=1", networks=1, epochs=1, batch_size=256)
for images in (1000, 12000):
    data, done, peaks = large(images), threading.Event(), [0]
    before = anonymous()
    def watch():
        while not done.wait(0.002): peaks[0] = max(peaks[0], anonymous() - before)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    train_bank(Path(sys.argv[1]) / str(images), data, options, "cpu", say=str)
    done.set()
    watcher.join()
print(*peaks)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")
def test_the_memory_of_training_follows_a_batch(tmp_path: Path) -> None:
    as_float32 = 12000 * 3 * 32 * 32 * 4
    assert as_float32 > streamed.SMALL
    done = subprocess.run(
        [sys.executable, "-c", PRETRAINING, str(tmp_path)], env={**os.environ, **USED_ALONE},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert int(done.stdout) < as_float32 / 8, done.stdout
