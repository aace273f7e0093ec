"""A picture in a file of its own: for each class a dot with its spread, sets side by side.

Names of sets and classes stand in it, as text and not as formulas; a letter that the font lacks is
drawn as a box.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from cmidd.report.pictures import LIGHT, LINE_COLORS, Theme, png

_MARKERS = ("o", "s", "^", "D", "v", "P")  # another for each round of the colours
_MOST_NAMED = 50  # of classes, whose names are readable side by side
_LONGEST_CLASS, _LONGEST_SET = 20, 70  # letters of a name
_ROOM = 0.7  # of the distance between two classes, for the dots of all sets


class Dots(NamedTuple):
    """What is drawn of one set, for each class."""

    name: str
    means: Sequence[float]
    spreads: Sequence[float]


def class_dots(sets: Sequence[Dots], class_names: Sequence[str], title: str) -> bytes:
    """The PNG.

    Args:
        sets: in the order of the legend.
        class_names: what the values of each set are of; the first stands for all classes.
        title: above the picture.
    """
    count = len(class_names)
    places = range(-1, count - 1)  # so that a class stands above its number
    names = [_short(name, _LONGEST_CLASS) for name in class_names]

    def draw(axis: Axes, theme: Theme) -> None:
        for number, dots in enumerate(sets):
            rounds, color = divmod(number, len(LINE_COLORS))
            shift = _ROOM * ((number + 0.5) / len(sets) - 0.5)
            axis.errorbar(
                [place + shift for place in places], dots.means, dots.spreads,
                color=LINE_COLORS[color], marker=_MARKERS[rounds % len(_MARKERS)],
                ls="", ms=5, capsize=2, label=f"set {number}",
            )  # fmt: skip
        axis.set_title(title, parse_math=False)
        axis.set(xlim=(-1.7, count - 1.3), ylim=(min(0.0, axis.get_ylim()[0]), None))
        if count <= _MOST_NAMED:
            slanted = 0 if max(map(len, names)) < 4 else 45
            axis.set_xticks(
                places, names, rotation=slanted, parse_math=False,
                ha="right" if slanted else "center", rotation_mode="anchor",
            )  # fmt: skip
        else:
            axis.set_xlabel("class, -1: all of them")
        axis.yaxis.set_major_formatter("{x:.3g}")
        axis.grid(True, axis="y")
        legend = axis.figure.legend(loc="outside lower left", frameon=False)
        for text, dots in zip(legend.get_texts(), sets, strict=True):
            text.set_parse_math(False)
            text.set_text(_short(dots.name, _LONGEST_SET))

    width = min(16.0, max(6.4, 1.5 + 0.08 * count * (2 + len(sets))))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        return png(draw, (width, 3.6 + 0.25 * len(sets)), LIGHT, paper=LIGHT.paper)


def _short(name: str, longest: int) -> str:
    """A name with its end, which tells paths apart, in one line."""
    line = " ".join(name.split())
    return line if len(line) <= longest else f"...{line[-longest + 3 :]}"
