"""Numbers as text for people, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a Markdown table, aligned so that it is as readable in a terminal."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = [row[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("| " + " | ".join(padded) + " |")
    return "\n".join(lines)


def geometric_mean(numbers: Iterable[float]) -> float:
    """Exp of the mean log; NaN of none."""
    logs = [math.log(number) for number in numbers]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def seconds_text(seconds: float) -> str:
    """Three digits and a unit; more of them from 1,000 seconds on."""
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def spread_text(row: Mapping[str, Any]) -> str:
    """Where the middle 60 % of a row's samples lie."""
    return f"{seconds_text(row['p20'])} .. {seconds_text(row['p80'])}"


def bytes_text(size: float) -> str:
    """Three digits and a unit, powers of 1024."""
    for exponent, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**exponent:
            return f"{size / 1024**exponent:.3g} {unit}"
    return f"{size:.0f} B"


def ratio_text(ratio: float | None) -> str:
    """Two decimals, or a dash for none."""
    return "-" if ratio is None else f"{ratio:.2f}"


Column = tuple[str, str, Callable[[Any], str]]
"""Of a table of rows: header, field, and how a value is written."""


def cells(row: Mapping[str, Any], columns: Iterable[Column]) -> list[str]:
    """What a row has in these columns; a dash where it has nothing."""
    return ["-" if row.get(field) is None else text(row[field]) for _, field, text in columns]


def digits(form: str) -> Callable[[float], str]:
    """Numbers in a format such as .3g."""
    return lambda number: format(number, form)
