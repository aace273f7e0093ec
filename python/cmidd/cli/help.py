"""The help of commands and their options."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path

from cmidd.cli.flags import CONFIG, PRINT_CONFIG, Flag, Groups, documented, flags_of
from cmidd.options.fields import AS_PUBLISHED

_INDENT = 26  # columns before the text of an entry
_PLACES: dict[type, str] = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


def help_of(program: str, about: str, groups: Groups) -> str:
    """The help of a command whose flags are the fields of dataclasses."""
    flags = flags_of(groups)
    positional = [f" [{_place(flag)}]" for flag in flags.values() if flag.positional]
    parts = [f"usage: {program}{''.join(positional)} [options]", about.strip()]
    parts.append("options:\n" + entries([entry(CONFIG), entry(PRINT_CONFIG)]))
    for group in groups:
        title, _ = documented(group)
        parts.append(f"{title}:\n" + entries([entry(f) for f in flags_of([group]).values()]))
    return "\n\n".join(parts)


def help_of_commands(usage: str, about: str, commands: Mapping[str, str]) -> str:
    """The help of what has commands of its own."""
    return f"usage: {usage} [options]\n\n{about}\n\n{entries(list(commands.items()))}"


def entry(flag: Flag) -> tuple[str, str]:
    """A flag with its value, and its text."""
    if flag.kind.item is bool:
        return f"--{flag.name}", flag.about
    text = flag.about
    if flag.default is MISSING:
        text += " (required)"
    elif flag.default not in (None, (), AS_PUBLISHED):
        text += f" (default: {flag.default})"
    return f"--{flag.name} {_place(flag)}", text


def _place(flag: Flag) -> str:
    """What stands for the value."""
    place = "|".join(flag.choices) or _PLACES[flag.kind.item]
    if flag.positional:
        place = flag.name.upper()
    return f"{place} ..." if flag.kind.is_list else place


def entries(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and their texts, in two columns."""
    width = min(100, shutil.get_terminal_size().columns)
    lines = []
    for name, text in pairs:
        wrapped = textwrap.wrap(text, max(20, width - _INDENT)) or [""]
        start = f"  {name}"
        if len(start) + 2 > _INDENT:
            lines.append(start)
            start = ""
        lines.append(f"{start:<{_INDENT}}{wrapped[0]}")
        lines += [" " * _INDENT + line for line in wrapped[1:]]
    return "\n".join(line.rstrip() for line in lines)
