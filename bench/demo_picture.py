"""The picture the demo ends in: classes drawing together, and what value and gradient cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bench.plots import FAINT, INK, STYLE, bars_by_provider
from bench.records import seconds_text

if TYPE_CHECKING:
    from bench.demo import Comparison, Descent

# Paul Tol's muted colours; the digits are also drawn as digits, so nothing hangs on colour alone.
COLORS = ["#332288", "#88CCEE", "#44AA99", "#117733", "#999933"]
COLORS += ["#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777"]


def draw(path: Path, descent: Descent, real: Comparison, large: Comparison, where: str) -> None:
    """Draw and save."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(15, 9), layout="constrained")
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.75, 1])[0]
        top, bottom = left.subfigures(2, 1, squeeze=False, height_ratios=[1.75, 1])[:, 0]
        before, after = top.subplots(1, 2, sharex=True, sharey=True)
        _features(before, after, descent)
        strip, curve = bottom.subplots(1, 2, width_ratios=[1.5, 1])
        _images(strip, descent)
        _curve(curve, descent.curve)
        times, errors = right.subplots(2, 1)
        _times(times, [real, large])
        _errors(errors, real)
        handles, labels = times.get_legend_handles_labels()
        right.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9)
        figure.suptitle(
            "Class-aware CMI of a network's features: minimised (left), measured (right)",
            fontsize=15,
            fontweight="bold",
        )
        figure.supxlabel(where, fontsize=8, color=FAINT)
        figure.savefig(path, dpi=110)


def _features(before: Axes, after: Axes, descent: Descent) -> None:
    """Plane of the two directions in which the features before differ most."""
    log_p = [features.log_softmax(dim=1) for features in descent.features]
    center = log_p[0].mean(dim=0)
    _, _, directions = torch.linalg.svd(log_p[0] - center, full_matrices=False)
    for axis, points in zip((before, after), log_p, strict=True):
        flat = (points - center) @ directions[:2].T
        for digit in range(10):
            x, y = flat[descent.labels == digit].T.tolist()
            axis.scatter(x, y, s=60, marker=f"${digit}$", color=COLORS[digit], linewidths=0.3)
        axis.set_xlabel("first principal direction of log softmax")
        axis.grid(True)
        axis.set_axisbelow(True)
    steps, images = len(descent.curve) - 1, len(descent.labels)
    before.set_title(f"{images} real digits in feature space")
    after.set_title(f"the same after {steps} steps down the gradient of CMI")
    before.set_ylabel("second principal direction")


def _images(axis: Axes, descent: Descent) -> None:
    """One image a class: before, after, and the change."""
    distance = (descent.images[1] - descent.images[0]).square().sum(dim=(1, 2, 3))
    most = [int(distance.where(descent.labels == digit, -1.0).argmax()) for digit in range(10)]
    before, after = (_side_by_side(images[most]) for images in descent.images)
    for row, (pixels, colors, low) in enumerate(
        [(before, "gray_r", 0.0), (after, "gray_r", 0.0), (after - before, "PuOr", -1.0)]
    ):
        extent = (0, pixels.shape[1], 9 * row + 8, 9 * row)
        axis.imshow(pixels, cmap=colors, vmin=low, vmax=1, extent=extent)
    axis.set(xlim=(0, before.shape[1]), ylim=(26, 0), xticks=[])
    axis.set_yticks([4, 13, 22], ["before", "after", "change"])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title("the image of each class that moved most")
    axis.set_xlabel("change: purple is more ink, orange less", fontsize=9)


def _side_by_side(images: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(images[:, 0], (0, 1))  # (10, 8, 9)
    return padded.permute(1, 0, 2).reshape(8, -1)


def _curve(axis: Axes, curve: list[float]) -> None:
    axis.plot(curve, lw=2.5, color="#0072B2")
    axis.set(yscale="log", xlabel="gradient step on the images", ylabel="CMI (nats)")
    axis.set_title("CMI of the features")
    axis.annotate(f"{curve[0]:.1e}", (0, curve[0]), (8, -4), textcoords="offset points")
    end = (len(curve) - 1, curve[-1])
    axis.annotate(f"{curve[-1]:.1e}", end, (0, 6), textcoords="offset points", ha="right")
    axis.grid(True)


def _times(axis: Axes, comparisons: list[Comparison]) -> None:
    names = [name for name in comparisons[0].seconds if all(name in c.seconds for c in comparisons)]
    values = {name: [c.seconds[name] * 1e3 for c in comparisons] for name in names}
    bars_by_provider(
        axis, [c.short_title for c in comparisons], values, lambda ms: seconds_text(ms / 1e3)
    )
    axis.set(xscale="log", title="time of value + gradient", xlabel="milliseconds (log scale)")
    axis.set_xlim(right=axis.get_xlim()[1] * 2)


def _errors(axis: Axes, comparison: Comparison) -> None:
    names = list(comparison.seconds)
    pairs = [comparison.value_errors, comparison.gradient_errors]
    values = {name: [errors[name] for errors in pairs] for name in names}
    bars_by_provider(axis, ["value", "gradient"], values, lambda error: f"{error:.0e}")
    axis.set(xscale="log", title="error against float64, features of the digits")
    axis.set_xlabel("relative error (log scale); float32 resolves 6e-8")
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, 1e-8), high * 3)
    axis.axvline(6e-8, color=INK, lw=1, ls=":")
