"""Plans of CUDA calls by name: chips, calls, and how the native core would compute them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from bench.gpu.chips import H200, Chip, describe_chip

native = pytest.importorskip("cmikernels._native")


CHIPS = {
    "H200": H200,
    "H200 without clusters of 16": H200._replace(
        resident_clusters=(*H200.resident_clusters[:3], (0, 0, 0))
    ),
    "H200, half of it": describe_chip(90, (16, 16, 14, 14), 227 << 10, 228 << 10, 25 << 20, 16),
    "H200, a slice": describe_chip(90, (16,), 227 << 10, 228 << 10, 6 << 20, 16),
    "A100": describe_chip(80, (16,) * 5 + (14,) * 2, 163 << 10, 164 << 10, 40 << 20),
    "L40S": describe_chip(89, (12,) * 11 + (10,), 99 << 10, 100 << 10, 96 << 20),
    "B200": describe_chip(100, (20, 20) + (18,) * 6, 227 << 10, 228 << 10, 126 << 20, 16),
    "RTX 5090": describe_chip(120, (16,) * 7 + (14,) * 3 + (16,), 99 << 10, 100 << 10, 96 << 20, 8),
}


class Call(NamedTuple):
    """Sizes of a call, and the chip."""

    rows: int
    classes: int
    largest: int
    channels: int
    element_bytes: int
    ragged: bool
    aligned: bool
    given: bool
    weighted: bool
    chip: Chip

    @property
    def row_bytes(self) -> int:
        """Of features."""
        return self.channels * self.element_bytes

    @property
    def number_bytes(self) -> int:
        """Of arithmetic."""
        return 8 if self.element_bytes == 8 else 4

    @property
    def plan(self) -> Plan:
        """How the call is computed."""
        plan: dict[str, Any] = native.cuda_plan(**self._asdict() | {"chip": self.chip._asdict()})
        return Plan(**plan)


class Plan(NamedTuple):
    """As csrc/cuda/plan.hpp has it."""

    kind: str
    form: str
    packs: int  # of a row that a thread holds
    lanes: int
    threads: int
    cluster: int
    stages: int
    share_rows: int
    rows_per_slot: int
    blocks: int
    slots: int
    lead: int
    read_once: bool
    shared_bytes: int
    parts: int
    workspace_bytes: int


def call_of(
    classes: int,
    largest: int,
    channels: int,
    element_bytes: int = 4,
    chip: Chip = H200,
    *,
    rows: int | None = None,
    aligned: bool = True,
    given: bool = False,
    weighted: bool = False,
) -> Call:
    """A call of equal classes, or of unequal ones where the number of all rows is said."""
    return Call(
        classes * largest if rows is None else rows,
        classes,
        largest,
        channels,
        element_bytes,
        rows is not None,
        aligned and channels * element_bytes % 16 == 0,
        given,
        weighted and not given,
        chip,
    )
