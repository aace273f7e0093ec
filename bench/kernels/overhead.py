"""What a call costs besides its kernel, and what it leaves behind for torch's next op.

python -m bench.kernels.overhead
python -m bench.kernels.overhead --without-kernels --name overhead-cuda
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.providers import PROVIDERS, contend
from bench.harness.race import Contender, Timing, four_digits, race, random_features
from bench.harness.records import Record, Row, head_of, rows_of
from bench.harness.shapes import Shape
from bench.harness.tables import table
from cmikernels import cmi_value_and_grad, compiled, fused_cmi
from cmikernels.backends import choose_backend
from cmikernels.backends.operations import empty_gradient, empty_value, forward
from cmikernels.problem import Problem

SHAPES = (Shape(10, 10, 512), Shape(1, 2, 16))
MATMUL_SIZE = 512
CALLS = 50  # in one sample


class _Empty(torch.autograd.Function):
    """The least a Function can do: what autograd itself costs."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, scalar: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        return scalar.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def ways_in(shape: Shape, device: str) -> dict[str, Contender]:
    """List the same call through every layer, each with its backward where it has one."""
    features = random_features(shape, torch.float32, device)[0]
    plain = features.detach().view(-1, shape.channels)
    problem = Problem(None, shape.classes * shape.rows, shape.classes, None, 1.0, 1.0, "mean")
    backend = choose_backend(None, features.device.type)
    scalar = torch.zeros((), device=device)
    losses = {
        "fused_cmi": PROVIDERS["cmikernels"].make(),
        "registered op": lambda z, _: compiled.cmi(z, None, problem, None),
        "empty autograd.Function": lambda z, _: _Empty.apply(z, scalar),  # type: ignore[no-untyped-call]
    }
    modes = {"no_grad": "value", "forward": "forward", "forward + backward": "value+gradient"}
    ways = {
        "backend, value": Contender(lambda _: forward(backend, plain, problem, False)),
        "backend, value and gradient": Contender(lambda _: forward(backend, plain, problem, True)),
    }
    for name, loss in losses.items():
        for text, mode in modes.items():
            if name == "empty autograd.Function" and mode == "value":
                continue
            ways[f"{name}, {text}"] = _fresh_gradient(contend(loss, mode, [features]), features)
    return ways


def _fresh_gradient(contender: Contender, features: Tensor) -> Contender:
    """Reset `.grad` within every call: a sample is many of them."""

    def run(prepared: Tensor) -> object:
        features.grad = None
        return contender.run(prepared)

    return Contender(run, contender.prepare)


def measure_calls(shapes: Sequence[Shape], budget: float, calls: int, device: str) -> list[Row]:
    """Every way in, at every shape."""
    rows: list[Row] = []
    for shape in shapes:
        times = race(ways_in(shape, device), budget=budget, device=device, calls=calls)
        kernel = times["backend, value and gradient"].median
        rows += _rows("call", shape, times, "over_kernel", kernel)
    return rows


def measure_matmul(budget: float) -> list[Row]:
    """Time a matmul alone, right after `torch.exp` and right after `fused_cmi`, on the CPU."""
    rows: list[Row] = []
    left = torch.randn(MATMUL_SIZE, MATMUL_SIZE)
    right, out = torch.randn_like(left), torch.empty_like(left)

    def matmul(_: object) -> Tensor:
        return torch.mm(left, right, out=out)

    for shape in (Shape(10, 10, 512), Shape(10, 100, 512)):
        features = random_features(shape, torch.float32, "cpu")[0]
        value_and_gradient = contend(PROVIDERS["cmikernels"].make(), "value+gradient", [features])

        def after_cmi(before: Contender = value_and_gradient) -> object:
            return before.run(before.prepare())

        contenders = {
            "matmul alone": Contender(matmul),
            "matmul after torch.exp": Contender(matmul, partial(torch.exp, features.detach())),
            "matmul after fused_cmi": Contender(matmul, after_cmi),
        }
        times = race(contenders, budget=budget)
        alone = times["matmul alone"].median
        rows += _rows("matmul", shape, times, "over_alone", alone)
    return rows


def measure_without_kernels(shape: Shape, budget: float, calls: int) -> list[Row]:
    """Calls of the CUDA backend whose launches do nothing: what the host pays for each.

    They take all their ways through Python and C++ on an emulated GPU. The driver's part of a
    launch is missing, and memory comes from torch's allocator for the CPU.
    """
    from cmikernels import _emulated

    features = random_features(shape, torch.float32, "cpu")[0]
    plain = features.detach()
    problem = Problem(None, shape.classes * shape.rows, shape.classes, None, 1.0, 1.0, "mean")
    cuda = choose_backend("cuda", "cpu")
    value, gradient = empty_value(plain, problem), empty_gradient(plain)
    loss = partial(fused_cmi, backend="cuda")
    both = contend(lambda z, _: loss(z), "value+gradient", [features])
    ways = {
        "kernels started": Contender(
            lambda _: cuda.fill(plain, problem, value=value, gradient=gradient)
        ),
        "the same, outputs made": Contender(lambda _: forward(cuda, plain, problem, True)),
        "cmi_value_and_grad": Contender(lambda _: cmi_value_and_grad(plain, backend="cuda")),
        "fused_cmi, no_grad": Contender(lambda _: loss(plain)),
        "fused_cmi, forward": Contender(lambda _: loss(features)),
        "fused_cmi, forward + backward": _fresh_gradient(both, features),
    }
    _emulated.leave_out_kernels(True)
    try:
        times = race(ways, budget=budget, calls=calls)
    finally:
        _emulated.leave_out_kernels(False)
    return _rows("host", shape, times, "over_start", times["kernels started"].median)


def _rows(what: str, shape: Shape, times: dict[str, Timing], ratio: str, base: float) -> list[Row]:
    """One row a contender, with its time over `base` seconds under the name `ratio`."""
    rows = []
    for name, time in times.items():
        row: Row = {"what": what, "shape": str(shape), "contender": name}
        points = {"microseconds": time.median, "p20": time.low, "p80": time.high}
        row |= {key: four_digits(seconds * 1e6) for key, seconds in points.items()}
        row |= {ratio: four_digits(time.median / base)}
        rows.append({**row, "samples": time.samples, "others": time.others})
    return rows


def report(record: Record) -> str:
    """Render the record as Markdown."""
    parts = head_of(record)
    of_calls = "Microseconds a call, and times the kernel's own (value and gradient)"
    of_matmuls = f"A {MATMUL_SIZE}x{MATMUL_SIZE} matmul right after a call, microseconds"
    of_host = "Microseconds of the host for a call of the CUDA kernels whose launches do nothing"
    for what, ratio, title in (
        ("call", "over_kernel", of_calls),
        ("host", "over_start", of_host),
        ("matmul", "over_alone", of_matmuls),
    ):
        lines = [
            (
                row["contender"], row["shape"], f"{row['microseconds']:.4g}",
                f"{row['p20']:.4g} .. {row['p80']:.4g}", f"{row[ratio]:.2f}",
            )
            for row in rows_of(record.rows, what=what)
        ]  # fmt: skip
        if not lines:
            continue
        header = [what, "features", "median", "20 .. 80 %", ratio.replace("_", " ")]
        parts += [f"{title}:", table(header, lines)]
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print, write."""
    parser = benchmark_parser("bench.kernels.overhead", __doc__, "overhead")
    add = parser.add_argument
    add("--budget", type=float, default=5.0, help="seconds for each table's shape (%(default)s)")
    add("--quick", action="store_true", help="a look: the tiny shape only, few calls")
    add("--without-kernels", action="store_true",
        help="only calls of the CUDA backend, on an emulated GPU without its kernels")  # fmt: skip
    args = parser.parse_args()
    if args.without_kernels:
        os.environ["CMIKERNELS_EMULATE_CUDA"] = "1"  # before a backend is first asked for
    shapes, calls = (SHAPES[-1:], 2) if args.quick else (SHAPES, CALLS)
    record = new_record("overhead", args, {"budget": args.budget})
    if args.without_kernels:
        record.rows = measure_without_kernels(SHAPES[-1], args.budget, calls)
        finish(record, args, report)
        return
    record.rows = measure_calls(shapes, args.budget, calls, args.device)
    if args.device == "cpu":  # whose threads are what can disturb a matmul
        record.rows += measure_matmul(args.budget)
    finish(record, args, report)


if __name__ == "__main__":
    main()
