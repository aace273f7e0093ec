"""The commands: `cmidd pretrain | experts | distill METHOD | evaluate | score | export | report`.

A command's options are a few dataclasses of `cmidd.options`, whose fields are its flags
(`flags.py`, `parser.py`). What it does is a function (`commands.py`), which is imported once the
command line was read.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence

from cmidd.cli.parser import read
from cmidd.interruption import sigterm_interrupts


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors that the user can mend are one line, without a traceback."""
    command = ["cmidd", *(sys.argv[1:] if arguments is None else arguments)]
    try:
        with sigterm_interrupts():
            _run(arguments)
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
    except KeyboardInterrupt as error:
        print(f"cmidd: {_how_it_goes_on(str(error), command)}", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))


def _run(arguments: Sequence[str] | None) -> None:
    given = read(arguments)
    from cmidd.cli import commands

    if given.method is not None:
        commands.run_method(given.method, *given.parts)
    else:
        commands.COMMANDS[given.command](*given.parts)


def _how_it_goes_on(done: str, command: list[str]) -> str:
    """What an interrupted command says: what is done of it, if it says so, and what to do next."""
    if command[1:2] not in (["pretrain"], ["experts"], ["distill"], ["evaluate"]):
        return "interrupted"
    if not done:
        return f"interrupted before the first step; begin again with: {shlex.join(command)}"
    if "--resume" not in command:
        command = [*command, "--resume"]
    return f"{done}; go on with: {shlex.join(command)}"
