"""Recorded results: what a benchmark run is kept as (JSON and CSV), and tables for people.

{"kind": "kernels", "machine": {...}, "settings": {...}, "rows": [{...}, ...]}
"""

from __future__ import annotations

import csv
import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import cmikernels

RESULTS = Path(__file__).parents[1] / "results"

Row = dict[str, Any]

BUSY = 0.05  # of the cores: two threads that meet at a barrier wait for the slower one


@dataclass
class Record:
    """One run of one benchmark."""

    kind: str  # the benchmark's module: "kernels", "accuracy", "loops", ...
    machine: Row
    settings: Row
    rows: list[Row]

    def write(self, name: str, folder: Path = RESULTS, json_only: bool = False) -> Path:
        """Write `<name>.json` and `<name>.csv`; returns the JSON's path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.json"
        head = json.dumps(
            {"kind": self.kind, "machine": self.machine, "settings": self.settings}, indent=1
        )
        # One row a line: diffs stay readable.
        rows = ",\n  ".join(json.dumps(row) for row in self.rows)
        unfinished = path.with_suffix(".part")  # a run that is cut here leaves the last one whole
        unfinished.write_text(head.removesuffix("\n}") + ',\n "rows": [\n  ' + rows + "\n ]\n}\n")
        unfinished.replace(path)
        if not json_only:
            self.write_csv(path.with_suffix(".csv"))
        return path

    def write_csv(self, path: Path) -> None:
        """Write the rows, with every column that any of them has."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))


def machine(device: torch.device | str = "cpu", date: str | None = None) -> Row:
    """Where the numbers were taken, and with which versions."""
    huge_pages = _text("/sys/kernel/mm/transparent_hugepage/enabled")
    on_linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if on_linux else os.cpu_count()
    record: Row = {
        "cpu": _cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "transparent_huge_pages": huge_pages.partition("[")[2].partition("]")[0] or "unknown",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cmikernels": cmikernels.__version__,
        "backends": {
            name: status.detail
            for name, status in cmikernels.available_backends().items()
            if status.available
        },
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record["gpu"] = properties.name
        record["gpu_processors"] = properties.multi_processor_count
        record["gpu_cache_bytes"] = properties.L2_cache_size
        record["cuda"] = torch.version.cuda
    if date is not None:
        record["date"] = date
    return record


def machine_line(record: Row) -> str:
    """Put the machine in one line, for under a table or a plot."""
    where = record.get("gpu") or f"{record['cpu']}, {record['threads']} threads"
    backends = list(record["backends"].items())
    if "gpu" in record:
        backends = [found for found in backends if found[0] not in ("cpu", "reference")]
    parts = [where, f"torch {record['torch']}", f"cmikernels {record['cmikernels']}"]
    parts += [f"{name}: {detail}" for name, detail in backends[:1]]
    if "date" in record:
        parts.append(record["date"])
    return " | ".join(parts)


def head_of(record: Record) -> list[str]:
    """Paragraphs that a report begins with: the machine, and whether others disturbed the times."""
    busy = sum((row.get("others") or 0.0) > BUSY for row in record.rows)
    warning = (
        f"**In {busy} of {len(record.rows)} measurements other processes took more than {BUSY:.0%} "
        "of the cores: measure again on an idle machine.**"
    )
    return [f"`{machine_line(record.machine)}`", *([warning] if busy else [])]


def rows_of(rows: Iterable[Row], /, **wanted: object) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def spread_of(row: Row) -> float:
    """The spread of the row's features; older records have standard normal ones alone."""
    return float(row.get("spread", 1.0))


def feature_bytes(row: Row) -> int:
    """N M s of the row's shape and dtype, which the gradient has as well."""
    size: int = getattr(torch, row["dtype"]).itemsize
    return int(row["classes"] * row["rows"] * row["channels"]) * size


def _cpu_model() -> str:
    found = re.search(r"model name\s*: (.*)", _text("/proc/cpuinfo"))
    return found[1].strip() if found else platform.processor() or platform.machine()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
