"""GPUs as plans see them, described from their GPCs: for where none is at hand.

A cluster's blocks lie within one GPC, a group of multiprocessors of which a GPU has several, not
all of the same size. How many clusters are resident at once follows from that, and on a GPU at hand
the driver says it (csrc/cuda/hardware/runtime.cuh). The GPCs of a GPU are not published: those here
are one way to come to its multiprocessors.
"""

from __future__ import annotations

from typing import NamedTuple

from cmikernels.native import native

CLUSTER_SIZES = (2, 4, 8, 16)  # the rows of a table of resident clusters,
CLUSTER_THREADS = (128, 256, 512)  # and its columns: threads of a block


class Chip(NamedTuple):
    """What a plan asks of a GPU, as csrc/include/cmikernels.h has it; sizes in bytes."""

    capability: int  # 90 for 9.0
    processors: int
    resident_clusters: tuple[tuple[int, ...], ...]
    block_bytes: int
    processor_bytes: int
    cache_bytes: int

    def resident(self, cluster: int, threads: int) -> int:
        """How many clusters of so many blocks of so many threads a plan may have at once."""
        if cluster == 1:
            return self.processors * (_threads_served() // threads)
        row = self.resident_clusters[CLUSTER_SIZES.index(cluster)]
        return row[CLUSTER_THREADS.index(threads)]


def chip_here(device: int = 0) -> Chip:
    """What plans for the GPU at hand depend on."""
    return Chip(**native.cuda_chip(device))


def describe_chip(
    capability: int,
    gpcs: tuple[int, ...],
    block_bytes: int,
    processor_bytes: int,
    cache_bytes: int,
    largest_cluster: int = 1,
) -> Chip:
    """Describe a GPU that has so many multiprocessors in each GPC."""
    table = resident_clusters(gpcs, largest_cluster)
    return Chip(capability, sum(gpcs), table, block_bytes, processor_bytes, cache_bytes)


def resident_clusters(gpcs: tuple[int, ...], largest_cluster: int) -> tuple[tuple[int, ...], ...]:
    """Clusters of each size and block shape that fit the GPCs; none above the largest."""
    return tuple(
        tuple(
            sum(gpc * (_threads_served() // threads) // size for gpc in gpcs)
            if size <= largest_cluster
            else 0
            for threads in CLUSTER_THREADS
        )
        for size in CLUSTER_SIZES
    )


def _threads_served() -> int:
    """Threads that a multiprocessor's registers serve."""
    return int(native.cuda_constants()["processor_threads"])


# Holds 15 clusters of 8 blocks that fill a multiprocessor, as H100s do by report, and not 16.
H200_GPCS = (18, 18, 18, 16, 16, 16, 16, 14)
H200 = describe_chip(90, H200_GPCS, 227 << 10, 228 << 10, 50 << 20, 16)
