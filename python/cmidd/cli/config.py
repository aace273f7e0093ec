"""YAML files of options: `--config`, and the config.yaml of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cmidd.cli.flags import Flag, UsageError, hint
from cmidd.options.fields import AS_PUBLISHED, Options


def read_config(path: Path, flags: Mapping[str, Flag], program: str) -> dict[str, Any]:
    """The values of a file's keys, by the names of flags."""
    import yaml

    if not path.is_file():
        inside = path / "config.yaml"
        meant = f"; did you mean {inside}?" if inside.is_file() else ""
        raise UsageError(f"--config: expected a YAML file, found none at {path}{meant}")
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise UsageError(f"{path}: expected YAML{line}: {why}") from None
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected lines such as ipc: 10, got {found!r}")
    method = found.pop("method", None)
    of_method = f"cmidd {method}" if method == "recover" else f"cmidd distill {method}"
    if method is not None and program != of_method:
        raise UsageError(f"{path} is of method {method}: use {of_method}")
    values = {}
    for name, value in found.items():
        if name not in flags:
            more = hint(str(name), flags, program)
            raise UsageError(f"{path}: no option {name} of {program}{more}")
        if value is None and flags[name].default in (None, AS_PUBLISHED):
            continue
        try:
            values[name] = flags[name].kind.from_yaml(value)
        except ValueError as error:
            raise UsageError(f"{path}: {name}: {error}") from None
    return values


def as_yaml(parts: Sequence[Options]) -> str:
    """The file that sets these options."""
    import yaml

    values = {field.name: getattr(part, field.name) for part in parts for field in fields(part)}
    return str(yaml.safe_dump({k: _plain(v) for k, v in values.items()}, sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if value is AS_PUBLISHED else str(value) if isinstance(value, Path) else value
