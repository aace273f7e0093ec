"""Plans of CUDA calls by name: chips, calls, and how the native core would compute them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

native = pytest.importorskip("cmikernels._native")


class Chip(NamedTuple):
    """What a plan asks of a GPU; sizes in bytes."""

    capability: int
    processors: int
    largest_cluster: int
    clusters_of_16: int
    block_bytes: int
    processor_bytes: int
    cache_bytes: int


CHIPS = {
    "H200": Chip(90, 132, 16, 8, 227 << 10, 228 << 10, 50 << 20),
    "A100": Chip(80, 108, 1, 0, 163 << 10, 164 << 10, 40 << 20),
    "L40S": Chip(89, 142, 1, 0, 99 << 10, 100 << 10, 96 << 20),
    "B200": Chip(100, 148, 16, 9, 227 << 10, 228 << 10, 126 << 20),
    "RTX 5090": Chip(120, 170, 8, 0, 99 << 10, 100 << 10, 96 << 20),
}
H200 = CHIPS["H200"]


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
        sizes = self._asdict()
        chip = sizes.pop("chip")
        plan: dict[str, Any] = native.cuda_plan(**sizes, **chip._asdict())
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
