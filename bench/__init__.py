"""Benchmarks and their plots, run as `python -m bench.kernels` and so on."""
