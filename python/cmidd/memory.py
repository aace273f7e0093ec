"""Memory of the CPU that is freed and taken again in every step.

By default glibc gives large blocks back to the system when they are freed, and the system zeroes
the pages that come in their place: with maps of 128 images that is a third of the time of a step.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, as malloc.h numbers them


@cache
def keep_freed_memory() -> bool:
    """Have this process keep what is freed, if its malloc is glibc's; whether it does.

    No block comes by mmap, and the end of the heap is never given back. A setting of malloc in the
    environment is left as it is.
    """
    if os.environ.get("MALLOC_MMAP_MAX_") == "0":
        return True
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another system, another libc
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
