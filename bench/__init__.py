"""Benchmarks, profiling and plots, run as `python -m bench.kernels` and so on."""
