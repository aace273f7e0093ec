"""The reference has every public name and every option."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import cmidd
import cmikernels
from cmidd.cli.flags import flags_of
from cmidd.cli.parser import COMMANDS, groups_of_method
from cmidd.options.methods import METHOD_OPTIONS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = DOCS / "hooks" / "pages.py"
COMMANDS_PAGE = (DOCS / "reference" / "commands.md").read_text()
GROUPS = {name: command.groups for name, command in COMMANDS.items()} | {
    f"distill {name}": groups_of_method(name) for name in METHOD_OPTIONS
}


def pages() -> ModuleType:
    """What mkdocs calls for every page."""
    spec = importlib.util.spec_from_file_location("pages", PAGES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(markdown: str) -> str:
    """What the site makes of the Markdown of a page of the guide."""
    page = SimpleNamespace(file=SimpleNamespace(src_path="guide/page.md"))
    return str(pages().on_page_markdown(markdown, page=page))


@pytest.mark.parametrize("package", [cmikernels, cmidd], ids=lambda package: package.__name__)
def test_every_public_name_has_its_place(package: ModuleType) -> None:
    page = (DOCS / "reference" / f"{package.__name__}.md").read_text()
    found = re.findall(rf"^::: {package.__name__}\.(\w+)$", page, re.MULTILINE)
    assert sorted(found) == sorted(package.__all__)


def test_every_command_has_its_place() -> None:
    marks = re.findall(r"^<!-- options of: (.+) -->$", COMMANDS_PAGE, re.MULTILINE)
    assert sorted(marks) == sorted(GROUPS)
    assert re.findall(r"^## cmidd (.+)$", COMMANDS_PAGE, re.MULTILINE) == marks


@pytest.mark.parametrize("command", GROUPS)
def test_every_option_of_a_command_is_listed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = shown(f"before\n\n<!-- options of: {command} -->\n\nafter")
    assert text.startswith("before\n\n")
    assert text.endswith("\n\nafter")
    assert "<!--" not in text
    listed = dict(re.findall(r"^`--(\w+)[^`]*`\n:   (.+)$", text, re.MULTILINE))
    flags = flags_of(GROUPS[command])
    assert listed.keys() == flags.keys()
    assert all(listed.values())


def test_links_that_leave_the_pages_become_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    kept = "[a page](../index.md), [a heading](../contributing.md#tests), [lost](../../nowhere)"
    assert shown(f"see [`the tests`](../../tests): {kept}") == f"see `the tests`: {kept}"


def test_the_pages_are_built_without_torch() -> None:
    code = f"import runpy, sys; runpy.run_path({str(PAGES)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
