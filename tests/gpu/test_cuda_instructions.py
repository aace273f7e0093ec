"""The CUDA kernels issue no more instructions an element than the sweeps over rows need."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmikernels.native import native
from tests.gpu.cuda_instructions import (
    FEATURES,
    LANES,
    TINY_LANES,
    Block,
    Way,
    blocks_of,
    counts_of,
    fewest,
    read_listings,
    summary,
    tiny_counts_of,
)
from tests.gpu.cuda_resources import built_for

# The most that an element may take in both sweeps together, in float32 and in half precision, by
# what the second one does. The gradient has a budget, and the others have what they reach.
BUDGETS = {
    "gradient": (16.0, 18.0),
    "value": (13.5, 15.2),
    "gradient, direct value": (16.2, 18.4),
    "gradient, balanced value": (19.3, 21.5),
    "gradient, short series": (24.9, 27.1),
    "gradient, long series": (27.0, 29.2),
}

# With everything, where a warp holds a class.
TINY_BUDGETS = {"tiny class, value": 17.0, "tiny class, gradient and value": 20.0}

# Two loops, one within the other. In the inner one MUFU.EX2 is on both ways and DADD on the longer.
LISTING = """
\tcode for sm_90
\t\tFunction : _ZN4cmik3gpu9a_kernelEv
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   S2R R0, SR_TID.X ;          /* 0x0000000000007919 */
                                                               /* 0x000e220000002100 */
        /*0010*/                   FADD R1, R1, R2 ;           /* 0x0000000000007919 */
        /*0020*/                   MUFU.EX2 R3, R1 ;           /* 0x0000000000007919 */
        /*0030*/               @P0 BRA 0x70 ;                  /* 0x0000000000007919 */
        /*0040*/                   FADD R1, R1, R2 ;           /* 0x0000000000007919 */
        /*0050*/                   DADD R4, R4, R6 ;           /* 0x0000000000007919 */
        /*0060*/                   BRA.DIV UR4, 0xb0 ;         /* 0x0000000000007919 */
        /*0070*/                   BRA P1, 0x20 ;              /* 0x0000000000007919 */
        /*0080*/              @!P2 BRA 0x10 ;                  /* 0x0000000000007919 */
        /*0090*/                   EXIT ;                      /* 0x0000000000007919 */
        /*00a0*/                   NOP ;                       /* 0x0000000000007919 */
        /*00b0*/                   BRA 0x20 ;                  /* 0x0000000000007919 */
\t\t..........
"""


def listed() -> list[Block]:
    (listing,) = read_listings(LISTING).values()
    return blocks_of(listing)


def test_a_listing_is_divided_where_it_branches() -> None:
    assert list(read_listings(LISTING)) == ["_ZN4cmik3gpu9a_kernelEv"]
    blocks = listed()
    assert [len(block.instructions) for block in blocks] == [1, 1, 2, 3, 1, 1, 1]
    assert [set(block.following) for block in blocks] == [
        {1}, {2}, {3, 4}, {4}, {2, 5}, {1, 6}, set(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("way", "instructions"),
    [
        (Way({"MUFU.EX2": 1}), 3),
        (Way({"MUFU.EX2": 1, "DADD": 1}), 6),
        (Way({"MUFU.EX2": 1, "FADD": 1}, ("DADD",)), 5),  # round the outer loop
        (Way({"MUFU.EX2": 2}), None),
        (Way({"MUFU.EX2": 1, "STG": 1}), None),
    ],
    ids=str,
)
def test_the_shortest_way_round_a_loop_is_found(way: Way, instructions: int | None) -> None:
    assert fewest(listed(), way) == instructions


def test_what_a_call_costs_is_not_taken_for_nothing() -> None:
    (listing,) = read_listings(LISTING.replace("DADD R4, R4, R6", "CALL.REL.NOINC 0xa0")).values()
    assert fewest(blocks_of(listing), Way({"CALL": 1})) is None


def test_an_extension_without_the_kernels_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.gpu.cuda_instructions.cuobjdump", lambda *_: LISTING)
    with pytest.raises(RuntimeError, match=r"expected .*class_kernel.* for sm_90, got none"):
        counts_of(tmp_path)


def has_sm_90() -> bool:
    names = [name.partition("-") for name in built_for().split()]
    return any(number == "90" and kind != "virtual" for number, _, kind in names)


@pytest.mark.skipif(not has_sm_90(), reason="the extension is built without code for sm_90")
def test_the_sweeps_keep_to_their_budgets() -> None:
    pytest.importorskip("triton")  # which brings cuobjdump along
    counts = counts_of(Path(native.__file__))
    print(summary(counts))  # where the test fails or pytest runs with -s
    found = {(each.features, each.lanes, each.way): each.instructions for each in counts}
    assert found.keys() == {
        (features, lanes, way)
        for features in FEATURES
        for lanes in LANES
        for way in ("sums", *BUDGETS)
    }
    beyond = {
        (features, lanes, way): both
        for (features, lanes, way), finish in found.items()
        if way != "sums"
        and (both := found[features, lanes, "sums"] + finish) > BUDGETS[way][features != "Float32"]
    }
    assert beyond == {}


@pytest.mark.skipif(not has_sm_90(), reason="the extension is built without code for sm_90")
def test_tiny_classes_keep_to_their_budgets() -> None:
    pytest.importorskip("triton")  # which brings cuobjdump along
    counts = tiny_counts_of(Path(native.__file__))
    print(summary(counts))  # where the test fails or pytest runs with -s
    assert {(each.features, each.lanes, each.way) for each in counts} == {
        (features, lanes, way)
        for features in FEATURES
        for lanes in TINY_LANES
        for way in TINY_BUDGETS
    }
    assert [each for each in counts if each.instructions > TINY_BUDGETS[each.way]] == []
