"""Counter-based randomness: every draw is a function of the run's seed and of where it is used.

A draw is named by words, `generator(seed, "real batch", iteration)`, and needs nothing of the draws
before it. So a run that goes on after a kill draws what the uninterrupted one would have drawn, and
leaving out one kind of draw does not move the others. Draws are made on the CPU and moved, which
gives the same numbers on every device.
"""

from __future__ import annotations

import hashlib

import torch

STREAMS = 2
"""Counts the changes of what streams are called: a run goes on with those it began with alone."""


def seed_of(*words: int | str) -> int:
    """A number that is as good as random in `words`, the same on every machine.

    It has 63 bits, of which torch's CPU generator uses 32.
    """
    text = "\x1f".join(f"{type(word).__name__}:{word}" for word in words)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*words: int | str) -> torch.Generator:
    """A CPU generator at the start of the stream that `words` name."""
    return torch.Generator().manual_seed(seed_of(*words))
