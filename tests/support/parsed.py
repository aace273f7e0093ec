"""What the command line makes of words, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any
from unittest.mock import patch

from cmidd import cli
from cmidd.cli import build_parser, main

parser = cache(build_parser)


def made(arguments: Sequence[str]) -> list[Any]:
    """The options that `main` hands to the command."""
    parts: list[Any] = []

    def keep(*given: Any) -> None:
        parts.extend(part for part in given if not isinstance(part, str))

    stand_ins = {name: (keep, *rest) for name, (_, *rest) in cli.COMMANDS.items()}
    with (
        patch.object(cli, "build_parser", parser),
        patch.object(cli, "run_method", keep),
        patch.dict(cli.COMMANDS, stand_ins),
    ):
        main(arguments)
    return parts
