"""Processes that run commands of cmidd, forked from one where Python and torch have started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

# Forks a process for each command, so that Python and torch start once and not at every kill.
SERVER = """
import json, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs ignore
import sklearn.datasets, torch._dynamo, torch.distributed, torch.utils.tensorboard
import cmidd.cli.commands, cmidd.interruption
from cmidd.cli import main
for line in sys.stdin:
    arguments, errors, one_request, variables = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.update(variables)
        if one_request is not None:
            cmidd.interruption._ONE_REQUEST = one_request
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.argv[1:] = arguments
        sys.exit(main())
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """One process at a time."""

    def __init__(self, server: subprocess.Popen[bytes], errors: Path) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self.commands, self.answers, self._errors = server.stdin, server.stdout, errors

    def start(
        self,
        arguments: list[str],
        one_request: float | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> int:
        """The number of a process that runs a command.

        `one_request`: seconds in which two signals are one, if not as usual; `variables`: of its
        environment.
        """
        order = [arguments, str(self._errors), one_request, dict(variables)]
        self.commands.write(json.dumps(order).encode() + b"\n")
        return int(self.answers.readline())

    def ended(self) -> bool:
        """Whether it has ended."""
        return bool(select.select([self.answers], [], [], 0)[0])

    def exit_code(self) -> int:
        """Wait for its end."""
        return int(self.answers.readline())

    def errors(self) -> str:
        """What it said on stderr."""
        return self._errors.read_text()


@contextlib.contextmanager
def forks(errors: Path) -> Iterator[Forks]:
    """A server of forks, which write their stderr to a file."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as server:
        yield Forks(server, errors)
