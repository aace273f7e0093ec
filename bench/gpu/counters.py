"""Hardware counters of our kernels: one call under Nsight Compute (ncu), its kernels as table rows.

python -m bench.gpu.counters --backend triton --shape 2000x50x1024 --spread 0.1 --out out/gpu
python -m bench.gpu.counters --show --out out/gpu

Value and gradient of float32 through autograd, after two calls to warm up. The clocks are left
alone, so durations are those of the machine as it is. What ncu wrote stays in a file for each call.
Exit status 77 means skipped.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from bench.harness.providers import PROVIDERS, contend, make_losses
from bench.harness.race import random_features
from bench.harness.shapes import Shape
from bench.harness.tables import table

SKIPPED = 77
METRICS = {
    "time": "gpu__time_duration.sum",
    "read": "dram__bytes_read.sum",
    "written": "dram__bytes_write.sum",
    "of DRAM": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "L2 hits": "lts__t_sector_hit_rate.pct",
    "occupied": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}
_UNABLE = ("ERR_NVGPUCTRPERM", "Failed to initialize the profiler", "No kernels were profiled")


def call(backend: str, shape: Shape, spread: float, device: str) -> None:
    """Make the call that is profiled."""
    inputs = random_features(shape, torch.float32, device, spread)[:1]
    losses = make_losses([backend], inputs[0], None, print)  # which calls them once
    contender = contend(losses[backend], "value+gradient", inputs)
    contender.run(contender.prepare())
    prepared = contender.prepare()
    if device == "cpu":
        contender.run(prepared)
        return
    torch.cuda.synchronize()
    with torch.cuda.profiler.profile():
        contender.run(prepared)
        torch.cuda.synchronize()


def kernels(text: str) -> list[dict[str, str]]:
    """Read ncu's raw page: lines of its own, a header, a line of units, a line for each kernel."""
    lines = list(csv.DictReader(line for line in text.splitlines() if line.startswith('"')))
    return [
        {"kernel": line["Kernel Name"]}
        | {name: f"{line[metric]} {lines[0][metric]}" for name, metric in METRICS.items()}
        for line in lines[1:]
    ]


def show(folder: Path) -> str:
    """Lay out what is in the folder for people."""
    found = [
        [path.stem.removeprefix("counters-"), row.pop("kernel")[:40], *row.values()]
        for path in sorted(folder.glob("counters-*.csv"))
        for row in kernels(path.read_text())
    ]
    return table(["call", "kernel", *METRICS], found)


def profile(command: list[str], raw: Path) -> int:
    """Run ncu, which writes into `raw`; the exit status of this program."""
    if not Path(command[0]).exists():
        print("ncu is not installed here")
        return SKIPPED
    raw.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True)
    text = raw.read_text() if raw.exists() else ""
    if rows := kernels(text):
        print(", ".join(f"{row['kernel'][:40]} {row['time']}" for row in rows))
        return 0
    log = text + done.stdout + done.stderr
    unable = [line for line in log.splitlines() if any(part in line for part in _UNABLE)]
    print(unable[0] if unable else log[-4000:])
    return SKIPPED if unable else 1


def main() -> int:
    """Profile one call and keep its rows, or show what was kept."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.counters", description=__doc__.split("\n\n")[0]
    )
    add = parser.add_argument
    ours = [name for name, provider in PROVIDERS.items() if provider.backend]
    add("--backend", choices=ours, default="triton", help="whose kernels (%(default)s)")
    add("--shape", type=Shape.parse, default=Shape(2000, 50, 1024), help="(2000x50x1024)")
    add("--spread", type=float, default=1.0, help="of the features (%(default)s)")
    add("--out", type=Path, default=Path("out"), help="folder of ncu's files (%(default)s)")
    add("--call", action="store_true", help="only make the call: what ncu starts")
    add("--show", action="store_true", help="only show what is in the folder")
    add("--dry-run", action="store_true", help="make the call on the CPU, print the command")
    args = parser.parse_args()
    if args.show:
        print(show(args.out))
        return 0
    if args.call:
        call(args.backend, args.shape, args.spread, "cuda")
        return 0
    suffix = "" if args.spread == 1 else f"-spread{args.spread:g}"
    raw = args.out / f"counters-{args.backend}-{args.shape}{suffix}.csv"
    command = [shutil.which("ncu") or "/usr/local/cuda/bin/ncu", "--log-file", str(raw)]
    command += ["--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    command += ["--metrics", ",".join(METRICS.values()), sys.executable, "-m", "bench.gpu.counters"]
    command += ["--backend", args.backend, "--shape", str(args.shape)]
    command += ["--spread", f"{args.spread:g}", "--call"]
    if args.dry_run:
        call(args.backend, args.shape, args.spread, "cpu")
        print(f"would run: {shlex.join(command)}")
        return SKIPPED
    return profile(command, raw)


if __name__ == "__main__":
    sys.exit(main())
