"""What the commands of all benchmarks take, and how they go on where they were cut and end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from bench.harness.records import RESULTS, Record, Row, machine


def benchmark_parser(
    module: str, doc: str | None, name: str, *, unit: str = "", on_gpus: bool = True
) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes.

    Args:
        module: which is run.
        doc: its docstring, whose first paragraph says what it does.
        name: of the files written.
        unit: what a run is saved after each of, if it may be cut; `new_record` goes on with it.
        on_gpus: whether it runs on them too.
    """
    text = (doc or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=text)
    add = parser.add_argument
    if on_gpus:
        add("--device", default="cpu", help="where it runs: cpu or cuda (%(default)s)")
    add("--name", default=name, help="of the files written (%(default)s)")
    add("--out", type=Path, default=RESULTS, help="folder of the results (%(default)s)")
    add("--date", help="to record with the results (default: none)")
    add("--json-only", action="store_true",
        help="do not write the CSV, which bench.render makes from the JSON")  # fmt: skip
    if unit:
        text = "and go on with what was saved here with the same settings and key, such as a commit"
        add("--resume", metavar="KEY", help=f"save after every {unit}, {text}")
    return parser


def new_record(kind: str, args: argparse.Namespace, settings: Row) -> Record:
    """A record of this machine, with the rows of an earlier run that was cut, if one may go on."""
    record = Record(kind, machine(getattr(args, "device", "cpu"), args.date), settings, [])
    if getattr(args, "resume", None):
        record.settings["key"] = args.resume
        record.rows = saved_rows(args, record)
    return record


def saved_rows(args: argparse.Namespace, record: Record) -> list[Row]:
    """Rows of an earlier run, if it ran on the same machine with the same settings."""
    path: Path = args.out / f"{args.name}.json"
    if not path.exists():
        return []
    saved = Record.read(path)
    machines = [
        {key: value for key, value in where.items() if key not in ("date", "system")}
        for where in (saved.machine, record.machine)
    ]
    wanted = json.loads(json.dumps(record.settings))  # as the file has it: tuples are lists there
    for each in (saved.settings, wanted):
        each.pop("arguments", None)  # what is measured, rather than how
    if machines[0] != machines[1] or saved.settings != wanted:
        print(f"{path} is of another machine, key or other settings; starting over")
        return []
    return saved.rows


def add_rows(record: Record, args: argparse.Namespace, rows: list[Row]) -> None:
    """Add to the record, and save it where the run may go on from there."""
    record.rows += rows
    if args.resume:
        record.write(args.name, args.out, args.json_only)


def finish(record: Record, args: argparse.Namespace, report: Callable[[Record], str]) -> None:
    """Write the record and print it."""
    path = record.write(args.name, args.out, args.json_only)
    print(report(record))
    print("\nwritten:", path)
