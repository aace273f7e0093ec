"""What a GPU's recorded results say: every time twice, called from Python and replayed.

    python -m bench.gpu.report out/gpu/gpu-kernels.json

"Replayed" is a call inside a CUDA graph, without Python and with launches as cheap as they get;
"predicted" is what `bench.gpu.model` expects of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.harness.providers import PROVIDERS
from bench.harness.records import (
    Record,
    Row,
    feature_bytes,
    machine_line,
    rows_of,
    spread_of,
)
from bench.harness.tables import (
    Column,
    digits,
    geometric_mean,
    seconds_text,
    table,
)

LARGE_BYTES = 64 << 20  # of features, from where on bandwidth says something
EXPLANATION = (
    "Every time stands twice: called from Python, and replayed from a CUDA graph of many calls. "
    f"Bandwidth is compared from {LARGE_BYTES >> 20} MiB of features on, with a copy timed the "
    "same way; classes fit where a plan holds them in shared memory or, without a plan, the "
    'registers of a block do. "One launch" is a kernel that writes four bytes. "Predicted" is what '
    "`bench.gpu.model` expects of the replayed call on this machine."
)
CLOCKS = {"called": "", "replayed": "replay_"}  # the fields' prefix


def ratios(rows: Sequence[Row]) -> str:
    """Each backend's value+gradient against the others and the copy, by spread and clock."""
    lines = []
    measured = rows_of(rows, group="shapes", mode="value+gradient")
    kinds = dict.fromkeys((row["contender"], row["dtype"], spread_of(row)) for row in measured)
    for name, dtype, spread in kinds:
        if name in PROVIDERS and PROVIDERS[name].ours:
            mine = rows_of(measured, contender=name, dtype=dtype)
            mine = [row for row in mine if spread_of(row) == spread]
            lines += [[name, dtype, f"{spread:g}", *line] for line in _ratios_of(mine, name)]
    return table(["backend", "dtype", "spread", "ratio", "shapes", *CLOCKS], lines)


def _ratios_of(mine: list[Row], name: str) -> list[list[str]]:
    large = [row for row in mine if feature_bytes(row) >= LARGE_BYTES]
    percents = partial(_range, form=".0%")
    faster, of_copy = "times as fast as", "of a copy's bandwidth, large, classes that"
    found = [
        (f"{faster} {PROVIDERS[other].label}, geometric mean", mine, f"speedup_over_{other}", _mean)
        for other in ("published", "compile")
    ]
    found += [
        (f"{of_copy} {what}", [row for row in large if _fits(row) == fits], "of_copy", percents)
        for what, fits in (("fit", True), ("do not", False))
    ]
    if name != "triton":
        found.append((f"{faster} {PROVIDERS['triton'].label}", mine, "speedup_over_triton", _range))
    return [
        [text, str(len(chosen)), *(show(chosen, clock + field) for clock in CLOCKS.values())]
        for text, chosen, field, show in found
    ]


def _fits(row: Row) -> bool:
    if "plan_kind" in row:
        return bool(row["plan_kind"] == "tiny" or row["plan_stages"] > 0)
    return bool(row["one_tile"])


def _mean(rows: list[Row], field: str) -> str:
    """The geometric mean, the least and the most."""
    found = [row[field] for row in rows if field in row]
    if not found:
        return "-"
    return f"{geometric_mean(found):.3g} ({min(found):.3g} to {max(found):.3g})"


def _range(rows: list[Row], field: str, form: str = ".3g") -> str:
    """The least with its shape, and the most."""
    found = sorted((row[field], row["shape"]) for row in rows if field in row)
    if not found:
        return "-"
    return f"{found[0][0]:{form}} ({found[0][1]}) to {found[-1][0]:{form}}"


COLUMNS: list[Column] = [
    ("called", "seconds", seconds_text),
    ("replayed", "replay_seconds", seconds_text),
    ("predicted", "predicted_seconds", seconds_text),
    ("x predicted", "over_prediction", digits(".2f")),
    ("x published", "speedup_over_published", digits(".3g")),
    ("replayed", "replay_speedup_over_published", digits(".3g")),
    ("x compile", "speedup_over_compile", digits(".3g")),
    ("replayed", "replay_speedup_over_compile", digits(".3g")),
    ("of copy", "of_copy", digits(".0%")),
    ("replayed", "replay_of_copy", digits(".0%")),
    ("GB/s", "replay_gb_per_s", digits(".3g")),
    ("peak memory (/ gradient)", "memory", str),
]


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
