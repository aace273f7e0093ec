"""Whether given centroids are probabilities: read a few times at most, not in every call.

A tensor that was found good is remembered with its version, as autograd counts it. A loop that
hands over the same one, or rows of it, pays for a look-up. A loop that makes another one in every
step, such as a moving average, has the first of them read.
"""

from __future__ import annotations

import weakref
from collections import Counter

import torch
from torch import Tensor

from cmikernels.transforms import transforms_are_active

# How far from 1 the sum of a row may be. Entries rounded to bfloat16 move it by 0.004 at most, and
# as much again if they were averaged in bfloat16; float32 sums of a million channels by 0.0001.
SUM_TOLERANCE = 0.01
MOST_READS = 100  # of tensors of one shape

_good: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # by id, with the version that was read
_reads: Counter[torch.Size] = Counter()


def check_call(centroids: Tensor) -> None:
    """As `check_probabilities`, for what is given in every call: for nothing in the long run."""
    if _is_good(centroids) or transforms_are_active() or _is_part_of_good(centroids):
        return
    if _reads[centroids.shape] < MOST_READS:
        _reads[centroids.shape] += 1
        check_probabilities(centroids)


def check_probabilities(centroids: Tensor) -> None:
    """Raise unless every row of `(..., C, M)` is a distribution over the channels.

    A row of zeros, which `class_centroids` gives a class without rows, passes, and so does NaN,
    which makes its class NaN. On a GPU reading waits for the device.
    """
    if centroids.numel():
        _read(centroids.detach())
    if not centroids.is_inference():  # whose changes are not counted
        key = id(centroids)
        reference = weakref.ref(centroids, lambda _: _good.pop(key, None))
        _good[key] = reference, centroids._version


def _is_good(centroids: Tensor) -> bool:
    known = _good.get(id(centroids))
    return known is not None and known[0]() is centroids and known[1] == centroids._version


def _is_part_of_good(centroids: Tensor) -> bool:
    """Whether it is rows of a good one: a network's of (networks, C, M), some classes of (C, M)."""
    whole = centroids._base
    if whole is None or not _is_good(whole) or not whole.is_contiguous():
        return False
    channels = whole.shape[-1]
    return (
        centroids.shape[-1:] == whole.shape[-1:]
        and centroids.stride(-1) == 1
        and all(stride % channels == 0 for stride in centroids.stride()[:-1])
        and (centroids.storage_offset() - whole.storage_offset()) % channels == 0
    )


def _read(centroids: Tensor) -> None:
    """Raise where the numbers are no probabilities."""
    sums = centroids.sum(-1, dtype=torch.promote_types(centroids.dtype, torch.float32))
    low, high = torch.aminmax(sums)
    if centroids.amin() >= 0 and low >= 1 - SUM_TOLERANCE and high <= 1 + SUM_TOLERANCE:
        return
    negative = centroids < 0  # False for NaN, and so is the next
    wrong = ((sums - 1).abs() > SUM_TOLERANCE) & (sums != 0)
    if negative.any():
        found = f"an entry of {centroids[negative][0].item():.4g}"
    elif wrong.any():
        found = f"a row that sums to {sums[wrong][0].item():.4g}"
    else:
        return
    raise ValueError(
        "centroids: expected probabilities, at least 0 and in each row with the sum 1 (within "
        f"{SUM_TOLERANCE}), got {found}; were features averaged, not their softmax? "
        "class_centroids(features, labels) gives the means of the softmax"
    )
