"""The commands: `cmidd distill METHOD` and those of `parser.COMMANDS`.

A command's options are a few dataclasses of `cmidd.options`, whose fields are its flags
(`flags.py`, `parser.py`). What it does is a function (`commands.py`), which is imported once the
command line was read.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from cmidd.cli.flags import as_typed
from cmidd.cli.parser import Given, read
from cmidd.interruption import sigterm_interrupts

_GO_ON = {"pretrain", "experts", "distill", "recover", "relabel", "evaluate"}
"""Commands that take --resume."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors that the user can mend are one line, without a traceback."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    given = None
    try:
        with sigterm_interrupts():
            given = read(words)
            if isinstance(given, str):
                print(given, flush=True)
                sys.exit(0)
            _run(given)
    except ModuleNotFoundError as error:
        _end(f'{error.name} is not installed; pip install "cmikernels[cmidd]"', given)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        _end(str(error), given)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        text = str(error).partition(". ")[0]
        _end(f"{text}; take smaller chunks, batches or networks", given)
    except KeyboardInterrupt as error:
        with contextlib.suppress(BrokenPipeError):  # a `tee` that Ctrl-C ended too
            print(f"cmidd: {_how_it_goes_on(str(error), ['cmidd', *words])}", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))


def _run(given: Given) -> None:
    for part in given.parts:
        part.check()
    from cmidd import ranks
    from cmidd.cli import commands
    from cmidd.cli.checks import (
        check_command,
        check_devices,
        check_names,
        check_precision,
        wants_gpu,
    )

    with contextlib.ExitStack() as around:
        if ranks.are_started():
            check_command(given.command)
            around.enter_context(ranks.together(on_gpu=wants_gpu(given.parts)))
            check_devices(given.parts)
        if not given.is_finished:  # a run that is there needs none of its files
            check_names(given.parts)
            check_precision(given.parts)
        if given.method is not None:
            commands.run_method(given.method, *given.parts)
        else:
            commands.COMMANDS[given.command](*given.parts)


def _end(message: str, given: Given | str | None) -> None:
    """End with a line, or with the traceback where that is asked for."""
    if os.environ.get("CMIDD_TRACEBACK"):
        raise  # the error that is handled
    if isinstance(given, Given):
        sys.exit(f"cmidd: {as_typed(message, given.typed)}")
    print(f"cmidd: {message}", file=sys.stderr)
    sys.exit(2)


def _how_it_goes_on(done: str, command: list[str]) -> str:
    """What an interrupted command says: what is done of it, if it says so, and what to do next."""
    if not _GO_ON.intersection(command[1:2]):
        return "interrupted"
    if "--resume" not in command:  # which begins where nothing is there, too
        command = [*command, "--resume"]
    what = f"{done}; go on" if done else "interrupted; begin again or go on"
    return f"{what} with: {shlex.join(command)}"
