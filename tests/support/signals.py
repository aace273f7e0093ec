"""Signals that come in the middle of work."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def signalling(function: Callable[..., Any], at: int, number: int) -> Callable[..., Any]:
    """`function`, in whose call number `at` a signal comes."""
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    return call
