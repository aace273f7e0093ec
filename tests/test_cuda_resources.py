"""Every CUDA kernel compiles for every supported GPU, without spilling and within a block."""

from __future__ import annotations

import shutil

import pytest

from bench.cuda_resources import (
    BARRIERS,
    REGISTERS,
    ROOT,
    Variant,
    compile_all,
    faults,
    read_build,
    read_report,
    summary,
)

BUILD = read_build((ROOT / "CMakeLists.txt").read_text())
KERNELS = {
    "class_kernel", "slot_sums_kernel", "class_means_kernel", "slot_rows_kernel",
    "wide_sums_kernel", "wide_rows_kernel", "total_kernel", "class_values_kernel",
}  # fmt: skip

REPORT = """
ptxas info    : Compiling entry function '_ZN4cmik3gpu12class_kernelIdEEvNS_4TaskE' for 'sm_90'
ptxas info    : Function properties for _ZN4cmik3gpu12class_kernelIdEEvNS_4TaskE
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 106 registers, used 16 barriers, 32 bytes smem, 728 bytes cmem[0]
ptxas info    : Function properties for _ZN4cmik3gpu6log_ofEd
    24 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_ZN4cmik3gpu5totalIdLNS_4FormE2EEEvNS_4TaskE' for 'sm_90'
ptxas info    : Function properties for _ZN4cmik3gpu5totalIdLNS_4FormE2EEEvNS_4TaskE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 1 barriers
"""


def test_the_build_names_types_targets_and_flags() -> None:
    assert BUILD.features == ("Float32", "Float64", "Bfloat16", "Float16")
    assert BUILD.targets == (80, 89, 90, 100, 120)
    assert "-Xptxas=--register-usage-level=3" in BUILD.flags


def test_a_report_counts_what_called_functions_take() -> None:
    assert list(read_report(REPORT, "Float64")) == [
        Variant(90, "Float64", "class_kernel", 106, 40, 12, 16, 32),
        Variant(90, "Float64", "total<2>", 20, 0, 0, 1, 0),
    ]


@pytest.mark.parametrize(
    "fault",
    [
        {"stack_bytes": 8},
        {"spill_bytes": 4},
        {"registers": REGISTERS + 1},
        {"barriers": BARRIERS + 1},
        {"shared_bytes": 16},
    ],
    ids=str,
)
def test_each_fault_is_seen(fault: dict[str, int]) -> None:
    good = Variant(90, "Float32", "class_kernel", REGISTERS, 0, 0, BARRIERS, 0)
    assert not faults([good])
    assert faults([good._replace(**fault)])  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on PATH")
def test_no_kernel_spills_or_asks_for_too_much() -> None:
    variants = compile_all(BUILD)
    print(summary(variants))  # where the test fails or pytest runs with -s
    found = {(each.target, each.features, each.kernel.partition("<")[0]) for each in variants}
    assert found == {(t, f, k) for t in BUILD.targets for f in BUILD.features for k in KERNELS}
    assert faults(variants) == []
