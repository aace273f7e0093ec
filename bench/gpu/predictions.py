"""What `bench.gpu.model` predicts of the CUDA kernels on an H200, without one.

python -m bench.gpu.predictions

Nothing here was measured on a GPU: the chip is described, and its clock, the rate of a copy and the
time of a launch are assumed.
"""

from __future__ import annotations

import itertools

import torch

from bench.gpu import chips
from bench.gpu.model import Machine, plan_row, predict
from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.race import four_digits
from bench.harness.records import Record, Row, rows_of
from bench.harness.shapes import SETS
from bench.harness.tables import Column, cells, digits, seconds_text, table

H200 = Machine(chips.H200, clock=1.7e9, copy_rate=4.3e12, launch=1.5e-6)
DTYPES = ("float32", "bfloat16")
# Where KL is large, between, and small.
FORMS = {"above": "direct", "between": "balanced", "below": "short series"}
SHAPES = tuple(dict.fromkeys(itertools.chain.from_iterable(SETS.values())))


def rows(machine: Machine = H200) -> list[Row]:
    """A row for each shape of the benchmarks and type: the plan, and the time by the size of KL."""
    found = []
    for dtype, shape in itertools.product(DTYPES, SHAPES):
        features = getattr(torch, dtype)
        expected = {
            where: predict(shape, features, "value+gradient", machine, form)
            for where, form in FORMS.items()
        }
        copy = 2 * shape.elements * features.itemsize / machine.copy_rate
        row: Row = {"shape": str(shape), **shape._asdict(), "dtype": dtype}
        row |= plan_row(expected["above"].plan, machine.chip)
        for name, prediction in expected.items():
            row[f"seconds_{name}"] = four_digits(prediction.seconds)
            row[f"of_copy_{name}"] = four_digits(copy / prediction.seconds)
            row[f"limit_{name}"] = prediction.limit
        found.append(row)
    return found


COLUMNS: list[Column] = [
    ("kind", "plan_kind", str),
    ("threads", "plan_threads", str),
    ("cluster", "plan_cluster", str),
    ("stages", "plan_stages", str),
    ("clusters", "plan_clusters", str),
    ("resident", "plan_resident", str),
    ("KL > 0.25", "seconds_above", seconds_text),
    ("of copy", "of_copy_above", digits(".0%")),
    ("limit", "limit_above", str),
    ("KL > 0.0625", "seconds_between", seconds_text),
    ("of copy", "of_copy_between", digits(".0%")),
    ("limit", "limit_between", str),
    ("KL < 0.006", "seconds_below", seconds_text),
    ("of copy", "of_copy_below", digits(".0%")),
    ("limit", "limit_below", str),
]


def report(record: Record) -> str:
    """Render the record as Markdown."""
    assumed = record.settings
    parts = [
        "Predicted and not measured. Assumed are an H200 with GPCs of "
        f"{', '.join(map(str, assumed['gpcs']))} multiprocessors at {assumed['clock'] / 1e9:.3g} "
        f"GHz, a copy of {assumed['copy_rate'] / 1e12:.3g} TB/s, and a launch of "
        f"{seconds_text(assumed['launch'])}. Value and gradient, replayed from a CUDA graph."
    ]
    for dtype in DTYPES:
        lines = [[row["shape"], *cells(row, COLUMNS)] for row in rows_of(record.rows, dtype=dtype)]
        parts += [f"{dtype}:", table(["C x n x M", *(header for header, *_ in COLUMNS)], lines)]
    return "\n\n".join(parts)


def main() -> None:
    """Predict, print, write."""
    parser = benchmark_parser("bench.gpu.predictions", __doc__, "predictions", on_gpus=False)
    args = parser.parse_args()
    assumed = {
        "gpcs": list(chips.H200_GPCS),
        "clock": H200.clock,
        "copy_rate": H200.copy_rate,
        "launch": H200.launch,
    }
    record = new_record("predictions", args, assumed)
    record.rows = rows()
    finish(record, args, report)


if __name__ == "__main__":
    main()
