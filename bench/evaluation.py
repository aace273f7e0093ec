"""Time of evaluation: an epoch of a network that learns from a distilled set.

python -m bench.evaluation

"plain" is structured as the field's scripts are: torch's layers, and the whole batch at once.
"ours" is what `cmidd evaluate` does. Both start from the same weights, with the same order of
images and the same augmentation. "convolutions" are those of ours and nothing else. Freed memory
stays with the process (`bench.loops`). Keep the machine idle meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.processes import KEPT, apart
from bench.harness.race import Contender, four_digits, race
from bench.harness.records import Record, Row, head_of
from bench.harness.tables import ratio_text, seconds_text, spread_text, table
from bench.loops.floor import convolutions_of
from bench.loops.measure import ratios
from bench.loops.report import CONVOLUTIONS, OURS, PLAIN
from bench.plain import networks as plain_networks
from cmidd.augment import Strategy, augment
from cmidd.options.recipe import PUBLISHED_RECIPE
from cmidd.seeds import generator
from cmidd.stack import Stack
from cmidd.training import train
from cmidd.training_draws import EpochDraws, draw_epochs

CLASSES = 10
SEED = 0
RECIPE = replace(PUBLISHED_RECIPE, epochs=1)


class Epochs:
    """An epoch of each kind, on one set, from one network's weights."""

    def __init__(self, spec: str, ipc: int, pixels: int, device: str) -> None:
        drawing = generator("images")
        self.images = torch.randn(CLASSES * ipc, 3, pixels, pixels, generator=drawing).to(device)
        self.labels = torch.arange(CLASSES, device=device).repeat_interleave(ipc)
        self.strategy = Strategy.parse(RECIPE.augmentation)
        shape = 3, pixels, pixels
        self.stack = Stack.fresh(spec, shape, CLASSES, [SEED], torch.device(device), "float32")
        (state,) = self.stack.states()
        self.network = plain_networks.made(plain_networks.convnet, spec, 3, pixels, CLASSES)
        kept = self.network.load_state_dict({k: v.clone() for k, v in state.items()}, strict=False)
        assert not kept.unexpected_keys
        for name in kept.missing_keys:  # of biases before a norm, which ours has not
            torch.nn.init.zeros_(self.network.get_parameter(name))
        self.network.to(device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), RECIPE.lr, RECIPE.momentum, weight_decay=RECIPE.weight_decay
        )

    def draws(self) -> EpochDraws:
        """Of an epoch."""
        (drawn,) = draw_epochs([SEED], len(self.images), RECIPE, self.strategy)
        return drawn

    def ours(self, drawn: EpochDraws) -> None:
        """As `cmidd evaluate` has it."""
        train(self.stack, self.images, self.labels, RECIPE, self.strategy, [drawn])

    def plain(self, drawn: EpochDraws) -> None:
        """As published."""
        for step, rows in enumerate(torch.split(drawn.order[0], RECIPE.batch_size)):
            chosen = rows.to(self.images.device)
            x = augment(self.images[chosen], self.strategy, drawn.augmentation[step])
            logits = self.network.head(self.network.embed(x))
            self.optimizer.zero_grad()
            F.cross_entropy(logits, self.labels[chosen]).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def error(self) -> float:
        """After an epoch of each: how far our weights are from the plain ones, relative."""
        drawn = self.draws()
        self.ours(drawn)
        self.plain(drawn)
        (state,) = self.stack.states()
        theirs = self.network.state_dict()

        def norm(tensors: list[Tensor]) -> float:
            return float(torch.cat([each.flatten() for each in tensors]).norm())

        difference = norm([tensor - theirs[name] for name, tensor in state.items()])
        return four_digits(difference / norm([theirs[name] for name in state]))


def measure(
    spec: str, ipc: int, pixels: int, budget: float, device: str, threads: int
) -> list[Row]:
    """The three in turn."""
    torch.set_num_threads(threads)
    epochs = Epochs(spec, ipc, pixels, device)
    error = epochs.error()
    floor = convolutions_of(partial(epochs.ours, epochs.draws()))
    ways: dict[str, Callable[[EpochDraws], None]] = {PLAIN: epochs.plain, OURS: epochs.ours}
    contenders = {name: Contender(way, epochs.draws) for name, way in ways.items()}
    contenders[CONVOLUTIONS] = Contender(floor)
    times = race(contenders, budget=budget, device=device)
    medians = {name: time.median for name, time in times.items()}
    return [
        {
            "ipc": ipc, "loop": name, **time.figures(), **ratios(name, medians),
            "weights_error": error if name == OURS else None,
        }
        for name, time in times.items()
    ]  # fmt: skip


def report(record: Record) -> str:
    """Render the record as Markdown."""
    lines = [
        [
            row["ipc"], row["loop"], seconds_text(row["seconds"]), spread_text(row),
            ratio_text(row["speedup_over_plain"]), ratio_text(row["over_convolutions"]),
            "" if row["weights_error"] is None else f"{row['weights_error']:.1e}",
        ]
        for row in record.rows
    ]  # fmt: skip
    header = ["images per class", "epoch", "median", "20 .. 80 %", "x plain", "/ convolutions",
              "weights off by"]  # fmt: skip
    return "\n\n".join([*head_of(record), table(header, lines)])


def main() -> None:
    """Measure, print, write."""
    parser = benchmark_parser("bench.evaluation", __doc__, "evaluation")
    add = parser.add_argument
    add("--ipc", type=int, nargs="+", default=[1, 10, 50], help="images per class (%(default)s)")
    add("--budget", type=float, default=20.0, help="seconds for each race (%(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    add("--quick", action="store_true", help="a look: a tiny network, ipc 2")
    args = parser.parse_args()
    spec, pixels, ipcs, budget = "convnet", 32, args.ipc, args.budget
    if args.quick:
        spec, pixels, ipcs, budget = "convnet:depth=2,width=8", 16, [2], 0.0
    settings = {"network": spec, "pixels": pixels, "budget": budget, "memory": "kept"}
    record = new_record("evaluation", args, settings)
    for ipc in ipcs:
        given = spec, ipc, pixels, budget, args.device, args.threads
        record.rows += apart(measure, *given, allocator=KEPT)
    finish(record, args, report)


if __name__ == "__main__":
    main()
