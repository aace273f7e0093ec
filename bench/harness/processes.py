"""A fresh process for what must not see an earlier measurement: memory, allocators, compilers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

_T = TypeVar("_T")

# glibc returns every large block to the system as soon as it is freed, as a peak of memory assumes.
RETURNED: Mapping[str, str] = {"MALLOC_MMAP_THRESHOLD_": "65536"}
# No block by mmap, which would be unmapped when freed; the heap's end is never given back.
KEPT: Mapping[str, str] = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


@contextlib.contextmanager
def allocating(allocator: Mapping[str, str]) -> Iterator[None]:
    """While it lasts, new processes have this setting of glibc's malloc and no other."""
    inherited = dict(os.environ)
    for name in inherited:
        if name.startswith("MALLOC_"):
            del os.environ[name]
    os.environ.update(allocator)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(inherited)


def apart(
    function: Callable[..., _T], *arguments: object, allocator: Mapping[str, str] = RETURNED
) -> _T:
    """Call a module's function in a new process; `allocator` is its setting of glibc's malloc."""
    with (
        allocating(allocator),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
    ):
        return process.submit(function, *arguments).result()
