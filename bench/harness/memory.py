"""Peak memory of a call: what it takes beyond what was there before.

On a CPU that is the peak of the resident set above what was resident just before the call. It is
taken in a process of its own, so that nothing an earlier call left behind counts. On a GPU the
allocator keeps count.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bench.harness.race import Contender


def gpu_peak_extra_bytes(contender: Contender) -> int:
    """Measure in this process, from the allocator's own count; run once before."""
    prepared = contender.prepare()
    torch.cuda.synchronize()
    allocated = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.run(prepared)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - allocated


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


def total_bytes(device: torch.device) -> int:
    """Memory of the GPU, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
