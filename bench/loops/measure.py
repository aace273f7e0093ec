"""Rows of one case: whole steps raced, their parts profiled, peak memory.

An iteration of one step is raced as it is. One of several has a "first step", which has the network
made, and "later steps", before which it learns; both are raced, and the iteration is added up of
their medians.
"""

from __future__ import annotations

import itertools
import resource
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.harness import memory
from bench.harness.race import Contender, four_digits, race
from bench.harness.records import Row
from bench.loops.floor import convolutions_of
from bench.loops.parts import REST, Part, profiled
from bench.loops.report import CONVOLUTIONS, FIRST, ITERATION, LATER, OURS, PEAK, PLAIN
from bench.loops.setup import Loop, Result, Setup, Sizes, has_cmi, option_names


class Variant(NamedTuple):
    """Of our loop: its name, the options of the method and the precision of CMI that differ."""

    loop: str
    options: dict[str, Any]
    cmi_precision: str | None = None


VARIANTS = {
    "exact": Variant(OURS, {}),
    "cmi-bf16": Variant(f"{OURS}, CMI bf16", {}, "bfloat16"),
    "bf16": Variant(f"{OURS}, bf16", {"real_dtype": "bfloat16"}),
    "compile": Variant(f"{OURS}, compiled", {"compile": True}),
    "bf16-compile": Variant(f"{OURS}, bf16 compiled", {"real_dtype": "bfloat16", "compile": True}),
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
    """Those whose options the method has, and CMI where they differ in it."""
    names, with_cmi = option_names(method), has_cmi(method)
    return tuple(
        name
        for name in wanted
        if VARIANTS[name].options.keys() <= names
        and (with_cmi or VARIANTS[name].cmi_precision is None)
    )


def has_peaks(method: str) -> bool:
    """Whether memory is measured: where a student's steps may cost some."""
    return "student_steps" in option_names(method)


def measure(case: Case) -> list[Row]:
    """A row for each whole step and each part, and each loop."""
    with prepared(case) as setup:
        plain = setup.plain_loop()
        loops = {PLAIN: plain} if plain else {}
        chosen = [VARIANTS[variant] for variant in case.variants]
        loops |= {
            name: setup.our_loop(cmi_precision, **options)
            for name, options, cmi_precision in chosen
        }
        updates = max(loop.updates for loop in loops.values())
        stages = (
            {FIRST: range(1), LATER: range(1, updates)} if updates > 1 else {ITERATION: range(1)}
        )
        errors = _errors(loops)
        seconds: dict[str, float] = dict.fromkeys([*loops, CONVOLUTIONS], 0.0)  # of an iteration
        rows: list[Row] = []
        for part, numbers in stages.items():
            contenders = {name: _contender(loop, numbers) for name, loop in loops.items()}
            floor = _contender(loops.get(OURS) or setup.our_loop(), numbers)
            convolutions = Contender(convolutions_of(partial(floor.run, floor.prepare())))
            raced = {**contenders, CONVOLUTIONS: convolutions}
            times = race(raced, budget=case.budget, device=case.device, rounds=case.rounds)
            medians = {name: time.median for name, time in times.items()}
            for name, time in times.items():
                row: Row = {"part": part, "loop": name, **time.figures(), **ratios(name, medians)}
                if numbers.start == 0:
                    row |= errors.get(name, {})
                if setup.device.type == "cpu" and name in loops:
                    row["page_faults"] = _page_faults(contenders[name])
                rows.append(row)
                seconds[name] += len(numbers) * time.median
        if updates > 1:
            rows += rows_of_seconds(ITERATION, seconds)
        rows += _part_rows(loops, stages, case.budget)
    return [{"ipc": case.ipc, "memory": case.memory, **row} for row in rows]


@contextmanager
def prepared(case: Case) -> Iterator[Setup]:
    """What a case works on, with a folder while it does."""
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        yield Setup(case.method, case.sizes, case.ipc, case.device, Path(folder))


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


def ratios(name: str, seconds: Mapping[str, float]) -> Row:
    """How a loop compares with the plain one and with the convolutions, where there are such."""
    found: Row = {}
    if PLAIN in seconds:
        found["speedup_over_plain"] = four_digits(seconds[PLAIN] / seconds[name])
    if CONVOLUTIONS in seconds:
        found["over_convolutions"] = four_digits(seconds[name] / seconds[CONVOLUTIONS])
    return found


def rows_of_seconds(part: str, seconds: Mapping[str, float]) -> list[Row]:
    """A row for each loop of what was not raced but added up."""
    return [
        {"part": part, "loop": name, "seconds": four_digits(total), "others": None}
        | (ratios(name, seconds) if total else {})
        for name, total in seconds.items()
    ]


def _page_faults(contender: Contender) -> int:
    """Pages that the system had to give in one step."""
    turn = contender.prepare()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    contender.run(turn)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _part_rows(loops: dict[str, Loop], stages: dict[str, range], budget: float) -> list[Row]:
    """A row for each part of an iteration and each loop, from profiles of whole steps."""
    found: dict[str, dict[str, Part]] = {}  # by part and loop
    for name, loop in loops.items():
        for numbers in stages.values():
            contender = _contender(loop, numbers)
            calls = (partial(contender.run, contender.prepare()) for _ in itertools.count())
            for part, cost in profiled(calls, budget / len(stages)).items():
                of_part = found.setdefault(part, {})
                of_part[name] = of_part.get(name, Part()) + cost * len(numbers)
    rows: list[Row] = []
    for part in sorted(found, key=lambda part: part == REST):  # the rest last
        of_loops = rows_of_seconds(part, {name: cost.seconds for name, cost in found[part].items()})
        for row in of_loops:
            row["convolution_seconds"] = four_digits(found[part][row["loop"]].convolutions)
        rows += of_loops
    return rows


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
