"""The lines that the guide adds to a script do what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cmidd.datasets import load_dataset
from cmidd.options.pretrained import BankOptions
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.score import score

ROOT = Path(__file__).parents[2]
SCRIPT = (Path(__file__).parent / "dm_script.py").read_text()
GUIDE = (ROOT / "docs/guide/add_cmi_to_your_script.md").read_text()


def changed(script: str) -> str:
    """The script with the guide's diffs, of which each one fits one place."""
    for diff in re.findall(r"```diff\n(.*?)```", GUIDE, re.DOTALL):
        lines = diff.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert script.count(before) == 1, before
        script = script.replace(before, after)
    return script


def images_of(script: str) -> tuple[Any, Any]:
    """What the script has made in the end."""
    names: dict[str, Any] = {}
    exec(compile(script, "script", "exec"), names)
    return names["image_syn"].detach(), names["label_syn"]


@pytest.mark.slow
def test_a_script_with_its_lines_makes_images_of_less_cmi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = BankOptions("convnet:depth=2,width=16", networks=2, epochs=10, lr=0.05)
    train_bank("runs/bank.safetensors", load_dataset("digits"), options, "cpu")
    bank = Bank.load("runs/bank.safetensors", "cpu")
    without, with_cmi = (
        score(bank, *images_of(script), "features").mean for script in (SCRIPT, changed(SCRIPT))
    )
    assert 0 < with_cmi < 0.85 * without


def test_the_change_is_of_the_length_that_it_is_said_to_be() -> None:
    added = set(changed(SCRIPT).splitlines()) - set(SCRIPT.splitlines())
    assert len(added) <= 10
