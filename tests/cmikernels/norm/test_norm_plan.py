"""The tile of a Triton program: a pure function of sizes that keeps within what a GPU can do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmikernels.norm.plan import MOST_CHANNELS_OF_GROUP, make_plan


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("side", [1, 2, 4, 7, 8, 16, 28, 32, 56, 64])
@pytest.mark.parametrize("pool", [1, 2])
def test_instance_norm_of_usual_maps_is_held(pool: int, side: int, order: int, last: bool) -> None:
    if side >= pool:
        assert make_plan(order, 128, 128, side, side, pool, 4, last).held


def test_larger_groups_are_swept() -> None:
    assert not make_plan(0, 64, 64, 128, 128, 2, 4, False).held
    assert not make_plan(0, 4, 128, 32, 32, 2, 4, True).held


def test_channels_that_follow_one_another_are_read_together() -> None:
    assert make_plan(0, 128, 128, 16, 16, 2, 4, True).block_groups == 32
    assert make_plan(0, 128, 128, 32, 32, 2, 4, True).block_groups == 8
    assert make_plan(0, 128, 128, 32, 32, 2, 4, False).block_groups == 1


@given(
    order=st.integers(0, 2), groups=st.integers(1, 600), of_group=st.integers(1, 1024),
    height=st.integers(1, 300), width=st.integers(1, 300), pool=st.sampled_from([1, 2]),
    element_size=st.sampled_from([2, 4, 8]), last=st.booleans(),
)  # fmt: skip
def test_every_plan_keeps_within_its_bounds(
    order: int, groups: int, of_group: int, height: int, width: int, pool: int,
    element_size: int, last: bool,
) -> None:  # fmt: skip
    assert of_group <= MOST_CHANNELS_OF_GROUP
    plan = make_plan(order, groups, groups * of_group, height, width, pool, element_size, last)
    sizes = plan.block_groups, plan.block_channels, plan.block_windows, plan.num_warps
    assert all(size > 0 and size & (size - 1) == 0 for size in sizes)
    windows = -(-height // pool) * -(-width // pool)
    assert plan.block_channels >= of_group
    assert not plan.held or plan.block_windows >= windows
    tile = plan.block_groups * plan.block_channels * plan.block_windows * pool * pool
    wide = 2 if element_size == 8 else 1
    assert plan.num_warps <= 16
    assert tile * wide <= 16 * 32 * plan.num_warps or plan.block_windows == 1
    if plan.even:
        assert groups % plan.block_groups == 0
        assert of_group == plan.block_channels
        assert windows % plan.block_windows == 0
