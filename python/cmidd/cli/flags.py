"""Dataclasses of options as flags, keys of a YAML file, and a command line.

A field is a flag of its name, its line in the docstring the help. None stands for `AS_PUBLISHED`
where that is the default.
"""

from __future__ import annotations

import json
import shlex
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, NoReturn, Optional, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace

from cmidd.options.fields import AS_PUBLISHED, Options


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Formulas as they are written, and the default of every option."""


class Parser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with the line."""
        if type(ex) is KeyError:  # what comes of an unknown key, for a command of a command
            message = "the --config file has a key that is no option of this command"
        prog = getattr(ex, "subcommand_parser", self).prog.replace(" [options]", "")
        self.exit(2, f"cmidd: {' '.join(message.split())}; see {prog} --help\n")


def parser_of(groups: Sequence[type[Options]], description: str | None) -> Parser:
    """A parser whose flags are the fields of dataclasses."""
    parser = Parser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    for group in groups:
        about = docstring_parser.parse(group.__doc__ or "")
        helps = {parameter.arg_name: parameter.description for parameter in about.params}
        arguments = parser.add_argument_group((about.short_description or "").rstrip("."))
        types = get_type_hints(group)
        for field in fields(group):
            settings: dict[str, Any] = {"help": helps[field.name], "type": types[field.name]}
            if types[field.name] is bool:
                settings = {"help": helps[field.name], "action": ActionYesNo}
            if field.default is MISSING:
                settings["required"] = True
            elif field.default is AS_PUBLISHED:
                settings |= {"default": None, "type": Optional[types[field.name]]}  # noqa: UP045
            else:
                settings["default"] = field.default
            arguments.add_argument(f"--{field.name}", **settings)
    return parser


def options_of(groups: Sequence[type[Options]], given: Namespace) -> list[Any]:
    """The dataclasses that a parser's result stands for."""
    made = []
    for group in groups:
        values = {
            field.name: given[field.name]
            for field in fields(group)
            if not (field.default is AS_PUBLISHED and given[field.name] is None)
        }
        made.append(group(**values))
    return made


def command_line(command: str, parts: Sequence[Options]) -> str:
    """The command that makes the same again: every option that differs from its default."""
    words = ["cmidd", *command.split()]
    for part in parts:
        for field in fields(part):
            value = getattr(part, field.name)
            is_left_out = value is None and field.default is AS_PUBLISHED
            if value == field.default or is_left_out or field.name == "resume":
                continue
            if isinstance(value, bool):
                words.append(f"--{field.name}" if value else f"--no_{field.name}")
            else:
                words.append(f"--{field.name}={_text(value)}")
    return shlex.join(words)


def _text(value: Any) -> str:
    is_list = isinstance(value, tuple)
    return json.dumps([str(v) for v in value], ensure_ascii=False) if is_list else str(value)
