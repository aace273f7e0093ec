"""A GPU's recorded results as tables: every time twice, called from Python and replayed.

    python -m bench.gpu_report out/gpu/gpu-kernels.json

"Replayed" is a call inside a CUDA graph, without Python and with launches as cheap as they get.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.harness import COPY
from bench.providers import PROVIDERS
from bench.records import (
    Record,
    Row,
    bytes_text,
    geometric_mean,
    machine_line,
    seconds_text,
    table,
)
from bench.replay import LAUNCHES

LARGE_BYTES = 64 << 20  # of features, from where on bandwidth is judged
SMALL_BYTES = 4 << 20  # of features, up to where launches are what a call costs
EXPLANATION = (
    "Every time stands twice: called from Python, and replayed from a CUDA graph of many calls. "
    f"Bandwidth is judged from {LARGE_BYTES >> 20} MiB of features on, against a copy timed the "
    'same way; "of a tile" are classes that fit the registers of a block. "So many empty" '
    "is the replayed time of as many launches of a kernel that writes four bytes."
)
CLOCKS = {"called": "", "replayed": "replay_"}  # the fields' prefix

# What is asked of value+gradient.
SPEEDUPS = {"published": 8.0, "compile": 2.5}  # at least, geometric mean over all shapes
OF_COPY = {True: 0.8, False: 0.6}  # at least, on every large shape; by whether a class fits a tile
MOST_LAUNCHES = 3  # forward and backward together


def rows_of(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def feature_bytes(row: Row) -> int:
    """N M s of the row's shape and dtype."""
    size: int = getattr(torch, row["dtype"]).itemsize
    return int(row["classes"] * row["rows"] * row["channels"]) * size


def targets(rows: Sequence[Row]) -> str:
    """Every target of every backend and dtype, met or missed by each clock."""
    lines = []
    measured = rows_of(rows, group="shapes", mode="value+gradient")
    for name, dtype in dict.fromkeys((row["contender"], row["dtype"]) for row in measured):
        if name in PROVIDERS and PROVIDERS[name].ours:
            mine = rows_of(measured, contender=name, dtype=dtype)
            lines += [[name, dtype, *line] for line in _targets_of(mine)]
    return table(["backend", "dtype", "target", "at least", "at", *CLOCKS], lines)


def _targets_of(mine: list[Row]) -> list[list[str]]:
    lines = []
    for other, bound in SPEEDUPS.items():
        key = f"speedup_over_{other}"
        verdicts = [_mean_verdict(mine, prefix + key, bound) for prefix in CLOCKS.values()]
        text = f"times {PROVIDERS[other].label}, geometric mean"
        lines.append([text, f"{bound:g}", f"{len(mine)} shapes", *verdicts])
    large = [row for row in mine if feature_bytes(row) >= LARGE_BYTES]
    for one_tile, bound in OF_COPY.items():
        chosen = rows_of(large, one_tile=one_tile)
        verdicts = [_worst_verdict(chosen, f"{prefix}of_copy", bound) for prefix in CLOCKS.values()]
        text = f"of a copy's bandwidth, classes {'of a tile' if one_tile else 'beyond a tile'}"
        lines.append([text, f"{bound:.0%}", f"{len(chosen)} large shapes", *verdicts])
    small = [row for row in mine if feature_bytes(row) <= SMALL_BYTES]
    most = max((row.get("launches") or 0 for row in small), default=0)
    verdict = f"{most} {_met(most <= MOST_LAUNCHES)}" if most else "-"
    text = "launches, forward and backward"
    lines.append([text, f"at most {MOST_LAUNCHES}", f"{len(small)} small shapes", verdict, "-"])
    return lines


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _mean_verdict(rows: list[Row], key: str, bound: float) -> str:
    factors = [row[key] for row in rows if key in row]
    if not factors:
        return "-"
    mean = geometric_mean(factors)
    spread = f"{min(factors):.3g} to {max(factors):.3g}"
    return f"{mean:.3g} {_met(mean >= bound)} ({spread})"


def _worst_verdict(rows: list[Row], key: str, bound: float) -> str:
    found = sorted((row[key], row["shape"]) for row in rows if key in row)
    if not found:
        return "-"
    (worst, shape), (best, _) = found[0], found[-1]
    return f"{worst:.0%} {_met(worst >= bound)} ({shape}; best {best:.0%})"


def times_table(rows: Sequence[Row], mode: str, dtype: str) -> str:
    """Every shape and provider of one mode and dtype."""
    chosen = rows_of(rows, mode=mode, dtype=dtype)
    floors: dict[tuple[str, int | None], Row] = {
        (row["shape"], LAUNCHES[row["contender"]]): row
        for row in chosen
        if row["contender"] in LAUNCHES
    }
    lines = []
    for row in chosen:
        if row["contender"] not in PROVIDERS and row["contender"] != COPY:
            continue
        provider = PROVIDERS.get(row["contender"])
        memory = row.get("peak_extra_bytes")
        floor = floors.get((row["shape"], row.get("launches")), {})
        lines.append(
            (
                row["shape"],
                provider.label if provider else row["contender"],
                *_both(row, "seconds", seconds_text),
                *_both(row, "speedup_over_published", _three_digits),
                *_both(row, "speedup_over_compile", _three_digits),
                *_both(row, "of_copy", _percent),
                _text(row, "replay_gb_per_s", _three_digits),
                _text(row, "launches", str),
                _text(floor, "replay_seconds", seconds_text),
                "-"
                if memory is None
                else f"{bytes_text(memory)} ({memory / feature_bytes(row):.2f})",
            )
        )
    header = ["C x n x M", "provider", "called", "replayed", "x published", "replayed"]
    header += ["x compile", "replayed", "of copy", "replayed", "GB/s", "launches", "so many empty"]
    return table([*header, "peak memory (/ gradient)"], lines)


def _three_digits(number: float) -> str:
    return f"{number:.3g}"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _text(row: Row, key: str, text: Callable[[Any], str]) -> str:
    return "-" if row.get(key) is None else text(row[key])


def _both(row: Row, key: str, text: Callable[[float], str]) -> list[str]:
    return [_text(row, prefix + key, text) for prefix in CLOCKS.values()]


def report(record: Record) -> str:
    """Render all of a record as Markdown."""
    rows = rows_of(record.rows, group="shapes")
    parts = [f"`{machine_line(record.machine)}`", EXPLANATION, targets(record.rows)]
    for dtype, mode in dict.fromkeys((row["dtype"], row["mode"]) for row in rows):
        parts += [f"### {mode}, {dtype}", times_table(rows, mode, dtype)]
    return "\n\n".join(parts)


def main() -> None:
    """Print the targets, the shortest account of a record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_report", description="Print which targets a record meets."
    )
    parser.add_argument("record", type=Path, help="JSON that bench.kernels wrote")
    record = Record.read(parser.parse_args().record)
    print(f"{machine_line(record.machine)}\n\n{targets(record.rows)}")


if __name__ == "__main__":
    main()
