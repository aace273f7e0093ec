"""A GPU for the model of time and for plans, where none is at hand."""

from __future__ import annotations

from bench.gpu.model import Machine

H200 = Machine(
    {
        "capability": 90,
        "processors": 132,
        "largest_cluster": 16,
        "clusters_of_16": 8,
        "block_bytes": 227 << 10,
        "processor_bytes": 228 << 10,
        "cache_bytes": 50 << 20,
    },
    clock=1.7e9,
    copy_rate=4.3e12,
    launch=1.5e-6,
)
