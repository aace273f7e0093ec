"""What the commands can be told, beside what is trained and distilled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmidd.options.fields import AS_PUBLISHED, Options, option
from cmidd.options.names import DATASETS, dataset_key


@dataclass(frozen=True)
class DataOptions(Options):
    """The real images, and where to compute.

    Args:
        dataset: name, or folder:PATH, arrays:PATH.npz, hub:NAME; cmidd --help lists the names
        data: folder that holds downloaded datasets
        size: height and width to resize folders of pictures to
        keep_decoded: GiB of decoded pictures that a process keeps, of the training and of the test
            images each; sets of pictures that take more are decoded whenever they are needed
        zca: whiten the images (ZCA), as MTT does on some datasets; what is made from whitened
            images, banks and experts too, serves whitened images alone
        held_out: share of the training images to hold out and to judge by in the place of the test
            images, such as 0.2; for choosing settings
        device: cpu, cuda, cuda:1, ...; default: cuda where there is one
    """

    dataset: str = "digits"
    data: Path = Path("data")
    size: int | None = option(None, least=1)
    keep_decoded: float = option(4.0, least=0)
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
        keep_decoded: GiB of decoded pictures that a process keeps, of the training and of the test
            images each; sets of pictures that take more are decoded whenever they are needed
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
