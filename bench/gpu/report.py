"""A GPU's recorded results as tables: every time twice, called from Python and replayed.

    python -m bench.gpu.report out/gpu/gpu-kernels.json

"Replayed" is a call inside a CUDA graph, without Python and with launches as cheap as they get;
"predicted" is what `bench.gpu.model` expects of it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench.gpu.replay import LAUNCHES
from bench.harness.providers import PROVIDERS
from bench.harness.race import COPY
from bench.harness.records import Record, Row, feature_bytes, machine_line, rows_of
from bench.harness.tables import (
    Column,
    bytes_text,
    cells,
    digits,
    geometric_mean,
    seconds_text,
    table,
)

LARGE_BYTES = 64 << 20  # of features, from where on bandwidth says something
SMALL_BYTES = 4 << 20  # of features, up to where launches are what a call costs
EXPLANATION = (
    "Every time stands twice: called from Python, and replayed from a CUDA graph of many calls. "
    f"Bandwidth is compared from {LARGE_BYTES >> 20} MiB of features on, with a copy timed the "
    "same way; classes fit where a plan holds them in shared memory or, without a plan, the "
    "registers of a block do. Launches are those of the call and of torch, which makes "
    'the 1 that a backward starts with; "so many empty" is the replayed time of as many launches '
    'of a kernel that writes four bytes. "Predicted" is what `bench.gpu.model` expects of the '
    "replayed call on this machine."
)
CLOCKS = {"called": "", "replayed": "replay_"}  # the fields' prefix

_PERCENT, _TWO_DECIMALS = digits(".0%"), digits(".2f")


def ratios(rows: Sequence[Row]) -> str:
    """Each backend's value+gradient against the others and the floors, by each clock."""
    lines = []
    measured = rows_of(rows, group="shapes", mode="value+gradient")
    for name, dtype in dict.fromkeys((row["contender"], row["dtype"]) for row in measured):
        if name in PROVIDERS and PROVIDERS[name].ours:
            found = _ratios_of(rows_of(measured, dtype=dtype), name)
            lines += [[name, dtype, *line] for line in found]
    return table(["backend", "dtype", "ratio", "shapes", *CLOCKS], lines)


def _ratios_of(rows: list[Row], name: str) -> list[list[str]]:
    mine = rows_of(rows, contender=name)
    lines = []

    def add(text: str, chosen: list[Row], found: Callable[[str], str]) -> None:
        lines.append([text, str(len(chosen)), *map(found, CLOCKS.values())])

    for other in ("published", "compile"):
        key = f"speedup_over_{other}"
        text = f"times as fast as {PROVIDERS[other].label}, geometric mean"
        add(text, mine, lambda clock: _mean(row.get(clock + key) for row in mine))  # noqa: B023
    large = [row for row in mine if feature_bytes(row) >= LARGE_BYTES]
    for what, fits in (("classes that fit", True), ("classes that do not", False)):
        chosen = [row for row in large if _fits(row) == fits]
        add(
            f"of a copy's bandwidth, large, {what}",
            chosen,
            lambda clock: _range(chosen, [row.get(f"{clock}of_copy") for row in chosen], _PERCENT),  # noqa: B023
        )
    small = [row for row in mine if feature_bytes(row) <= SMALL_BYTES]
    most = max((own_launches(row) or 0 for row in small), default=0)
    lines.append(["launches, forward and backward, small", str(len(small)), str(most or "-"), "-"])
    floors = [empty_launches(rows, row) for row in small]
    seconds = [row.get("replay_seconds") for row in small]
    over = [s / f if s and f else None for s, f in zip(seconds, floors, strict=True)]
    lines.append(["times as many empty launches, small", str(len(small)), "-",
                  _range(small, over, _TWO_DECIMALS)])  # fmt: skip
    theirs = {row["shape"]: row for row in rows_of(rows, contender="triton")}
    if name != "triton" and theirs:
        both = [row for row in mine if row["shape"] in theirs]

        def against(clock: str) -> str:
            key = f"{clock}seconds"
            pairs = [(theirs[row["shape"]].get(key), row.get(key)) for row in both]
            return _range(both, [t / m if t and m else None for t, m in pairs], _TWO_DECIMALS)

        add(f"times as fast as {PROVIDERS['triton'].label}", both, against)
    return lines


def _fits(row: Row) -> bool:
    if "plan_kind" in row:
        return bool(row["plan_kind"] == "classes" and row["plan_stages"] > 0)
    return bool(row["one_tile"])


def own_launches(row: Row) -> int | None:
    """Launches of the row but torch's, of the fills by which a backward gets its 1."""
    if row.get("launches") is None:
        return None
    fills = re.findall(r"FillFunctor.*? x(\d+)(?:, |$)", row.get("kernels", ""))
    return int(row["launches"]) - sum(map(int, fills))


def empty_launches(rows: Sequence[Row], row: Row) -> float | None:
    """Seconds of as many empty launches as the row's call takes, replayed in the same race."""
    of_race = rows_of(rows, shape=row["shape"], dtype=row["dtype"], mode=row["mode"])
    count = row.get("launches")
    floors = {
        LAUNCHES[other["contender"]]: float(other["replay_seconds"])
        for other in of_race
        if other["contender"] in LAUNCHES and "replay_seconds" in other
    }
    if count is None or not floors:
        return None
    timed = min(int(count), max(floors))  # further ones follow at the same pace in a graph
    return floors[timed] * int(count) / timed if timed in floors else None


def _mean(factors: Iterable[float | None]) -> str:
    found = [factor for factor in factors if factor is not None]
    if not found:
        return "-"
    return f"{geometric_mean(found):.3g} ({min(found):.3g} to {max(found):.3g})"


def _range(rows: list[Row], numbers: list[float | None], text: Callable[[float], str]) -> str:
    """The least with its shape, and the most."""
    pairs = zip(numbers, rows, strict=True)
    found = sorted((number, row["shape"]) for number, row in pairs if number is not None)
    return f"{text(found[0][0])} ({found[0][1]}) to {text(found[-1][0])}" if found else "-"


_CALLED_AND_REPLAYED = (
    ("called", "seconds", seconds_text),
    ("x published", "speedup_over_published", digits(".3g")),
    ("x compile", "speedup_over_compile", digits(".3g")),
    ("of copy", "of_copy", _PERCENT),
)
_COLUMNS: list[Column] = [
    column
    for header, field, text in _CALLED_AND_REPLAYED
    for column in ((header, field, text), ("replayed", f"replay_{field}", text))
]
_COLUMNS[2:2] = [
    ("predicted", "predicted_seconds", seconds_text),
    ("x predicted", "over_prediction", _TWO_DECIMALS),
]
_COLUMNS += [
    ("GB/s", "replay_gb_per_s", digits(".3g")),
    ("launches", "launches", str),
    ("so many empty", "so_many_empty", seconds_text),
    ("peak memory", "peak_extra_bytes", bytes_text),
    ("/ gradient", "over_gradient", _TWO_DECIMALS),
]


def times_table(rows: Sequence[Row], mode: str, dtype: str) -> str:
    """Every shape and provider of one mode and dtype."""
    chosen = rows_of(rows, mode=mode, dtype=dtype)
    lines = []
    for row in chosen:
        name = row["contender"]
        if name not in PROVIDERS and name != COPY:
            continue
        shown: Row = {**row, "so_many_empty": empty_launches(chosen, row)}
        if row.keys() >= {"predicted_seconds", "replay_seconds"}:
            shown["over_prediction"] = row["replay_seconds"] / row["predicted_seconds"]
        if memory := row.get("peak_extra_bytes"):
            shown["over_gradient"] = memory / feature_bytes(row)
        label = PROVIDERS[name].label if name in PROVIDERS else name
        lines.append([row["shape"], label, *cells(shown, _COLUMNS)])
    return table(["C x n x M", "provider", *(header for header, *_ in _COLUMNS)], lines)


def report(record: Record) -> str:
    """Render all of a record as Markdown."""
    rows = rows_of(record.rows, group="shapes")
    parts = [f"`{machine_line(record.machine)}`", EXPLANATION, ratios(record.rows)]
    for dtype, mode in dict.fromkeys((row["dtype"], row["mode"]) for row in rows):
        parts += [f"### {mode}, {dtype}", times_table(rows, mode, dtype)]
    return "\n\n".join(parts)


def main() -> None:
    """Print the ratios, the shortest account of a record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.report", description="Print a record's ratios."
    )
    parser.add_argument("record", type=Path, help="JSON that bench.kernels wrote")
    record = Record.read(parser.parse_args().record)
    print(f"{machine_line(record.machine)}\n\n{ratios(record.rows)}")


if __name__ == "__main__":
    main()
