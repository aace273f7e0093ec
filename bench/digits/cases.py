"""What is run on the digits: the table, sweeps of CMI's weight, and settings of methods."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cmidd.datasets import load_dataset
from cmidd.methods import METHODS, cmi_weight


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


def has_weight(method: str) -> bool:
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


def table_cases(methods: Sequence[str], ipcs: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """Everything that the README's table shows; the longest first.

    CMI is left out where it is 0, of one image per class, and where no weight is known yet.
    """
    cases = [Case("all", 0, 0.0, seed, "test") for seed in seeds if "all" in methods]
    chosen = [method for method in methods if method != "all"]
    for ipc, seed, method in itertools.product(sorted(ipcs, reverse=True), seeds, chosen):
        if ipc * _seen_of_stored(method, ipc) > 1 and has_weight(method):
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
