"""Run a provider under torch.profiler: the top table here, a trace for Perfetto or chrome://tracing.

python -m bench.kernels.profile --provider published --shape 200 50 1024 --trace out/published.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bench.harness.providers import MODES, PROVIDERS, ready_call


def main() -> None:
    """Profile, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels.profile", description=__doc__.split("\n\n")[0]
    )
    add = parser.add_argument
    add("--provider", choices=PROVIDERS, default="cmikernels", help="whom (%(default)s)")
    add("--shape", type=int, nargs=3, default=(200, 50, 1024), metavar=("C", "N", "M"),
        help="classes, rows of each, channels (default: 200 50 1024)")  # fmt: skip
    add("--dtype", default="float32", help="of the features (%(default)s)")
    add("--mode", choices=MODES, default="value+gradient", help="what to ask (%(default)s)")
    add("--calls", type=int, default=5, help="calls to profile, after one to warm up (%(default)s)")
    add("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add("--trace", type=Path, default=Path("out/trace.json"), help="trace to write (%(default)s)")
    args = parser.parse_args()
    contender = ready_call(args.provider, tuple(args.shape), args.dtype, args.mode, args.device)
    activities = [ProfilerActivity.CPU]
    if torch.device(args.device).type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, profile_memory=True) as profiler:
        for _ in range(args.calls):
            prepared = contender.prepare()
            with record_function(f"{args.provider}: {args.mode}"):
                contender.run(prepared)
    sort_key = "self_cuda_time_total" if len(activities) > 1 else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=sort_key, row_limit=15))
    args.trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(args.trace))
    print("written:", args.trace)


if __name__ == "__main__":
    main()
