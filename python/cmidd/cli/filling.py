"""The file that a command fills, begun or gone on with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cmidd.storage.going_on import check_new
from cmidd.storage.growing_file import partial_path
from cmidd.storage.lock import busy_first, locked
from cmidd.training_file import training_path


@contextlib.contextmanager
def filling(out: Path, *, resume: bool) -> Iterator[None]:
    """While it lasts this process alone writes `out`, which is new or may be gone on with."""
    with busy_first(out):
        check_new(out, partial_path(out), resume=resume)
    begun = (out, partial_path(out), training_path(out))
    if resume and not any(path.exists() for path in begun):
        print(f"nothing at {out} yet: it starts anew")
    with locked(out):
        yield
