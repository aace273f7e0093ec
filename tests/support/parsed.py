"""What the command line makes of words, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any
from unittest.mock import patch

from cmidd.cli import parser

build_once = cache(parser.build_parser)


def made(arguments: Sequence[str]) -> list[Any]:
    """The options that `main` hands to the command."""
    with patch.object(parser, "build_parser", build_once):
        return parser.read(arguments).parts
