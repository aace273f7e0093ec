"""Recovery of many classes: time, peak memory, and how long networks wait for pictures.

python -m bench.scale

A tree of JPEG pictures of many sizes is drawn, in which each class has stripes of its own width,
direction and colours. A teacher is trained on it, images are recovered with CMI from parts of
pictures that RDED selects, the teacher labels what a student sees of them, and students learn these
labels, or the classes alone. Each part is a command of `cmidd` in a process of its own, so its peak
is its own. The recovery is repeated from noise with few steps for other numbers of images per class
and for a part of the classes: its memory follows the batch.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.memory import peak_so_far
from bench.harness.processes import apart
from bench.harness.records import Record, Row, head_of
from bench.harness.tables import bytes_text, seconds_text, table
from cmidd.cli import main as cmidd
from cmidd.datasets.streamed import Images, one_after_another

TESTS = 5  # pictures of each class to test on


class Part(NamedTuple):
    """What a command took."""

    seconds: float
    peak: int
    waited: float
    """Seconds in which networks waited for pictures."""


def draw_tree(folder: Path, classes: int, pictures: int, size: int) -> int:
    """Pictures with sides around `size`, in `train` and `test`; their bytes in all."""
    total = 0
    for c in range(classes):
        total += draw_class(folder, c, classes, pictures, size)
    return total


def draw_class(folder: Path, c: int, classes: int, pictures: int, size: int) -> int:
    """Stripes of the class's direction, width and colours, with another phase and noise in each."""
    from PIL import Image

    of_class, draws = np.random.default_rng(c), np.random.default_rng(classes + c)
    angle, waves = math.pi / 2 * c / classes, 2 + 5 * of_class.random()  # none mirrors another
    colours = of_class.uniform(40, 215, (2, 3))
    total = 0
    for part, count in (("train", pictures), ("test", TESTS)):
        place = folder / part / f"class{c:04d}"
        place.mkdir(parents=True)
        for k in range(count):
            high, wide = (int(size * share) for share in draws.uniform(1, 1.8, 2))
            rows, columns = np.mgrid[:high, :wide] / min(high, wide)
            along = rows * math.sin(angle) + columns * math.cos(angle)
            share = (1 + np.sin(2 * math.pi * (waves * along + draws.random()))) / 2
            pixels = colours[0] + share[..., None] * (colours[1] - colours[0])
            pixels = pixels * draws.uniform(0.8, 1.2) + draws.normal(0, 12, (high, wide, 1))
            path = place / f"{k:05d}.jpg"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)
            total += path.stat().st_size
    return total


def command(words: list[str]) -> Part:
    """Run a command of `cmidd` here."""
    waited = 0.0

    def timed(images: Images, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        nonlocal waited
        coming = one_after_another(images, batches)
        while True:
            began = time.perf_counter()
            pixels = next(coming, None)
            waited += time.perf_counter() - began
            if pixels is None:
                return
            yield pixels

    began = time.perf_counter()
    replace_in_cmidd(one_after_another, timed)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            cmidd(words)
    finally:
        replace_in_cmidd(timed, one_after_another)
    device = "cuda" if "--device=cuda" in words else "cpu"
    return Part(time.perf_counter() - began, peak_so_far(torch.device(device)), waited)


def replace_in_cmidd(function: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Let every module of cmidd that has a function by its name have another."""
    name = one_after_another.__name__
    for module in list(sys.modules.values()):
        if module.__name__.startswith("cmidd.") and vars(module).get(name) is function:
            vars(module)[name] = other


def measure(args: Namespace, folder: Path) -> list[Row]:
    """A row for each part."""
    tree, half = folder / "tree", folder / "half"
    began = time.perf_counter()
    size = draw_tree(tree, args.classes, args.pictures, args.pixels)
    rows: list[Row] = [
        {
            "part": "draw the pictures", "classes": args.classes,
            "images": args.classes * args.pictures, "seconds": time.perf_counter() - began,
            "disk": size,
        }
    ]  # fmt: skip
    for part in ("train", "test"):
        (half / part).mkdir(parents=True)
        for place in sorted((tree / part).iterdir())[: max(2, args.classes // 2)]:
            os.symlink(place, half / part / place.name)
    teachers = {}
    for data in (tree, half):
        teachers[data] = folder / f"{data.name}.safetensors"
        whole = data == tree
        found = apart(command, [
            *["pretrain", *of_data(args, data), f"--network={args.network}", "--networks=1"],
            *[f"--epochs={args.epochs if whole else 1}", f"--lr={args.lr}", "--schedule=cosine"],
            *["--augmentation=all:crop_flip", "--batch_size=128", "--keep_decoded=0"],
            f"--out={teachers[data]}",
        ], allocator={})  # fmt: skip
        if whole:
            (accuracy,) = load_file(teachers[data])["accuracy"].tolist()
            rows.append(row("pretrain", args.classes, None, found, accuracy=accuracy))
    first, *others = args.ipc
    cases = [(tree, first, args.iterations, "rded")]
    cases += [(tree, ipc, args.few, "noise") for ipc in (first, *others)]
    cases.append((half, first, args.few, "noise"))
    made = []
    for data, ipc, iterations, start in cases:
        out = folder / f"{data.name}-{ipc}-{iterations}-{start}"
        made.append(out)
        classes = len(list((data / "train").iterdir()))
        found = apart(command, [
            *["recover", *of_data(args, data), f"--teacher={teachers[data]}", f"--ipc={ipc}"],
            *[f"--iterations={iterations}", f"--batch_size={args.batch_size}", f"--start={start}"],
            *["--augmentation=all:zoom_flip", f"--cmi_weight={args.cmi_weight}", f"--out={out}"],
        ], allocator={})  # fmt: skip
        result = out / "result.safetensors"
        rows.append(
            row(f"recover from {start}", classes, ipc, found, iterations=iterations,
                disk=result.stat().st_size)
        )  # fmt: skip
    return [*rows, *learning(args, tree, teachers[tree], made[0])]


def learning(args: Namespace, data: Path, teacher: Path, made: Path) -> Iterator[Row]:
    """Rows of soft labels, and of students that learn from a recovered set with and without."""
    labels = made / "labels.safetensors"
    drawn = [f"--epochs={args.student_epochs}", "--batch_size=100"]
    found = apart(command, [
        *["relabel", str(made), f"--teacher={teacher}", *of_data(args, data), *drawn],
        f"--out={labels}",
    ], allocator={})  # fmt: skip
    about = args.classes, args.ipc[0]
    yield row("relabel", *about, found, disk=labels.stat().st_size)
    taught = {
        "evaluate": [f"--random_real={args.ipc[0]}", *drawn],
        "evaluate with soft labels": [f"--labels={labels}"],
    }
    for part, options in taught.items():
        out = made / f"{part}.json"
        found = apart(command, [
            *["evaluate", str(made), *of_data(args, data), "--repeats=1", *options, f"--out={out}"]
        ], allocator={})  # fmt: skip
        results = json.loads(out.read_text())["results"]
        reached = [result["evaluations"][0]["mean"] for result in results]
        names = ("accuracy", "accuracy_of_real")
        yield row(part, *about, found, **dict(zip(names, reached, strict=False)))


def of_data(args: Namespace, data: Path) -> list[str]:
    """The options of a command that name the pictures."""
    return [f"--dataset=folder:{data}", f"--size={args.pixels}", f"--device={args.device}"]


def row(name: str, classes: int, ipc: int | None, part: Part, **more: Any) -> Row:
    """What is kept of a part."""
    return {
        "part": name, "classes": classes, "ipc": ipc, "seconds": part.seconds,
        "peak": part.peak, "idle": part.waited / part.seconds, **more,
    }  # fmt: skip


def report(record: Record) -> str:
    """Render the record as Markdown."""
    lines = []
    for each in record.rows:
        share = each.get("idle")
        accuracy = [
            f"{each[name]:.1%}{text}"
            for name, text in (("accuracy", ""), ("accuracy_of_real", " random real"))
            if each.get(name) is not None
        ]
        lines.append(
            [
                each["part"], each["classes"], each.get("ipc") or "", each.get("iterations", ""),
                seconds_text(each["seconds"]),
                bytes_text(each["peak"]) if "peak" in each else "",
                "" if share is None else f"{share:.1%}",
                bytes_text(each["disk"]) if "disk" in each else "", ", ".join(accuracy),
            ]
        )  # fmt: skip
    header = ["part", "classes", "ipc", "steps", "time", "peak memory", "waiting for pictures",
              "disk", "accuracy"]  # fmt: skip
    return "\n\n".join([*head_of(record), table(header, lines)])


def main() -> None:
    """Measure, print, write."""
    parser = benchmark_parser("bench.scale", __doc__, "scale")
    add = parser.add_argument
    add("--classes", type=int, default=200, help="of the tree (%(default)s)")
    add("--pictures", type=int, default=100, help="of each class to train on (%(default)s)")
    add("--pixels", type=int, default=32, help="of a side, as networks see them (%(default)s)")
    add("--network", default="resnet18:width=16,norm=batch", help="teacher (%(default)s)")
    add("--epochs", type=int, default=10, help="of the teacher (%(default)s)")
    add("--lr", type=float, default=0.05, help="of the teacher (%(default)s)")
    add("--ipc", type=int, nargs="+", default=[10, 50], help="images per class (%(default)s)")
    add("--iterations", type=int, default=100, help="of the first recovery (%(default)s)")
    add("--few", type=int, default=2, help="steps of those that measure memory (%(default)s)")
    add("--batch-size", type=int, default=100, help="of recovery (%(default)s)")
    add("--cmi-weight", type=float, default=10.0, help="weight of CMI (%(default)s)")
    add("--student-epochs", type=int, default=30, help="of the student (%(default)s)")
    add("--folder", type=Path, help="to work in (default: a new one, which is deleted)")
    args = parser.parse_args()
    names = ("pictures", "pixels", "network", "epochs", "batch_size", "cmi_weight",
             "student_epochs")  # fmt: skip
    record = new_record("scale", args, {name: getattr(args, name) for name in names})
    if args.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            record.rows = measure(args, Path(folder))
    else:
        record.rows = measure(args, args.folder)
    finish(record, args, report)


if __name__ == "__main__":
    main()
