"""Hardware counters of our kernels: one call under Nsight Compute (ncu), its kernels as table rows.

python -m bench.gpu.counters --backend triton --shape 2000x50x1024 --out out/gpu
python -m bench.gpu.counters --show --out out/gpu

Value and gradient through autograd, after two calls to warm up. The clocks are left alone, so
durations are those of the machine as it is. What ncu wrote stays in a file for each call. Exit
status 77 means skipped.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import shutil
import subprocess
import sys
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
_SECONDS = {"ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "s": 1.0, "second": 1.0}
_UNABLE = ("ERR_NVGPUCTRPERM", "Failed to initialize the profiler", "No kernels were profiled")


def file_of(folder: Path, backend: str, shape: Shape, dtype: str) -> Path:
    """What ncu writes of a call."""
    return folder / f"counters-{backend}-{shape}-{dtype}.csv"


def command(args: argparse.Namespace) -> list[str]:
    """Give what is run."""
    program = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    options = ["--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    options += ["--print-units", "base", "--metrics", ",".join(METRICS.values())]
    call = ["--backend", args.backend, "--shape", str(args.shape), "--dtype", args.dtype, "--call"]
    options += ["--log-file", str(file_of(args.out, args.backend, args.shape, args.dtype))]
    return [program, *options, sys.executable, "-m", "bench.gpu.counters", *call]


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


def show(folder: Path) -> str:
    """Lay out what is in the folder for people."""
    units = {"seconds": seconds_text, "read_bytes": bytes_text, "written_bytes": bytes_text}
    lines = []
    for path in sorted(folder.glob("counters-*.csv")):
        for row in kernels(path.read_text()):
            texts = [
                "-" if row[name] is None else units.get(name, "{:.3g}".format)(row[name])
                for name in METRICS
            ]
            lines.append([path.stem.removeprefix("counters-"), row["kernel"][:40], *texts])
    header = ["call", "kernel", "time", "read", "written"]
    return table([*header, "% of DRAM", "% L2 hits", "% occupied", "registers"], lines)


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
    add("--out", type=Path, default=Path("out"), help="folder of ncu's files (%(default)s)")
    add("--call", action="store_true", help="only make the call: what ncu starts")
    add("--show", action="store_true", help="only show what is in the folder")
    add("--dry-run", action="store_true", help="only make the call and print the command")
    args = parser.parse_args()
    run = command(args)
    if args.show:
        print(show(args.out))
        return 0
    if args.call or args.dry_run:
        call(args.backend, args.shape, args.dtype, args.device)
        if args.dry_run:
            print(f"would run: {shlex.join(run)}")
        return SKIPPED if args.dry_run else 0
    if not Path(run[0]).exists():
        print("ncu is not installed here")
        return SKIPPED
    args.out.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(run, capture_output=True, text=True)
    raw = file_of(args.out, args.backend, args.shape, args.dtype)
    text = raw.read_text() if raw.exists() else ""
    rows = kernels(text)
    if not rows:
        log = text + done.stdout + done.stderr
        unable = [line for line in log.splitlines() if any(part in line for part in _UNABLE)]
        print(unable[0] if unable else log[-4000:])
        return SKIPPED if unable else 1
    print(", ".join(f"{row['kernel'][:40]} {seconds_text(row['seconds'] or 0.0)}" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
