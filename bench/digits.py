"""Does it help? Each method with and without CMI, and real images, on scikit-learn's digits.

For every number of images per class and every seed: distil with and without CMI from the same real
images and with the same draws, train fresh networks on the result and on random real images, and
test them. A seed's number is the mean over its networks; the table has mean and standard deviation
over seeds.

    python -m bench.digits                                        # the README's table: DM
    python -m bench.digits --methods dc dsa mtt --ipc 1 10        # and its other methods
    python -m bench.digits --sweep 0 0.1 1 10 100 --seeds 100 101 # weights of CMI

A sweep judges by the real *training* images, so that the table's test images stay unseen. Runs go
into a folder that a second start picks up where the first was cut.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.harness.records import Record, add_output_arguments, machine
from cmidd.augment import DSA
from cmidd.datasets import load_dataset
from cmidd.distill import DistillOptions, distill
from cmidd.evaluate import evaluate
from cmidd.methods import METHODS, cmi_weight, mtt
from cmidd.methods.dc import steps
from cmidd.networks.usual import gradient_network
from cmidd.pretrained.bank import BankOptions, fill
from cmidd.pretrained.experts import ExpertOptions, fill_experts
from cmidd.regularization import CMIOptions
from cmidd.seeds import seed_of
from cmidd.storage.run_folder import RunFolder
from cmidd.storage.tensor_file import write_text
from cmidd.synthetic import start
from cmidd.training import Recipe

CPU = torch.device("cpu")
BANK = BankOptions(networks=10, epochs=20)
# At least 600 steps for every set: one step is an epoch up to 25 images per class, two at 50.
EVALUATION = {1: Recipe(epochs=600, augmentation=DSA), 50: Recipe(epochs=300, augmentation=DSA)}
ALL_REAL = Recipe(epochs=100, augmentation=DSA)
NETWORKS = 2  # trained on every set
EXPERTS = ExpertOptions(experts=10, epochs=15, lr=0.05)
LOOPS: dict[str, dict[str, Any]] = {
    "dm": {"iterations": 300},
    "dc": {"updates": 60, "init": "real"},  # as the others
    "dsa": {"updates": 60},
    "mtt": {"iterations": 80},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "dm": {},
    "dc": {"batch_real": 64, "inner_epochs": 5},
    "dsa": {"batch_real": 64, "inner_epochs": 5},
    "mtt": {},
}
KINDS = {name: METHODS[name].options for name in LOOPS}
SETTINGS = {
    "loops": LOOPS,
    "options": OPTIONS,
    "mtt": {ipc: asdict(mtt.SETTINGS["digits", ipc]) for ipc in (1, 10, 50)},
    "gradient network": gradient_network(8),
    "experts": asdict(EXPERTS),
    "networks": NETWORKS,
    "bank": asdict(BANK),
    "evaluation": {ipc: asdict(recipe) for ipc, recipe in EVALUATION.items()},
    "all_real": asdict(ALL_REAL),
}


@dataclass(frozen=True)
class Case:
    """One number of the table: a set and the networks trained on it."""

    method: str  # one of KINDS, "random" or "all"
    ipc: int
    weight: float  # of CMI
    seed: int
    judge: str  # "test" or, in a sweep, "train"

    @property
    def name(self) -> str:
        """For its folder."""
        return f"{self.method}-{self.ipc}-{self.weight:g}-{self.seed}-{self.judge}"


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Distil and evaluate; what is there already is not done again."""
    dataset = load_dataset("digits")
    recipe = ALL_REAL if case.method == "all" else EVALUATION[1 if case.ipc < 50 else 50]
    if case.method in KINDS:
        loop, of_method = dict(LOOPS[case.method]), dict(OPTIONS[case.method])
        if "updates" in loop:
            loop["iterations"] = loop.pop("updates") // steps(case.ipc)[0]
        options = DistillOptions(case.ipc, seed=case.seed, **loop)
        if case.method == "mtt":
            of_method["experts"] = folder / "experts.safetensors"
        bank = folder / "bank.safetensors" if case.weight else None
        cmi = CMIOptions(bank=bank, cmi_weight=case.weight or None)
        place = folder / f"{case.method}-{case.ipc}-{case.weight:g}-{case.seed}"
        run_folder = RunFolder(place, {"case": place.name}, resume=True)
        kind = KINDS[case.method](**of_method)
        made = distill(case.method, dataset, options, cmi, kind, run_folder, CPU, say=_quiet)
        images, labels = made.images, made.labels
        recipe = replace(recipe, lr=made.record.get("learned_lr", recipe.lr))
    elif case.method == "random":
        images, labels = start(dataset, case.ipc, "real", case.seed)
    else:
        images, labels = dataset.to_input(dataset.train.images), dataset.train.labels
    if case.judge == "train":
        dataset = replace(dataset, test=dataset.train)
    (found,) = evaluate(
        images,
        labels,
        dataset,
        ["convnet"],
        repeats=NETWORKS,
        recipe=recipe,
        seed=case.seed,
        device=CPU,
        say=_quiet,
    )
    return {**asdict(case), "accuracy": found.mean, "accuracies": list(found.accuracies)}


def _quiet(text: str) -> None:
    """Say nothing: many runs go on at once."""


def table_cases(methods: Sequence[str], ipcs: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """Everything that the README's table shows; the longest first."""
    cases = []
    for ipc in sorted(ipcs, reverse=True):
        for seed in seeds:
            for method in methods:
                if method in KINDS and ipc > 1:  # with one image per class CMI is 0
                    weight = cmi_weight(method, "digits", ipc).value
                    cases.append(Case(method, ipc, weight, seed, "test"))
                if method != "all":
                    cases.append(Case(method, ipc, 0.0, seed, "test"))
    of_all = [Case("all", 0, 0.0, seed, "test") for seed in seeds]
    return of_all + cases if "all" in methods else cases


def sweep_cases(
    methods: Sequence[str], weights: Sequence[float], ipcs: Sequence[int], seeds: Sequence[int]
) -> list[Case]:
    """Every weight on every seed, judged by training images."""
    return [
        Case(method, ipc, weight, seed, "train")
        for ipc in sorted(ipcs, reverse=True)
        for method in methods
        if method in KINDS
        for weight in weights
        for seed in seeds
    ]


def run_all(cases: Sequence[Case], folder: Path, jobs: int) -> list[dict[str, Any]]:
    """Each case in a process of its own with one thread, `jobs` at a time."""
    fill_bank(folder)
    if any(case.method == "mtt" for case in cases):
        fill_experts(
            folder / "experts.safetensors", load_dataset("digits"), EXPERTS, CPU, resume=True
        )
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(cases), unit="case") as bar:

        def one(case: Case) -> dict[str, Any]:
            row = _in_process(case, folder)
            bar.update()
            return row

        return list(pool.map(one, cases))


def fill_bank(folder: Path) -> None:
    """The networks of the regulariser, once."""
    path = folder / "bank.safetensors"
    if not path.exists():
        fill(path, load_dataset("digits"), BANK, CPU, resume=True)


def _in_process(case: Case, folder: Path) -> dict[str, Any]:
    done = folder / f"{case.name}.json"
    if not done.exists():
        command = [sys.executable, "-m", "bench.digits", "--case", json.dumps(asdict(case))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        finished = subprocess.run(
            [*command, "--folder", str(folder)], env=environment, capture_output=True, text=True
        )
        if finished.returncode:
            raise RuntimeError(f"{case.name}: {finished.stderr[-2000:]}")
    row: dict[str, Any] = json.loads(done.read_text())
    return row


def report(record: Record) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    groups: dict[tuple[str, int, float], list[float]] = {}
    for row in record.rows:
        key = row["method"], row["ipc"], row["weight"]
        groups.setdefault(key, []).append(row["accuracy"] * 100)
    lines = [
        "| images per class | set | weight of CMI | accuracy, % | seeds |",
        "|---|---|---|---|---|",
    ]
    for (method, ipc, weight), found in sorted(groups.items(), key=lambda g: (g[0][1], g[0])):
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        real = {"random": "random real images", "all": "all real images"}
        name = real.get(method, method.upper())
        name += " + CMI" if weight else ""
        accuracy = f"{statistics.mean(found):.1f} ± {spread:.1f}"
        lines.append(f"| {ipc or 'all'} | {name} | {weight:g} | {accuracy} | {len(found)} |")
    judge = record.rows[0]["judge"]
    networks = record.settings["networks"]
    lines.append(f"\nJudged by the real {judge} images; {networks} networks on every set.")
    return "\n".join(lines)


def main() -> None:
    """Run the table, a sweep, or one case of them."""
    parser = argparse.ArgumentParser(prog="python -m bench.digits", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--methods", nargs="+", default=["dm", "random", "all"], choices=[*KINDS, "random", "all"]
    )
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--sweep", type=float, nargs="+", metavar="WEIGHT")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("out/digits"), help="(%(default)s)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    add_output_arguments(parser, "digits")
    given = parser.parse_args()
    if given.case:
        case = Case(**json.loads(given.case))
        row = run(case, given.folder)
        write_text(given.folder / f"{case.name}.json", json.dumps(row))
        return
    if given.sweep:
        cases = sweep_cases(given.methods, given.sweep, given.ipc, given.seeds)
    else:
        cases = table_cases(given.methods, given.ipc, given.seeds)
    # Runs of other settings are others, though they have the same names.
    folder = given.folder / f"{seed_of(json.dumps(SETTINGS)):016x}"
    rows = run_all(cases, folder, given.jobs)
    name = f"{given.name}-sweep" if given.sweep and given.name == "digits" else given.name
    options = {"methods": given.methods, "ipc": given.ipc, "seeds": given.seeds}
    options |= {"sweep": given.sweep} if given.sweep else {}
    arguments = " ".join(f"--{n} {' '.join(map(str, values))}" for n, values in options.items())
    record = Record("digits", machine(date=given.date), {**SETTINGS, "arguments": arguments}, rows)
    print(report(record))
    print(record.write(name, given.out, given.json_only))


if __name__ == "__main__":
    main()
