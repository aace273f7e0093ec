"""Processes that form a group of torch.distributed."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

# Of the server that ranks are forked from, so that torch starts once and not for each of them.
multiprocessing.set_forkserver_preload(["torch", "torch.distributed", "cmidd.cli.commands"])


def on_ranks(count: int, function: Callable[..., None], folder: Path, *arguments: object) -> None:
    """Call `function` on every rank of a group of `count` processes; raise what one raises."""
    where = folder / "rendezvous"
    where.unlink(missing_ok=True)
    given = (count, str(where), function, arguments)
    start_processes(_on_one, given, nprocs=count, start_method="forkserver")  # type: ignore[no-untyped-call]


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
