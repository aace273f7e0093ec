"""Dataclasses of options as flags, keys of a YAML file, and a command line.

    --name value   --name=value   --list a b c   --switch   --no_switch

A field is a flag of its name, its line in the docstring the help. Words without a flag are for the
field that is positional. None stands for `AS_PUBLISHED` where that is the default.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from cmidd.cli.values import Kind
from cmidd.options.fields import AS_PUBLISHED, Options

Groups = Sequence[type[Options]]


class UsageError(ValueError):
    """A command line that cannot be understood."""


class Flag(NamedTuple):
    """An option as the command line has it."""

    name: str
    kind: Kind
    about: str
    default: Any
    choices: Sequence[str] = ()
    positional: bool = False


CONFIG = Flag("config", Kind(Path), "YAML file with any of the options below; flags go first", None)
PRINT_CONFIG = Flag("print_config", Kind(bool), "print the options as such a file", default=False)


def documented(options: type) -> tuple[str, dict[str, str]]:
    """What a dataclass is, and the help of each field, from its docstring."""
    title, _, rest = (inspect.getdoc(options) or "").partition("\n")
    helps: dict[str, str] = {}
    name = ""
    for line in rest.partition("Args:\n")[2].splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            name, helps[name] = match[1], match[2]
        elif name:
            helps[name] += f" {line.strip()}"
    return title.rstrip("."), helps


def flags_of(groups: Groups) -> dict[str, Flag]:
    """The flags of a command by their names."""
    found = {}
    for group in groups:
        types, (_, helps) = get_type_hints(group), documented(group)
        for each in fields(group):
            found[each.name] = Flag(
                each.name,
                Kind.of(types[each.name]),
                helps.get(each.name, ""),
                each.default,
                each.metadata.get("choices", ()),
                each.metadata.get("positional", False),
            )
    return found


def read_words(words: Sequence[str], flags: Mapping[str, Flag], program: str) -> dict[str, Any]:
    """What the words of a command say, by the names of flags."""
    known = {**flags, CONFIG.name: CONFIG, PRINT_CONFIG.name: PRINT_CONFIG}
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            _put(found, _positional(flags, word, program), [word])
            continue
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        switch = known.get(name.removeprefix("no_"))
        if switch is not None and switch.kind.item is bool:
            if equals:
                raise UsageError(f"--{name}: expected no value, got {text}")
            found[switch.name] = name == switch.name
        elif name in known:
            texts = [text] if equals else _following(known[name], rest)
            _put(found, known[name], texts)
        else:
            what = word.partition("=")[0]
            more = hint(name, known, program, "--")
            raise UsageError(f"no option {what} of {program}{more}")
    return found


def _positional(flags: Mapping[str, Flag], word: str, program: str) -> Flag:
    for flag in flags.values():
        if flag.positional:
            return flag
    raise UsageError(f"expected an option of {program}, got {word}{see(program)}")


def _following(flag: Flag, rest: list[str]) -> list[str]:
    """Take the words that are values of a flag off the front of `rest`."""
    ends = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
    count = ends if flag.kind.is_list else min(ends, 1)
    if not count:
        raise UsageError(f"--{flag.name}: expected {flag.kind.expected} after it")
    texts, rest[:count] = rest[:count], []
    return texts


def _put(found: dict[str, Any], flag: Flag, texts: Sequence[str]) -> None:
    try:
        if not flag.kind.is_list:
            if flag.positional and flag.name in found:
                raise ValueError(f"expected one, got {found[flag.name]} and {texts[0]}")
            found[flag.name] = flag.kind.from_word(texts[0])
        elif texts == [""]:  # as `command_line` writes an empty list
            found[flag.name] = ()
        else:
            values = tuple(flag.kind.from_word(text) for text in texts)
            found[flag.name] = found.get(flag.name, ()) + values
    except ValueError as error:
        raise UsageError(f"--{flag.name}: {error}") from None


def options_of(
    groups: Groups, values: Mapping[str, Any], typed: Mapping[str, str], program: str
) -> list[Any]:
    """The dataclasses that values stand for; what is missing takes its default."""
    made = []
    flags = flags_of(groups)
    for group in groups:
        given = {}
        for field in fields(group):
            if field.name in values:
                given[field.name] = values[field.name]
            elif field.default is MISSING:
                raise UsageError(
                    f"--{field.name}: expected {flags[field.name].about}{see(program)}"
                )
        try:
            made.append(group(**given))
        except ValueError as error:
            raise UsageError(as_typed(str(error), typed)) from None
    return made


def as_typed(message: str, typed: Mapping[str, str]) -> str:
    """An error that starts with the names of options, with these as the user typed them."""
    start, colon, rest = message.partition(": ")
    found = start.split(", ")
    if not colon or not set(found) <= set(typed):
        return message
    return f"{', '.join(typed[name] for name in found)}: {rest}"


def hint(word: str, known: Iterable[str], program: str, dashes: str = "") -> str:
    """What is spelled almost like a word, if anything is, and where to read on."""
    from difflib import get_close_matches

    longer = [name for name in known if word and name.startswith(word)]
    close = get_close_matches(word, list(known), 1, cutoff=0.75) or longer
    return f"; did you mean {dashes}{close[0]}? See {program} --help" if close else see(program)


def see(program: str) -> str:
    """Where to read on."""
    return f"; see {program} --help"


def command_line(command: str, parts: Sequence[Options]) -> str:
    """The command that makes the same again: every option that differs from its default."""
    words = ["cmidd", *command.split()]
    for part in parts:
        defaults = part.defaults()
        for field in fields(part):
            value = getattr(part, field.name)
            is_left_out = value is None and field.default is AS_PUBLISHED
            if value == defaults[field.name] or is_left_out or field.name == "resume":
                continue
            if isinstance(value, bool):
                words.append(f"--{field.name}" if value else f"--no_{field.name}")
            elif not isinstance(value, tuple):
                words.append(f"--{field.name}={value}")
            elif value and not any(str(each).startswith("--") for each in value):
                words += [f"--{field.name}", *map(str, value)]
            else:
                words += [f"--{field.name}={each}" for each in value or ("",)]
    return shlex.join(words)
