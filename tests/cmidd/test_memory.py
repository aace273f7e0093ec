"""Freed memory stays with the process, unless its environment says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

GLIBC = platform.libc_ver()[0] == "glibc"
# New pages after the first round, of rounds that take and free 64 MiB; and images of a part.
ROUNDS = """
import resource, torch
from cmidd.networks import images_per_chunk
part = images_per_chunk(torch.device("cpu"), 32, 1)
def taken():
    torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = [taken(), taken()][-1]
for _ in range(8): last = taken()
print(last - first, part)
"""
PAGES = 2**26 // os.sysconf("SC_PAGESIZE")


def pages_and_part(**settings: str) -> tuple[int, int]:
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS], env={**inherited, **settings}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    pages, part = done.stdout.split()
    return int(pages), int(part)


@pytest.mark.skipif(not GLIBC, reason="malloc is not glibc's")
def test_freed_memory_is_kept_and_parts_are_large() -> None:
    pages, part = pages_and_part()
    assert pages < 4 * PAGES  # of eight rounds; now and then a block comes to lie elsewhere
    assert part == 128


@pytest.mark.skipif(not GLIBC, reason="malloc is not glibc's")
@pytest.mark.parametrize(
    "settings",
    [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}],
)
def test_settings_in_the_environment_are_left_as_they_are(settings: dict[str, str]) -> None:
    pages, part = pages_and_part(**settings)
    assert pages > 4 * PAGES
    assert part == 16


def test_memory_that_the_environment_keeps_counts_as_kept() -> None:
    _, part = pages_and_part(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(2**40))
    assert part == 128
