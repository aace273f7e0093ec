"""The command `cmidd`, also `python -m cmidd`."""

from __future__ import annotations

import os

from cmidd import cli

_HOW_THREADS_WAIT = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def main() -> None:
    """Run a command in a process of its own."""
    let_threads_sleep()
    cli.main()


def let_threads_sleep() -> None:
    """Have torch's OpenMP threads sleep soon where they wait, unless the user has chosen.

    They would spin for milliseconds on a core that another process may need. Ten thousand turns
    cost 2 to 3 % where there is no other process; docs/design/loops.md has the measurements. OpenMP
    reads the variable when torch is imported, so torch must not be there yet.
    """
    if not any(name in os.environ for name in _HOW_THREADS_WAIT):
        os.environ["GOMP_SPINCOUNT"] = "10000"


if __name__ == "__main__":
    main()
