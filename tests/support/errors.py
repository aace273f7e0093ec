"""What commands that fail say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cmidd.cli import main


def error_of(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails says."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    code = stopped.value.code
    assert code not in (0, None)
    return (f"{code}\n" if isinstance(code, str) else "") + capsys.readouterr().err
