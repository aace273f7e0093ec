"""What compute-sanitizer watches, and how its output is judged; needs no GPU."""

from __future__ import annotations

from typing import Any

from bench.gpu.chips import H200
from cmikernels.native import native
from tests.gpu import sanitize
from tests.gpu.sanitize_case import cases

INITCHECK = """========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<4>(int, T3)+0x90
=========     by thread (0,0,0) in block (0,0,0)
========= Uninitialized __global__ memory read of size 4 bytes
=========     at class_tiles+0x1230 in triton_kernels.py:210
=========     by thread (3,0,0) in block (0,0,0)
========= ERROR SUMMARY: 2 errors
"""


def test_only_our_kernels_uninitialised_reads_count() -> None:
    assert sanitize.uninitialised_reads(INITCHECK) == (
        ["class_tiles+0x1230 in triton_kernels.py:210"],
        1,
    )


def test_what_is_sanitized_takes_all_ways_of_the_cuda_backend() -> None:
    found: set[tuple[object, object]] = set()
    for case in cases(H200.processors):
        weighted = case.reduction == "none" and not case.given  # the backward's
        plan: dict[str, Any] = native.cuda_plan(
            rows=sum(case.sizes),
            classes=len(case.sizes),
            largest=max(case.sizes),
            channels=case.channels,
            element_bytes=case.dtype.itemsize,
            ragged=True,
            aligned=not case.transposed and case.channels * case.dtype.itemsize % 16 == 0,
            given=case.given,
            weighted=weighted,
            chip=H200._asdict(),
        )
        found |= {(plan["kind"], plan["form"])}
        found |= {(plan["kind"], "cluster" if plan["cluster"] > 1 else "block")}
        found |= {("stages", plan["stages"])}
    held = {("classes", way) for way in ("full", "packed", "any", "cluster", "block")}
    assert found >= held | {("stages", 1), ("stages", 4)}
    assert found >= {("slots", "full"), ("slots", "any"), ("wide", "any")}
