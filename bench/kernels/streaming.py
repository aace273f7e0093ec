"""`EmpiricalCMI` over ten million rows: its speed beside `fused_cmi`'s value alone, and its memory.

python -m bench.kernels.streaming

One batch of features is there, and goes through again and again; what a network would take to make
it is not timed. Calls of the value alone and updates of the metric, without and with the sums for
NCMI, take turns. Memory is what the process holds after the first and after the last batch.
"""

from __future__ import annotations

import resource
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.processes import KEPT, apart
from bench.harness.race import Contender, four_digits, race
from bench.harness.records import Record, Row, head_of
from bench.harness.tables import bytes_text, ratio_text, seconds_text, spread_text, table
from cmidd.seeds import generator
from cmikernels import ClassIndex, EmpiricalCMI, fused_cmi

VALUE, METRIC, NCMI = "value alone", "EmpiricalCMI", "EmpiricalCMI with NCMI"
CLASSES, CHANNELS = 10, 512
SIZES = (1024, 8192, 65536)


def batch_of(rows: int) -> tuple[Tensor, Tensor]:
    """Features and labels."""
    drawing = generator("stream", rows)
    features = torch.randn(rows, CHANNELS, generator=drawing)
    return features, torch.randint(CLASSES, (rows,), generator=drawing)


def speeds(rows: int, budget: float, threads: int) -> list[Row]:
    """A row for each contender. Labels are indexed by all of them, as those of a stream are."""
    torch.set_num_threads(threads)
    features, labels = batch_of(rows)
    metrics = {
        METRIC: EmpiricalCMI(CLASSES, CHANNELS),
        NCMI: EmpiricalCMI(CLASSES, CHANNELS, normalize="all"),
    }
    contenders = {VALUE: Contender(lambda _: fused_cmi(features, ClassIndex(labels, CLASSES)))}
    for name, metric in metrics.items():
        contenders[name] = Contender(lambda _, m=metric: m.update(features, labels))  # type: ignore[misc]
    times = race(contenders, budget=budget)
    return [
        {
            "batch": rows, "contender": name, **time.figures(),
            "of_value_rate": four_digits(times[VALUE].median / time.median),
        }
        for name, time in times.items()
    ]  # fmt: skip


def stream(rows: int, batch: int, threads: int) -> list[Row]:
    """A row with the memory of the process after the first and the last of so many rows."""
    torch.set_num_threads(threads)
    features, labels = batch_of(batch)
    metric = EmpiricalCMI(CLASSES, CHANNELS)
    held = []
    for _ in tqdm(range(-(-rows // batch)), unit="batch"):
        metric.update(features, labels)
        held.append(_resident())
    expected = fused_cmi(features.double(), labels)
    return [
        {
            "batch": batch, "rows": int(metric.counts().sum()), "held_first": held[0],
            "held_last": held[-1],
            "error": four_digits(float(metric.compute() / expected - 1)),
        }
    ]  # fmt: skip


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def report(record: Record) -> str:
    """Render the record as Markdown."""
    timed = [row for row in record.rows if "contender" in row]
    lines = [
        [row["batch"], row["contender"], seconds_text(row["seconds"]), spread_text(row),
         ratio_text(row["of_value_rate"])]
        for row in timed
    ]  # fmt: skip
    parts = [
        table(["rows of a batch", "update", "median", "20 .. 80 %", "of the value's speed"], lines)
    ]
    parts += [
        f"{row['rows']:,} rows in batches of {row['batch']:,}: the process holds "
        f"{bytes_text(row['held_first'])} after the first batch and "
        f"{bytes_text(row['held_last'])} after the last; the value is off by "
        f"{abs(row['error']):.0e} from that of one batch in float64."
        for row in record.rows
        if "contender" not in row
    ]
    return "\n\n".join([*head_of(record), *parts])


def main() -> None:
    """Measure, print, write."""
    parser = benchmark_parser("bench.kernels.streaming", __doc__, "streaming", on_gpus=False)
    add = parser.add_argument
    add("--rows", type=int, default=10_000_000, help="of the stream (%(default)s)")
    add("--budget", type=float, default=20.0, help="seconds for each race (%(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    add("--quick", action="store_true", help="a look: few rows")
    args = parser.parse_args()
    sizes, budget, rows = list(SIZES), args.budget, args.rows
    if args.quick:
        sizes, budget, rows = [512], 0.0, 5000
    settings = {"classes": CLASSES, "channels": CHANNELS, "rows": rows, "budget": budget}
    record = new_record("streaming", args, settings)
    for size in sizes:
        record.rows += apart(speeds, size, budget, args.threads, allocator=KEPT)
    record.rows += apart(stream, rows, sizes[-1], args.threads, allocator={})
    finish(record, args, report)


if __name__ == "__main__":
    main()
