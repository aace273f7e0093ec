"""What the page for contributors says to write does what it says."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import cmidd
from cmidd.datasets import Dataset
from cmidd.methods import METHODS
from cmidd.networks import NETWORKS, build_network
from cmidd.options.methods import METHOD_OPTIONS
from tests.support.tiny import CPU, tiny_dataset

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text()


def of_section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def code_of(title: str) -> list[str]:
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```$", of_section(title), re.DOTALL | re.M)
    return [textwrap.dedent(code) for _, code in blocks]


@pytest.fixture
def centres() -> Iterator[dict[str, Any]]:
    """The names in the module of the example method."""
    options, method, _ = code_of("Add a method")
    module = sys.modules["cmidd.options.centres"] = ModuleType("cmidd.options.centres")
    names: dict[str, Any] = {"__name__": "cmidd.methods.centres"}
    try:
        exec(options, module.__dict__)
        exec(method, names)
        yield names
    finally:
        del sys.modules["cmidd.options.centres"]
        METHODS.pop("centres", None)
        METHOD_OPTIONS.pop("centres", None)


def test_the_method_is_a_run_whose_loss_falls(centres: dict[str, Any], tmp_path: Path) -> None:
    exec(code_of("Add a method")[-1], centres)  # registers it
    options = cmidd.DistillOptions(ipc=2, iterations=30)
    run = cmidd.prepare("centres", tiny_dataset(), options, device=CPU)
    first, _ = run.method.loss_and_gradient(run.images, run.method.draw(0, 0))
    cmidd.distill(run, run.folder(tmp_path / "run"))
    last, _ = run.method.loss_and_gradient(run.images, run.method.draw(30, 0))
    assert last < 0.1 * first


def test_the_dataset_is_one() -> None:
    (code,) = code_of("Add a dataset")
    names: dict[str, Any] = {}
    exec(code, names)
    dataset = names["load"]("stripes", Path(), None)
    assert isinstance(dataset, Dataset)
    assert dataset.num_classes == 2
    assert len(dataset.train) == 300


def test_the_network_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = code_of("Add a network")
    names: dict[str, Any] = {"nn": nn}
    exec(code, names)
    monkeypatch.setitem(NETWORKS, "tiny", names["tiny"])
    assert build_network("tiny:width=32", 3, 32, 10).embed_dim == 32 * 8 * 8


@pytest.mark.parametrize(
    "file",
    sorted(
        path
        for path in re.findall(r"`((?:python|cmikernels|tests|docs)/[\w./]+)`", PAGE)
        if not any(made_up in path for made_up in ("centres", "stripes", "NAME"))
    ),
)
def test_files_that_it_names_exist(file: str) -> None:
    assert (ROOT / file).exists()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("python/cmidd/methods/__init__.py", "METHODS"),
        ("python/cmidd/options/methods.py", "METHOD_OPTIONS"),
        ("cmikernels/backends/__init__.py", "_BACKENDS"),
        ("tests/support/tables.py", "DEVICE_OF"),
        ("python/cmidd/datasets/__init__.py", "_LOADERS"),
        ("python/cmidd/options/names.py", "DATASETS"),
        ("python/cmidd/networks/spec.py", "NETWORKS"),
        ("python/cmidd/options/names.py", "NETWORKS"),
    ],
)
def test_tables_that_it_names_are_there(file: str, name: str) -> None:
    assert re.search(rf"`{file}`[^\n]*(\n[^\n]+)*`{name}`", PAGE)
    assert re.search(rf"^{name}\b.* = ", (ROOT / file).read_text(), re.MULTILINE)
