"""The command `cmidd`, also `python -m cmidd`: says what to install where something is missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from cmidd.cli import main as run_command
    except ModuleNotFoundError as error:
        sys.exit(f'cmidd: {error.name} is not installed; pip install "cmikernels[cmidd]"')
    run_command()


if __name__ == "__main__":
    main()
