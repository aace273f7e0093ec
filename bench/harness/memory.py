"""Peak extra memory of one value+gradient call: what it needs beyond the features.

On a CPU that is the peak of the resident set above what was resident just before the call, in a
process of its own, so that nothing an earlier provider left behind counts. On a GPU the allocator
keeps count.

    python -m bench.harness.memory published float32 200 50 1024
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bench.harness.race import Contender


def peak_extra_bytes(provider: str, shape: tuple[int, int, int], dtype: str) -> int:
    """Measure on the CPU in a fresh process; raises with its error output if that fails."""
    command = [sys.executable, "-m", "bench.harness.memory", provider, dtype, *map(str, shape)]
    # A fixed threshold makes glibc return every large block at once, as the peak assumes.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def gpu_peak_extra_bytes(contender: Contender) -> int:
    """Measure in this process, from the allocator's own count; run once before."""
    prepared = contender.prepare()
    torch.cuda.synchronize()
    allocated = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.run(prepared)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - allocated


def _measure(provider: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    from bench.harness.providers import PROVIDERS

    loss = PROVIDERS[provider].make()
    features = torch.randn(shape).to(dtype).requires_grad_()

    def call() -> None:
        loss(features, None).backward()  # type: ignore[no-untyped-call]

    def first() -> None:
        call()
        features.grad = None

    return extra_bytes(first, call)


def extra_bytes(first: Callable[[], object], call: Callable[[], object]) -> int:
    """Peak of the resident set in a call, above what was resident just before it.

    `first` is called before: it loads libraries, starts threads and compiles.
    """
    at_start = _max_resident()
    first()
    gc.collect()
    if not _can_reset_peak():  # then the first call's peak has to do, libraries and all
        return max(0, _max_resident() - at_start)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    resident = _status("VmRSS")
    _can_reset_peak()
    call()
    return max(0, _status("VmHWM") - resident)


def peak_so_far(device: torch.device) -> int:
    """The most of its memory so far: what tensors took of a GPU, or this process of the system's.

    Linux's ru_maxrss would start at the parent's.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM")


def _can_reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _max_resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    name, dtype_name, *sizes = sys.argv[1:]
    print(_measure(name, tuple(map(int, sizes)), getattr(torch, dtype_name)))
