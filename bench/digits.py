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

import itertools
import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.records import Record
from bench.harness.tables import table
from cmidd.datasets import Dataset, load_dataset
from cmidd.evaluate import evaluate
from cmidd.first_images import first_images
from cmidd.loop import distill
from cmidd.methods import METHODS, cmi_weight, fill_in_published
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.pretrained import BankOptions, ExpertOptions
from cmidd.options.recipe import DSA, Recipe
from cmidd.pretrained.bank import train_bank
from cmidd.pretrained.experts import train_experts
from cmidd.run import prepare
from cmidd.seeds import seed_of
from cmidd.storage.output import write_text
from cmidd.storage.run_folder import RunFolder

CPU = torch.device("cpu")
BANK = BankOptions(networks=10, epochs=20)
# At least 600 steps for every set: one step is an epoch up to 25 images per class, two at 50.
EVALUATION = {1: Recipe(epochs=600, augmentation=DSA), 50: Recipe(epochs=300, augmentation=DSA)}
ALL_REAL = Recipe(epochs=100, augmentation=DSA)
NETWORKS = 2  # trained on every set
EXPERTS = ExpertOptions(experts=10, epochs=15, lr=0.05)
UPDATES = {"dm": 300, "dc": 60, "dsa": 60, "mtt": 80}  # of the images in a run
USUAL_UPDATES = 60
# Options of methods that train a network between updates; what else they have is as published.
SHORTER = {"batch_real": 64, "inner_epochs": 5}


@dataclass(frozen=True)
class Case:
    """One number of the table: a set and the networks trained on it."""

    method: str  # one of METHODS, "random" or "all"
    ipc: int
    weight: float  # of CMI
    seed: int
    judge: str  # "test" or, in a sweep, "train"

    @property
    def name(self) -> str:
        """For its folder."""
        return f"{self.method}-{self.ipc}-{self.weight:g}-{self.seed}-{self.judge}"


def settings() -> dict[str, Any]:
    """What a result depends on."""
    digits = load_dataset("digits")
    published = {
        f"{name} {ipc}": METHODS[name].published(digits, ipc).options
        for name in UPDATES
        for ipc in (1, 10, 50)
    }
    recipes = {str(ipc): asdict(recipe) for ipc, recipe in EVALUATION.items()}
    return {
        "updates": UPDATES, "shorter": SHORTER, "published": published,
        "experts": asdict(EXPERTS), "bank": asdict(BANK),
        "networks": NETWORKS, "evaluation": {**recipes, "all real": asdict(ALL_REAL)},
    }  # fmt: skip


def distilled_and_judged(case: Case, folder: Path) -> dict[str, Any]:
    """Distil and evaluate; what is there already is not done again."""
    dataset = load_dataset("digits")
    recipe = ALL_REAL if case.method == "all" else EVALUATION[1 if case.ipc < 50 else 50]
    if case.method in METHODS:
        images, labels, learned_lr = _distilled(case, dataset, folder)
        recipe = replace(recipe, lr=learned_lr or recipe.lr)
    elif case.method == "random":
        images, labels = first_images(dataset, case.ipc, "real", case.seed)
    else:
        images, labels = dataset.to_input(dataset.train.images), dataset.train.labels
    if case.judge == "train":
        dataset = replace(dataset, test=dataset.train)
    (found,) = evaluate(
        images, labels, dataset, ["convnet"], repeats=NETWORKS, recipe=recipe, seed=case.seed,
        device=CPU, say=_quiet,
    )  # fmt: skip
    return {**asdict(case), "accuracy": found.mean, "accuracies": list(found.accuracies)}


def _options_of(method: str) -> set[str]:
    return {field.name for field in fields(METHODS[method].options)} if method in METHODS else set()


def _distilled(case: Case, dataset: Dataset, folder: Path) -> tuple[Tensor, Tensor, float | None]:
    """Images, labels and, if one was learned, the learning rate to train with."""
    kind = METHODS[case.method].options
    names = _options_of(case.method)
    of_method: dict[str, Any] = SHORTER if "inner_epochs" in names else {}
    if "experts" in names:
        of_method = {**of_method, "experts": folder / "experts.safetensors"}
    loop = DistillOptions(case.ipc, init="real", seed=case.seed)
    _, method_options, _ = fill_in_published(
        case.method, dataset, case.ipc, loop, kind(**of_method)
    )
    updates = UPDATES.get(case.method, USUAL_UPDATES)
    loop = replace(loop, iterations=updates // getattr(method_options, "outer_steps", 1))
    bank = folder / "bank.safetensors" if case.weight else None
    cmi = CMIOptions(bank=bank, cmi_weight=case.weight or None)
    place = folder / f"{case.method}-{case.ipc}-{case.weight:g}-{case.seed}"
    run_folder = RunFolder(place, {"case": place.name}, resume=True)
    run = prepare(case.method, dataset, loop, method_options, cmi, device=CPU, say=_quiet)
    synthetic_set = distill(run, run_folder, say=_quiet)
    return synthetic_set.images, synthetic_set.labels, synthetic_set.record.get("learned_lr")


def _quiet(text: str) -> None:
    """Say nothing: many runs go on at once."""


def table_cases(methods: Sequence[str], ipcs: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """Everything that the README's table shows; the longest first."""
    cases = [Case("all", 0, 0.0, seed, "test") for seed in seeds if "all" in methods]
    chosen = [method for method in methods if method != "all"]
    for ipc, seed, method in itertools.product(sorted(ipcs, reverse=True), seeds, chosen):
        if method in METHODS and ipc > 1:  # with one image per class CMI is 0
            weight = cmi_weight(method, "digits", ipc).value
            cases.append(Case(method, ipc, weight, seed, "test"))
        cases.append(Case(method, ipc, 0.0, seed, "test"))
    return cases


def sweep_cases(
    methods: Sequence[str], weights: Sequence[float], ipcs: Sequence[int], seeds: Sequence[int]
) -> list[Case]:
    """Every weight on every seed, judged by training images."""
    known = [method for method in methods if method in METHODS]
    every = itertools.product(sorted(ipcs, reverse=True), known, weights, seeds)
    return [Case(method, ipc, weight, seed, "train") for ipc, method, weight, seed in every]


def run_all(cases: Sequence[Case], folder: Path, jobs: int) -> list[dict[str, Any]]:
    """All cases, `jobs` at a time, by processes that have one thread each."""
    digits = load_dataset("digits")
    if not (bank := folder / "bank.safetensors").exists():
        train_bank(bank, digits, BANK, CPU, resume=True)
    if any("experts" in _options_of(case.method) for case in cases):
        train_experts(folder / "experts.safetensors", digits, EXPERTS, CPU, resume=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        rows = pool.map(saved_row, cases, itertools.repeat(folder))
        return list(tqdm(rows, total=len(cases), unit="case"))


def saved_row(case: Case, folder: Path) -> dict[str, Any]:
    """The case's row, which is kept in a file."""
    file = folder / f"{case.name}.json"
    if not file.exists():
        write_text(file, json.dumps(distilled_and_judged(case, folder)))
    row: dict[str, Any] = json.loads(file.read_text())
    return row


def report(record: Record) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    groups: dict[tuple[str, int, float], list[float]] = {}
    for row in record.rows:
        key = row["method"], row["ipc"], row["weight"]
        groups.setdefault(key, []).append(row["accuracy"] * 100)
    lines = []
    real = {"random": "random real images", "all": "all real images"}
    for (method, ipc, weight), found in sorted(groups.items(), key=lambda g: (g[0][1], g[0])):
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        name = real.get(method, method.upper()) + (" + CMI" if weight else "")
        accuracy = f"{statistics.mean(found):.1f} ± {spread:.1f}"
        lines.append([ipc or "all", name, f"{weight:g}", accuracy, len(found)])
    shown = table(["images per class", "set", "weight of CMI", "accuracy, %", "seeds"], lines)
    networks = f"{record.settings['networks']} networks on every set."
    return f"{shown}\n\nJudged by the real {record.rows[0]['judge']} images; {networks}"


def main() -> None:
    """Run the table or a sweep."""
    parser = benchmark_parser("bench.digits", __doc__, "digits", on_gpus=False)
    add, shown = parser.add_argument, [*METHODS, "random", "all"]
    add("--methods", nargs="+", default=["dm", "random", "all"], choices=shown)
    add("--ipc", type=int, nargs="+", default=[1, 10, 50])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--sweep", type=float, nargs="+", metavar="WEIGHT")
    add("--jobs", type=int, default=os.cpu_count(), help="(%(default)s)")
    add("--folder", type=Path, default=Path("out/digits"), help="(%(default)s)")
    given = parser.parse_args()
    if given.sweep:
        cases = sweep_cases(given.methods, given.sweep, given.ipc, given.seeds)
    else:
        cases = table_cases(given.methods, given.ipc, given.seeds)
    # Runs of other settings are others, though they have the same names.
    folder = given.folder / f"{seed_of(json.dumps(settings())):016x}"
    rows = run_all(cases, folder, given.jobs)
    if given.sweep and given.name == "digits":
        given.name = "digits-sweep"
    options = {"methods": given.methods, "ipc": given.ipc, "seeds": given.seeds}
    options |= {"sweep": given.sweep} if given.sweep else {}
    arguments = " ".join(f"--{n} {' '.join(map(str, values))}" for n, values in options.items())
    record = new_record("digits", given, {**settings(), "arguments": arguments})
    record.rows = rows
    finish(record, given, report)


if __name__ == "__main__":
    main()
