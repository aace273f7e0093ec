"""What `cmidd convert` and `cmidd export` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from cmidd.options.commands import check_size
from cmidd.options.fields import Options, option

FORMATS = ("res", "pair", "idc", "idm", "kip", "pictures")
"""What files of other tools are called here; `exchange/peers.py` says which tool writes which."""

SPACES = ("normalised", "whitened", "pixels", "standardised")
"""What the numbers of images may be."""

NORMALISATIONS = (
    *("measured", "half"),
    *("cifar10", "cifar100", "svhn", "mnist", "fashionmnist", "tinyimagenet", "imagenet"),
)
"""What images may be normalised by: two words, and the datasets with published numbers."""


@dataclass(frozen=True)
class ConvertOptions(Options):
    """What is converted. What the file does not say is asked for.

    Args:
        source: the file of another tool, or a folder with a folder of pictures for each class
        out: file of the set, such as set.safetensors
        overwrite: replace the set that is there
        dataset: what the set was distilled from: name, or folder:PATH, arrays:PATH.npz, hub:NAME;
            cmidd --help lists the names
        data: folder that holds downloaded datasets; most sets need none
        size: height and width that folders of pictures are made to
        format: of the file, where it cannot be told: res (DC, DSA, DM, IDM, IID, CAFE, DataDAM),
            pair (MTT, DATM, DD-Ranking), idc (IDC, NCFM), idm (its .pkl), kip, pictures (SRe2L,
            RDED)
        space: of the images: normalised (by a mean and deviation of channels), whitened (ZCA, as by
            MTT), pixels (from 0 to 1), standardised (by the mean and deviation of all training
            pixels, as by KIP); asked for with pair and kip
        normalised_by: whose mean and deviation normalised images have: those of a dataset by its
            name (imagenet's are the usual ones), measured (of the training pixels of this dataset)
            or half (0.5, so that they are from -1 to 1); asked for where none are published for the
            dataset, which is the default
        factor: each stored image holds factor x factor cells, which networks see enlarged; asked
            for with res, idc and idm; 1 where it holds one image
        experiment: the one to take of a file of several, from 0 on
        labels: file of the labels of a pair; default: beside the images, by the tool's own name
        lr: the step size that a pair learned, or its file; default: beside the images, if there
        soft_labels: what labels of several numbers are, where it cannot be told
    """

    source: Path = option(positional=True)
    out: Path = option()
    dataset: str = option()
    overwrite: bool = False
    data: Path = Path("data")
    size: int | None = option(None, least=1)
    format: str | None = option(None, choices=FORMATS)
    space: str | None = option(None, choices=SPACES)
    normalised_by: str | None = option(None, choices=NORMALISATIONS)
    factor: int | None = option(None, least=1)
    experiment: int | None = option(None, least=0)
    labels: Path | None = None
    lr: str | None = None
    soft_labels: str | None = option(None, choices=("logits", "probabilities"))

    def check(self) -> None:
        """Raise where there is no such dataset, or none that is made to a size."""
        check_size(self.dataset, self.size)


@dataclass(frozen=True)
class ExportOptions(Options):
    """What is exported, and where.

    Args:
        set: a synthetic set: the folder of a run, its result.safetensors, or a converted set
        png: folder for a folder of images for each class
        pt: folder for images_best.pt, labels_best.pt and, where a step size was learned, lr.pt
        ddranking: folder for images.pt, labels.pt and lr.pt as DD-Ranking takes them
        hub: folder for the Hugging Face hub: a table that datasets.load_dataset loads, the set
            itself and a card, with the accuracies of an evaluation.json in the run's folder
    """

    set: Path = option(names="set", positional=True)
    png: Path | None = None
    pt: Path | None = None
    ddranking: Path | None = None
    hub: Path | None = None

    def check(self) -> None:
        """Raise where there is nothing to export to, or one folder is part of another."""
        folders = self.folders()
        if not folders:
            raise ValueError("png, pt, ddranking, hub: expected a folder for at least one of them")
        for (name, path), (other, its) in combinations(folders.items(), 2):
            places = path.resolve(), its.resolve()
            if places[0].is_relative_to(places[1]) or places[1].is_relative_to(places[0]):
                raise ValueError(
                    f"{name}, {other}: expected two folders, neither inside the other; got {path} "
                    f"and {its}"
                )

    def folders(self) -> dict[str, Path]:
        """The folders to export to, by the names of their options."""
        names = ("png", "pt", "ddranking", "hub")
        given = {name: getattr(self, name) for name in names}
        return {name: path for name, path in given.items() if path}
