"""A GPU's recorded results as tables: every time twice, called from Python and replayed.

    python -m bench.gpu.report out/gpu/gpu-kernels.json

"Replayed" is a call inside a CUDA graph, without Python and with launches as cheap as they get;
"predicted" is what `bench.gpu.model` expects of it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
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
    theirs = {row["shape"]: row for row in rows_of(rows, contender="triton")}
    mine = [_with_ratios(row, rows, theirs) for row in rows_of(rows, contender=name)]
    large = [row for row in mine if feature_bytes(row) >= LARGE_BYTES]
    small = [row for row in mine if feature_bytes(row) <= SMALL_BYTES]
    faster, of_copy = "times as fast as", "of a copy's bandwidth, large, classes that"
    found = [
        (f"{faster} {PROVIDERS[other].label}, geometric mean", mine, f"speedup_over_{other}", _mean)
        for other in ("published", "compile")
    ]
    found += [
        (f"{of_copy} {what}", [row for row in large if _fits(row) == fits], "of_copy", _percents)
        for what, fits in (("fit", True), ("do not", False))
    ]
    found.append(("launches, forward and backward, small", small, "own_launches", _factors))
    found.append(("times as many empty launches, small", small, "over_empty", _factors))
    if name != "triton":
        found.append((f"{faster} {PROVIDERS['triton'].label}", mine, "over_triton", _factors))
    return [
        [text, str(len(chosen)), *(show(chosen, clock + field) for clock in CLOCKS.values())]
        for text, chosen, field, show in found
    ]


def _with_ratios(row: Row, rows: list[Row], theirs: Mapping[str, Row]) -> Row:
    """The row with more ratios, where they can be told."""
    found: Row = {"own_launches": own_launches(row)}
    floor = empty_launches(rows, row)
    if floor and "replay_seconds" in row:
        found["replay_over_empty"] = row["replay_seconds"] / floor
    for key in (f"{clock}seconds" for clock in CLOCKS.values()):
        if key in row and key in theirs.get(row["shape"], {}):
            ratio = theirs[row["shape"]][key] / row[key]
            found[key.replace("seconds", "over_triton")] = ratio
    return {**row, **found}


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


def _mean(rows: list[Row], field: str) -> str:
    found = [row[field] for row in rows if row.get(field) is not None]
    if not found:
        return "-"
    return f"{geometric_mean(found):.3g} ({min(found):.3g} to {max(found):.3g})"


def _range(rows: list[Row], field: str, form: str) -> str:
    """The least with its shape, and the most."""
    found = sorted((row[field], row["shape"]) for row in rows if row.get(field) is not None)
    if not found:
        return "-"
    return f"{found[0][0]:{form}} ({found[0][1]}) to {found[-1][0]:{form}}"


def _factors(rows: list[Row], field: str) -> str:
    return _range(rows, field, ".3g")


def _percents(rows: list[Row], field: str) -> str:
    return _range(rows, field, ".0%")


_CALLED_AND_REPLAYED = (
    ("called", "seconds", seconds_text),
    ("x published", "speedup_over_published", digits(".3g")),
    ("x compile", "speedup_over_compile", digits(".3g")),
    ("of copy", "of_copy", digits(".0%")),
)
_COLUMNS: list[Column] = [
    column
    for header, field, text in _CALLED_AND_REPLAYED
    for column in ((header, field, text), ("replayed", f"replay_{field}", text))
]
_COLUMNS[2:2] = [
    ("predicted", "predicted_seconds", seconds_text),
    ("x predicted", "over_prediction", digits(".2f")),
]
_COLUMNS += [
    ("GB/s", "replay_gb_per_s", digits(".3g")),
    ("launches", "launches", str),
    ("so many empty", "so_many_empty", seconds_text),
    ("peak memory", "peak_extra_bytes", bytes_text),
    ("/ gradient", "over_gradient", digits(".2f")),
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
