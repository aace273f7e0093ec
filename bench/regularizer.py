"""Peak memory and time of CMIRegularizer in chunks and all at once, on a ResNet-18 at 32x32.

python -m bench.regularizer

Memory is that of one value and gradient in a fresh process: the most that was ever resident, and
how much of it came after the imports; on a GPU the most that the allocator had handed out. Time is
that of chunked and unchunked calls in turn. A class larger than a chunk goes through the network
twice, the first time without a graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.memory import peak_so_far
from bench.harness.processes import apart
from bench.harness.race import Contender, four_digits, race
from bench.harness.records import Record, Row, head_of
from bench.harness.tables import bytes_text, ratio_text, seconds_text, spread_text, table
from cmidd.networks import build_network, freeze, initialize
from cmidd.seeds import generator
from cmikernels import ClassIndex, CMIRegularizer

PIXELS, CHUNK_SIZE = 32, 50
WAYS = {"chunked": CHUNK_SIZE, "unchunked": None}
MEMORY_OF = [(10, 10), (10, 50), (10, 500), (100, 50)]  # classes x images of each
TIME_OF = [(10, 10), (10, 50), (2, 100)]
# A CPU's memory has no error to recover from: 1000 images of a ResNet-18 keep about 8 GB.
MOST_UNCHUNKED_ON_CPU = 1000

Images = tuple[int, int]


def prepare(
    network: str, images: Images, chunk_size: int | None, device: str
) -> Callable[[object], Tensor]:
    """The call that is measured: value and gradient of the images."""
    classes, images_per_class = images
    frozen = freeze(build_network(network, 3, PIXELS, classes))
    initialize(frozen, generator("network"))
    regularizer = CMIRegularizer(frozen.to(device), chunk_size=chunk_size)
    shape = (classes * images_per_class, 3, PIXELS, PIXELS)
    leaf = torch.randn(shape, generator=generator("images")).to(device).requires_grad_()
    index = ClassIndex(torch.arange(classes, device=device).repeat_interleave(images_per_class))

    def call(_: object) -> Tensor:
        (gradient,) = torch.autograd.grad(regularizer(leaf, index), leaf)
        return gradient

    return call


def peak_bytes(
    network: str, images: Images, chunk_size: int | None, device: str
) -> tuple[int | None, int]:
    """Peak of this process, None if it does not fit, and what of it the imports took."""
    imported = peak_so_far(torch.device(device))
    try:
        prepare(network, images, chunk_size, device)(None)
    except torch.OutOfMemoryError:
        return None, imported
    return peak_so_far(torch.device(device)), imported


def measure_memory(network: str, sizes: Sequence[Images], device: str) -> list[Row]:
    """Every number of images, in chunks and all at once, each in a process of its own."""
    rows: list[Row] = []
    for (classes, each), (name, chunk_size) in itertools.product(sizes, WAYS.items()):
        if chunk_size is None and device == "cpu" and classes * each > MOST_UNCHUNKED_ON_CPU:
            continue
        given = (network, (classes, each), chunk_size, device)
        peak, imported = apart(peak_bytes, *given, allocator={})
        row: Row = {"what": "memory", "images": f"{classes}x{each}", "contender": name}
        rows.append({**row, "peak_bytes": peak, "imported_bytes": imported, "others": None})
    return rows


def measure_time(network: str, sizes: Sequence[Images], budget: float, device: str) -> list[Row]:
    """Chunked and unchunked calls in turn."""
    rows: list[Row] = []
    for classes, each in sizes:
        contenders = {
            name: Contender(prepare(network, (classes, each), chunk_size, device))
            for name, chunk_size in WAYS.items()
        }
        times = race(contenders, budget=budget, device=device)
        for name, time in times.items():
            row: Row = {"what": "time", "images": f"{classes}x{each}", "contender": name}
            ratio = four_digits(time.median / times["unchunked"].median)
            rows.append({**row, **time.figures(), "over_unchunked": ratio})
    return rows


def report(record: Record) -> str:
    """Render the record as Markdown."""
    network, chunk_size = record.settings["network"], record.settings["chunk_size"]
    memory, times = [], []
    for row in record.rows:
        line = [row["images"], row["contender"]]
        if row["what"] == "time":
            line += [seconds_text(row["seconds"]), spread_text(row)]
            times.append([*line, ratio_text(row["over_unchunked"])])
        elif row["peak_bytes"] is None:
            memory.append([*line, "does not fit", ""])
        else:
            beyond = bytes_text(row["peak_bytes"] - row["imported_bytes"])
            memory.append([*line, bytes_text(row["peak_bytes"]), beyond])
    return "\n\n".join(
        [
            *head_of(record),
            f"Peak memory of one value and gradient through `{network}` at {PIXELS}x{PIXELS}, "
            f"{chunk_size} images a chunk:",
            table(["classes x images", "how", "peak", "above the imports"], memory),
            "Time of the same:",
            table(["classes x images", "how", "median", "20 .. 80 %", "over unchunked"], times),
        ]
    )


def main() -> None:
    """Measure, print, write."""
    parser = benchmark_parser("bench.regularizer", __doc__, "regularizer")
    add = parser.add_argument
    add("--budget", type=float, default=60.0, help="seconds for each time (%(default)s)")
    add("--quick", action="store_true", help="a look: a narrow network, few images, few calls")
    args = parser.parse_args()
    network, memory_of, time_of, budget = "resnet18", MEMORY_OF, TIME_OF, args.budget
    if args.quick:
        network, memory_of, time_of, budget = "resnet18:width=8", MEMORY_OF[:2], TIME_OF[:1], 0.0
    settings = {"network": network, "pixels": PIXELS, "chunk_size": CHUNK_SIZE, "budget": budget}
    record = new_record("regularizer", args, settings)
    record.rows = measure_memory(network, memory_of, args.device)
    record.rows += measure_time(network, time_of, budget, args.device)
    finish(record, args, report)


if __name__ == "__main__":
    main()
