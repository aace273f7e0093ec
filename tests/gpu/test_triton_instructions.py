"""The loops of the Triton kernels keep within their budgets of instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.gpu.machine_code import loops

pytest.importorskip("triton")

# Instructions an element for sm_90: of the first sweep, of the second with a value by the direct
# form, and by the series. Without a value the second has a number of its own.
BUDGETS = {"float32": (10.5, 20.0, 36.5), "bfloat16": (11.5, 21.5, 37.5)}
WITHOUT_A_VALUE = 19.0


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the tool writes, by a process that does not interpret the kernels."""
    written = tmp_path_factory.mktemp("counts") / "instructions.json"
    subprocess.run(
        [sys.executable, "-m", "tests.gpu.triton_instructions", "--json", str(written)],
        check=True,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )
    counts: list[dict[str, Any]] = json.loads(written.read_text())
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BUDGETS)
def test_a_class_is_swept_within_the_budget(counts: list[dict[str, Any]], dtype: str) -> None:
    case = f"20000x10x512 {dtype} equal both"
    sums, _, finish, _ = [each for each in counts if each["case"] == case]
    first, direct, series = BUDGETS[dtype]
    assert sums["direct"] <= first
    assert finish["direct"] <= direct
    assert finish["series"] <= series


@pytest.mark.slow
def test_the_slots_of_a_class_are_swept_within_the_budget(counts: list[dict[str, Any]]) -> None:
    of_slots = [each for each in counts if each["case"] == "10x3000x512 float32 equal both"]
    sums, finish = [each for each in of_slots if each["loop"] == 0]
    first, direct, series = BUDGETS["float32"]
    assert (sums["kernel"], finish["kernel"]) == ("slot_sums", "class_rows")
    assert sums["direct"] <= first
    assert finish["direct"] <= direct
    assert finish["series"] <= series


@pytest.mark.slow
def test_a_gradient_alone_takes_no_value(counts: list[dict[str, Any]]) -> None:
    case = "20000x10x512 bfloat16 equal rescale"
    _, _, finish, _ = [each for each in counts if each["case"] == case]
    assert finish["direct"] <= WITHOUT_A_VALUE
    assert finish["series"] is None


def test_instructions_are_counted_on_the_way_that_is_taken() -> None:
    (loop,) = loops("""
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   MUFU.EX2 R2, R3 ;
        /*0020*/                   MUFU.EX2 R4, R5 ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/                   FFMA R4, R5, 0.5, R4 ;
        /*0050*/                   FADD R4, R4, 1 ;
.L_x_2:
        /*0060*/                   FADD R4, R4, 2 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3) ;
    """)
    assert loop.an_element() == 5 / 2
    assert loop.an_element("0.5,") == 7 / 2
    assert not loop.has("EXIT")
