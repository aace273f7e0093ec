"""What the commands can be told, beside what is trained and distilled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmidd.options.fields import Options, option
from cmidd.options.recipe import Recipe, recipe_of


@dataclass(frozen=True)
class DataOptions(Options):
    """The real images, and where to compute.

    Args:
        dataset: name, or folder:PATH, arrays:PATH.npz, hub:NAME; cmidd --help lists the names
        data: folder that holds downloaded datasets
        size: height and width to resize folders of pictures to
        zca: whiten the images (ZCA), as MTT does on some datasets; what is made from whitened
            images, banks and experts too, serves whitened images alone
        device: cpu, cuda, cuda:1, ...; default: cuda where there is one
    """

    dataset: str = "digits"
    data: Path = Path("data")
    size: int | None = option(None, least=1)
    zca: bool = False
    device: str | None = None


@dataclass(frozen=True)
class RunOptions(Options):
    """The run.

    Args:
        out: folder of the run; default: runs/ and the name of the method
        resume: go on with the run that is in the folder
        dry_run: say what the run costs in time, memory and disk, and end there
    """

    out: Path | None = None
    resume: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class BankRunOptions(Options):
    """The file.

    Args:
        out: file of the bank
        resume: go on with the bank that was begun there
    """

    out: Path = Path("runs/bank.safetensors")
    resume: bool = False


@dataclass(frozen=True)
class ExpertRunOptions(Options):
    """The file.

    Args:
        out: file of the trajectories
        resume: go on with the file that was begun there
    """

    out: Path = Path("runs/experts.safetensors")
    resume: bool = False


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """What is evaluated, and how: the defaults are the published protocol.

    Args:
        sets: synthetic sets (result.safetensors of a run)
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
        together: networks trained at once; default: 1 on a CPU, 5 on a GPU
        out: JSON file of the results, for cmidd report
        resume: go on with the results that are there
    """

    sets: tuple[Path, ...] = ()
    random_real: int | None = option(None, least=1)
    all_real: bool = False
    all_real_epochs: int = option(100, least=1)
    networks: tuple[str, ...] | None = None
    repeats: int = option(5, least=1)
    epochs: int | None = option(None, least=1)
    lr: float | None = None
    weight_decay: float = 5e-4
    batch_size: int = option(256, least=1)
    augmentation: str | None = None
    seed: int = 0
    together: int | None = option(None, least=1)
    out: Path = Path("runs/evaluation.json")
    resume: bool = False

    def recipe(self, record: Mapping[str, Any]) -> Recipe:
        """How networks are trained on a set with this record, if it did not learn its own rate."""
        return recipe_of(
            record,
            epochs=self.epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            augmentation=self.augmentation,
        )


@dataclass(frozen=True)
class ScoreOptions(Options):
    """What is scored.

    Args:
        sets: synthetic sets (result.safetensors of a run)
        bank: file of trained networks, made by cmidd pretrain
        random_real: also random real images, as many per class as this
        layer: features (the embedding), logits, or the name of a layer
        seed: of the random real images
    """

    bank: Path
    sets: tuple[Path, ...] = ()
    random_real: int | None = option(None, least=1)
    layer: str = "features"
    seed: int = 0


@dataclass(frozen=True)
class ExportOptions(Options):
    """What is exported, and where.

    Args:
        set: synthetic set (result.safetensors of a run)
        png: folder for a folder of images for each class
        pt: folder for images_best.pt and labels_best.pt
    """

    set: Path
    png: Path | None = None
    pt: Path | None = None


@dataclass(frozen=True)
class ReportOptions(Options):
    """What the page shows.

    Args:
        runs: folders of runs
        evaluations: JSON files of cmidd evaluate
        bank: file of trained networks, whose features are drawn
        out: the page
        device: cpu, cuda, ...
    """

    runs: tuple[Path, ...]
    evaluations: tuple[Path, ...] = ()
    bank: Path | None = None
    out: Path = Path("runs/report.html")
    device: str = "cpu"
