"""Hardware counters of our kernels: one call under Nsight Compute (ncu), its kernels as table rows.

python -m bench.gpu.counters --backend triton --shape 2000x50x1024 --csv out/gpu/counters.csv
python -m bench.gpu.counters --show --csv out/gpu/counters.csv

Value and gradient through autograd, after two calls to warm up. The clocks are left alone, so
durations are those of the machine as it is. Exit status 77 means skipped.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.harness.providers import PROVIDERS, ready_call
from bench.harness.records import Row
from bench.harness.shapes import Shape
from bench.harness.tables import bytes_text, seconds_text, table

SKIPPED = 77
METRICS = {
    "seconds": "gpu__time_duration.sum",
    "read_bytes": "dram__bytes_read.sum",
    "written_bytes": "dram__bytes_write.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_hit_percent": "lts__t_sector_hit_rate.pct",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}
COLUMNS = ("backend", "shape", "dtype", "kernel", "grid", "block", *METRICS)
_SECONDS = {"ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "s": 1.0, "second": 1.0}
_UNABLE = ("ERR_NVGPUCTRPERM", "Failed to initialize the profiler", "No kernels were profiled")


def command(args: argparse.Namespace, raw: str) -> list[str]:
    """Give what is run; ncu writes into the file `raw`."""
    program = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    options = ["--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    options += ["--print-units", "base", "--metrics", ",".join(METRICS.values())]
    call = ["--backend", args.backend, "--shape", str(args.shape), "--dtype", args.dtype, "--call"]
    return [program, *options, "--log-file", raw, sys.executable, "-m", "bench.gpu.counters", *call]


def call(backend: str, shape: Shape, dtype: str, device: str) -> None:
    """Make the call that is profiled."""
    contender = ready_call(backend, shape, dtype, "value+gradient", device)
    prepared = contender.prepare()
    if device == "cpu":
        contender.run(prepared)
        return
    torch.cuda.synchronize()
    with torch.cuda.profiler.profile():
        contender.run(prepared)
        torch.cuda.synchronize()


def kernels(text: str) -> list[Row]:
    """Read ncu's raw page: lines of its own, a header, a line of units, a line for each kernel."""
    lines = text.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    found, second = [], 1e-9
    for fields in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        if not fields["ID"].isdigit():  # the units: base ones, whose name has changed over time
            second = _SECONDS.get(fields[METRICS["seconds"]], 1e-9)
            continue
        row: Row = {"kernel": fields["Kernel Name"]}
        row |= {"grid": fields["Grid Size"], "block": fields["Block Size"]}
        for name, metric in METRICS.items():
            row[name] = _number(fields.get(metric))
        if row["seconds"] is not None:
            row["seconds"] *= second
        found.append(row)
    return found


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:  # "n/a"
        return None


def keep(path: Path, call: Row, rows: list[Row]) -> None:
    """Put the rows of a call into the file, in place of an earlier run's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: list[Row] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if not call.items() <= row.items()]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows([*kept, *({**call, **row} for row in rows)])


def show(path: Path) -> str:
    """Lay out the file for people."""
    lines = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            units = {"seconds": seconds_text, "read_bytes": bytes_text, "written_bytes": bytes_text}
            texts = []
            for name in METRICS:
                number = _number(row[name])
                texts.append("-" if number is None else units.get(name, "{:.3g}".format)(number))
            lines.append([row["shape"], row["dtype"], row["kernel"][:40], *texts])
    header = ["shape", "dtype", "kernel", "time", "read", "written"]
    header += ["% of DRAM", "% L2 hits", "% occupied", "registers"]
    return table(header, lines)


def main() -> int:
    """Profile one call and keep its rows, or show what was kept."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.counters", description=__doc__.split("\n\n")[0]
    )
    add = parser.add_argument
    ours = [name for name, provider in PROVIDERS.items() if provider.backend]
    add("--backend", choices=ours, default="triton", help="whose kernels (%(default)s)")
    add("--shape", type=Shape.parse, default=Shape(2000, 50, 1024), help="(2000x50x1024)")
    add("--dtype", default="float32", help="of the features (%(default)s)")
    add("--device", default="cuda", help="of --call (%(default)s)")
    add("--csv", type=Path, default=Path("out/counters.csv"), help="to keep rows in (%(default)s)")
    add("--call", action="store_true", help="only make the call: what ncu starts")
    add("--show", action="store_true", help="only show what is in the file")
    add("--dry-run", action="store_true", help="only make the call and print the command")
    args = parser.parse_args()
    if args.show:
        print(show(args.csv))
        return 0
    if args.call or args.dry_run:
        call(args.backend, args.shape, args.dtype, args.device)
    if args.dry_run:
        print(f"would run: {shlex.join(command(args, 'FILE'))}")
    if args.call or args.dry_run:
        return SKIPPED if args.dry_run else 0
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.csv"
        run = command(args, str(raw))
        if not Path(run[0]).exists():
            print("ncu is not installed here")
            return SKIPPED
        done = subprocess.run(run, capture_output=True, text=True)
        text = raw.read_text() if raw.exists() else ""
    log = text + done.stdout + done.stderr
    rows = kernels(text)
    if not rows:
        unable = [line for line in log.splitlines() if any(part in line for part in _UNABLE)]
        print(unable[0] if unable else log[-4000:])
        return SKIPPED if unable else 1
    keep(args.csv, {"backend": args.backend, "shape": str(args.shape), "dtype": args.dtype}, rows)
    print(", ".join(f"{row['kernel'][:40]} {seconds_text(row['seconds'] or 0.0)}" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
