"""Time of `norm_act_pool` beside torch's three calls, those compiled, and a copy of the maps.

python -m bench.block

The block is instance norm with scale and shift, ReLU and means of 2 x 2. "gradient" is forward and
backward for maps, scale and shift; "second order" the gradient of a function of these gradients,
with all that comes before. A copy reads the maps once and writes them once. The rate is that of the
bytes that a call of the block has to move at least, beside the copy's; on a GPU it is the measure
of the kernels (`--device cuda`). Memory is what a
forward keeps for its backward, beside the maps that come in and the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.race import Contender, four_digits, race
from bench.harness.records import Record, Row, head_of
from bench.harness.tables import bytes_text, ratio_text, seconds_text, spread_text, table
from cmidd.seeds import generator
from cmikernels import norm_act_pool

OURS, TORCH, COMPILED, COPY = "cmikernels", "torch", "torch.compile", "copy"
SHAPES = ((16, 128, 32, 32), (16, 64, 32, 32), (16, 128, 16, 16), (16, 128, 8, 8))
ORDERS = ("forward", "gradient", "second order")
# Maps that the orders read and write at least, one after the other; output and its gradient are a
# quarter of one.
PASSES = {"forward": 1.25, "gradient": 1.25 + 2.25, "second order": 1.25 + 2.25 + 3.5}

Block = Callable[[Tensor, Tensor, Tensor], Tensor]


def _ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return norm_act_pool(x, weight, bias)


def _torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return norm_act_pool(x, weight, bias, backend="reference")


def _inputs(shape: tuple[int, ...], device: str) -> list[Tensor]:
    """Maps, scale, shift, and the gradient of the output."""
    drawing = generator("block")
    rows, channels, height, width = shape
    sizes = shape, (channels,), (channels,), (rows, channels, height // 2, width // 2)
    return [
        torch.randn(size, generator=drawing).to(device).requires_grad_(k < 3)
        for k, size in enumerate(sizes)
    ]


def call_of(block: Block, order: str, inputs: list[Tensor]) -> Callable[[object], object]:
    """What is timed."""
    *given, grad = inputs

    def forward(_: object) -> Tensor:
        with torch.no_grad():
            return block(*given)

    def gradient(_: object) -> object:
        return torch.autograd.grad(block(*given), given, grad)

    def second_order(_: object) -> object:
        gradients = torch.autograd.grad(block(*given), given, grad, create_graph=True)
        return torch.autograd.grad(gradients, given[:2], [g.detach() for g in gradients])

    calls: dict[str, Callable[[object], object]] = {
        "forward": forward, "gradient": gradient, "second order": second_order,
    }  # fmt: skip
    return calls[order]


def kept_bytes(block: Block, inputs: list[Tensor]) -> int:
    """What autograd keeps of a forward, beside inputs and output."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    given = inputs[:3]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = block(*given)
    for tensor in (*given, out):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def measure(shape: tuple[int, ...], order: str, budget: float, device: str) -> list[Row]:
    """All contenders in turn."""
    inputs = _inputs(shape, device)
    maps = inputs[0].detach()
    there = torch.empty_like(maps)
    blocks: dict[str, Block] = {OURS: _ours, TORCH: _torchs}
    if order != "second order":  # which a compiled function does not have
        compiled: Any = torch.compile(_torchs, dynamic=False)
        blocks[COMPILED] = compiled
    contenders = {name: Contender(call_of(block, order, inputs)) for name, block in blocks.items()}
    contenders[COPY] = Contender(lambda _: there.copy_(maps))
    times = race(contenders, budget=budget, device=device)
    return [
        {
            "shape": "x".join(map(str, shape)),
            "order": order,
            "contender": name,
            **time.figures(),
            "over_ours": four_digits(time.median / times[OURS].median),
            "of_copy_rate": four_digits(PASSES[order] / 2 * times[COPY].median / time.median)
            if name == OURS
            else None,
            "kept_bytes": kept_bytes(blocks[name], inputs)
            if order == "gradient" and name in (OURS, TORCH)
            else None,
        }
        for name, time in times.items()
    ]


def report(record: Record) -> str:
    """Render the record as Markdown."""
    lines = [
        [
            row["shape"], row["order"], row["contender"], seconds_text(row["seconds"]),
            spread_text(row), ratio_text(row["over_ours"]),
            "" if row["kept_bytes"] is None else bytes_text(row["kept_bytes"]),
        ]
        for row in record.rows
    ]  # fmt: skip
    header = ["maps", "what", "by", "median", "20 .. 80 %", "over cmikernels", "kept for backward"]
    if any("of_copy_rate" in row for row in record.rows):  # older records have none
        header.append("of a copy's rate")
        for line, row in zip(lines, record.rows, strict=True):
            line.append("" if row["of_copy_rate"] is None else f"{row['of_copy_rate']:.0%}")
    return "\n\n".join([*head_of(record), table(header, lines)])


def main() -> None:
    """Measure, print, write."""
    parser = benchmark_parser("bench.block", __doc__, "block")
    add = parser.add_argument
    add("--budget", type=float, default=5.0, help="seconds for each comparison (%(default)s)")
    add("--quick", action="store_true", help="a look: small maps, few calls")
    args = parser.parse_args()
    shapes, budget = (((2, 4, 8, 8),), 0.0) if args.quick else (SHAPES, args.budget)
    record = new_record("block", args, {"budget": budget})
    for shape in shapes:
        for order in ORDERS:
            record.rows += measure(shape, order, budget, args.device)
    finish(record, args, report)


if __name__ == "__main__":
    main()
