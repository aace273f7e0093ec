"""A case is distilled and judged, in a folder that a second start picks up where it was cut."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.digits.cases import Case
from cmidd.datasets import Dataset, load_dataset
from cmidd.evaluate import evaluate
from cmidd.first_images import first_images
from cmidd.loop import distill
from cmidd.methods import METHODS, fill_in_published
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.infonce import InfoNCEOptions
from cmidd.options.pretrained import BankOptions, ExpertOptions
from cmidd.options.recipe import DSA, Recipe
from cmidd.pretrained.bank import train_bank
from cmidd.pretrained.experts import train_experts
from cmidd.run import prepare
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
