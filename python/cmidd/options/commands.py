"""What the commands can be told, beside what is trained and distilled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmidd.options.fields import AS_PUBLISHED, Options, option
from cmidd.options.names import DATASETS, dataset_key
from cmidd.options.recipe import PRECISIONS, Recipe, recipe_of


@dataclass(frozen=True)
class DataOptions(Options):
    """The real images, and where to compute.

    Args:
        dataset: name, or folder:PATH, arrays:PATH.npz, hub:NAME; cmidd --help lists the names
        data: folder that holds downloaded datasets
        size: height and width to resize folders of pictures to
        zca: whiten the images (ZCA), as MTT does on some datasets; what is made from whitened
            images, banks and experts too, serves whitened images alone
        held_out: share of the training images to hold out and to judge by in the place of the test
            images, such as 0.2; for choosing settings
        device: cpu, cuda, cuda:1, ...; default: cuda where there is one
    """

    dataset: str = "digits"
    data: Path = Path("data")
    size: int | None = option(None, least=1)
    zca: bool = False
    held_out: float | None = option(None, least=0)
    device: str | None = option(None, names="device")

    def check(self) -> None:
        """Raise where there is no such dataset, none that is made to a size, or no such share."""
        if self.held_out not in (None, AS_PUBLISHED) and self.held_out >= 1:
            raise ValueError(
                f"held_out: expected a share of the training images, such as 0.2, got "
                f"{self.held_out:g}"
            )
        if self.dataset is not AS_PUBLISHED:
            check_size(self.dataset, self.size)


def check_size(dataset: str, size: int | None) -> None:
    """Raise where there is no such dataset, or none that is made to a size that is given."""
    key = dataset_key(dataset)
    if size not in (None, AS_PUBLISHED) and not DATASETS[key].resizes:
        resizing = ", ".join(name for name, about in DATASETS.items() if about.resizes)
        raise ValueError(
            f"size: expected one of {resizing} with it; the images of {dataset} are of one size"
        )


@dataclass(frozen=True)
class SetDataOptions(DataOptions):
    """The real images, and where to compute.

    Args:
        dataset: name, or folder:PATH, arrays:PATH.npz, hub:NAME; default: what the sets were made
            from, else digits
        data: folder that holds downloaded datasets; default: as the sets' runs were told, else data
        size: height and width to resize folders of pictures to; default: as of the sets
        zca: whiten real images (ZCA); sets are judged by images that are whitened as they are
        held_out: judge by this share of the training images; default: as the sets' runs were told;
            0 judges by the test images
        device: cpu, cuda, cuda:1, ...; default: cuda where there is one
    """

    dataset: str = AS_PUBLISHED
    data: Path = AS_PUBLISHED
    size: int | None = option(AS_PUBLISHED, least=1)
    held_out: float | None = option(AS_PUBLISHED, least=0)


@dataclass(frozen=True)
class RunOptions(Options):
    """The run.

    Args:
        out: folder of the run; default: runs/ and the name of the method
        resume: go on with the run that is in the folder; with more iterations too
        dry_run: say what the run costs in time, memory and disk, and end there
    """

    out: Path | None = None
    resume: bool = False
    dry_run: bool = False

    def folder(self, method: str) -> Path:
        """The folder of a run of a method."""
        return self.out or Path("runs") / method


@dataclass(frozen=True)
class BankRunOptions(Options):
    """The file.

    Args:
        out: file of the bank
        resume: go on with the bank that is there; with more networks too
        dry_run: say what all networks cost in time, memory and disk, and end there
    """

    out: Path = Path("runs/bank.safetensors")
    resume: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class ExpertRunOptions(Options):
    """The file.

    Args:
        out: file of the trajectories
        resume: go on with the file that is there; with more experts too
        dry_run: say what all experts cost in time, memory and disk, and end there
    """

    out: Path = Path("runs/experts.safetensors")
    resume: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """What is evaluated; defaults are the published protocol.

    Args:
        sets: synthetic sets: folders of runs, or their result.safetensors
        random_real: also random real images, as many per class as this
        all_real: also all real training images
        all_real_epochs: epochs on those; they hold many more steps
        networks: architectures; several test how the set carries over; default: for each set the
            one that it was made for, for real images all of those
        repeats: networks of each architecture
        epochs: passes over a set; default: as the set's method was published, else 1000
        lr: learning rate of SGD, a tenth from half of the epochs on; default: what the set
            learned with its images, or 0.01
        weight_decay: of SGD with momentum 0.9
        batch_size: images a step
        augmentation: DSA operations, or none; default: as the set's method was published, else all
        seed: of the networks
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
        together: networks trained at once; default: 1 on a CPU, 5 on a GPU
        out: JSON file of the results, for cmidd report
        resume: go on with the results that are there; with more sets, networks and repeats too
        dry_run: say what all networks cost in time, memory and disk, and end there
    """

    sets: tuple[Path, ...] = option((), names="set", positional=True)
    random_real: int | None = option(None, least=1)
    all_real: bool = False
    all_real_epochs: int = option(100, least=1)
    networks: tuple[str, ...] | None = option(None, names="network")
    repeats: int = option(5, least=1)
    epochs: int | None = option(None, least=1)
    lr: float | None = None
    weight_decay: float = 5e-4
    batch_size: int = option(256, least=1)
    augmentation: str | None = option(None, names="augmentation")
    seed: int = 0
    precision: str | None = option(None, choices=PRECISIONS)
    together: int | None = option(None, least=1)
    out: Path = Path("runs/evaluation.json")
    resume: bool = False
    dry_run: bool = False

    def check(self) -> None:
        """Raise where there is nothing to evaluate."""
        if not (self.sets or self.random_real or self.all_real):
            raise ValueError(
                "sets: expected something to evaluate; name the folder of a run, or give "
                "--random_real 10"
            )

    def recipe(self, record: Mapping[str, Any]) -> Recipe:
        """How networks are trained on a set with this record, if it did not learn its own rate."""
        return recipe_of(
            record,
            epochs=self.epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            augmentation=self.augmentation,
            precision=self.precision,
        )


@dataclass(frozen=True)
class ScoreOptions(Options):
    """What is scored.

    Args:
        sets: synthetic sets: folders of runs, or their result.safetensors
        bank: the file that cmidd pretrain makes
        random_real: also random real images, as many per class as this
        all_real: also all real training images
        layer: features (the embedding), logits, or the name of a layer
        seed: of the random real images
    """

    bank: Path = option(names="bank")
    sets: tuple[Path, ...] = option((), names="set", positional=True)
    random_real: int | None = option(None, least=1)
    all_real: bool = False
    layer: str = "features"
    seed: int = 0

    def check(self) -> None:
        """Raise where there is nothing to score."""
        if not (self.sets or self.random_real or self.all_real):
            raise ValueError(
                "sets: expected something to score; name the folder of a run, or give "
                "--random_real 10"
            )


@dataclass(frozen=True)
class ReportOptions(Options):
    """What the page shows.

    Args:
        runs: folders of runs, and files of sets, converted ones too
        evaluations: JSON files of cmidd evaluate
        bank: file of trained networks, whose features are drawn
        out: the page
        overwrite: replace the page that is there
        device: cpu, cuda, ...
    """

    runs: tuple[Path, ...] = option(positional=True)
    evaluations: tuple[Path, ...] = ()
    bank: Path | None = option(None, names="bank")
    out: Path = Path("runs/report.html")
    overwrite: bool = False
    device: str = option("cpu", names="device")
