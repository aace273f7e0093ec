"""What updates would take on 1, 8 and 64 GPUs: a model, of which nothing was measured.

python -m bench.scaling

Convolutions and products are counted on one image. Their rate, what a sum over ranks takes and what
the host takes are assumptions, which the record holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.race import four_digits
from bench.harness.records import Record, Row
from bench.harness.tables import seconds_text, table
from cmidd.methods.dc import steps
from cmidd.networks import build_network
from cmidd.training import LONG

GPUS = (1, 8, 64)
ASSUMED: dict[str, Any] = {
    "operations_a_second": 150e12,  # of convolutions in TF32, a third of an H200's peak
    "bytes_a_second": {8: 300e9, 64: 40e9},  # of a sum over ranks, within and between machines
    "latency": {8: 20e-6, 64: 50e-6},  # of a sum over ranks
    "host": {"dm": 4e-3, "dsa": 9e-3, "mtt": 2.2e-3},  # an update; of MTT a step of the student
}
BATCH_REAL = BATCH_NET = 256


@dataclass(frozen=True)
class Problem:
    """A dataset, with the networks and settings that are published for it."""

    name: str
    classes: int
    pixels: int
    network: str
    student: dict[int, tuple[int, int]]  # steps of MTT and images in each, by images per class


PROBLEMS = (
    Problem("CIFAR-100", 100, 32, "convnet", {10: (20, 1000), 50: (80, 125)}),
    Problem("ImageNet, 64 x 64", 1000, 64, "convnet:depth=4", {}),
)


@dataclass(frozen=True)
class Work:
    """Of an update: operations, and bytes of each sum over ranks."""

    shared: float
    alone: float  # which every rank does
    pieces: int  # that shared work is cut into: classes, or images
    sums: tuple[int, ...]
    host: float

    def seconds(self, gpus: int) -> dict[str, float]:
        """Of each part."""
        rate = ASSUMED["operations_a_second"]
        largest = -(-self.pieces // gpus) / self.pieces
        sums = 0.0
        if gpus > 1:
            there_and_back = 2 * (gpus - 1) / gpus
            sums = sum(
                there_and_back * size / ASSUMED["bytes_a_second"][gpus] + ASSUMED["latency"][gpus]
                for size in self.sums
            )
        return {
            "shared": self.shared * largest / rate, "alone": self.alone / rate, "sums": sums,
            "host": self.host,
        }  # fmt: skip


@cache
def operations(spec: str, pixels: int, classes: int, what: str) -> float:
    """Of an image: `forward`, to the `image` and back, to the `weights`, or of `second` order."""
    network = build_network(spec, 3, pixels, classes)
    image = torch.randn(1, 3, pixels, pixels)
    weights = {name: p.detach() for name, p in network.named_parameters()}
    image = image.requires_grad_(what in ("image", "second")) * 1  # a leaf, it would not count
    for tensor in weights.values():
        tensor.requires_grad_(what in ("weights", "second"))
    with FlopCounterMode(display=False) as counter:
        found = functional_call(network, weights, (image,)).logsumexp(1).sum()
        leaves = [image] if what == "image" else list(weights.values())
        if what != "forward":
            gradients = torch.autograd.grad(found, leaves, create_graph=what == "second")
        if what == "second":
            norm = torch.stack([each.square().sum() for each in gradients]).sum()
            torch.autograd.grad(norm, [image, *leaves])
    return float(counter.get_total_flops())


def parameters(spec: str, pixels: int, classes: int) -> int:
    """How many a network has."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_network(spec, 3, pixels, classes).parameters())


def work(method: str, problem: Problem, ipc: int) -> Work:
    """Of an update of a method with CMI."""
    classes, pixels, spec = problem.classes, problem.pixels, problem.network
    count = classes * ipc

    def of(what: str, network: str = spec) -> float:
        return operations(network, pixels, classes, what)

    cmi = count * of("image", "resnet18")
    images = 4 * count * 3 * pixels**2
    host = ASSUMED["host"][method]
    if method == "dm":
        shared = classes * BATCH_REAL * of("forward") + count * of("image") + cmi
        return Work(shared, 0, classes, (images,), host)
    if method == "dsa":
        _, epochs = steps(ipc)
        shared = classes * BATCH_REAL * of("weights") + count * of("second") + cmi
        training = epochs * count * of("weights")
        if min(count, BATCH_NET) * 3 * pixels**2 < LONG:
            return Work(shared, training, classes, (images,), host)
        sums = (4 * parameters(spec, pixels, classes),) * (epochs * -(-count // BATCH_NET))
        return Work(shared + training, 0, classes, (*sums, images), host)
    student_steps, batch = problem.student[ipc]
    shared = student_steps * batch * (of("weights") + of("second")) + cmi
    sums = (4 * parameters(spec, pixels, classes),) * 2 * student_steps
    return Work(shared, 0, min(batch, classes), (*sums, images), host * student_steps)


def rows() -> list[Row]:
    """Every method, problem and number of GPUs."""
    found = []
    for problem in PROBLEMS:
        for ipc in (10, 50):
            for method in ("dm", "dsa", "mtt") if problem.student else ("dm", "dsa"):
                alone = 0.0
                for gpus in GPUS:
                    parts = work(method, problem, ipc).seconds(gpus)
                    device = parts["shared"] + parts["alone"] + parts["sums"]
                    seconds = max(device, parts["host"])  # which goes on beside the device
                    alone = alone or seconds
                    bound = max(parts, key=lambda name: parts[name])
                    found.append(
                        {
                            "dataset": problem.name, "ipc": ipc, "method": method, "gpus": gpus,
                            "seconds": four_digits(seconds),
                            "speedup": four_digits(alone / seconds), "bound": bound,
                            **{f"of_{name}": four_digits(s) for name, s in parts.items()},
                        }
                    )  # fmt: skip
    return found


_BOUNDS = {
    "shared": "convolutions, shared",
    "alone": "training of the network, on every rank",
    "sums": "sums over ranks",
    "host": "the host",
}


def report(record: Record) -> str:
    """Render the record as Markdown."""
    lines = [
        [
            row["dataset"], row["ipc"], row["method"].upper() + " + CMI", row["gpus"],
            seconds_text(row["seconds"]), f"{row['speedup']:.1f}", seconds_text(row["of_sums"]),
            _BOUNDS[row["bound"]],
        ]
        for row in record.rows
    ]  # fmt: skip
    header = ["data", "images per class", "method", "GPUs", "an update", "times one GPU", "sums",
              "most of it"]  # fmt: skip
    assumed = [
        [name.replace("_", " "), str(value)] for name, value in record.settings["assumed"].items()
    ]
    return "\n\n".join([table(header, lines), table(["assumed", ""], assumed)])


def main() -> None:
    """Count, print, write."""
    args = benchmark_parser("bench.scaling", __doc__, "scaling", on_gpus=False).parse_args()
    record = new_record("scaling", args, {"assumed": ASSUMED, "batch_real": BATCH_REAL})
    record.rows += rows()
    finish(record, args, report)


if __name__ == "__main__":
    main()
