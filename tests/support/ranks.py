"""Processes that form a group of torch.distributed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def on_ranks(count: int, function: Callable[..., None], folder: Path, *arguments: object) -> None:
    """Call `function` on every rank of a group of `count` processes; raise what one raises."""
    where = folder / "rendezvous"
    where.unlink(missing_ok=True)
    spawn(_on_one, (count, str(where), function, arguments), nprocs=count)  # type: ignore[no-untyped-call]


def _on_one(
    rank: int, count: int, where: str, function: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    # Without it gloo looks up the host's name, and warns where nobody knows it.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=count)
    function(*arguments)
    dist.barrier()  # so that no rank leaves while another waits for it
    dist.destroy_process_group()
