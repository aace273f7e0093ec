"""The command `cmidd`, also `python -m cmidd`."""

from __future__ import annotations

from cmidd.cli import main

if __name__ == "__main__":
    main()
