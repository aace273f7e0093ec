"""Recorded results into bench/README.md: every number there comes out of bench/results.

python -m bench.render
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import digits, regularizer
from bench.harness import plots
from bench.harness.records import RESULTS, Record
from bench.kernels import __main__ as kernels
from bench.kernels import accuracy, overhead
from bench.loops import report as loop_report

REPORTS = {
    "kernels": kernels.report,
    "accuracy": accuracy.report,
    "overhead": overhead.report,
    "loops": loop_report.report,
    "regularizer": regularizer.report,
    "digits": digits.report,
}
INTRODUCTION = """# Benchmarks

Written by `python -m bench.render` from `bench/results/*.json`; run the command under a heading to
take its numbers anew. Every ratio compares contenders that took turns in one process.
"published" is the published expression in eager torch, "exp" one `torch.exp` over the features,
"copy" a copy of them into memory already there; bytes moved are `N M s` for the value and `2 N M s`
with the gradient. Peak memory is what one value+gradient call needs beyond the features.
"""


def section(path: Path) -> str:
    """One result file: heading, tables; its CSV and pictures, which are made anew."""
    record = Record.read(path)
    record.write_csv(path.with_suffix(".csv"))
    method = record.settings.get("method", "dm")  # of the loops
    command = f"python -m bench.{record.kind} --name {path.stem}"
    if method != "dm":
        command += f" --method {method}"
    if arguments := record.settings.get("arguments"):
        command += f" {arguments}"
    if "gpu" in record.machine:
        command = "bench/gpu/suite.sh --part bench"
    parts = [f"## {path.stem}", f"`{command}`"]
    parts.append(REPORTS[record.kind](record))
    pictures = []
    if record.kind == "kernels":
        pictures = kernels.pictures(record, path.with_suffix(""))
    elif record.kind == "accuracy":
        pictures = [plots.accuracy(record, path.with_suffix(".png"))]
    parts += [f"![{picture.stem}](results/{picture.name})" for picture in pictures]
    return "\n\n".join(parts)


def main() -> None:
    """Write the README."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.render", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    folder: Path = parser.parse_args().results
    sections = [section(path) for path in sorted(folder.glob("*.json"))]
    readme = folder.parent / "README.md"
    readme.write_text("\n\n".join([INTRODUCTION.rstrip(), *sections]) + "\n")
    print("written:", readme)


if __name__ == "__main__":
    main()
