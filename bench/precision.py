"""What precision the networks of the regulariser need: image gradients, and the outcome.

python -m bench.precision
python -m bench.precision --fashion out/fashion     # a folder that bench.fashion filled, too

Gradients of CMI with respect to the images are compared with those of the same networks in float64:
the relative error in the 2-norm, and the cosine. Beside them stands the cosine of gradients by two
networks of one bank, of which a step draws one. TF32, which CPUs do not have, is emulated:
all that enters a convolution, forward and backward, is rounded to 10 bits of mantissa.

The outcome: digits distilled by DM with CMI, the regulariser in float32 and in bfloat16, from the
same first images and with the same draws, and the accuracy of networks trained on the results.
"""

from __future__ import annotations

import copy
import itertools
import json
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.harness.command import benchmark_parser, finish, new_record
from bench.harness.records import Record, Row, head_of
from bench.harness.tables import seconds_text, table
from cmidd.datasets import load_dataset
from cmidd.evaluate import evaluate_set
from cmidd.first_images import first_images
from cmidd.loop import distill
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.dm import DMOptions
from cmidd.options.fields import AS_PUBLISHED
from cmidd.options.pretrained import BankOptions
from cmidd.options.recipe import DSA, Recipe
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.run import prepare
from cmidd.storage.output import write_text
from cmidd.synthetic import SyntheticSet
from cmikernels import ClassIndex, CMIRegularizer

CPU = torch.device("cpu")
METHOD = DMOptions("convnet:depth=2", batch_real=64)  # as `make demo` has it
WEIGHT = 20.0
REPEATS = 3  # networks trained on a set
PRECISIONS = ("float32", "bfloat16")
IPC = 10  # real images of a class, whose gradients are compared


class EmulatedTF32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds what enters convolutions and their backward."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "convolution" in str(func):
            args = [_rounded(each) if isinstance(each, Tensor) else each for each in args]
        return func(*args, **(kwargs or {}))


def _rounded(tensor: Tensor) -> Tensor:
    """To 10 bits of mantissa, to even where two are as near."""
    bits = tensor.contiguous().view(torch.int32)
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
    return rounded.view(torch.float32)


def gradient_of(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    precision: str,
    inside: AbstractContextManager[object] | None = None,
) -> Tensor:
    """Of CMI with respect to the images, in float64."""
    regularizer = CMIRegularizer(network, precision=precision)
    leaf = images.detach().clone().requires_grad_()
    with inside or nullcontext():
        (gradient,) = torch.autograd.grad(regularizer(leaf, ClassIndex(labels)), leaf)
    return gradient.double()


def _cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()))


def measure_gradients(name: str, bank: Bank, sets: dict[str, tuple[Tensor, Tensor]]) -> list[Row]:
    """A row for each set, network and precision, and one for each pair of networks."""
    rows: list[Row] = []
    for of_images, (images, labels) in sets.items():
        exact = []
        for number, network in enumerate(bank):
            wide = copy.deepcopy(network).double()
            exact.append(gradient_of(wide, images.double(), labels, "float32"))
            for precision, given, inside in (
                ("float32", "float32", None),
                ("emulated tf32", "float32", EmulatedTF32()),  # type: ignore[no-untyped-call]
                ("bfloat16", "bfloat16", None),
            ):
                found = gradient_of(network, images, labels, given, inside)
                rows.append(
                    {
                        "what": "gradient", "bank": name, "images": of_images,
                        "network": number, "precision": precision,
                        "error": float((found - exact[-1]).norm() / exact[-1].norm()),
                        "cosine": _cosine(found, exact[-1]),
                    }
                )  # fmt: skip
        rows += [
            {
                "what": "gradient", "bank": name, "images": of_images, "network": f"{one}, {other}",
                "precision": "another network", "error": None,
                "cosine": _cosine(exact[one], exact[other]),
            }
            for one, other in itertools.combinations(range(len(exact)), 2)
        ]  # fmt: skip
    return rows


def _seen(synthetic_set: SyntheticSet) -> tuple[Tensor, Tensor]:
    return synthetic_set.images, synthetic_set.labels


def fashion_sets(folder: Path) -> tuple[Bank, dict[str, tuple[Tensor, Tensor]]]:
    """The bank of `bench.fashion`, real images, and what it distilled without and with CMI."""
    dataset = load_dataset("fashionmnist")
    sets = {"real": first_images(dataset, IPC, "real", 0)}
    for run, about in (("dm-10-seed0", "of DM"), ("dm-10-cmi2000-seed0", "of DM + CMI")):
        sets[about] = _seen(SyntheticSet.load(folder / run / "run" / "result.safetensors"))
    return Bank.load(folder / "bank.safetensors", CPU), sets


class Plan(NamedTuple):
    """What is trained and distilled; as `make demo` has it, with more networks in the bank."""

    bank: BankOptions = BankOptions(networks=4, epochs=10)
    loop: DistillOptions = DistillOptions(ipc=2, init="real", iterations=150)
    recipe: Recipe = Recipe(epochs=300, augmentation=DSA)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


QUICK = Plan(
    BankOptions("convnet:depth=2,width=8", networks=2, epochs=1),
    DistillOptions(ipc=2, init="real", iterations=2),
    Recipe(epochs=1),
    (0,),
)


def distilled(folder: Path, plan: Plan, seed: int, precision: str) -> tuple[SyntheticSet, Row]:
    """Distil and evaluate once, or read what was found before."""
    file = folder / f"{precision}-{seed}.json"
    place = folder / f"{precision}-{seed}"
    if file.exists():
        return SyntheticSet.load(place / "result.safetensors"), json.loads(file.read_text())
    dataset = load_dataset("digits")
    loop = replace(plan.loop, seed=seed)
    cmi = CMIOptions(folder / "bank.safetensors", WEIGHT, cmi_precision=precision)
    run = prepare("dm", dataset, loop, METHOD, cmi, device=CPU, say=_quiet)
    began = time.process_time()
    result = distill(run, run.folder(place, resume=True), say=_quiet)
    seconds = time.process_time() - began
    (found,) = evaluate_set(
        result, dataset, ["convnet:depth=2"], repeats=REPEATS, recipe=plan.recipe, seed=seed,
        device=CPU, say=_quiet,
    )  # fmt: skip
    row = {
        "what": "outcome", "precision": precision, "seed": seed, "accuracy": found.mean,
        "accuracies": list(found.accuracies), "cpu_seconds": seconds,
    }  # fmt: skip
    write_text(file, json.dumps(row))
    return result, row


def _quiet(text: str) -> None:
    """Say nothing: many runs go on."""


def report(record: Record) -> str:
    """Render the record as Markdown."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    outcome: dict[str, dict[int, Row]] = {}
    for row in record.rows:
        if row["what"] == "gradient":
            groups.setdefault((row["bank"], row["images"], row["precision"]), []).append(row)
        else:
            outcome.setdefault(row["precision"], {})[row["seed"]] = row
    lines = []
    for key, rows in groups.items():
        errors = [row["error"] for row in rows if row["error"] is not None]
        cosines = [row["cosine"] for row in rows]
        error = f"{min(errors):.2%} .. {max(errors):.2%}" if errors else "-"
        lines.append([*key, error, f"{min(cosines):.4f} .. {max(cosines):.4f}"])
    header = ["bank", "images", "networks in", "off by", "cosine"]
    parts = [*head_of(record), "Image gradients of CMI against float64:", table(header, lines)]
    if outcome:
        parts += ["Digits by DM + CMI, with the regulariser in:", _outcome(outcome)]
    return "\n\n".join(parts)


def _outcome(outcome: dict[str, dict[int, Row]]) -> str:
    lines = []
    for precision, by_seed in outcome.items():
        found = [row["accuracy"] * 100 for row in by_seed.values()]
        gaps = [
            (row["accuracy"] - outcome["float32"][seed]["accuracy"]) * 100
            for seed, row in by_seed.items()
        ]
        seconds = statistics.mean(row["cpu_seconds"] for row in by_seed.values())
        several = len(found) > 1
        spread = f" +- {statistics.stdev(found):.1f}" if several else ""
        error = f" +- {statistics.stdev(gaps) / len(gaps) ** 0.5:.1f}" if several else ""
        gap = "-" if precision == "float32" else f"{statistics.mean(gaps):+.1f}{error}"
        accuracy = f"{statistics.mean(found):.1f}{spread}"
        lines.append([precision, len(found), accuracy, gap, seconds_text(seconds)])
    return table(["precision", "seeds", "accuracy, %", "gap to float32", "CPU time"], lines)


def measure(folder: Path, plan: Plan) -> list[Row]:
    """The rows of the digits."""
    dataset = load_dataset("digits")
    bank = train_bank(folder / "bank.safetensors", dataset, plan.bank, CPU, resume=True, say=_quiet)
    runs = [distilled(folder, plan, seed, name) for seed in plan.seeds for name in PRECISIONS]
    sets = {"real": first_images(dataset, IPC, "real", 0), "of DM + CMI": _seen(runs[0][0])}
    return [*measure_gradients("digits", bank, sets), *(row for _, row in runs)]


def main() -> None:
    """Measure, print, write."""
    parser = benchmark_parser("bench.precision", __doc__, "precision", on_gpus=False)
    add = parser.add_argument
    add("--fashion", type=Path, help="a folder that bench.fashion filled")
    add(
        "--folder",
        type=Path,
        default=Path("out/precision"),
        help="of what is trained and distilled, where a second start goes on (%(default)s)",
    )
    add("--quick", action="store_true", help="a look: one seed, little training")
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan()
    settings = {
        "bank": asdict(plan.bank), "dm": asdict(METHOD),
        "loop": {k: v for k, v in asdict(plan.loop).items() if v is not AS_PUBLISHED},
        "weight": WEIGHT, "recipe": asdict(plan.recipe), "repeats": REPEATS,
    }  # fmt: skip
    if args.fashion:
        settings["arguments"] = "--fashion out/fashion"
    record = new_record("precision", args, settings)
    record.rows = measure(args.folder, plan)
    if args.fashion:
        record.rows += measure_gradients("Fashion-MNIST", *fashion_sets(args.fashion))
    finish(record, args, report)


if __name__ == "__main__":
    main()
