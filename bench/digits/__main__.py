"""Does it help? Each method with and without CMI, and real images, on scikit-learn's digits.

For every number of images per class and every seed: distil with and without CMI from the same real
images and with the same draws, train fresh networks on the result and on random real images, and
test them. A seed's number is the mean over its networks; the table has mean and standard deviation
over seeds.

    python -m bench.digits                                        # the README's table: DM
    python -m bench.digits --methods dc dsa mtt --ipc 1 10        # and its other methods
    python -m bench.digits --sweep 0 0.1 1 10 100 --seeds 100 101 # weights of CMI
    python -m bench.digits --methods idc --ipc 1 --seeds 100 101 --settings "" "factor=1" "factor=2"
    python -m bench.digits --methods dm --settings "" "mim_weight=1" --judge test  # and InfoNCE

A sweep judges by the real *training* images, so that the table's test images stay unseen. Settings
of a method, and of InfoNCE beside it, are judged by a fifth of the training images, which are held
out from the start, unless they were chosen already. Runs go into a folder that a second start picks
up where the first was cut.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from bench.digits.cases import has_weight, settings_cases, sweep_cases, table_cases
from bench.digits.report import report
from bench.digits.runs import run_all, settings
from bench.harness.command import benchmark_parser, finish, new_record
from cmidd.methods import METHODS
from cmidd.seeds import seed_of


def main() -> None:
    """Run the table or a sweep."""
    parser = benchmark_parser("bench.digits", __doc__, "digits", on_gpus=False)
    add, shown = parser.add_argument, [*METHODS, "random", "all"]
    add("--methods", nargs="+", default=["dm", "random", "all"], choices=shown)
    add("--ipc", type=int, nargs="+", default=[1, 10, 50])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    sweep = parser.add_mutually_exclusive_group().add_argument
    sweep("--sweep", type=float, nargs="+", metavar="WEIGHT", help="weights of CMI to try")
    sweep("--settings", nargs="+", metavar="'NAME=VALUE ...'", help="settings of methods to try")
    add("--judge", choices=["held out", "test"], help="of --settings (held out)")
    add("--jobs", type=int, default=os.cpu_count(), help="(%(default)s)")
    add("--folder", type=Path, default=Path("out/digits"), help="(%(default)s)")
    given = parser.parse_args()
    if given.judge and not given.settings:
        parser.error("--judge: expected with --settings alone, whose judge it chooses")
    if (given.sweep or given.settings) and not set(given.methods) & METHODS.keys():
        parser.error(f"--methods: expected one of {', '.join(METHODS)} to try settings or weights")
    if given.sweep:
        cases = sweep_cases(given.methods, given.sweep, given.ipc, given.seeds)
    elif given.settings:
        judge = given.judge or "held out"
        cases = settings_cases(given.methods, given.settings, given.ipc, given.seeds, judge)
    else:
        cases = table_cases(given.methods, given.ipc, given.seeds)
        lacking = [name for name in given.methods if name in METHODS and not has_weight(name)]
        if lacking:
            print(f"without CMI, of which --sweep has found no weight yet: {', '.join(lacking)}")
    # Runs of other settings are others, though they have the same names.
    about = settings(given.methods, given.settings or ())
    folder = given.folder / f"{seed_of(json.dumps(about)):016x}"
    if cases[0].judge == "held out":
        folder /= "held out"
    rows = run_all(cases, folder, given.jobs)
    if (given.sweep or given.settings) and given.name == "digits":
        given.name = "digits-sweep"
    options = {name: getattr(given, name) for name in ("methods", "ipc", "seeds")}
    options |= {name: getattr(given, name) for name in ("sweep", "settings") if vars(given)[name]}
    options |= {"judge": ["test"]} if given.judge == "test" else {}
    arguments = " ".join(
        f"--{name} {shlex.join(map(str, values))}" for name, values in options.items()
    )
    record = new_record("digits", given, {**about, "arguments": arguments})
    record.rows = rows
    finish(record, given, report)


if __name__ == "__main__":
    main()
