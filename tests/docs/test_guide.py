"""What the README and the guide say to type: Python runs page by page, commands are commands."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

import cmidd
from tests.support.parsed import made
from tests.support.threads import one_thread
from tests.support.tiny import quiet

__all__ = ["one_thread"]  # a fixture of the tests below

ROOT = Path(__file__).parents[2]
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in [ROOT / "README.md", ROOT / "docs" / "index.md", *GUIDE]
}
BLOCKS = {
    name: re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) for name, text in PAGES.items()
}


@pytest.fixture(scope="module")
def made_before(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which some commands of the pages have run on digits, if in no time."""
    root = tmp_path_factory.mktemp("pages")
    data = cmidd.load_dataset("digits")
    network = "convnet:width=8,depth=1"
    bank = root / "runs" / "bank.safetensors"
    options = cmidd.BankOptions(network=network, networks=2, epochs=1)
    cmidd.train_bank(bank, data, options, "cpu", say=quiet)
    for name, cmi in (("dm", cmidd.CMIOptions()), ("dm-cmi", cmidd.CMIOptions(bank=bank))):
        loop = cmidd.DistillOptions(ipc=10, iterations=1)
        run = cmidd.prepare("dm", data, loop, cmi=cmi, device="cpu", say=quiet)
        cmidd.distill(run, run.folder(root / "runs" / name), say=quiet)
    return root


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks])
def test_python_runs(
    page: str, made_before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made_before, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    names = {"__name__": "page", "model": model, "optimizer": optimizer}
    for number, block in enumerate(BLOCKS[page], start=1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_commands(page: str) -> None:
    for command in commands(PAGES[page]):
        words = shlex.split(command.partition(" > ")[0], comments=True)
        if "--config" in words:  # a file that an earlier command wrote
            place = words.index("--config")
            del words[place : place + 2]
        assert made([word for word in words[1:] if word != "--print_config"]), command


def commands(text: str) -> list[str]:
    """Lines of indented blocks and shell fences that call `cmidd`, continued ones as one."""
    text = text.replace("\\\n", " ")
    fenced = "\n".join(re.findall(r"^ *```sh\n(.*?)^ *```", text, re.M | re.S))
    return re.findall(r"^ *(cmidd .*)$", fenced, re.M) + re.findall(r"^ {4}(cmidd .*)$", text, re.M)


def test_the_first_commands_are_the_same_everywhere() -> None:
    first = commands(PAGES["docs/index.md"])
    assert len(first) == 4
    for page in ("README.md", "docs/guide/distiller.md"):
        assert commands(PAGES[page])[:4] == first, page
