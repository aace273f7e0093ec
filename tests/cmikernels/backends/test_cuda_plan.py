"""The plan of a CUDA call is a pure function of sizes and chip: which one sizes of note get."""

from __future__ import annotations

import pytest

from bench.gpu.chips import H200, Chip
from tests.support.cuda_plans import CHIPS, call_of


@pytest.mark.parametrize(
    ("sizes", "kind", "cluster", "stages"),
    [
        ((1000, 50, 512), "classes", 1, 1),
        ((100_000, 4, 256), "tiny", 1, 0),
        ((10, 10, 512), "classes", 1, 1),
        ((100, 10, 512), "classes", 1, 1),
        ((20_000, 10, 512), "classes", 1, 1),
        ((10, 50, 512), "classes", 8, 1),
        ((10, 500, 512), "classes", 16, 1),
        ((1000, 1000, 512), "classes", 16, 1),
        ((1000, 50, 2048), "classes", 8, 1),
        ((1000, 50, 511), "classes", 1, 0),
        ((10, 5000, 512), "slots", 1, 0),
        ((10, 5000, 2048), "slots", 1, 0),
        ((1, 100_000, 2048), "slots", 1, 0),
        ((1000, 700, 2048), "slots", 1, 0),
        ((10, 50, 20_000), "wide", 1, 0),
        ((10, 1, 70_000), "wide", 1, 0),
    ],
    ids=str,
)
def test_the_plan_of_named_sizes_on_an_h200(
    sizes: tuple[int, int, int], kind: str, cluster: int, stages: int
) -> None:
    plan = call_of(*sizes).plan
    assert (plan.kind, plan.cluster, plan.stages) == (kind, cluster, stages)


def test_an_h200_has_fewer_clusters_than_its_multiprocessors_would_make() -> None:
    assert H200.processors == 132
    assert [H200.resident(cluster, 512) for cluster in (2, 4, 8, 16)] == [66, 31, 15, 7]
    assert [H200.resident(cluster, 256) for cluster in (2, 4, 8, 16)] == [132, 66, 31, 15]


@pytest.mark.parametrize(
    ("sizes", "element_bytes"),
    [((200, 50, 1024), 4), ((200, 50, 1024), 2), ((2000, 50, 1024), 4), ((1000, 50, 2048), 4)],
    ids=str,
)
def test_all_clusters_of_large_classes_are_resident_on_an_h200(
    sizes: tuple[int, int, int], element_bytes: int
) -> None:
    """Classes are dealt out beforehand: a cluster that waits for a place doubles the time."""
    plan = call_of(*sizes, element_bytes).plan
    assert plan.cluster > 1
    assert plan.blocks // plan.cluster == H200.resident(plan.cluster, plan.threads)


@pytest.mark.parametrize(
    ("chip", "cluster"),
    [("H200", 16), ("H200 without clusters of 16", 8), ("RTX 5090", 8), ("A100", 1)],
)
def test_a_class_is_held_by_the_largest_cluster_that_the_gpu_has(chip: str, cluster: int) -> None:
    assert call_of(10, 200, 512, chip=CHIPS[chip]).plan.cluster == cluster


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("sizes", [(1000, 10, 512), (20_000, 10, 512), (100_000, 4, 64)], ids=str)
def test_classes_too_small_to_be_divided_are_not_slots(
    sizes: tuple[int, int, int], chip: Chip
) -> None:
    """A slot each would take more launches, and the sums would be read and written besides."""
    assert call_of(*sizes, chip=chip).plan.kind == "classes"


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("tiny", [1, 10])
def test_one_giant_among_tiny_classes_does_not_keep_a_cluster_at_work_alone(
    chip: Chip, tiny: int
) -> None:
    plan = call_of(1001, 10_000, 512, chip=chip, rows=10_000 + 1000 * tiny).plan
    assert plan.kind == "slots"


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_a_few_huge_classes_fill_the_chip(classes: int, chip: Chip) -> None:
    assert call_of(classes, 100_000, 1024, chip=chip).plan.blocks >= 4 * chip.processors


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("sizes", [(1000, 50, 512), (10, 5000, 2048), (10, 50, 20_000)], ids=str)
def test_given_centroids_need_no_more_workspace(sizes: tuple[int, int, int], chip: Chip) -> None:
    own, fixed = (call_of(*sizes, chip=chip, given=given).plan for given in (False, True))
    assert fixed.workspace_bytes <= own.workspace_bytes


def test_a_class_that_l2_can_hold_is_read_from_memory_once() -> None:
    """With what sums that are ahead read in between, within three quarters of it."""
    plan = call_of(10, 10_000, 1024, 2).plan
    assert plan.read_once
    assert plan.lead * plan.rows_per_slot * 2048 < H200.cache_bytes // 2
    assert not call_of(10, 10_000, 1024, 4).plan.read_once
    assert not call_of(1, 100_000, 1024, 2).plan.read_once
