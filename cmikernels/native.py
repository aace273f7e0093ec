"""The compiled core, or None with the reason where this installation lacks it."""

from __future__ import annotations

__all__ = ["IMPORT_ERROR", "native"]

IMPORT_ERROR = ""
try:
    import cmikernels._native as native
except ImportError as error:  # a source tree without its build
    native = None  # type: ignore[assignment]
    IMPORT_ERROR = str(error)
