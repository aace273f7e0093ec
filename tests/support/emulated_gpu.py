"""Emulated GPUs for the tests of the CUDA kernels, and the calls that take all ways of their plan.

Small GPUs make small calls take the ways that large ones take on real ones.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.gpu.chips import describe_chip
from cmikernels import ClassIndex, cmi_value_and_grad
from tests.support.compare import value_and_gradient
from tests.support.tables import DTYPES, GPU

if GPU:
    pytest.skip("backend='cuda' is the GPU here", allow_module_level=True)
emulated = pytest.importorskip("cmikernels._emulated")
native = pytest.importorskip("cmikernels._native")

TINY = describe_chip(90, (4,), 24 << 10, 32 << 10, 256 << 10, largest_cluster=16)
ROOMY = TINY._replace(block_bytes=227 << 10, processor_bytes=228 << 10, cache_bytes=50 << 20)
CHIPS = {
    "tiny": TINY,
    "roomy": ROOMY,
    "one processor": describe_chip(90, (1,), *TINY[3:], largest_cluster=16),
    "two GPCs": describe_chip(90, (9, 7), *TINY[3:], largest_cluster=16),
    "pairs": describe_chip(90, (4,), *TINY[3:], largest_cluster=2),
    "no cache": TINY._replace(cache_bytes=1 << 10),
    "Ampere": describe_chip(80, (16,), *ROOMY[3:]),
}


class Case(NamedTuple):
    """A call of equal classes on a chip."""

    chip: str
    classes: int
    rows: int  # of each
    channels: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """Give the form used in the names of tests."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.chip}-{self.classes}x{self.rows}x{self.channels}-{dtype}"

    @property
    def plan(self) -> dict[str, Any]:
        """How it is computed."""
        return dict(
            native.cuda_plan(
                rows=self.classes * self.rows,
                classes=self.classes,
                largest=self.rows,
                channels=self.channels,
                element_bytes=self.dtype.itemsize,
                ragged=False,
                aligned=self.channels * self.dtype.itemsize % 16 == 0,
                given=False,
                weighted=False,
                chip=CHIPS[self.chip]._asdict(),
            )
        )

    @property
    def unequal(self) -> tuple[int, ...]:
        """Sizes of classes of which the largest is as the case has it, and some are special."""
        sizes = (self.rows, 1, 0, max(self.rows - 1, 1), self.rows // 2) * self.classes
        return sizes[: max(self.classes, 2)]


def ways_of(case: Case, plan: dict[str, Any]) -> tuple[tuple[Any, ...], ...]:
    """What is special about how the case is computed: which paths its threads take together."""
    kind, clustered, staged = plan["kind"], plan["cluster"] > 1, plan["stages"] > 0
    team = "warps" if plan["lanes"] > 32 else "lanes"
    ways: tuple[tuple[Any, ...], ...] = (
        ("dtype", kind, case.dtype),
        ("lanes", kind, plan["lanes"]),
        ("cluster", kind, plan["cluster"], staged),
        ("form", kind, plan["form"], staged, clustered),
    )
    if kind == "tiny":
        spare = ("teams without rows", case.rows < 32 // plan["lanes"])
        return (*ways, spare, ("halves", plan["lanes"], case.dtype))
    if kind != "classes":
        return (*ways, ("slots", kind, plan["slots"] > case.classes))
    turns = plan["share_rows"] * plan["lanes"] > plan["threads"]
    without_rows = plan["share_rows"] * (plan["cluster"] - 1) >= case.rows
    return (
        *ways,
        ("stages", plan["stages"], clustered),
        ("copied in bulk", staged, case.dtype, clustered),
        ("several rows a team", turns, team, clustered),
        ("blocks without rows", clustered and without_rows),
    )


def work(case: Case, plan: dict[str, Any]) -> int:
    """Threads that are emulated, once for each class or slot and once for each row."""
    blocks = plan["slots"] or case.classes * plan["cluster"]
    return int(blocks * plan["threads"] + case.classes * case.rows * plan["lanes"])


@functools.cache
def find_cases() -> tuple[list[Case], set[tuple[Any, ...]]]:
    """Of small calls the least laborious that between them take all the ways there are.

    They follow the plan, so that they need not be looked for again when it is tuned.
    """
    least: dict[tuple[Any, ...], tuple[int, Case]] = {}  # of the calls that take the same ways
    for sizes in itertools.product(
        CHIPS, (2, 3, 5, 9, 20), (2, 3, 4, 7, 20, 50, 100, 1000),
        (1, 8, 30, 32, 64, 128, 130, 200, 256, 512, 600, 1024, 2048, 9000), DTYPES,
    ):  # fmt: skip
        case = Case(*sizes)
        if case.classes * case.rows * case.channels <= 150_000:
            plan = case.plan
            ways, labour = ways_of(case, plan), work(case, plan)
            if ways not in least or labour < least[ways][0]:
                least[ways] = labour, case
    cases: list[Case] = []
    taken: set[tuple[Any, ...]] = set()
    for ways, (_, case) in sorted(least.items(), key=lambda each: each[1][0]):
        if not taken.issuperset(ways):
            taken.update(ways)
            cases.append(case)
    return cases, taken


CASES, WAYS_TAKEN = find_cases()
every_case = pytest.mark.parametrize("case", CASES, ids=str)

# One case for each kind, and several for classes.
WAYS = [
    Case("roomy", 6, 5, 600),
    Case("tiny", 5, 5, 200),
    Case("tiny", 5, 4, 256),
    Case("tiny", 3, 100, 256),
    Case("Ampere", 3, 60, 1024),
    Case("tiny", 3, 40, 2048, torch.bfloat16),
]
every_way = pytest.mark.parametrize("case", WAYS, ids=str)


def results_on(z: Tensor, classes: ClassIndex, row_weights: Tensor) -> list[Tensor]:
    """What goes through every kernel: value and gradient, and those with weights of rows."""
    by_class = cmi_value_and_grad(z, classes, reduction="class", backend="cuda")
    by_row = value_and_gradient("cuda", z, classes, row_weights, reduction="none")
    return [*by_class, *by_row]
