"""What each loop asks of a GPU, counted without one: launches, bytes, copies to it, waits for it.

python -m bench.budget

`meter.py` says what is counted, and `loops.py` what runs.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from bench.budget.loops import LOOPS, META, SIZES, TOGETHER, Rig
from bench.budget.report import report, rows_of
from bench.harness.command import benchmark_parser, finish, new_record
from cmidd.networks import cmi_images_per_chunk


def main() -> None:
    """Count, print, write."""
    parser = benchmark_parser("bench.budget", __doc__, "budget", on_gpus=False)
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=[*LOOPS], metavar="NAME",
        help="of those that are counted, such as 'DM, ipc 10' (default: all)")  # fmt: skip
    args = parser.parse_args()
    chunk = cmi_images_per_chunk(META, SIZES.pixels)
    settings = {"sizes": asdict(SIZES), "networks": TOGETHER, "cmi_chunk": chunk}
    record = new_record("budget", args, settings)
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        for loop in tqdm(args.loops, unit="loop"):
            record.rows += rows_of(loop, rig.count(loop))
    finish(record, args, report)


if __name__ == "__main__":
    main()
