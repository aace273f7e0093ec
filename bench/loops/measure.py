"""Rows of one case: whole steps raced, their parts profiled, peak memory.

An iteration of one step is raced as it is. One of several has a "first step", which has the network
made, and "later steps", before which it learns; both are raced, and the iteration is added up of
their medians.
"""

from __future__ import annotations

import itertools
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.harness import memory
from bench.harness.race import Contender, Timing, four_digits, race
from bench.harness.records import Row
from bench.loops.floor import convolutions_of
from bench.loops.parts import REST, Parts, profiled
from bench.loops.report import CONVOLUTIONS, FIRST, ITERATION, LATER, OURS, PEAK, PLAIN
from bench.loops.setup import Loop, Result, Setup, Sizes, option_names
from cmidd.cli.options import usable_device

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # of our loop: its name and the options changed
    "exact": (OURS, {}),
    "bf16": (f"{OURS}, bf16", {"real_dtype": "bfloat16"}),
    "compile": (f"{OURS}, compiled", {"compile": True}),
    "bf16-compile": (f"{OURS}, bf16 compiled", {"real_dtype": "bfloat16", "compile": True}),
}


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    method: str
    sizes: Sizes
    ipc: int
    memory: str
    variants: tuple[str, ...]
    device: str
    threads: int
    budget: float  # seconds for each race, and for the parts of each loop
    rounds: tuple[int, int]


def variants_of(method: str, wanted: list[str]) -> tuple[str, ...]:
    """Those whose options the method has."""
    names = option_names(method)
    return tuple(variant for variant in wanted if VARIANTS[variant][1].keys() <= names)


def has_peaks(method: str) -> bool:
    """Whether memory is measured: where a student's steps may cost some."""
    return "student_steps" in option_names(method)


def measure(case: Case) -> list[Row]:
    """A row for each whole step and each part, and each loop."""
    with prepared(case) as setup:
        plain = setup.plain_loop()
        loops = {PLAIN: plain} if plain else {}
        loops |= {
            name: setup.our_loop(**options)
            for name, options in map(VARIANTS.__getitem__, case.variants)
        }
        updates = max(loop.updates for loop in loops.values())
        stages = {ITERATION: range(1)}
        if updates > 1:
            stages = {FIRST: range(1), LATER: range(1, updates)}
        errors = _errors(loops)
        floor_of = loops.get(OURS) or setup.our_loop()
        rows: list[Row] = []
        for part, numbers in stages.items():
            contenders = {name: _contender(loop, numbers) for name, loop in loops.items()}
            floor = _contender(floor_of, numbers)
            turn = floor.prepare()
            convolutions = convolutions_of(lambda: floor.run(turn))  # noqa: B023
            raced = {**contenders, CONVOLUTIONS: Contender(convolutions)}
            times = race(raced, budget=case.budget, device=case.device, rounds=case.rounds)
            for name in times:
                row: Row = {"part": part, "loop": name, **_figures(name, times)}
                if numbers.start == 0:
                    row |= errors.get(name, {})
                if setup.device.type == "cpu" and name in loops:
                    row["page_faults"] = _page_faults(contenders[name])
                rows.append(row)
        if updates > 1:
            rows += iteration_rows(rows, updates)
        rows += _part_rows(loops, stages, case.budget)
    return [{"ipc": case.ipc, "memory": case.memory, **row} for row in rows]


@contextmanager
def prepared(case: Case) -> Iterator[Setup]:
    """What a case works on, with a folder while it does."""
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        device = usable_device(case.device)
        yield Setup(case.method, case.sizes, case.ipc, device, Path(folder))


def _contender(loop: Loop, numbers: range) -> Contender:
    """Steps of these numbers in turn; the earlier ones of their iteration go before, untimed."""

    def turns() -> Iterator[tuple[int, int]]:
        for iteration in itertools.count():
            for number in range(numbers.start):
                loop.step(iteration, number)
            for number in numbers:
                yield iteration, number

    return Contender(lambda turn: loop.step(*turn), turns().__next__)


def _errors(loops: dict[str, Loop]) -> dict[str, Row]:
    """How far the loss and gradient of our loops are from the plain one's, relative."""
    if PLAIN not in loops:
        return {}
    results: dict[str, Result] = {name: loop.step(0, 0) for name, loop in loops.items()}
    expected = results.pop(PLAIN)
    return {
        name: {
            f"{what}_error": four_digits(float((ours - theirs).norm() / theirs.norm()))
            for what, ours, theirs in zip(("loss", "gradient"), found, expected, strict=True)
        }
        for name, found in results.items()
    }


def _figures(name: str, times: dict[str, Timing]) -> Row:
    """Its time, and how that compares with the others of the race."""
    row: Row = {**times[name].figures()}
    if PLAIN in times:
        row["speedup_over_plain"] = four_digits(times[PLAIN].median / times[name].median)
    row["over_convolutions"] = four_digits(times[name].median / times[CONVOLUTIONS].median)
    return row


def _page_faults(contender: Contender) -> int:
    """Pages that the system had to give in one step."""
    turn = contender.prepare()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    contender.run(turn)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def iteration_rows(rows: list[Row], updates: int) -> list[Row]:
    """Rows of whole iterations, which are not raced: of one first step and all later ones."""
    seconds: dict[str, float] = {}
    for row in rows:
        runs = 1 if row["part"] == FIRST else updates - 1
        seconds[row["loop"]] = seconds.get(row["loop"], 0.0) + runs * row["seconds"]
    found = []
    for loop, total in seconds.items():
        row = {"part": ITERATION, "loop": loop, "seconds": four_digits(total), "others": None}
        for other, column in ((PLAIN, "speedup_over_plain"), (CONVOLUTIONS, "over_convolutions")):
            if other in seconds:
                ratio = seconds[other] / total
                row[column] = four_digits(ratio if other == PLAIN else 1 / ratio)
        found.append(row)
    return found


def _part_rows(loops: dict[str, Loop], stages: dict[str, range], budget: float) -> list[Row]:
    """A row for each part of an iteration and each loop, from profiles of whole steps."""
    found: dict[str, Parts] = {}
    for name, loop in loops.items():
        parts = found.setdefault(name, {})
        for numbers in stages.values():
            calls = _steps(_contender(loop, numbers))
            for part, cost in profiled(calls, budget / len(stages)).items():
                cost = cost * len(numbers)
                parts[part] = parts[part] + cost if part in parts else cost
    rows: list[Row] = []
    names = dict.fromkeys(part for parts in found.values() for part in parts)
    for part in sorted(names, key=lambda part: part == REST):  # the rest last
        for name, parts in found.items():
            if part not in parts:
                continue
            seconds, convolutions = parts[part].seconds, parts[part].convolutions
            row: Row = {"part": part, "loop": name, "seconds": four_digits(seconds)}
            row |= {"others": None, "convolution_seconds": four_digits(convolutions)}
            if part in found.get(PLAIN, {}) and seconds:
                row["speedup_over_plain"] = four_digits(found[PLAIN][part].seconds / seconds)
            rows.append(row)
    return rows


def _steps(contender: Contender) -> Iterator[Callable[[], object]]:
    """Steps to be made, each with what goes before it done."""
    while True:
        turn = contender.prepare()
        yield lambda: contender.run(turn)  # noqa: B023


def measure_peak(case: Case, loop: str, steps: int) -> list[Row]:
    """A row with the memory of an iteration of so many student steps; None: it may not fit."""
    peak = whole = None
    with prepared(replace(case, sizes=replace(case.sizes, student_steps=steps))) as setup:
        if loop == OURS or setup.rival_fits():
            peak, whole = _peak_bytes(setup, loop), memory.peak_so_far(setup.device)
    row = {"ipc": case.ipc, "memory": case.memory, "part": PEAK, "loop": loop, "steps": steps}
    return [{**row, "peak_bytes": peak, "whole_bytes": whole, "others": None}]


def _peak_bytes(setup: Setup, loop: str) -> int:
    """The most that a step takes beyond what was there, of this process, after one of one step."""
    make = setup.plain_loop if loop == PLAIN else setup.our_loop
    first, measured = make(student_steps=1), make()
    assert first is not None
    assert measured is not None
    if setup.device.type == "cuda":
        first.step(0, 0)
        return memory.gpu_peak_extra_bytes(Contender(lambda _: measured.step(0, 0)))
    peak = memory.extra_bytes(lambda: first.step(0, 0), lambda: measured.step(0, 0))
    return max(peak, resource.getpagesize())
