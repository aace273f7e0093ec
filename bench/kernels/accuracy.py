"""Relative error of value and gradient against float64, over how far a class's rows spread.

Features are a class mean (standard normal) plus spread times standard normal, so that CMI goes
like spread^2 / 2 and the smallest spreads put every P close to its Q, where rounding hurts most.
The last case has one channel 110 below the row maximum in a whole class: exp underflows there.

    python -m bench.kernels.accuracy
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.providers import PROVIDERS, Loss, make_losses
from bench.harness.records import Record, Row, machine_line
from bench.harness.shapes import Shape
from bench.harness.tables import table
from cmikernels import ClassIndex, fused_cmi

NAMES = {"cmikernels": "ours"}
SPREADS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0)


def draw(shape: Shape, spread: float | None, seed: int) -> Tensor:
    """Features `(C, n, M)`; spread None is the underflow case."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(shape.classes, 1, shape.channels, generator=generator)
    noise = torch.randn(shape, generator=generator)
    features = center + (1.0 if spread is None else spread) * noise
    if spread is None:
        features[..., 0] = features.amax(dim=-1) - 110
    return features


def exact(features: Tensor, _: ClassIndex | None = None) -> Tensor:
    """What the errors are from, given float64."""
    return fused_cmi(features, backend="reference")


def value_and_gradient(loss: Loss, features: Tensor) -> tuple[float, Tensor]:
    """Through autograd, the gradient in float64."""
    leaf = features.clone().requires_grad_()
    value = loss(leaf, None)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient.double()


def errors(loss: Loss, features: Tensor) -> tuple[float, float]:
    """Relative error of the value, and of the gradient in norm, against float64; may be NaN."""
    exact_value, exact_gradient = value_and_gradient(exact, features.double())
    value, gradient = value_and_gradient(loss, features)
    distance = (gradient - exact_gradient).norm() / exact_gradient.norm()
    return abs(value / exact_value - 1), distance.item()


def measure(shape: Shape, draws: int, providers: list[str], device: str) -> list[Row]:
    """Find the worst error over the draws, for each spread and contender; None stands for NaN."""
    rows = []
    losses = make_losses(providers, draw(shape, 1.0, 0).to(device), None, tqdm.write)
    for spread in tqdm((*SPREADS, None), unit="spread", dynamic_ncols=True):
        drawn = [draw(shape, spread, seed).to(device) for seed in range(draws)]
        cmi = exact(drawn[0].double()).item()
        for name, loss in losses.items():
            found = [errors(loss, features) for features in drawn]
            row: Row = {"spread": spread, "cmi": float(f"{cmi:.3g}"), "contender": name}
            row["value_error"] = _worst(value for value, _ in found)
            row["gradient_error"] = _worst(gradient for _, gradient in found)
            rows.append(row)
    return rows


def _worst(errors: Iterable[float]) -> float | None:
    worst = max(error if math.isfinite(error) else math.inf for error in errors)
    return float(f"{worst:.3g}") if math.isfinite(worst) else None


def report(record: Record) -> str:
    """Render the record as Markdown."""
    lines = []
    contenders = dict.fromkeys(row["contender"] for row in record.rows)
    for spread in dict.fromkeys(row["spread"] for row in record.rows):
        mine = {row["contender"]: row for row in record.rows if row["spread"] == spread}
        line = ["underflow" if spread is None else f"{spread:g}"]
        line.append(f"{next(iter(mine.values()))['cmi']:.2e}")
        for quantity in ("value_error", "gradient_error"):
            errors = [mine[name][quantity] for name in contenders]
            line += ["NaN" if error is None else f"{error:.1e}" for error in errors]
        lines.append(line)
    header = ["spread", "CMI"]
    for quantity in ("value", "gradient"):
        header += [f"{quantity}: {NAMES.get(name, name)}" for name in contenders]
    shape = Shape(*record.settings["shape"])
    return (
        f"`{machine_line(record.machine)}`\n\n"
        f"Relative error against float64, float32 features {shape}, worst of "
        f"{record.settings['draws']} draws.\n\n{table(header, lines)}"
    )


def main() -> None:
    """Measure, print, write."""
    parser = benchmark_parser("bench.kernels.accuracy", __doc__, "accuracy")
    add = parser.add_argument
    add("--shape", type=Shape.parse, default=Shape(10, 50, 2048), help="(%(default)s)")
    add("--draws", type=int, default=5, help="random draws for each spread (%(default)s)")
    add("--providers", nargs="+", choices=PROVIDERS, default=["published", "cmikernels"],
        metavar="NAME", help="whose (default: published cmikernels)")  # fmt: skip
    args = parser.parse_args()
    record = new_record("accuracy", args, {"shape": list(args.shape), "draws": args.draws})
    record.rows = measure(args.shape, args.draws, args.providers, args.device)
    finish(record, args, report)


if __name__ == "__main__":
    main()
