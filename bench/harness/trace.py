"""What torch.profiler saw of a call, as the events of its trace."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Event = dict[str, Any]

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def trace_of(call: Callable[[], object]) -> list[Event]:
    """Make the call and give its trace, the GPU's part included where there is a GPU.

    The profiler's hooks stay in the process and slow later launches, so time comes before this.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events: list[Event] = json.loads(path.read_text())["traceEvents"]
    return events
