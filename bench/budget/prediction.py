"""What the time of a loop on an H200 might be: of what is counted, and of rates that were guessed.

    device    for each operation the longer of bytes / 4.0 TB/s and FLOP / rate, and 0.7 us a kernel
    CPU       7 us for each of its calls and copies
    a step    the longer of the two where the CPU does not wait for the device, else their sum

4.0 TB/s is nine tenths of what a copy reaches. The rate, 135 TFLOP/s, is the middle of what others
measured of TF32 convolutions. None of it was measured here: a factor of 1.4 either way is expected.
"""

from __future__ import annotations

from bench.budget.count import Count

_BYTES_A_SECOND = 4.0e12
_FLOPS_A_SECOND = 135e12
_A_KERNEL = 700  # nanoseconds
_A_CALL = 7000


def nanoseconds(launches: int, moved: int, flops: int) -> int:
    """Of an operation on the device."""
    seconds = max(moved / _BYTES_A_SECOND, flops / _FLOPS_A_SECOND)
    return round(1e9 * seconds) + _A_KERNEL * launches


def milliseconds(count: Count) -> tuple[float, float, float]:
    """Of the device, of the CPU, and of both."""
    device, cpu = count.nanoseconds / 1e6, _A_CALL * (count.calls + count.copies) / 1e6
    return device, cpu, device + cpu if count.waits else max(device, cpu)
