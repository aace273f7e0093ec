"""The help and typing errors come without torch, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from cmidd.__main__ import main
sys.argv[0] = "cmidd"
try:
    main()
finally:
    heavy = {"torch", "numpy", "safetensors", "cmikernels"} & set(sys.modules)
    print("imported:", sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("distill dm --help", 0),
        ("evaluate --help", 0),
        ("nosuch", 2),
        ("distill dm --nosuch 3", 2),
        ("distill dm --iterations many", 2),
        ("pretrain --networks 0", 2),
        ("distill mtt", 2),
    ],
)
def test_torch_is_not_imported(words: str, code: int) -> None:
    program = [sys.executable, "-c", PROGRAM, *words.split()]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "imported: []" in done.stderr.splitlines()


def test_who_reads_no_further_gets_no_complaint() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cmidd", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == b""
