"""The plan of a Triton call: a pure function of sizes that keeps within what a GPU can do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmikernels.backends.triton.plan import Chip, Plan, make_plan

H200 = Chip(processors=132, cache_bytes=50 << 20)
SMALL = Chip(processors=20, cache_bytes=2 << 20)
LARGEST_GRID = 2**31 - 1


def plan_of(
    classes: int,
    rows: int,
    channels: int,
    element_size: int = 4,
    chip: Chip = H200,
    *,
    num_rows: int | None = None,
    ragged: bool = False,
    weighted: bool = False,
) -> Plan:
    total = classes * rows if num_rows is None else num_rows
    return make_plan(total, classes, rows, channels, element_size, ragged, weighted, chip)


@pytest.mark.parametrize(
    ("classes", "rows", "channels", "kind"),
    [
        (100_000, 4, 64, "tiles"),
        (100_000, 4, 256, "sweeps"),
        (10, 10, 512, "sweeps"),
        (20_000, 10, 512, "sweeps"),
        (1000, 50, 512, "sweeps"),
        (1000, 700, 2048, "sweeps"),
        (10, 50, 512, "sweeps"),
        (10, 500, 512, "slots"),
        (10, 5000, 512, "slots"),
        (1, 100_000, 2048, "slots"),
        (1000, 50, 8193, "wide"),
        (10, 1, 70_000, "wide"),
    ],
)
def test_the_kind_follows_from_the_sizes(classes: int, rows: int, channels: int, kind: str) -> None:
    assert plan_of(classes, rows, channels).kind == kind


def test_one_giant_among_tiny_classes_does_not_set_everyones_tile() -> None:
    assert plan_of(201, 2000, 64, num_rows=2400, ragged=True).kind == "slots"
    assert plan_of(2001, 64, 64, num_rows=4064, ragged=True).kind == "slots"


def test_tiny_classes_share_a_tile_where_there_are_enough_to_fill_the_chip() -> None:
    assert plan_of(100_000, 3, 5).block_classes > 1
    assert plan_of(132, 3, 5).block_classes == 1
    assert plan_of(132, 3, 5).programs == 132


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_a_few_huge_classes_fill_the_chip(classes: int) -> None:
    plan = plan_of(classes, 100_000, 1024)
    assert plan.programs >= 2 * H200.processors


@given(
    classes=st.integers(1, 2**20),
    rows=st.integers(1, 2**20),
    channels=st.integers(1, 2**20),
    element_size=st.sampled_from([2, 4, 8]),
    chip=st.sampled_from([H200, SMALL]),
    ragged=st.booleans(),
    weighted=st.booleans(),
    share=st.floats(0, 1),
)
def test_every_plan_keeps_within_its_bounds(
    classes: int,
    rows: int,
    channels: int,
    element_size: int,
    chip: Chip,
    ragged: bool,
    weighted: bool,
    share: float,
) -> None:
    num_rows = classes * rows
    if ragged:  # the others have some share of the largest class's rows
        num_rows = rows + int((classes - 1) * rows * share)
    plan = plan_of(
        classes, rows, channels, element_size, chip,
        num_rows=num_rows, ragged=ragged, weighted=weighted,
    )  # fmt: skip
    blocks = (plan.block_classes, plan.block_rows, plan.block_channels)
    assert all(size & (size - 1) == 0 for size in blocks)
    assert plan.num_warps in (1, 2, 4, 8, 16)
    # Registers, as tests/gpu/test_triton_resources.py sees them: 8 or 16 numbers a thread.
    elements = plan.block_classes * plan.block_rows * plan.block_channels
    assert elements * (2 if element_size == 8 else 1) <= 16 * 32 * plan.num_warps
    assert 1 <= plan.programs <= LARGEST_GRID
    if plan.kind == "tiles":
        assert plan.block_rows >= rows
        assert plan.block_channels >= channels
        assert plan.programs * plan.block_classes < classes + plan.block_classes
        return
    assert (plan.block_channels >= channels) == (plan.kind != "wide")
    if plan.kind == "sweeps":
        assert plan.programs == classes
        return
    assert plan.rows_per_slot is not None
    # Sums of the slots are small beside the features, or as many as centroids.
    assert plan.rows_per_sum is not None
    assert plan.rows_per_sum >= 16
    assert plan.sums <= plan.programs <= 2 * (4 * chip.processors + classes)
    for slots, share in ((plan.programs, plan.rows_per_slot), (plan.sums, plan.rows_per_sum)):
        if ragged:  # the last class's slots end with the last slot
            assert slots == num_rows // share + classes
        else:
            assert slots // classes * share >= rows


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 20))
def test_slots_need_no_table(sizes: list[int], rows_per_slot: int) -> None:
    """Class y owns the slots from offsets[y] // rows_per_slot + y on.

    So have it `backends/triton/slots.py` and `csrc/cuda/task.cuh`.
    """
    offset, end = 0, 0
    for y, size in enumerate(sizes):
        first = offset // rows_per_slot + y
        assert first == end, "every slot belongs to a class, and to one only"
        offset += size
        end = offset // rows_per_slot + y + 1
        assert (end - first) * rows_per_slot >= size
    assert end == offset // rows_per_slot + len(sizes)
