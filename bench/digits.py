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

import ast
import itertools
import json
import os
import shlex
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
from cmidd.options.infonce import InfoNCEOptions
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
MATCHED = replace(BANK, network="convnet:depth=2")  # in whose features NCFM matches
# At least 600 steps for every set: one step is an epoch up to 25 images per class, two at 50.
EVALUATION = {1: Recipe(epochs=600, augmentation=DSA), 50: Recipe(epochs=300, augmentation=DSA)}
ALL_REAL = Recipe(epochs=100, augmentation=DSA)
NETWORKS = 2  # trained on every set
EXPERTS = ExpertOptions(experts=10, epochs=15, lr=0.05)
# Updates of the images in a run; a method that is not here has as many as it is published with.
UPDATES = {"dm": 300, "iid": 300, "idm": 300, "ncfm": 300, "dc": 60, "dsa": 60, "mtt": 80}
HELD_OUT = 0.2
# Files that methods take, by the option.
FILES = {"experts": "experts.safetensors", "centre_bank": "bank.safetensors",
         "matching_bank": "matching.safetensors"}  # fmt: skip
# Options of methods that train a network between updates; what else they have is as published.
SHORTER = {"batch_real": 64, "inner_epochs": 5}


@dataclass(frozen=True)
class Case:
    """One number of the table: a set and the networks trained on it."""

    method: str  # one of METHODS, "random" or "all"
    ipc: int
    weight: float  # of CMI
    seed: int
    judge: str  # "test" or, in a sweep, "train" or "held out"
    settings: str = ""  # of method, InfoNCE or loop that are not the usual ones: "factor=1 ..."

    @property
    def run(self) -> str:
        """For the folder of its images."""
        words = "".join(f"-{word}" for word in self.settings.split())
        return f"{self.method}-{self.ipc}-{self.weight:g}-{self.seed}{words}"

    @property
    def given(self) -> dict[str, Any]:
        """Its settings as options."""
        pairs = (word.split("=", 1) for word in self.settings.split())
        return {name: _value(text) for name, text in pairs}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def settings(methods: Sequence[str], given: Sequence[str] = ()) -> dict[str, Any]:
    """What a result of these methods depends on, beside the settings that are given."""
    digits = load_dataset("digits")
    known = [name for name in METHODS if name in methods]
    every = itertools.product(known, (1, 10, 50))
    found = {f"{name} {ipc}": METHODS[name].published(digits, ipc) for name, ipc in every}
    published = {name: {**each.loop, **each.options} for name, each in found.items()}
    recipes = {str(ipc): asdict(recipe) for ipc, recipe in EVALUATION.items()}
    about = {
        "updates": {name: UPDATES[name] for name in known if name in UPDATES},
        "shorter": SHORTER, "published": published,
        "experts": asdict(EXPERTS), "bank": asdict(BANK), "matched": asdict(MATCHED),
        "networks": NETWORKS, "evaluation": {**recipes, "all real": asdict(ALL_REAL)},
    }  # fmt: skip
    if any(word.startswith("mim_") for words in given for word in words.split()):
        about["infonce"] = asdict(InfoNCEOptions())
    return json.loads(json.dumps(about))  # type: ignore[no-any-return]


def distilled_and_judged(case: Case, folder: Path) -> dict[str, Any]:
    """Distil and evaluate; what is there already is not done again."""
    dataset = _dataset(case.judge)
    if case.method in METHODS:
        images, labels, learned_lr = _distilled(case, dataset, folder)
    elif case.method == "random":
        images, labels, learned_lr = *first_images(dataset, case.ipc, "real", case.seed), None
    else:
        real = dataset.train
        images, labels, learned_lr = dataset.to_input(real.images), real.labels, None
    few = len(images) <= 25 * dataset.num_classes
    recipe = ALL_REAL if case.method == "all" else EVALUATION[1 if few else 50]
    recipe = replace(recipe, lr=learned_lr or recipe.lr)
    if case.judge == "train":
        dataset = replace(dataset, test=dataset.train)
    (found,) = evaluate(
        images, labels, dataset, ["convnet"], repeats=NETWORKS, recipe=recipe, seed=case.seed,
        device=CPU, say=_quiet,
    )  # fmt: skip
    return {**asdict(case), "accuracy": found.mean, "accuracies": list(found.accuracies)}


def _dataset(judge: str) -> Dataset:
    """The digits, of which a part is held out from the start where it is to judge."""
    digits = load_dataset("digits")
    return digits.holding_out(HELD_OUT) if judge == "held out" else digits


def _options_of(method: str) -> set[str]:
    return {field.name for field in fields(METHODS[method].options)} if method in METHODS else set()


def _has_weight(method: str) -> bool:
    """Whether a weight of CMI for the digits is known of a method, as a sweep finds it."""
    known = METHODS[method].cmi_weights
    return "digits" in {**known.published, **known.ours}


def _seen_of_stored(method: str, ipc: int) -> int:
    """How many images networks see of a stored one of a method; 0 where it makes none."""
    if method not in METHODS:
        return 0
    known = METHODS[method].published(load_dataset("digits"), ipc).options
    factor = known.get("factor", getattr(METHODS[method].options, "factor", None))
    return factor**2 if isinstance(factor, int) else 1


def _distilled(case: Case, dataset: Dataset, folder: Path) -> tuple[Tensor, Tensor, float | None]:
    """What networks see, labels and, if one was learned, the learning rate to train with."""
    given, names, bank = case.given, _options_of(case.method), folder / "bank.safetensors"
    of_method: dict[str, Any] = dict(SHORTER) if "inner_epochs" in names else {}
    of_method |= {name: folder / file for name, file in FILES.items() if name in names}
    of_method |= {name: given.pop(name) for name in names & given.keys()}
    of_infonce = {name: given.pop(name) for name in [*given] if name.startswith("mim_")}
    loop = DistillOptions(case.ipc, seed=case.seed)
    _, options, _ = fill_in_published(
        case.method, dataset, case.ipc, loop, METHODS[case.method].options(**of_method)
    )
    if case.method in UPDATES:
        updates = UPDATES[case.method] // getattr(options, "outer_steps", 1)
        loop = replace(loop, iterations=updates)
    holds_several = (getattr(options, "factor", None) or 1) > 1
    loop = replace(loop, **{"init": "cells" if holds_several else "real", **given})
    cmi = CMIOptions(bank=bank if case.weight else None, cmi_weight=case.weight or None)
    run_folder = RunFolder(folder / case.run, {"case": case.run}, resume=True)
    of_run, infonce = (dataset, loop, options, cmi), InfoNCEOptions(**of_infonce)
    run = prepare(case.method, *of_run, infonce=infonce, device=CPU, say=_quiet)
    made = distill(run, run_folder, say=_quiet).seen()
    return made.images, made.labels, made.record.get("learned_lr")


def _quiet(text: str) -> None:
    """Say nothing: many runs go on at once."""


def table_cases(methods: Sequence[str], ipcs: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """Everything that the README's table shows; the longest first.

    CMI is left out where it is 0, of one image per class, and where no weight is known yet.
    """
    cases = [Case("all", 0, 0.0, seed, "test") for seed in seeds if "all" in methods]
    chosen = [method for method in methods if method != "all"]
    for ipc, seed, method in itertools.product(sorted(ipcs, reverse=True), seeds, chosen):
        if ipc * _seen_of_stored(method, ipc) > 1 and _has_weight(method):
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


def settings_cases(
    methods: Sequence[str],
    given: Sequence[str],
    ipcs: Sequence[int],
    seeds: Sequence[int],
    judge: str = "held out",
) -> list[Case]:
    """Every setting of methods on every seed, without CMI; by default judged by held-out images."""
    known = [method for method in methods if method in METHODS]
    every = itertools.product(sorted(ipcs, reverse=True), known, given, seeds)
    return [
        Case(method, ipc, 0.0, seed, judge, " ".join(words.split()))
        for ipc, method, words, seed in every
    ]


def run_all(cases: Sequence[Case], folder: Path, jobs: int) -> list[dict[str, Any]]:
    """All cases, which are judged alike, `jobs` at a time, by processes that have one thread."""
    digits = _dataset(cases[0].judge)
    names = set().union(*(_options_of(case.method) for case in cases))
    bank = folder / "bank.safetensors"
    if ("centre_bank" in names or any(case.weight for case in cases)) and not bank.exists():
        train_bank(bank, digits, BANK, CPU, resume=True)
    if "matching_bank" in names:
        train_bank(folder / FILES["matching_bank"], digits, MATCHED, CPU, resume=True)
    if "experts" in names:
        train_experts(folder / FILES["experts"], digits, EXPERTS, CPU, resume=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        rows = pool.map(saved_row, cases, itertools.repeat(folder))
        return list(tqdm(rows, total=len(cases), unit="case"))


def saved_row(case: Case, folder: Path) -> dict[str, Any]:
    """The case's row, which is kept in a file."""
    file = folder / f"{case.run}-{case.judge}.json"
    if not file.exists():
        write_text(file, json.dumps(distilled_and_judged(case, folder)))
    row: dict[str, Any] = json.loads(file.read_text())
    return row


def report(record: Record) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    groups: dict[tuple[str, int, float, str], list[float]] = {}
    for row in record.rows:
        key = row["method"], row["ipc"], row["weight"], row.get("settings", "")
        groups.setdefault(key, []).append(row["accuracy"] * 100)
    lines = []
    real = {"random": "random real images", "all": "all real images"}
    for (method, ipc, weight, given), found in sorted(
        groups.items(), key=lambda g: (g[0][1], g[0])
    ):
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        name = real.get(method, method.upper()) + (" + CMI" if weight else "")
        name += f", {given}" if given else ""
        accuracy = f"{statistics.mean(found):.1f} ± {spread:.1f}"
        lines.append([ipc or "all", name, f"{weight:g}", accuracy, len(found)])
    shown = table(["images per class", "set", "weight of CMI", "accuracy, %", "seeds"], lines)
    networks = f"{record.settings['networks']} networks on every set."
    judged = {"held out": "training images that were held out"}
    judge = record.rows[0]["judge"]
    return f"{shown}\n\nJudged by {judged.get(judge, f'the real {judge} images')}; {networks}"


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
        lacking = [name for name in given.methods if name in METHODS and not _has_weight(name)]
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
