"""How the threads of a command wait: OpenMP prints what it has read, as torch is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.skipif(sys.platform != "linux", reason="the OpenMP of GCC alone spins in turns")
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "passive"}, "0"),
        ({"OMP_WAIT_POLICY": "active"}, "30000000000"),
    ],
)
def test_they_spin_as_long_as_the_user_says_and_else_for_a_moment(
    chosen: dict[str, str], expected: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    words = [sys.executable, "-m", "cmidd", "export", "nosuch", "--png", "pictures"]
    done = subprocess.run(
        words,
        env={**environment, **chosen, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.endswith("cmidd distill makes one\n")  # torch was imported
    assert re.findall("GOMP_SPINCOUNT = '(.*)'", done.stderr) == [expected]
