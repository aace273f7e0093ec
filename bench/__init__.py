"""Benchmarks, profiling, plots and the demo, run as `python -m bench.kernels` and so on."""
