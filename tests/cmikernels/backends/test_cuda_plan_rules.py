"""The plan of a CUDA call keeps its rules at sizes of every magnitude and at those that occur."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.shapes import SETS, SWEEPS
from tests.support.cuda_plans import CHIPS, Call, Plan, call_of, native

# Limits of CUDA, the same on all of these.
LARGEST_GRID = 2**31 - 1
BARRIER_BYTES = 2**20  # that a barrier of bulk copies can wait for, and one more
SLOTS_TO_FILL = 2  # for each multiprocessor
PACK_BYTES = 16  # that a thread reads at once, at most
CONSTANTS = native.cuda_constants()  # of all plans
PROCESSOR_THREADS, RESERVED_BYTES = CONSTANTS["processor_threads"], CONSTANTS["reserved_bytes"]
FEW_ROWS, FEWEST_ROWS = CONSTANTS["few_rows_per_slot"], CONSTANTS["fewest_rows_per_slot"]


def test_the_constants_are_what_gpus_have() -> None:
    """512 threads use 128 of a multiprocessor's 65,536 registers each."""
    assert CONSTANTS["pack_bytes"] == PACK_BYTES
    assert CONSTANTS["most_threads"] <= PROCESSOR_THREADS == 65536 // 128
    assert RESERVED_BYTES == 1024


def is_power_of_2(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


# The rules of a plan. What each says holds of every call.


def a_block_is_whole_warps_and_whole_teams(call: Call, plan: Plan) -> None:
    assert plan.threads % 32 == 0
    assert plan.lanes <= plan.threads <= CONSTANTS["most_threads"]
    assert is_power_of_2(plan.lanes)
    assert plan.threads % plan.lanes == 0


def teams_of_several_warps_have_barriers_enough(call: Call, plan: Plan) -> None:
    """A multiprocessor has 64, and a block that may use any of its 16 takes them all."""
    if plan.kind == "classes" and plan.lanes > 32:
        assert PROCESSOR_THREADS // plan.threads * 16 <= 64


def a_row_is_in_the_registers_of_its_team(call: Call, plan: Plan) -> None:
    held = plan.lanes * plan.packs * PACK_BYTES
    assert (held >= call.row_bytes) or plan.kind == "wide"


def rows_are_read_in_packs_where_they_can_be(call: Call, plan: Plan) -> None:
    fills_its_team = plan.lanes * plan.packs * PACK_BYTES == call.row_bytes
    in_a_warp = 8 <= plan.lanes <= 32
    if not call.aligned or call.weighted:
        assert plan.form == "any"
    elif plan.kind != "wide":
        assert plan.form == ("full" if fills_its_team and in_a_warp else "packed")


def a_cluster_is_one_that_the_chip_has(call: Call, plan: Plan) -> None:
    assert is_power_of_2(plan.cluster)
    if plan.cluster > 1:
        assert plan.kind == "classes"
        assert call.chip.capability >= 90
        assert call.chip.resident(plan.cluster, plan.threads) > 0


def the_grid_is_whole_clusters(call: Call, plan: Plan) -> None:
    assert 1 <= plan.blocks <= LARGEST_GRID
    assert plan.blocks % plan.cluster == 0


def a_block_has_its_shared_memory(call: Call, plan: Plan) -> None:
    assert 0 <= plan.shared_bytes <= call.chip.block_bytes
    assert (plan.shared_bytes == 0) == (plan.kind == "tiny")


def a_multiprocessor_hosts_as_many_blocks_as_its_registers_serve(call: Call, plan: Plan) -> None:
    if plan.kind == "classes":
        hosted = PROCESSOR_THREADS // plan.threads
        assert hosted * (plan.shared_bytes + RESERVED_BYTES) <= call.chip.processor_bytes


def a_tiny_class_is_in_the_registers_of_its_warp(call: Call, plan: Plan) -> None:
    if plan.kind == "tiny":
        assert call.aligned
        assert not call.given
        assert not call.weighted
        assert plan.threads == 32
        assert plan.lanes in (4, 8)
        assert call.largest <= plan.threads // plan.lanes


def clusters_that_wait_for_others_to_end_are_not_started(call: Call, plan: Plan) -> None:
    if plan.kind in ("classes", "tiny"):
        clusters = plan.blocks // plan.cluster
        assert clusters <= call.classes
        assert clusters <= call.chip.resident(plan.cluster, plan.threads)


def classes_are_held_where_they_can_be_copied_in_bulk(call: Call, plan: Plan) -> None:
    in_bulk = call.chip.capability >= 90 and call.aligned and not call.weighted
    if plan.kind == "classes" and in_bulk:
        assert 1 <= plan.stages <= CONSTANTS["most_stages"]
    else:
        assert plan.stages == 0


def no_stage_is_without_a_class(call: Call, plan: Plan) -> None:
    assert plan.stages <= -(-call.classes // (plan.blocks // plan.cluster))


def tiles_are_within_shared_memory(call: Call, plan: Plan) -> None:
    if plan.stages > 0:
        assert plan.stages * plan.share_rows * call.row_bytes < plan.shared_bytes


def a_barrier_can_count_the_bytes_of_a_tile(call: Call, plan: Plan) -> None:
    if plan.stages > 0:
        assert plan.share_rows * call.row_bytes < BARRIER_BYTES


def shares_cover_the_largest_class(call: Call, plan: Plan) -> None:
    if plan.kind in ("classes", "tiny"):
        assert plan.cluster * plan.share_rows >= call.largest
        assert plan.cluster * (plan.share_rows - 1) < call.largest


def slots_cover_every_class(call: Call, plan: Plan) -> None:
    if plan.kind in ("classes", "tiny"):
        assert plan.slots == plan.rows_per_slot == 0
        return
    assert 1 <= plan.blocks <= plan.slots
    if call.ragged:  # class y's start at offsets[y] // rows_per_slot + y
        assert plan.slots == call.rows // plan.rows_per_slot + call.classes
    else:
        assert plan.slots % call.classes == 0
        assert plan.slots // call.classes * plan.rows_per_slot >= call.largest


def every_block_or_slot_has_a_partial_value(call: Call, plan: Plan) -> None:
    of_kind = {"classes": call.classes * plan.cluster, "tiny": plan.blocks}
    assert plan.parts == of_kind.get(plan.kind, plan.slots)


def the_workspace_is_linear_in_rows_and_centroids(call: Call, plan: Plan) -> None:
    number = call.number_bytes
    padding = 6 * 256
    assert plan.workspace_bytes >= 8 * plan.parts
    if plan.kind in ("classes", "tiny"):
        assert plan.workspace_bytes <= 8 * 16 * call.classes + padding
        return
    rows = 4 * call.rows * number
    centroids = 3 * call.classes * call.channels * number  # sums of last slots, means, rho
    sums = max(call.rows // FEW_ROWS, SLOTS_TO_FILL * call.chip.processors) * call.channels * number
    counters = 4 * (call.classes + 1)
    assert plan.workspace_bytes <= counters + 8 * plan.parts + rows + centroids + sums + padding


def sums_of_slots_are_small_beside_features_or_few(call: Call, plan: Plan) -> None:
    if plan.slots == 0:
        return
    assert plan.rows_per_slot >= FEWEST_ROWS
    if plan.rows_per_slot < FEW_ROWS:
        assert plan.slots <= SLOTS_TO_FILL * call.chip.processors + call.classes
    else:
        beyond_one_a_class = (plan.slots - call.classes) * call.channels * call.number_bytes
        assert beyond_one_a_class <= call.rows * call.row_bytes / 16


RULES: list[Callable[[Call, Plan], None]] = [
    a_block_is_whole_warps_and_whole_teams,
    teams_of_several_warps_have_barriers_enough,
    a_row_is_in_the_registers_of_its_team,
    rows_are_read_in_packs_where_they_can_be,
    a_cluster_is_one_that_the_chip_has,
    the_grid_is_whole_clusters,
    a_block_has_its_shared_memory,
    a_multiprocessor_hosts_as_many_blocks_as_its_registers_serve,
    a_tiny_class_is_in_the_registers_of_its_warp,
    clusters_that_wait_for_others_to_end_are_not_started,
    classes_are_held_where_they_can_be_copied_in_bulk,
    no_stage_is_without_a_class,
    tiles_are_within_shared_memory,
    a_barrier_can_count_the_bytes_of_a_tile,
    shares_cover_the_largest_class,
    slots_cover_every_class,
    every_block_or_slot_has_a_partial_value,
    the_workspace_is_linear_in_rows_and_centroids,
    sums_of_slots_are_small_beside_features_or_few,
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)

# As many small numbers as large ones.
magnitudes = st.integers(0, 21).flatmap(lambda bits: st.integers(1, 2**bits))


@st.composite
def calls(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Call:
    """Calls of all sizes, whether or not any machine could hold them."""
    classes, largest = draw(magnitudes), draw(magnitudes)
    rows = None
    if draw(st.booleans()):  # the others have some share of the largest class's rows
        rows = largest + int((classes - 1) * largest * draw(st.floats(0, 1)))
    return call_of(
        classes,
        largest,
        draw(magnitudes),
        draw(st.sampled_from([2, 4, 8])),
        draw(st.sampled_from(list(CHIPS.values()))),
        rows=rows,
        aligned=draw(st.booleans()),
        given=draw(st.booleans()),
        weighted=draw(st.booleans()),
    )


@every_rule
@given(call=calls())
def test_at_sizes_of_every_magnitude(rule: Callable[[Call, Plan], None], call: Call) -> None:
    rule(call, call.plan)


def calls_that_occur() -> Iterator[Call]:
    """Products of sizes that people have, up to 2 TB of features, on every chip."""
    for classes, largest, channels, element_bytes, chip in itertools.product(
        (1, 10, 37, 100, 1000, 100_000),
        (1, 2, 4, 10, 50, 100, 500, 1300, 5000, 100_000),
        (1, 10, 64, 511, 512, 768, 1000, 1024, 2048, 4096, 8192, 8193, 20_000, 70_000),
        (2, 4, 8),
        CHIPS.values(),
    ):
        sizes = (classes, largest, channels, element_bytes, chip)
        if classes * largest * channels * element_bytes > 2 << 40:
            continue
        yield call_of(*sizes)
        yield call_of(*sizes, aligned=False, given=True)
        yield call_of(*sizes, rows=largest * (classes + 1) // 2, weighted=True)
        yield call_of(*sizes, rows=largest + classes - 1)  # one large among single rows


def benchmarked_calls() -> Iterator[Call]:
    """The shapes of the benchmarks in each type, on every chip."""
    shapes = {shape for group in (*SETS.values(), *SWEEPS.values()) for shape in group}
    for shape, element_bytes, chip in itertools.product(sorted(shapes), (2, 4, 8), CHIPS.values()):
        yield call_of(*shape, element_bytes, chip)


@functools.cache
def plans_that_occur() -> list[tuple[Call, Plan]]:
    return [(call, call.plan) for call in (*calls_that_occur(), *benchmarked_calls())]


@every_rule
def test_at_sizes_that_occur(rule: Callable[[Call, Plan], None]) -> None:
    for call, plan in plans_that_occur():
        rule(call, plan)
