"""A GPU for the model of time and for plans, where none is at hand."""

from __future__ import annotations

from bench.gpu import chips
from bench.gpu.model import Machine

H200 = Machine(chips.H200, clock=1.7e9, copy_rate=4.3e12, launch=1.5e-6)
