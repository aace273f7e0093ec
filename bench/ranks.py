"""Time of an update that ranks share, beside one rank alone: each has a core and a thread.

python -m bench.ranks

One rank and several take turns, in fresh processes. Freed memory stays with the process
(`bench.loops`). "sending" is the time in sums over ranks, in which a rank also waits for the
others. Keep the machine idle meanwhile.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.processes import KEPT, allocating
from bench.harness.race import four_digits
from bench.harness.records import Record, Row, head_of
from bench.harness.tables import ratio_text, seconds_text, table
from bench.plain.inputs import random_dataset, write_bank, write_expert
from cmidd import ranks
from cmidd.interruption import Stop
from cmidd.loop import Loop
from cmidd.methods import method_entry
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.run import prepare

CLASSES = 10
STUDENT_STEPS = 5  # of MTT


class Sizes(NamedTuple):
    """How large the loop is."""

    ipc: int
    network: str = "convnet"
    bank: str = "resnet18"
    pixels: int = 32
    batch_real: int = 256
    updates: int = 3  # that are timed, after one that is not


class Timed(NamedTuple):
    """What a rank saw of an update."""

    seconds: float
    sending: float
    sent: int  # bytes that were summed


def on_ranks(count: int, method: str, sizes: Sizes) -> Timed:
    """The medians of so many ranks, of the one that took longest."""
    with (
        allocating(KEPT),
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(count, mp_context=get_context("spawn")) as processes,
    ):
        given = [(rank, count, method, sizes, Path(folder)) for rank in range(count)]
        return max(processes.map(on_one, *zip(*given, strict=True)))


def on_one(rank: int, count: int, method: str, sizes: Sizes, folder: Path) -> Timed:
    """The medians of a rank."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    if count > 1:
        where = f"file://{folder / 'rendezvous'}"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=count)
    loop = _loop(method, sizes, folder)
    sums: list[tuple[float, int]] = []
    add_up = ranks.add_up

    def timed(*tensors: Tensor) -> None:
        began = time.perf_counter()
        add_up(*tensors)
        if count > 1:
            sums.append((time.perf_counter() - began, sum(each.nbytes for each in tensors)))

    ranks.add_up = timed
    found = []
    for k in range(sizes.updates + 1):
        sums.clear()
        began = time.perf_counter()
        ranks.any_of(False)  # as between any two updates
        loop.update(*divmod(k, loop.run.method.updates), logged=False)
        seconds = time.perf_counter() - began
        found.append(Timed(seconds, sum(s for s, _ in sums), sum(b for _, b in sums)))
    ranks.wait()
    if count > 1:
        dist.destroy_process_group()
    columns = zip(*found[1:], strict=True)
    return Timed(*(statistics.median(column) for column in columns))


def _loop(method: str, sizes: Sizes, folder: Path) -> Loop:
    data = random_dataset([2 * sizes.batch_real] * CLASSES, sizes.pixels)
    own = folder / str(ranks.number())
    own.mkdir()
    options: Any = method_entry(method).options
    if method == "mtt":
        experts = own / "experts"
        write_expert(experts, data, sizes.network)
        of_method = options(
            experts, student_steps=STUDENT_STEPS, expert_epochs=1, max_start_epoch=1
        )
    else:
        of_method = options(network=sizes.network, batch_real=sizes.batch_real)
    cmi = CMIOptions()
    if method == "dm":
        write_bank(own / "bank", data, sizes.bank)
        cmi = CMIOptions(bank=own / "bank", cmi_weight=2000.0)
    loop = DistillOptions(sizes.ipc, lr_images=1e-3)
    run = prepare(method, data, loop, of_method, cmi, device="cpu", say=lambda _: None)
    return Loop(run, run.folder(folder / "run"), Stop(), lambda _: None)


def measure(method: str, sizes: Sizes, counts: list[int], rounds: int) -> list[Row]:
    """One rank and several in turn; the medians over rounds."""
    found: dict[int, list[Timed]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            found[count].append(on_ranks(count, method, sizes))
    medians = {
        count: Timed(*(statistics.median(column) for column in zip(*times, strict=True)))
        for count, times in found.items()
    }
    return [
        {
            "method": method, "ipc": sizes.ipc, "ranks": count,
            "seconds": four_digits(timed.seconds), "sending": four_digits(timed.sending),
            "sent": int(timed.sent), "speedup": four_digits(medians[1].seconds / timed.seconds),
            "rounds": [four_digits(each.seconds) for each in found[count]],
        }
        for count, timed in medians.items()
    ]  # fmt: skip


def report(record: Record) -> str:
    """Render the record as Markdown."""
    lines = [
        [
            row["method"].upper(), row["ipc"], row["ranks"], seconds_text(row["seconds"]),
            ratio_text(row["speedup"]), seconds_text(row["sending"]), f"{row['sent'] / 1e6:.2f} MB",
        ]
        for row in record.rows
    ]  # fmt: skip
    header = ["method", "images per class", "ranks", "an update", "x one rank", "sending",
              "summed"]  # fmt: skip
    return "\n\n".join([*head_of(record), table(header, lines)])


def main() -> None:
    """Measure, print, write."""
    parser = benchmark_parser("bench.ranks", __doc__, "ranks", on_gpus=False)
    add = parser.add_argument
    add("--method", nargs="+", default=["dm", "dsa", "mtt"], help="(%(default)s)")
    add("--ipc", type=int, nargs="+", default=[10], help="images per class (%(default)s)")
    add("--ranks", type=int, nargs="+", default=[1, 2], help="how many (%(default)s)")
    add("--rounds", type=int, default=5, help="of one and several in turn (%(default)s)")
    add("--quick", action="store_true", help="a look: tiny networks, ipc 2")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    small = Sizes(2, "convnet:depth=2,width=8", "resnet18:width=4", 16, 8, 1)
    sizes = [small] if args.quick else [Sizes(ipc) for ipc in args.ipc]
    counts = sorted({1, *args.ranks})
    settings = {**sizes[0]._asdict(), "student_steps": STUDENT_STEPS, "memory": "kept"}
    del settings["ipc"]
    record = new_record("ranks", args, settings)
    for method in args.method:
        for each in sizes:
            record.rows += measure(method, each, counts, rounds)
    finish(record, args, report)


if __name__ == "__main__":
    main()
