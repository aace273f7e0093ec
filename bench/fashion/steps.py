"""Commands of `cmidd`, one after another, that bring cases from stage to stage.

    FOLDER/bank.safetensors, experts.safetensors     which cases with CMI and of MTT wait for
    FOLDER/NAME/run/                                 the run of a case
    FOLDER/NAME/100.safetensors, 100.json            its images after a stage, and their evaluation
    FOLDER/NAME.log                                  what its commands said

Every command goes on where it was cut, so a step that was stopped is simply done again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.fashion.cases import BANK, DATASET, EXPERTS, HELD_OUT, Case


@dataclass(frozen=True)
class Step:
    """What is done without a break: a stage of a case, or a file that cases need."""

    name: str  # of the case or file; one step of a name runs at a time
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[Path, ...]
    makes: Path
    copies: tuple[Path, Path] | None = None  # after the first command: from, to


def steps_of(cases: Sequence[Case], folder: Path) -> list[Step]:
    """Everything that is not done yet: files first, then the first stages of all cases."""
    every = [(k, case) for case in cases for k in range(len(case.stages))]
    every.sort(key=lambda pair: pair[0])
    open_steps = [
        _stage(case, case.stages[k], folder)
        for k, case in every
        if not _is_evaluated(case, case.stages[k], folder)
    ]
    needed = {path for step in open_steps for path in step.needs}
    files = [step for step in _files(folder) if step.makes in needed and not step.makes.exists()]
    return [*files, *open_steps]


def _files(folder: Path) -> list[Step]:
    """The bank and the experts, which serve sweeps too and so hold images out."""
    found = []
    for name, command, options in (("bank", "pretrain", BANK), ("experts", "experts", EXPERTS)):
        path = folder / f"{name}.safetensors"
        words = (*_data(held_out=True), *options, f"--out={path}", "--resume")
        found.append(Step(name, ((command, *words),), (), path))
    return found


def _data(*, held_out: bool) -> tuple[str, ...]:
    return (f"--dataset={DATASET}", *((f"--held_out={HELD_OUT:g}",) if held_out else ()))


def _stage(case: Case, stage: int, folder: Path) -> Step:
    place = folder / case.name
    images, result = place / f"{stage}.safetensors", place / f"{stage}.json"
    words = [*_data(held_out=case.held_out), f"--out={result}", "--resume"]
    words += [f"--repeats={case.networks_after(stage)}", f"--seed={case.seed}"]
    if case.epochs is not None:
        words.append(f"--{'all_real_' if case.method == 'all' else ''}epochs={case.epochs}")
    if not case.is_distilled:
        real = f"--random_real={case.ipc}" if case.method == "random" else "--all_real"
        return Step(case.name, (("evaluate", real, *words),), (), result)
    evaluate = ("evaluate", str(images), *words)
    bank, experts = folder / "bank.safetensors", folder / "experts.safetensors"
    needs = (*((bank,) if case.weight else ()), *((experts,) if case.method == "mtt" else ()))
    if images.exists():
        return Step(case.name, (evaluate,), needs, result)
    run = place / "run"
    distill = ["distill", case.method, *_data(held_out=case.held_out), *case.options]
    distill += [f"--ipc={case.ipc}", f"--seed={case.seed}", f"--iterations={stage}"]
    if case.weight:
        distill += [f"--bank={bank}", f"--cmi_weight={case.weight:g}"]
    if case.method == "mtt":
        distill.append(f"--experts={experts}")
    distill += [f"--out={run}", "--resume"]
    copies = run / "result.safetensors", images
    return Step(case.name, (tuple(distill), evaluate), needs, result, copies)


def _is_evaluated(case: Case, stage: int, folder: Path) -> bool:
    row = row_of(case, stage, folder)
    return row is not None and len(row["accuracies"]) >= case.networks_after(stage)


def row_of(case: Case, stage: int, folder: Path) -> dict[str, Any] | None:
    """What is known of a stage, or None where its evaluation has not begun."""
    path = folder / case.name / f"{stage}.json"
    if not path.exists():
        return None
    (result,) = json.loads(path.read_text())["results"]
    (found,) = result["evaluations"]
    recipe = found["recipe"]
    about = {name: recipe[name] for name in ("epochs", "lr", "augmentation")}
    accuracies = [round(each, 4) for each in found["accuracies"]]
    network = found["network"]
    return {
        **case.about(), "iterations": stage, "network": network, **about, "accuracies": accuracies
    }  # fmt: skip


class Runner:
    """Does steps, several at a time, until they are done or it is told to stop."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self._folder = folder
        self._jobs = jobs
        self._children: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def stop(self) -> None:
        """Let every command save what it has and end."""
        self.stopped = True
        for child in list(self._children):
            child.send_signal(signal.SIGTERM)  # SIGINT is ignored in the background of a script

    def run(self, steps: Sequence[Step]) -> None:
        """Do the steps; one that others wait for is done before them."""
        left = list(steps)
        going: dict[Future[None], Step] = {}
        with tqdm(total=len(left), unit="step") as bar, ThreadPoolExecutor(self._jobs) as pool:
            while going or (left and not self.stopped):
                for step in [] if self.stopped else self._ready(left, list(going.values())):
                    left.remove(step)
                    going[pool.submit(self._do, step)] = step
                if not going:
                    missing = {str(path) for step in left for path in step.needs}
                    raise FileNotFoundError(f"expected {', '.join(sorted(missing))}")
                done, _ = wait(going, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    del going[future]
                    if future.exception() is not None:
                        self.stop()
                        future.result()
                    bar.update()

    def _ready(self, left: Sequence[Step], going: Sequence[Step]) -> list[Step]:
        """The next steps, of which nothing that is not there yet is needed."""
        found: list[Step] = []
        busy = {step.name for step in going}
        for step in left:
            if len(going) + len(found) == self._jobs:
                break
            if step.name not in busy and all(path.exists() for path in step.needs):
                found.append(step)
            busy.add(step.name)  # a later stage waits for an earlier one
        return found

    def _do(self, step: Step) -> None:
        """One step; a command that fails is an error that says where its words are."""
        threads = {"OMP_NUM_THREADS": "1"} if self._jobs > 1 else {}
        log = self._folder / f"{step.name}.log"
        step.makes.parent.mkdir(parents=True, exist_ok=True)
        for k, words in enumerate(step.commands):
            if self.stopped:
                return
            with log.open("ab") as said:
                child = subprocess.Popen(
                    [sys.executable, "-m", "cmidd", *words],
                    stdout=said, stderr=subprocess.STDOUT, env={**threads, **os.environ},
                )  # fmt: skip
                self._children.add(child)
                if self.stopped:  # since it was looked at above
                    child.send_signal(signal.SIGTERM)
                code = child.wait()
                self._children.discard(child)
            if self.stopped:
                return
            if code:
                raise RuntimeError(f"cmidd {' '.join(words)} ended with {code}; see {log}")
            if k == 0 and step.copies is not None:
                made, kept = step.copies
                unfinished = kept.with_suffix(".part")  # a copy that is cut is no stage
                shutil.copyfile(made, unfinished)
                unfinished.replace(kept)
