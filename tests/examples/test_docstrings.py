"""The examples in docstrings run, and give what stands below them."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import cmidd
import cmikernels

PACKAGES = {"cmikernels": cmikernels, "cmidd": cmidd}
PUBLIC = [getattr(package, name) for package in PACKAGES.values() for name in package.__all__]
MODULES = sorted({each.__module__ for each in PUBLIC if hasattr(each, "__module__")})


def examples_of(module_name: str) -> list[doctest.DocTest]:
    """Those of a module, with a docstring each."""
    module = importlib.import_module(module_name)
    names = {**vars(module), "cmidd": cmidd}
    return [test for test in doctest.DocTestFinder().find(module, globs=names) if test.examples]


EXAMPLES = {test.name: test for module in MODULES for test in examples_of(module)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
        EXAMPLES[name], out=told.append
    )
    assert tried
    assert not failed, "".join(told)


def test_every_call_of_the_kernels_has_one() -> None:
    names = set(cmikernels.__all__) - {"BackendStatus"}  # which `available_backends` gives
    calls = [cmikernels.CMIRegularizer.real_centroids, *(getattr(cmikernels, n) for n in names)]
    assert [call for call in calls if ">>> " not in (inspect.getdoc(call) or "")] == []
