"""What the command line makes of words, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cmidd.cli.parser import Given, read


def made(arguments: Sequence[str]) -> list[Any]:
    """The options that `main` hands to the command."""
    given = read(arguments)
    assert isinstance(given, Given)
    return given.parts
