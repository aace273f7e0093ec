"""The kernels: time, accuracy, overhead of a call."""
