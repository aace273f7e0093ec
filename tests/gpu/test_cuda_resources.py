"""Every CUDA kernel of the built extension spills nothing and keeps within a block."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmikernels.native import native
from tests.gpu.cuda_resources import (
    BARRIERS,
    REGISTERS,
    TEAM_BARRIERS,
    Variant,
    barriers_of,
    built_for,
    faults,
    read_report,
    summary,
    variants_of,
)

KERNELS = {
    "class_kernel", "tiny_kernel", "slots_kernel", "wide_kernel", "class_values_kernel",
}  # fmt: skip
CLASS_KERNELS = {
    "class_kernel<0, 0>", "class_kernel<0, 1>", "class_kernel<0, 2>",  # full rows: 8, 16, 32 lanes
    "class_kernel<1, 3>", "class_kernel<1, 4>", "class_kernel<2, 3>", "class_kernel<2, 4>",
}  # fmt: skip
FEATURES = {"Float32", "Float64", "Bfloat16", "Float16"}

USAGE = """
Fatbin elf code:
================
arch = sm_80

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN4cmik3gpu11wide_kernelINS0_8Bfloat16EEEvNS_4TaskE:
  REG:14 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:752 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90

Resource usage:
 Function _ZN4cmik3gpu11wide_kernelINS0_8Bfloat16EEEvNS_4TaskE:
  REG:20 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:752 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN4cmik3gpu12class_kernelIdLNS_4FormE2ELNS_4TeamE4EEEvNS_4TaskE:
  REG:106 STACK:40 SHARED:1056 LOCAL:8 CONSTANT[0]:752 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
ELF = """
arch = sm_80
.nv.info._ZN4cmik3gpu11wide_kernelINS0_8Bfloat16EEEvNS_4TaskE
\tAttribute:\tEIATTR_MAXREG_COUNT
\tFormat:\tEIFMT_HVAL
\tValue:\t0x80
arch = sm_90
.nv.info._ZN4cmik3gpu11wide_kernelINS0_8Bfloat16EEEvNS_4TaskE
\tAttribute:\tEIATTR_NUM_BARRIERS
\tFormat:\tEIFMT_BVAL
\tValue:\t0x1
.nv.info._ZN4cmik3gpu12class_kernelIdLNS_4FormE2ELNS_4TeamE4EEEvNS_4TaskE
\tAttribute:\tEIATTR_NUM_BARRIERS
\tFormat:\tEIFMT_BVAL
\tValue:\t0x10
"""


def test_a_report_is_taken_apart_by_target_and_kernel() -> None:
    assert list(read_report(USAGE, ELF)) == [
        Variant(80, "Bfloat16", "wide_kernel", 14, 0, 0, 0),
        Variant(90, "Bfloat16", "wide_kernel", 20, 0, 1, 0),
        Variant(90, "Float64", "class_kernel<2, 4>", 106, 48, 16, 32),
    ]


def test_a_file_without_kernels_is_no_report() -> None:
    with pytest.raises(RuntimeError, match="expected resources of kernels"):
        list(read_report("", ELF))


def test_barriers_that_are_noted_elsewhere_are_not_taken_for_none() -> None:
    with pytest.raises(RuntimeError, match="expected the attribute EIATTR_NUM_BARRIERS"):
        list(read_report(USAGE, ELF.replace("EIATTR_NUM_BARRIERS", "EIATTR_MAXREG_COUNT")))


@pytest.mark.parametrize(
    "fault",
    [
        {"stack_bytes": 8},
        {"registers": REGISTERS + 1},
        {"barriers": BARRIERS + 1},
        {"shared_bytes": 16},
    ],
    ids=str,
)
def test_each_fault_is_seen(fault: dict[str, int]) -> None:
    good = Variant(90, "Float32", "class_kernel", REGISTERS, 0, BARRIERS, 0)
    assert not faults([good])
    assert faults([good._replace(**fault)])  # type: ignore[arg-type]


def test_teams_of_several_warps_have_a_barrier_each() -> None:
    good = Variant(90, "Float32", "class_kernel<1, 4>", REGISTERS, 0, TEAM_BARRIERS, 0)
    assert not faults([good])
    assert faults([good._replace(barriers=TEAM_BARRIERS + 1)])
    assert faults([good._replace(kernel="class_kernel<1, 3>")])


@pytest.mark.skipif(not built_for(), reason="the extension is built without CUDA kernels")
def test_no_kernel_spills_or_asks_for_too_much() -> None:
    pytest.importorskip("triton")  # which brings cuobjdump along
    variants = variants_of(Path(native.__file__))
    print(summary(variants))  # where the test fails or pytest runs with -s
    names = [name.partition("-") for name in built_for().split()]
    targets = {each.target for each in variants}
    if all(name.isdigit() for name, *_ in names):  # and not such as native
        assert targets == {int(name) for name, _, kind in names if kind != "virtual"}
    found = {(each.target, each.features, each.kernel.partition("<")[0]) for each in variants}
    assert found == {(t, f, k) for t in targets for f in FEATURES for k in KERNELS}
    assert faults(variants) == []
    of_classes = [each for each in variants if each.kernel.startswith("class_kernel")]
    assert {each.kernel for each in of_classes} == CLASS_KERNELS
    assert all(each.barriers == barriers_of(each.kernel) for each in of_classes)
