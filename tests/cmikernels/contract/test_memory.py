"""A fused call takes the gradient and O(N + C M) more, as a fresh process measures it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.tables import FUSED

CLASSES, ROWS_PER_CLASS, CHANNELS = 200, 50, 1024

# Peak resident memory only ever grows, so the features are made big enough to be the peak, without
# temporaries; whatever a call adds to the peak it adds on top of them.
MEASURE = """
import resource, sys
import torch
from cmikernels import cmi_value_and_grad, fused_cmi
torch.set_num_threads(2)
classes, rows, channels = map(int, sys.argv[3:])
backend, how = sys.argv[1:3]

def peak():  # bytes; Linux's ru_maxrss starts at the parent's
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if "VmHWM" in line) * 1024


def call(features, labels):
    if how == "value":
        return fused_cmi(features, backend=backend)
    if how == "value and gradient":
        return cmi_value_and_grad(features, backend=backend)
    if how == "labels":
        return cmi_value_and_grad(features.flatten(0, 1), labels, backend=backend)
    features.requires_grad_()
    reduction = "none" if how == "row weights" else "mean"
    value = fused_cmi(features, weight=3.0, reduction=reduction, backend=backend)
    return torch.autograd.grad(value, features, torch.rand(value.shape))

call(torch.randn(2, 3, 4), torch.arange(6) % 2)  # whatever is loaded at first use
features = torch.empty(2 * classes, rows, channels).normal_()[:classes]
labels = torch.arange(classes).repeat(rows)
before = peak()
kept = call(features, labels)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither of the measurements")
@pytest.mark.parametrize(
    "how", ["value", "value and gradient", "labels", "autograd", "row weights"]
)
@pytest.mark.parametrize("fused", [name for name in FUSED if name == "cpu"])
def test_extra_memory_is_the_gradient_and_little_more(fused: str, how: str) -> None:
    shape = (str(CLASSES), str(ROWS_PER_CLASS), str(CHANNELS))
    finished = subprocess.run(
        [sys.executable, "-c", MEASURE, fused, how, *shape],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    extra = int(finished.stdout)
    rows = CLASSES * ROWS_PER_CLASS
    gradient = 0 if how == "value" else 4 * rows * CHANNELS
    # Class sums and row statistics, twice over, and what an allocator rounds up to.
    beside = 2 * 4 * (CLASSES * CHANNELS + 4 * rows) + 4 * 2**20
    assert extra <= gradient + beside
    assert extra >= 0.9 * gradient, "the measurement missed the gradient, so it proves nothing"
