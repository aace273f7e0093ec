"""How commands end that cannot do their work, or not all of it."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cmidd.cli import commands, main
from cmidd.interruption import Interrupted
from cmidd.pretrained.bank import Bank
from tests.support.errors import error_of

DM = ["distill", "dm"]
TINY = "convnet:width=4,depth=1"


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMIDD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="sets: expected something"):
        main(["evaluate"])


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "cmidd: interrupted; begin again or go on with: cmidd "),
        (
            Interrupted("interrupted after 3 of 9 updates"),
            130,
            "after 3 of 9 updates; go on with: ",
        ),
        (Interrupted("", signal.SIGTERM), 143, "cmidd: interrupted; begin again or go on with: "),
    ],
)
def test_an_interrupt_says_how_to_go_on(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*parts: Any) -> None:
        raise error

    monkeypatch.setattr(commands, "run_method", interrupt)
    for words in (DM, [*DM, "--resume"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == status
        text = capsys.readouterr().err
        assert said in text
        assert text.count("--resume") == 1
    monkeypatch.setitem(commands.COMMANDS, "report", interrupt)
    with pytest.raises(SystemExit):
        main(["report", "a"])
    assert capsys.readouterr().err == "cmidd: interrupted\n"


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize(
    ("words", "out", "said"),
    [
        (["distill", "dm"], "file", "file is a file; name a folder"),
        (["pretrain"], ".", ". is a folder; name a file in it"),
        (["experts"], "folder", "folder is a folder; name a file in it"),
        (["evaluate", "--random_real=1"], "folder", "folder is a folder; name a file in it"),
    ],
)
def test_a_folder_is_no_file_nor_a_file_a_folder(
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    out: str,
    said: str,
    resume: list[str],
) -> None:
    Path("folder").mkdir()
    Path("file").touch()
    assert error_of([*words, f"--out={out}", *resume], capsys) == f"cmidd: --out: {said}\n"


def test_what_is_said_late_in_a_command_can_be_done(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bank, "load", interrupt)
        with pytest.raises(SystemExit):
            main(["pretrain", "--network", TINY, "--networks=1", "--epochs=1"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("cmidd: interrupted; begin again or go on with: cmidd pretrain ")
    main(shlex.split(said.partition(" with: cmidd ")[2]))
    assert load_file("runs/bank.safetensors")["trained"].tolist() == [1]


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ("pretrain --networks=1 --network=mlp", "runs/bank.safetensors"),
        ("experts --experts=1 --network=mlp", "runs/experts.safetensors"),
        ("evaluate --random_real=1 --networks=mlp --repeats=1", "runs/evaluation.json"),
    ],
)
def test_resume_says_whether_there_is_anything_to_go_on_with(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], words: str, out: str
) -> None:
    for is_new in (True, False):
        main([*words.split(), "--epochs=1", "--device=cpu", "--resume"])
        said = capsys.readouterr().out
        assert (f"nothing at {out} yet: it starts anew\n" in said) == is_new
        assert ("1 of 1 " in said and "there already" in said) == (not is_new)


def test_without_its_packages_the_command_says_what_to_install() -> None:
    words = "import sys; sys.modules['safetensors'] = None; from cmidd.cli import main; main()"
    program = [sys.executable, "-c", words, "pretrain"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ('cmidd: safetensors is not installed; pip install "cmikernels[cmidd]"\n')
