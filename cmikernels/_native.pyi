"""Native kernels; addresses are integers, 0 for none. See csrc/include/cmikernels.h."""

from typing import Any

def cpu_cmi(call: dict[str, float], threads: int, /) -> None: ...
def label_bounds(labels: int, rows: int, /) -> tuple[int, int]: ...
def index_labels(labels: int, rows: int, classes: int, offsets: int, order: int, /) -> bool: ...
def cpu_info() -> dict[str, str]: ...
def cuda_constants() -> dict[str, int]: ...
def cuda_plan(
    *,
    rows: int,
    classes: int,
    largest: int,
    channels: int,
    element_bytes: int,
    ragged: bool,
    aligned: bool,
    given: bool,
    weighted: bool,
    chip: dict[str, Any],
) -> dict[str, int | str]: ...

# Where there are GPU kernels in the build.
def cuda_cmi(problem: dict[str, float], besides: dict[str, int], /) -> int: ...
def cuda_chip(device: int, /) -> dict[str, Any]: ...  # as cuda_plan takes it
def cuda_info() -> dict[str, str | int]: ...
