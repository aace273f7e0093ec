"""What a call launches on the GPU, counted by torch.profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from bench.harness.providers import PROVIDERS, ready_call
from bench.harness.records import Row
from bench.harness.trace import ON_DEVICE, Event, trace_of


def launches(call: Callable[[], object]) -> Counter[str]:
    """Names of the kernels, copies and fills that one call launches, and how often."""
    return on_device(trace_of(call))


def on_device(events: Iterable[Event]) -> Counter[str]:
    """Pick the device's own events out of a trace."""
    return Counter(event["name"] for event in events if event.get("cat") in ON_DEVICE)


def add_launches(rows: list[Row], device: str) -> None:
    """Put launches, and our kernels' names, into the rows of our providers and the eager one.

    Compiled providers are left out: counting theirs would mean compiling everything once more.
    """
    counted: dict[tuple[object, ...], Counter[str]] = {}
    for row in rows:
        provider = PROVIDERS.get(row["contender"])
        if provider is None or "launches" in row or provider.may_be_missing:
            continue
        size = row["classes"], row["rows"], row["channels"]
        key = (row["contender"], row["dtype"], row["mode"], size)
        if key not in counted:
            counted[key] = _count(row, size, device)
        names = counted[key]
        row["launches"] = names.total() or None  # none at all: the profiler saw nothing
        if provider.ours:
            row["kernels"] = ", ".join(f"{name} x{count}" for name, count in names.items())


def _count(row: Row, size: tuple[int, int, int], device: str) -> Counter[str]:
    contender = ready_call(row["contender"], size, row["dtype"], row["mode"], device)

    def call() -> object:
        return contender.run(contender.prepare())

    return launches(call) or launches(call)  # a profiler just started may have seen nothing
