"""Work that goes on: whether it may, what has to be as it was, and what may change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

# What files that are older than an option do not say, and what held when they were written.
_BEFORE: dict[str, tuple[Any, ...]] = {
    "precision": (None, "float32"),
    "cmi_precision": (None, "float32"),
    "base": ("dm",),  # of iid
}


def check_new(path: Path, *unfinished: Path, resume: bool) -> None:
    """Raise where a file, or what there is of it, may not be gone on with, or a folder is."""
    if path.is_dir():
        raise IsADirectoryError(f"out: {path} is a folder; name a file in it")
    for each in (path, *unfinished):
        if each.exists() and not resume:
            raise FileExistsError(
                f"out: {each} exists already; add --resume to go on with it, or name another file"
            )


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    may_change: Collection[str] = (),
    may_grow: Collection[str] = (),
) -> list[str]:
    """What keeps work from going on, each with both values.

    Args:
        before: the settings it was begun with.
        now: those that are asked for.
        may_change: names that the result does not depend on.
        may_grow: names of counts, of which more may be asked for.
    """
    found = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if name not in before and new in _BEFORE.get(name, ()):
            continue
        if old == new or name in may_change:
            continue
        if name in may_grow and isinstance(old, int) and isinstance(new, int):
            if new < old:
                found.append(f"{name}: {old!r} there, {new!r} now, which is fewer")
            continue
        found.append(f"{name}: {old!r} there, {new!r} now")
    return found


def check_same(what: str, found: Collection[str]) -> None:
    """Raise where there are differences; `what` names what was begun."""
    if found:
        raise ValueError(
            f"resume: {what} with other settings ({'; '.join(found)}); give the same ones, or name "
            "another"
        )
