"""Locks: what one process writes, no other writes at the same time.

A lock is a file, `.NAME.lock` beside a file or `.lock` in a folder, that says who holds it. The
operating system holds it (flock, which NFS knows too) and lets go of it however a process ends.
Where a file system has no such locks, the file itself is the lock, and one whose process is gone is
taken over, as far as this machine can tell.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cmidd.storage.output import writing

LOCK_NAME = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_MISSES = 100  # after so many a folder takes no files, as those of /proc
_MOMENT = 0.01  # seconds that a holder needs to write who it is
_held: dict[Path, tuple[int, int]] = {}  # locks, and the process and thread that took them


class BusyError(OSError):
    """Another process is writing there; the message says which."""

    holder = "another process"
    """Who that is."""


@contextlib.contextmanager
def locked(path: Path, *, folder: bool = False) -> Iterator[None]:
    """While it lasts, `path` is written by this process alone, or it raises `BusyError` at once.

    It proves too that files can be written there. Folders that are made for it are taken away again
    if they stay empty. A thread that holds the lock may take it once more.
    """
    place = path.resolve() if folder else path.parent.resolve()
    lock = place / (LOCK_NAME if folder else f".{path.name}.lock")
    me = os.getpid(), threading.get_ident()  # a fork has the thread's, but not its locks
    if _held.get(lock) == me:
        yield
        return
    new = [each for each in (lock.parent, *lock.parent.parents) if not each.exists()]
    try:
        with writing(path):
            descriptor = _taken(lock, path)
        _held[lock] = me
        try:
            yield
        finally:
            del _held[lock]
            _let_go(lock, descriptor)
    finally:
        with contextlib.suppress(OSError):  # up to the first that has something in it
            for each in new:
                each.rmdir()


@contextlib.contextmanager
def busy_first(path: Path, *, folder: bool = False) -> Iterator[None]:
    """Where something that exists is refused inside, say first if a process is still making it."""
    try:
        yield
    except FileExistsError:
        lock = path / LOCK_NAME if folder else path.parent / f".{path.name}.lock"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            descriptor = os.open(lock, os.O_RDONLY)
            try:
                _check_free(descriptor, path)
            finally:
                os.close(descriptor)
        raise


def _check_free(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(path, _holder(descriptor)) from None
    except OSError as error:
        holder = _holder(descriptor, patience=1)
        if error.errno in _NO_LOCKS and _may_live(holder):
            raise _busy(path, holder) from None


def _let_go(lock: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a disk that has gone cannot be tidied
        lock.unlink()  # while it is held, so that nobody takes a file that is not there
    os.close(descriptor)


def _taken(lock: Path, path: Path) -> int:
    """An open lock file that is this process'."""
    misses = 0
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process has just taken an empty folder away
            misses += 1
            if misses == _MISSES:
                raise
            continue
        try:
            if _is_taken(descriptor, lock, path):
                return descriptor
        except BaseException:  # the file is another's, who may hold it
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_taken(descriptor: int, lock: Path, path: Path) -> bool:
    """Take the lock; False where its file has just been taken away."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(path, _holder(descriptor)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _claim(descriptor, lock, path)
        return _is_there(descriptor, lock)
    if not _is_there(descriptor, lock):
        return False
    try:
        _sign(descriptor)
    except OSError:  # a full disk
        lock.unlink(missing_ok=True)
        raise
    return True


def _is_there(descriptor: int, lock: Path) -> bool:
    """Whether the open file is the one that the name stands for."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(lock).st_ino == os.fstat(descriptor).st_ino
    return False


def _claim(descriptor: int, lock: Path, path: Path) -> None:
    """Take the file itself for the lock: of several that sign it at once, the last one has it."""
    holder = _holder(descriptor, patience=1)
    if lock not in _held and (not holder or not _may_live(holder)):
        mine = _sign(descriptor)
        time.sleep(10 * _MOMENT)
        holder = _holder(descriptor, patience=1)
        if holder == mine:
            return
    raise _busy(path, f"{holder} (delete {lock} if that process is gone)")


def _busy(path: Path, holder: str) -> BusyError:
    holder = holder or BusyError.holder
    error = BusyError(
        f"out: {path} is being written by {holder}; wait until it ends, or name another"
    )
    error.holder = holder
    return error


def _sign(descriptor: int) -> str:
    """Write who holds the lock."""
    text = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
    return text


def _holder(descriptor: int, patience: int = 20) -> str:
    """Who holds a lock, which the holder writes a moment after it took it."""
    for _ in range(patience):
        text = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        if text:
            return text
        time.sleep(_MOMENT)
    return ""


def _may_live(holder: str) -> bool:
    """Whether a holder may still be at work: one of this machine is asked for."""
    words = holder.split()
    try:
        number, host = int(words[1]), words[3]
    except (IndexError, ValueError):
        return True
    if host != socket.gethostname():
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return number != os.getpid()
