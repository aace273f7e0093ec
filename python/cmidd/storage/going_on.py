"""Settings of work that goes on: what has to be as it was, and what may change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


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
