"""What students with few images learn from a teacher, plain or fine-tuned by MCMI.

python -m bench.mcmi --data digits --seeds 0 1 2

A teacher is trained on all training images, and fine-tuned: by MCMI, and for as long with weight
0, by cross-entropy alone, so that the two can be told apart. Students, smaller networks, see a
share of each class. They minimise

    0.1 cross-entropy + 0.9 T^2 KL(teacher's softmax(logits / T) || student's),    T = 4

or cross-entropy alone, where they have no teacher. Test images judge.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.command import add_rows, benchmark_parser, finish, new_record
from bench.harness.records import Record, Row, head_of, rows_of
from bench.harness.tables import table
from cmidd.datasets import Dataset, load_dataset
from cmidd.networks import Network
from cmidd.options.pretrained import BankOptions
from cmidd.options.recipe import Recipe
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.pretrained.mcmi import accuracy_and_cmi
from cmidd.seeds import generator, seed_of
from cmidd.stack import Stack
from cmidd.training import Objective, cross_entropy, fresh_and_trained

CPU = torch.device("cpu")
TEMPERATURE, OF_LABELS, OF_TEACHER = 4.0, 0.1, 0.9  # as published
LR = 0.05  # of teachers at first, and of students
NONE, PLAIN, LONGER, MCMI = "none", "plain", "plain, trained longer", "MCMI"


@dataclass(frozen=True)
class Setting:
    """How teachers and students of a dataset are trained."""

    teacher: str
    teacher_epochs: int
    tuned_epochs: int
    student: str
    student_epochs: int  # on a share of the images
    students: int  # of each teacher
    weight: float = -0.15  # of MCMI, as published
    tuned_lr: float = 0.05
    augmentation: str = "all:crop_flip"  # of teachers, and of their fine-tuning


SETTINGS = {
    "digits": Setting(
        "convnet:depth=2,width=16", 12, 6, "convnet:depth=2,width=8", 200, 3, -0.4, 0.02, "none"
    ),
    "fashionmnist": Setting("convnet:width=32", 6, 4, "convnet:width=16", 40, 2, tuned_lr=0.02),
}
QUICK = Setting("convnet:depth=1,width=8", 2, 1, "convnet:depth=1,width=4", 2, 1)


def distillation(teacher: Callable[[Tensor], Tensor]) -> Objective:
    """What students minimise that learn from a teacher."""

    def objective(stack: Stack, images: Tensor, targets: Tensor) -> Tensor:
        logits = stack(images).flatten(0, 1)
        with torch.no_grad():
            known = F.log_softmax(teacher(images.flatten(0, 1)) / TEMPERATURE, 1)
        found = F.log_softmax(logits / TEMPERATURE, 1)
        apart = F.kl_div(found, known, reduction="sum", log_target=True) * TEMPERATURE**2
        of_labels = F.cross_entropy(logits, targets.flatten(0, 1), reduction="sum")
        return OF_LABELS * of_labels + OF_TEACHER * apart

    return objective


def rows_of_share(dataset: Dataset, share: float, seed: int) -> Tensor:
    """Row numbers of a share of each class's training images, one at least."""
    chosen = []
    for c, count in enumerate(dataset.train.offsets.diff().tolist()):
        drawn = torch.randperm(count, generator=generator(seed, "share", c))
        chosen.append(int(dataset.train.offsets[c]) + drawn[: max(1, round(share * count))])
    return torch.cat(chosen)


def plain_options(setting: Setting, seed: int) -> BankOptions:
    """How a teacher is trained at first."""
    return BankOptions(
        setting.teacher, networks=1, epochs=setting.teacher_epochs, lr=LR, batch_size=64,
        weight_decay=5e-4, schedule="cosine", seed=seed, augmentation=setting.augmentation,
    )  # fmt: skip


def tuned_options(setting: Setting, weight: float, seed: int, source: Path) -> BankOptions:
    """How a teacher is fine-tuned."""
    return BankOptions(
        objective="mcmi", from_bank=source, networks=1, mcmi_weight=weight,
        epochs=setting.tuned_epochs, lr=setting.tuned_lr, seed=seed,
        augmentation=setting.augmentation,
    )  # fmt: skip


def teachers(dataset: Dataset, setting: Setting, seed: int, folder: Path) -> dict[str, Bank]:
    """Banks of one network each, by what they are called."""
    source = folder / f"plain-{seed}"
    plain = plain_options(setting, seed)
    made = {PLAIN: train_bank(source, dataset, plain, CPU, resume=True, say=_quiet)}
    for name, weight in ((LONGER, 0.0), (MCMI, setting.weight)):
        tuned, out = tuned_options(setting, weight, seed, source), folder / f"tuned-{seed}-{name}"
        made[name] = train_bank(out, dataset, tuned, CPU, resume=True, say=_quiet)
    return made


def students_of(
    teacher: Network | None, dataset: Dataset, setting: Setting, share: float, seed: int
) -> list[float]:
    """Accuracies of students."""
    rows = rows_of_share(dataset, share, seed)
    images, labels = dataset.to_input(dataset.train.images[rows]), dataset.train.labels[rows]
    recipe = Recipe(
        setting.student_epochs, LR, batch_size=64, augmentation="all:crop_flip",
        schedule="cosine",
    )  # fmt: skip
    found = []
    for k in range(setting.students):
        stack = fresh_and_trained(
            setting.student, images, labels, dataset.num_classes, [seed_of(seed, "student", k)],
            recipe, mirror=dataset.mirror,
            objective=cross_entropy if teacher is None else distillation(teacher),
        )  # fmt: skip
        found += stack.accuracy(dataset.batches(dataset.test, CPU))
    return found


def measure(dataset: Dataset, setting: Setting, share: float, seed: int, folder: Path) -> list[Row]:
    """The rows of a seed."""
    about = {"data": dataset.name, "seed": seed, "share": share}
    rows: list[Row] = [
        {**about, "teacher": NONE, "students": students_of(None, dataset, setting, share, seed)}
    ]
    for name, bank in teachers(dataset, setting, seed, folder).items():
        accuracy, cmi = accuracy_and_cmi(
            bank[0], dataset.batches(dataset.test, CPU), dataset.num_classes
        )
        students = students_of(bank[0], dataset, setting, share, seed)
        rows.append(
            {**about, "teacher": name, "accuracy": accuracy, "cmi": cmi, "students": students}
        )
    return rows


def _quiet(text: str) -> None:
    """Say nothing: the record has it."""


def report(record: Record) -> str:
    """Render the record as Markdown."""
    lines = []
    for name in dict.fromkeys(row["teacher"] for row in record.rows):
        rows = rows_of(record.rows, teacher=name)
        students = [statistics.mean(row["students"]) for row in rows]
        teacher = ["", ""]
        if name != NONE:
            cmis = [row["cmi"] for row in rows]
            teacher = [_percent([row["accuracy"] for row in rows]), _mean_and_spread(cmis, "4f")]
        lines.append([name, *teacher, _percent(students), _gain(record, name)])
    header = ["teacher", "its accuracy, %", "CMI of its outputs", "accuracy of students, %",
              "over those of the plain teacher"]  # fmt: skip
    settings, seeds = record.settings, len({row["seed"] for row in record.rows})
    words = (
        f"{settings['data']}, {seeds} seeds, {settings['students']} students of each teacher, "
        f"which see {settings['share']:.0%} of the training images. The teacher is a "
        f"`{settings['teacher']}`, the student a `{settings['student']}`. Fine-tuning takes "
        f"{settings['tuned_epochs']} epochs from a learning rate of {settings['tuned_lr']:g} on, "
        f"MCMI has weight {settings['weight']:g}, and the images of teachers have augmentation "
        f"`{settings['augmentation']}`. Deviations are over seeds; that of a difference is its "
        "standard error, of differences seed by seed."
    )
    return "\n\n".join([*head_of(record), words, table(header, lines)])


def _gain(record: Record, name: str) -> str:
    """Points of the students over those of the plain teacher, seed by seed."""
    of_both = [
        {
            row["seed"]: statistics.mean(row["students"])
            for row in rows_of(record.rows, teacher=each)
        }
        for each in (name, PLAIN)
    ]
    differences = [100 * (of_both[0][seed] - of_both[1][seed]) for seed in of_both[0]]
    if name == PLAIN:
        return ""
    error = statistics.stdev(differences) / len(differences) ** 0.5 if differences[1:] else 0.0
    return f"{statistics.mean(differences):+.1f} ± {error:.1f}"


def _percent(shares: Sequence[float]) -> str:
    return _mean_and_spread([100 * share for share in shares], "1f")


def _mean_and_spread(numbers: Sequence[float], form: str) -> str:
    spread = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{statistics.mean(numbers):.{form}} ± {spread:.{form}}"


def main() -> None:
    """Measure, print, write."""
    parser = benchmark_parser("bench.mcmi", __doc__, "", unit="seed", on_gpus=False)
    add = parser.add_argument
    add("--data", default="digits", choices=list(SETTINGS), help="(%(default)s)")
    add("--root", type=Path, default=Path("data"), help="folder of datasets (%(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(%(default)s)")
    add("--share", type=float, default=0.05, help="of images that students see (%(default)s)")
    add("--weight", type=float, help="of MCMI (default: one that suits the data)")
    add("--folder", type=Path, default=Path("out/mcmi"), help="of teachers (%(default)s)")
    add("--quick", action="store_true", help="a look: tiny networks, little training")
    args = parser.parse_args()
    args.name = args.name or f"mcmi-{args.data}"
    setting = QUICK if args.quick else SETTINGS[args.data]
    if args.weight is not None:
        setting = replace(setting, weight=args.weight)
    seeds = " ".join(map(str, args.seeds))
    arguments = (
        f"--data {args.data} --share {args.share:g} --weight {setting.weight:g} --seeds {seeds}"
    )
    about = {"data": args.data, "share": args.share, **asdict(setting)}
    record = new_record("mcmi", args, {**about, "arguments": arguments})
    folder = args.folder / folder_name(args.data, setting, record.machine)
    dataset = load_dataset(args.data, args.root)
    done = {row["seed"] for row in record.rows}
    for seed in args.seeds:
        if seed not in done:
            add_rows(record, args, measure(dataset, setting, args.share, seed, folder))
    finish(record, args, report)


def folder_name(data: str, setting: Setting, machine: Row) -> str:
    """Where teachers are: those of other settings or versions are others with the same names."""
    banks = plain_options(setting, 0), tuned_options(setting, setting.weight, 0, Path())
    versions = [machine[name] for name in ("torch", "cmikernels")]
    about = [data, *(bank.as_record() for bank in banks), versions]
    return f"{seed_of(json.dumps(about)):016x}"


if __name__ == "__main__":
    main()
