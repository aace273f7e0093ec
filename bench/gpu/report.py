"""A GPU's recorded results as tables: every time twice, called from Python and replayed.

    python -m bench.gpu.report out/gpu/gpu-kernels.json

"Replayed" is a call inside a CUDA graph, without Python and with launches as cheap as they get;
"predicted" is what `bench.gpu.model` expects of it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu.replay import LAUNCHES
from bench.harness.providers import PROVIDERS
from bench.harness.race import COPY
from bench.harness.records import Record, Row, machine_line
from bench.harness.tables import bytes_text, geometric_mean, seconds_text, table

LARGE_BYTES = 64 << 20  # of features, from where on bandwidth is judged
SMALL_BYTES = 4 << 20  # of features, up to where launches are what a call costs
EXPLANATION = (
    "Every time stands twice: called from Python, and replayed from a CUDA graph of many calls. "
    f"Bandwidth is judged from {LARGE_BYTES >> 20} MiB of features on, against a copy timed the "
    'same way; "of a tile" are classes that fit the registers of a block, "of a cluster" those '
    "that a plan holds in shared memory. Launches are those of the call and of torch, which makes "
    'the 1 that a backward starts with; "so many empty" is the replayed time of as many launches '
    'of a kernel that writes four bytes. "Predicted" is what `bench.gpu.model` expects of the '
    "replayed call on this machine."
)
CLOCKS = {"called": "", "replayed": "replay_"}  # the fields' prefix
SMALL_SHAPES = ("10x10x512", "100x10x512")  # judged by the launches they take


@dataclass(frozen=True)
class Share:
    """What every large shape of a sort has to reach of a copy's bandwidth."""

    text: str  # which classes these are
    bound: float
    fits: Callable[[Row], bool]


@dataclass(frozen=True)
class Targets:
    """What is asked of a backend's value+gradient."""

    speedups: Mapping[str, float]  # at least, over whom, geometric mean over all shapes
    of_copy: tuple[Share, ...]
    launches: int = 3  # at most, ours of forward and backward together, at small sizes
    empty_launches: float | None = None  # at most, times as many empty ones, of SMALL_SHAPES
    never_slower_than: str | None = None  # another backend, at any shape


def _fits_a_tile(row: Row) -> bool:
    return bool(row["one_tile"])


def _fits_a_cluster(row: Row) -> bool:
    return row.get("plan_kind") == "classes" and row["plan_stages"] > 0


TARGETS = {
    "triton": Targets(
        speedups={"published": 8.0, "compile": 2.5},
        of_copy=(
            Share("of a tile", 0.8, _fits_a_tile),
            Share("beyond a tile", 0.6, lambda row: not _fits_a_tile(row)),
        ),
    ),
    "cuda": Targets(
        speedups={"published": 15.0, "compile": 4.0},
        of_copy=(
            Share("of a cluster", 0.9, _fits_a_cluster),
            Share("beyond a cluster", 0.75, lambda row: not _fits_a_cluster(row)),
        ),
        empty_launches=1.5,
        never_slower_than="triton",
    ),
}


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
            found = _targets_of(rows_of(measured, dtype=dtype), name)
            lines += [[name, dtype, *line] for line in found]
    return table(["backend", "dtype", "target", "asked", "at", *CLOCKS], lines)


def asked_of(name: str, rows: Sequence[Row]) -> Targets:
    """Targets of one of our providers, by the backend that served these rows of its."""
    by_cuda = any("plan_kind" in row for row in rows)
    return TARGETS[PROVIDERS[name].backend or ("cuda" if by_cuda else "triton")]


def _targets_of(rows: list[Row], name: str) -> list[list[str]]:
    mine = rows_of(rows, contender=name)
    asked = asked_of(name, mine)
    lines = []
    for other, bound in asked.speedups.items():
        key = f"speedup_over_{other}"
        verdicts = [_mean_verdict(mine, prefix + key, bound) for prefix in CLOCKS.values()]
        text = f"times {PROVIDERS[other].label}, geometric mean"
        lines.append([text, f">= {bound:g}", f"{len(mine)} shapes", *verdicts])
    large = [row for row in mine if feature_bytes(row) >= LARGE_BYTES]
    for share in asked.of_copy:
        chosen = [row for row in large if share.fits(row)]
        verdicts = [
            _worst_verdict(chosen, f"{prefix}of_copy", share.bound) for prefix in CLOCKS.values()
        ]
        text = f"of a copy's bandwidth, classes {share.text}"
        lines.append([text, f">= {share.bound:.0%}", f"{len(chosen)} large shapes", *verdicts])
    small = [row for row in mine if feature_bytes(row) <= SMALL_BYTES]
    most = max((own_launches(row) or 0 for row in small), default=0)
    verdict = f"{most} {_met(most <= asked.launches)}" if most else "-"
    text = "launches, forward and backward"
    lines.append([text, f"<= {asked.launches}", f"{len(small)} small shapes", verdict, "-"])
    if asked.empty_launches is not None:
        lines.append(_against_empty_launches(rows, mine, asked.empty_launches))
    if asked.never_slower_than is not None:
        lines.append(_against(rows, mine, asked.never_slower_than))
    return lines


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


def _against_empty_launches(rows: list[Row], mine: list[Row], bound: float) -> list[str]:
    found = []
    for row in mine:
        floor = empty_launches(rows, row) if row["shape"] in SMALL_SHAPES else None
        if floor and "replay_seconds" in row:
            found.append((row["replay_seconds"] / floor, row["shape"]))
    verdict = "-"
    if found:
        worst, shape = max(found)
        verdict = f"{worst:.2f} {_met(worst <= bound)} ({shape}; best {min(found)[0]:.2f})"
    at = f"{len(found)} of {', '.join(SMALL_SHAPES)}"
    return ["times as many empty launches", f"<= {bound:g}", at, "-", verdict]


def _against(rows: list[Row], mine: list[Row], other: str) -> list[str]:
    theirs = {
        row["shape"]: row["replay_seconds"]
        for row in rows_of(rows, contender=other)
        if "replay_seconds" in row
    }
    found = [
        (theirs[row["shape"]] / row["replay_seconds"], row["shape"])
        for row in mine
        if "replay_seconds" in row and row["shape"] in theirs
    ]
    verdict = "-"
    if found:
        (worst, shape), (best, _) = min(found), max(found)
        verdict = f"{worst:.3g} {_met(worst >= 1)} ({shape}; best {best:.3g})"
    text = f"times {PROVIDERS[other].label}, worst"
    return [text, ">= 1", f"{len(found)} shapes", "-", verdict]


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
    lines = []
    for row in chosen:
        if row["contender"] not in PROVIDERS and row["contender"] != COPY:
            continue
        provider = PROVIDERS.get(row["contender"])
        memory = row.get("peak_extra_bytes")
        floor = empty_launches(chosen, row)
        lines.append(
            (
                row["shape"],
                provider.label if provider else row["contender"],
                *_both(row, "seconds", seconds_text),
                _text(row, "predicted_seconds", seconds_text),
                _over_prediction(row),
                *_both(row, "speedup_over_published", _three_digits),
                *_both(row, "speedup_over_compile", _three_digits),
                *_both(row, "of_copy", _percent),
                _text(row, "replay_gb_per_s", _three_digits),
                _text(row, "launches", str),
                "-" if floor is None else seconds_text(floor),
                "-"
                if memory is None
                else f"{bytes_text(memory)} ({memory / feature_bytes(row):.2f})",
            )
        )
    header = ["C x n x M", "provider", "called", "replayed", "predicted", "x predicted"]
    header += [
        "x published",
        "replayed",
        "x compile",
        "replayed",
        "of copy",
        "replayed",
        "GB/s",
        "launches",
        "so many empty",
    ]
    return table([*header, "peak memory (/ gradient)"], lines)


def _over_prediction(row: Row) -> str:
    if "predicted_seconds" not in row or "replay_seconds" not in row:
        return "-"
    return f"{row['replay_seconds'] / row['predicted_seconds']:.2f}"


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
        prog="python -m bench.gpu.report", description="Print which targets a record meets."
    )
    parser.add_argument("record", type=Path, help="JSON that bench.kernels wrote")
    record = Record.read(parser.parse_args().record)
    print(f"{machine_line(record.machine)}\n\n{targets(record.rows)}")


if __name__ == "__main__":
    main()
