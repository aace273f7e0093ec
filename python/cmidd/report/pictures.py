"""The pictures of a report as PNGs with two pixels for one of the page, for light and dark pages.

No text of a user's stands in them: matplotlib would read formulas into it and lack letters.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from cmidd.report.page import Html, element, image

Points = npt.NDArray[np.float32]
_PIXELS_PER_INCH = 100  # of the page; the PNG has twice as many
_LEAST_SIDE = 112  # pixels of the PNG, of an image in a grid: 56 of the page
_GAP = 8  # pixels of the PNG, between images
# Told apart with any colour vision; lines by Okabe and Ito, classes by Petroff.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_DASHES: tuple[tuple[float, ...], ...] = ((1, 0), (4, 2), (1, 1.5))
CLASS_COLORS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
CLASS_MARKERS = ("o", "D")  # one for the first ten classes, one for the second
MOST_CLASSES = len(CLASS_COLORS) * len(CLASS_MARKERS)


@dataclass(frozen=True)
class Theme:
    """Colours of a picture."""

    paper: str
    ink: str
    faint: str
    line: str

    def style(self) -> Any:
        """As matplotlib takes them."""
        return {
            "axes.edgecolor": self.faint,
            "axes.facecolor": "none",
            "axes.labelcolor": self.ink,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "font.size": 10,
            "grid.color": self.line,
            "text.color": self.ink,
            "xtick.color": self.ink,
            "ytick.color": self.ink,
        }


# The colours of `page.STYLE`.
LIGHT = Theme("#ffffff", "#24292f", "#8a8a8a", "#e4e4e4")
_DARK = Theme("#14171b", "#e3e7eb", "#737d88", "#2b3138")


def _picture(draw: Callable[[Axes, Theme], None], size: tuple[float, float], alt: str) -> Html:
    """What `draw` draws, `size` inches, once for each theme."""
    light, dark = (png(draw, size, theme) for theme in (LIGHT, _DARK))
    return image(light, alt, round(size[0] * _PIXELS_PER_INCH), dark=dark)


def png(
    draw: Callable[[Axes, Theme], None],
    size: tuple[float, float],
    theme: Theme,
    *,
    paper: str | None = None,
) -> bytes:
    """What `draw` draws, `size` inches, on nothing or on paper of a colour."""
    with matplotlib.rc_context(theme.style()):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(), theme)
        file = io.BytesIO()
        ground = {"transparent": True} if paper is None else {"facecolor": paper}
        figure.savefig(file, format="png", dpi=2 * _PIXELS_PER_INCH, **ground)
        return file.getvalue()


@dataclass(frozen=True)
class Curve:
    """Values against iterations."""

    number: int  # of the run, which decides on colour and dashes
    iterations: Sequence[float]
    values: Sequence[float]


def curves(lines: Sequence[Curve], title: str, alt: str) -> Html:
    """Raw values faint and their running mean, on a log axis where all of them are positive.

    A single value, which no line leads to, is a dot.
    """

    def draw(axis: Axes, theme: Theme) -> None:
        for line in lines:
            color, dashes = line_style(line.number)
            axis.plot(line.iterations, line.values, color=color, lw=0.8, alpha=0.3)
            mean, marker = running_mean(line.values), "o" if len(line.values) == 1 else ""
            axis.plot(line.iterations, mean, color=color, lw=2, dashes=dashes, marker=marker)
        if all(value > 0 for line in lines for value in line.values):
            axis.set_yscale("log")
        axis.set(title=title, xlabel="iteration")
        axis.locator_params(axis="x", nbins=5, integer=True, min_n_ticks=1)
        axis.grid(True)

    return _picture(draw, (4.8, 3.4), alt)


def running_mean(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Mean over a thirtieth of the curve around each value, of what there is at the ends."""
    half = len(values) // 60
    window = np.ones(2 * half + 1)
    array = np.asarray(values, dtype=np.float64)
    counts = np.convolve(np.ones_like(array), window)[half : half + len(array)]
    sums: npt.NDArray[np.float64] = np.convolve(array, window)[half : half + len(array)]
    return sums / counts


def line_style(number: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dashes of a run's curve, in widths of the line."""
    rounds, color = divmod(number, len(LINE_COLORS))
    return LINE_COLORS[color], LINE_DASHES[rounds % len(LINE_DASHES)]


def line_key(number: int) -> Html:
    """A piece of a run's curve, for a legend beside text."""
    color, dashes = line_style(number)
    line = element(
        "line", x1=0, y1=4, x2=26, y2=4, stroke=color, stroke_width=3,
        stroke_dasharray=" ".join(f"{3 * length:g}" for length in dashes),
    )  # fmt: skip
    return element("svg", line, width=26, height=8, aria_hidden="true")


def class_key(c: int) -> Html:
    """The mark of a class, for a legend beside text."""
    color = CLASS_COLORS[c % len(CLASS_COLORS)]
    if c < len(CLASS_COLORS):
        mark = element("circle", cx=6, cy=6, r=5, fill=color)
    else:
        mark = element("polygon", points="6,0 12,6 6,12 0,6", fill=color)
    return element("svg", mark, width=12, height=12, aria_hidden="true")


@dataclass(frozen=True)
class ClassPoints:
    """Points of the plane and their classes."""

    points: Points  # (N, 2)
    classes: npt.NDArray[np.int64]  # (N,)


def scatter(real: ClassPoints, synthetic: ClassPoints, limits: Points, alt: str) -> Html:
    """Synthetic points large among faint real ones; the number of a class above its real ones.

    Args:
        real: of the test images.
        synthetic: of the distilled images.
        limits: `((least x, least y), (largest x, largest y))`, the same for pictures to compare.
        alt: the picture in words.
    """

    def draw(axis: Axes, theme: Theme) -> None:
        for c in range(MOST_CLASSES):
            color = CLASS_COLORS[c % len(CLASS_COLORS)]
            marker = CLASS_MARKERS[c // len(CLASS_COLORS)]
            of_real = real.points[real.classes == c]
            of_synthetic = synthetic.points[synthetic.classes == c]
            axis.scatter(
                of_real[:, 0], of_real[:, 1], s=7, color=color, marker=marker, alpha=0.5, lw=0
            )
            axis.scatter(
                of_synthetic[:, 0], of_synthetic[:, 1],
                s=58, color=color, marker=marker, edgecolors=theme.ink, lw=0.9,
            )  # fmt: skip
            if len(of_real):
                x, y = np.median(of_real[:, 0]), np.quantile(of_real[:, 1], 0.95)
                axis.annotate(
                    str(c), (x, y), (0, 5), textcoords="offset points", weight="bold", size=11,
                    ha="center", va="bottom",
                    path_effects=[withStroke(linewidth=3, foreground=theme.paper)],
                )  # fmt: skip
        low, high = limits
        room = 0.04 * (high - low).max()
        axis.set(
            xlim=(low[0] - room, high[0] + room), ylim=(low[1] - room, high[1] + room),
            xticks=[], yticks=[], aspect="equal",
        )  # fmt: skip
        axis.spines[["left", "bottom"]].set_visible(False)

    return _picture(draw, (4.4, 4.4), alt)


def strip(pixels: Tensor, places: int, alt: str) -> Html:
    """Images beside each other, every pixel a square.

    Args:
        pixels: `(N, channels, height, width)` in [0, 1].
        places: room for so many, so that strips with fewer images show them in the same size.
        alt: the picture in words.
    """
    count, _, height, width = pixels.shape
    scale = -(-_LEAST_SIDE // height)
    step = scale * width + _GAP
    whole = Image.new("RGBA", (places * step - _GAP, scale * height))
    arrays = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()  # (N, height, width, ch)
    for number in range(count):
        array = arrays[number]
        small = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
        large = small.resize((scale * width, scale * height), Image.Resampling.NEAREST)
        whole.paste(large, (number * step, 0))
    file = io.BytesIO()
    whole.save(file, format="png", optimize=True)
    return image(file.getvalue(), alt, whole.width // 2)
