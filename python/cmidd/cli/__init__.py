"""The commands: `cmidd pretrain | experts | distill METHOD | evaluate | score | export | report`.

A command's options are a few dataclasses of `cmidd.options`, whose fields are its flags
(`flags.py`, `parser.py`). What it does is a function (`commands.py`), which is imported once the
command line was read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cmidd.cli.parser import read


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors that the user can mend are one line, without a traceback."""
    resumes = False
    try:
        given = read(arguments)
        resumes = given.command in ("pretrain", "experts", "distill")
        from cmidd.cli import commands

        if given.method is not None:
            commands.run_method(given.method, *given.parts)
        else:
            commands.COMMANDS[given.command](*given.parts)
    except ModuleNotFoundError as error:
        if os.environ.get("CMIDD_TRACEBACK"):
            raise
        sys.exit(f'cmidd: {error.name} is not installed; pip install "cmikernels[cmidd]"')
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if os.environ.get("CMIDD_TRACEBACK"):
            raise
        sys.exit(f"cmidd: {error}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" or os.environ.get("CMIDD_TRACEBACK"):
            raise
        sys.exit(
            f"cmidd: {str(error).partition('. ')[0]}; take smaller chunks, batches or networks"
        )
    except KeyboardInterrupt:
        sys.exit("cmidd: interrupted" + ("; add --resume to continue" if resumes else ""))
