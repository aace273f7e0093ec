"""compute-sanitizer over `tests.gpu.sanitize_case`, one tool a run, judged and summed up in a line.

python -m tests.gpu.sanitize memcheck --backend triton --log out/gpu/sanitize.log

initcheck is judged by our kernels alone: torch may copy memory it never filled, and says so by the
names of its own kernels. It watches all kernels nevertheless, because it must see who fills what.
Exit status 77 means skipped.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 9  # exit status for errors found, unlike any of Python's
SKIPPED = 77
_REPORT = re.compile(r"^=+ +Uninitialized .*\n=+ +at (.*)", re.MULTILINE)
_NOT_OURS = re.compile(r"\b(at|c10|cub|thrust)::")
_UNABLE = ("Device not supported", "Unable to find injection library", "No attachable process")


def command(tool: str, backend: str) -> list[str]:
    """Give what is run."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    judge = [] if tool == "initcheck" else ["--error-exitcode", str(FOUND)]
    case = [sys.executable, "-m", "tests.gpu.sanitize_case", "--backend", backend]
    return [program, "--tool", tool, "--print-limit", "1000", *judge, *case]


def uninitialised_reads(log: str) -> tuple[list[str], int]:
    """Kernels of ours that read memory nobody wrote, and how many of torch's do."""
    readers = _REPORT.findall(log)
    ours = [reader for reader in readers if not _NOT_OURS.search(reader)]
    return ours, len(readers) - len(ours)


def main() -> int:
    """Run the tool, keep its log, judge."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.sanitize", description=__doc__.split("\n\n")[0]
    )
    add = parser.add_argument
    add("tool", choices=TOOLS)
    add("--backend", default="triton", help="whose kernels (%(default)s)")
    add("--log", type=Path, default=Path("out/sanitize.log"), help="to append to (%(default)s)")
    add("--dry-run", action="store_true", help="only print the command")
    args = parser.parse_args()
    run = command(args.tool, args.backend)
    # Cached blocks would hide reads past the end of a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    if args.dry_run:
        print(f"would run: PYTORCH_NO_CUDA_MEMORY_CACHING=1 {shlex.join(run)}")
        return SKIPPED
    if not Path(run[0]).exists():
        print("compute-sanitizer is not installed here")
        return SKIPPED
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    log = done.stdout + done.stderr
    args.log.parent.mkdir(parents=True, exist_ok=True)
    with args.log.open("a") as file:
        file.write(f"$ {shlex.join(run)}\n{log}\n")
    if any(text in log for text in _UNABLE):
        print(next(line for line in log.splitlines() if any(text in line for text in _UNABLE)))
        return SKIPPED
    ours, theirs = uninitialised_reads(log)
    verdict = f"{args.tool}: exit status {done.returncode}"
    if args.tool == "initcheck":
        verdict += f", {len(ours)} uninitialised reads by our kernels, {theirs} by torch's own"
    summary = [line.strip("= ") for line in log.splitlines() if "SUMMARY" in line]
    failed = done.returncode != 0 or bool(ours)
    if failed:
        print(log[-4000:])
    print("; ".join([verdict, *summary]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
