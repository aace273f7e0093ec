"""The GPU kernels on an emulated GPU, built for tests with CMIKERNELS_EMULATE_CUDA=ON."""

from typing import Any

def emulate(*, seed: int = 0, chip: dict[str, Any] | None = None) -> None: ...
