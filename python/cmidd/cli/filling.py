"""The file that a command fills, begun or gone on with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cmidd import ranks
from cmidd.storage.going_on import check_new
from cmidd.storage.growing_file import partial_path
from cmidd.storage.lock import busy_first, locked
from cmidd.training_file import is_training_begun


@contextlib.contextmanager
def filling(out: Path, *, resume: bool) -> Iterator[None]:
    """While it lasts this process, or its ranks, alone write `out`: new, or gone on with."""
    if ranks.is_first():
        with busy_first(out):
            check_new(out, partial_path(out), resume=resume)
        begun = out.exists() or partial_path(out).exists() or is_training_begun(out)
        if resume and not begun:
            print(f"nothing at {out} yet: it starts anew")
    with ranks.only_first(lambda: locked(out)):
        ranks.wait()
        yield
