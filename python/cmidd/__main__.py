"""The command `cmidd`, also `python -m cmidd`: says what to install where something is missing."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command line."""
    try:
        from cmidd.cli import main
    except ModuleNotFoundError as error:
        sys.exit(f'cmidd: {error.name} is not installed; pip install "cmikernels[cmidd]"')
    main()


if __name__ == "__main__":
    run()
