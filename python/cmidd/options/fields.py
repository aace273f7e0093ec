"""Fields of options: bounds and choices that are checked once, and defaults that a method knows.

    ipc: int = option(10, least=1)
    iterations: int = option(AS_PUBLISHED, least=0)

An option that is not given stays `AS_PUBLISHED` until `run.prepare` puts the published value
of the method, dataset and number of images in its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

_Options = TypeVar("_Options", bound="Options")


class _Default(Enum):
    AS_PUBLISHED = "as published"


AS_PUBLISHED: Any = _Default.AS_PUBLISHED
"""Stands for a value that the method knows, or another part of what a command is told."""


def option(
    default: Any = MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    names: str = "",
    positional: bool = False,
) -> Any:
    """A field of options.

    Args:
        default: without one it has to be given.
        least: the number is at least this.
        above: the number is more than this.
        choices: the text is one of these.
        names: what the text names (a network, a file of some kind), which commands look at before
            anything else: a key of `LOOKS` in `cli/checks.py`.
        positional: a command takes it without its flag too.
    """
    metadata = {"least": least, "above": above, "choices": choices, "names": names}
    return field(default=default, metadata={**metadata, "positional": positional})


@dataclass(frozen=True)
class Options:
    """The base of all dataclasses of options."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is AS_PUBLISHED or (value is None and _may_be_none(type(self), each.name)):
                continue
            try:
                _check(value, each.metadata, _is_whole(type(self), each.name))
            except ValueError as error:
                raise ValueError(f"{each.name}: {error}, got {value!r}") from None

    def defaults(self) -> dict[str, Any]:
        """What each option is where it is not given; MISSING where it has to be."""
        return {each.name: each.default for each in fields(self)}

    def check(self) -> None:
        """Raise where options of a command contradict each other, or leave nothing to do."""


def _check(value: Any, bounds: Mapping[str, Any], is_whole: bool) -> None:
    least, above, choices = (bounds.get(name) for name in ("least", "above", "choices"))
    if choices and value not in choices:
        raise ValueError(f"expected {' or '.join(choices)}")
    if least is None and above is None:
        if value is None:
            raise ValueError("expected a value")
        return
    if is_whole and type(value) is not int:
        raise ValueError(f"expected a whole number from {least} on")
    number = value if isinstance(value, int | float) else math.nan
    if least is not None and not least <= number < math.inf:
        raise ValueError(f"expected at least {least}")
    if above is not None and not above < number < math.inf:
        raise ValueError(f"expected more than {above}")


@cache
def _types(options: type) -> dict[str, Any]:
    return get_type_hints(options)


def _may_be_none(options: type, name: str) -> bool:
    return type(None) in get_args(_types(options)[name])


def _is_whole(options: type, name: str) -> bool:
    hint = _types(options)[name]
    return hint is int or int in get_args(hint)


def _not_given(options: Options) -> list[str]:
    return [f.name for f in fields(options) if getattr(options, f.name) is AS_PUBLISHED]


def fill_in(options: _Options, known: Mapping[str, Any]) -> tuple[_Options, dict[str, Any]]:
    """Options with what is known in the place of what was not given, and what that was."""
    names = _not_given(options)
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"{', '.join(missing)}: nothing is published for it; give it")
    filled = {name: known[name] for name in names}
    return replace(options, **filled), filled


def check_filled_in(options: Options) -> None:
    """Raise where an option still stands for a value that only `prepare` knows."""
    names = _not_given(options)
    if names:
        raise ValueError(
            f"{', '.join(names)}: expected a value; give one, or let run.prepare fill in what "
            "is published"
        )
