"""FashionMNIST: each method with and without CMI, beside what is published.

Every number comes from commands of `cmidd`, which go on where they were cut: stop this at any time
and start it again. Rows that an earlier run recorded stay, also where its folder is gone.

    python -m bench.fashion                          # the table
    python -m bench.fashion --rows cmi               # a sweep, judged by held-out training images
    python -m bench.fashion --only "dm-10*"          # cases by their names, which are folders
    python -m bench.fashion --minutes 60             # whatever an hour is enough for
"""

from __future__ import annotations

import signal
import threading
from fnmatch import fnmatch
from pathlib import Path

import torch

from bench.fashion.cases import SETTINGS, SWEEPS, TABLE, Case
from bench.fashion.drawing import draw_images
from bench.fashion.report import report
from bench.fashion.steps import Runner, row_of, steps_of
from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.records import Record, Row


def rows_found(cases: list[Case], folder: Path) -> list[Row]:
    """What the folder has of these cases."""
    found = [row_of(case, stage, folder) for case in cases for stage in case.stages]
    return [row for row in found if row is not None]


def with_recorded(rows: list[Row], recorded: list[Row]) -> list[Row]:
    """The rows, and those recorded before of which there is nothing better now."""
    best: dict[tuple[object, ...], Row] = {}
    for row in [*recorded, *rows]:
        key = tuple(row.get(name) for name in (*TABLE[0].about(), "iterations"))
        if len(row["accuracies"]) >= len(best.get(key, {"accuracies": []})["accuracies"]):
            best[key] = row
    order = ("ipc", "method", "weight", "label", "seed", "iterations")
    return sorted(best.values(), key=lambda row: [(str(row[name]).zfill(9)) for name in order])


def main() -> None:
    """Run the table or a sweep."""
    parser = benchmark_parser("bench.fashion", __doc__, "fashion", on_gpus=False)
    add = parser.add_argument
    add("--rows", default="table", choices=["table", *SWEEPS], help="what to run (%(default)s)")
    add("--only", nargs="+", metavar="NAME", default=["*"], help="cases of it, such as dm-10*")
    add("--jobs", type=int, default=2, help="commands at a time, one thread each (%(default)s)")
    add("--minutes", type=float, help="stop after so long; what is under way is kept")
    add("--no-run", action="store_true", help="record what is there already")
    add("--images", type=Path, metavar="PATH", help="also draw what was distilled, one a class")
    add("--folder", type=Path, default=Path("out/fashion"), help="(%(default)s)")
    given = parser.parse_args()
    every = TABLE if given.rows == "table" else SWEEPS[given.rows]
    if given.rows != "table" and given.name == "fashion":
        given.name = f"fashion-{given.rows}"
    cases = [case for case in every if any(fnmatch(case.name, name) for name in given.only)]
    if not cases:
        parser.error(f"--only: expected some of {', '.join(case.name for case in every)}")
    runner = Runner(given.folder, given.jobs)
    if not given.no_run:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda *_: runner.stop())
        if given.minutes is not None:
            timer = threading.Timer(60 * given.minutes, runner.stop)
            timer.daemon = True
            timer.start()
        runner.run(steps_of(cases, given.folder))
    if given.jobs > 1:
        torch.set_num_threads(1)  # as in the commands that were run, for the record
    settings = {"rows": given.rows, **SETTINGS}
    arguments = "" if given.rows == "table" else f"--rows {given.rows}"
    record = new_record("fashion", given, {**settings, "arguments": arguments})
    path = given.out / f"{given.name}.json"
    recorded = Record.read(path).rows if path.exists() else []
    record.rows = with_recorded(rows_found(list(every), given.folder), recorded)
    finish(record, given, report)
    if given.images is not None:
        print(
            "drawn:",
            draw_images([case for case in cases if case.ipc == 1], given.folder, given.images),
        )


if __name__ == "__main__":
    main()
