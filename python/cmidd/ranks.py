"""Ranks: the processes that torchrun starts, which share the work of one command.

Every rank draws the same, holds the same synthetic images and takes the same steps. A rank computes
its share of a step's work, and the shares are added up. The first rank alone reads and writes the
run's files, prints and shows progress. In one process nothing of this does anything.

A rank that fails tells the others why, through the store that they met at. Those see that it is
gone, and end too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_MEETING = timedelta(minutes=10)  # until all ranks have started
_PATIENCE = timedelta(days=7)  # with a rank that is alive; one that is gone is noticed at once
_GRACE = 3.0  # seconds in which a rank that waits for others says that it is alive
_READING = 60.0  # seconds that the store stays for ranks which compute meanwhile

_store: Any = None  # where ranks met that `together` brought together


class RankLostError(ConnectionError):
    """Another rank is gone; the message says which and why."""

    def __init__(self, message: str, gone: Sequence[int]) -> None:
        super().__init__(message)
        self.gone = gone


def count() -> int:
    """How many ranks there are; 1 where nothing is shared."""
    return dist.get_world_size() if _are_together() else 1


def number() -> int:
    """Which of them this is, from 0 on."""
    return dist.get_rank() if _are_together() else 0


def is_first() -> bool:
    """Whether this one reads and writes files."""
    return number() == 0


def are_of_a_command() -> bool:
    """Whether there are several, and they run one command from its beginning to its end."""
    return count() > 1 and _store is not None


def share_of(things: int) -> range:
    """Those of so many things that are this rank's, side by side; all in one process."""
    return range(things * number() // count(), things * (number() + 1) // count())


def slice_of(things: int) -> slice:
    """As `share_of`, for rows."""
    share = share_of(things)
    return slice(share.start, share.stop)


def add_up(*tensors: Tensor) -> None:
    """Put the sum over all ranks in the place of each rank's tensors."""
    if count() > 1:
        with _noticing_who_is_gone():
            for tensor in tensors:
                dist.all_reduce(tensor)


@torch.no_grad()
def add_up_gradients(parameters: Sequence[Tensor]) -> None:
    """Over the ranks, in one message; a rank that had no images has none."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    add_up(flat)
    for p, piece in zip(
        parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True
    ):
        p.grad = piece.view_as(p)


def any_of(asked: bool) -> bool:
    """Whether it is so on any rank."""
    if count() == 1:
        return asked
    flag = torch.tensor(int(asked))
    add_up(flag)
    return bool(flag)


def from_first(make: Callable[[], T]) -> T:
    """What the first rank makes, on all of them."""
    if count() == 1:
        return make()
    made: list[Any] = [make() if is_first() else None]
    with _noticing_who_is_gone():
        dist.broadcast_object_list(made)
    found: T = made[0]
    return found


def from_all(made: T) -> list[T]:
    """What each rank made, on all of them, in order."""
    if count() == 1:
        return [made]
    found: list[Any] = [None] * count()
    with _noticing_who_is_gone():
        dist.all_gather_object(found, made)
    return found


def wait() -> None:
    """Until all ranks are here."""
    add_up(torch.zeros(()))


@contextlib.contextmanager
def only_first(context: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Be in a context on the first rank; others go on without."""
    with context() if is_first() else contextlib.nullcontext():
        yield


def are_started() -> bool:
    """Whether torchrun, or somebody who sets what it sets, started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextlib.contextmanager
def together(on_gpu: bool) -> Iterator[None]:
    """While it lasts, the ranks that were started are a group, and one alone prints."""
    # Its functions have the group that there is when it is imported for a default argument. If that
    # were this one, its threads would be left when Python ends, which they can abort.
    import torch.distributed.nn.functional  # noqa: F401
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    global _store
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    expected = f"all {os.environ['WORLD_SIZE']} ranks at {where}"
    if os.environ["RANK"] == "0":
        print(f"waiting for {expected}", flush=True)
    try:
        store, rank, world_size = next(iter(rendezvous("env://", timeout=_MEETING)))
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"ranks: expected {expected}, as the environment's WORLD_SIZE and RANK say; unset them "
            f"to run alone ({error})"
        ) from None
    if _on_one_machine():
        # Else gloo asks for the address of the host's name, which not every machine knows.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    of_group, _store = (PrefixStore(name, store) for name in ("group", "cmidd"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=of_group,
        rank=rank,
        world_size=world_size,
        timeout=_PATIENCE,
    )
    try:
        with _quiet() if rank else contextlib.nullcontext():
            yield
            wait()  # so that nobody takes one that is done for one that is gone
    except BaseException as error:
        _tell(error)
        says_it = rank > 0 and _first_says_it(error)
        _leave(on_gpu)  # so that those who wait for this rank see that it is gone
        if rank == 0:
            _let_read(error, world_size)
        if says_it:
            raise SystemExit(_status(error)) from None
        raise
    else:
        dist.destroy_process_group()
    finally:
        _store = None


def _are_together() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While it lasts, nothing is printed but errors."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _noticing_who_is_gone() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if _store is None:  # others brought the ranks together, and know them
            raise
        lost = _who_is_gone(_store)
        if lost is None:
            raise
        raise lost from error


def _tell(error: BaseException) -> None:
    """Let the others know why this rank ends."""
    why = (
        str(error)
        if isinstance(error, RankLostError)
        else f"rank {number()} ended: {_words(error)}"
    )
    with contextlib.suppress(RuntimeError):  # the store may be gone
        assert _store is not None
        _store.set(f"ended {number()}", why)


def _words(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {error}" if str(error) else name


def _who_is_gone(store: Any) -> RankLostError | None:
    """Which rank ended, and why, as it told or as far as its silence tells; None if none has."""
    silent = sorted({*range(count())} - {number()})
    try:
        store.set(f"alive {number()}", "")
        until = time.monotonic() + _GRACE
        while silent and time.monotonic() < until:
            for rank in silent:
                if store.check([f"ended {rank}"]):
                    return RankLostError(str(store.get(f"ended {rank}").decode()), [rank])
            silent = [rank for rank in silent if not store.check([f"alive {rank}"])]
            time.sleep(0.05)
    except RuntimeError:  # the first rank keeps the store, unless torchrun does
        silent = [0]
    if not silent:
        return None
    who = " or ".join(f"rank {rank}" for rank in silent)  # others of them may be computing
    return RankLostError(
        f"{who} ended without a word; was it killed, or out of memory? What is kept goes on with "
        "--resume",
        silent,
    )


def _leave(on_gpu: bool) -> None:
    """Leave the group, without waiting for what a GPU may have under way for ever."""
    if on_gpu:
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()


def _let_read(error: BaseException, world_size: int) -> None:
    """Stay until the others know why this rank ends, if the store is in this process."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    gone = error.gone if isinstance(error, RankLostError) else []
    until = time.monotonic() + _READING
    with contextlib.suppress(RuntimeError):
        silent = sorted({*range(1, world_size)} - ({*gone} if len(gone) == 1 else set()))
        while silent and time.monotonic() < until:
            silent = [rank for rank in silent if not _store.check([f"ended {rank}"])]
            time.sleep(0.05)


def _status(error: BaseException) -> int:
    """What the process ends with."""
    is_signal = isinstance(error, KeyboardInterrupt)
    return 128 + getattr(error, "number", signal.SIGINT) if is_signal else 1


def _on_one_machine() -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]


def _first_says_it(error: BaseException) -> bool:
    """Whether the first rank, on the same machine, tells the user the same."""
    if not _on_one_machine():
        return False
    with contextlib.suppress(RuntimeError):
        until = time.monotonic() + _GRACE
        while time.monotonic() < until:
            if _store.check(["ended 0"]):
                theirs = str(_store.get("ended 0").decode())
                return theirs == str(error) or theirs.endswith(f"ended: {_words(error)}")
            if isinstance(error, RankLostError) and _store.check(["alive 0"]):
                return True
            time.sleep(0.05)
    return False
