"""What `evaluate` and `score` can be told of sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cmidd.options.fields import Options, option
from cmidd.options.recipe import (
    OF_TEACHER,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    SOFT_LOSSES,
    Recipe,
    check_schedule,
    check_shares,
    check_temperature,
    recipe_of,
)


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
        optimizer: sgd (with momentum 0.9) or adamw; default: as the set's method was published,
            else sgd
        lr: learning rate of the optimizer; default: what the set learned with its images, else as
            its method was published for the optimizer, else 0.01
        drop_at: share of the epochs after which the learning rate falls, or several shares, after
            each of which it does; the schedule is then drops; default: as the set's method was
            published, else 0.5
        drop_by: what the learning rate is divided by there; default: as the set's method was
            published, else 10
        weight_decay: of the optimizer; default: as the set's method was published for it, else
            0.0005
        batch_size: images a step; default: as the set's method was published, else 256
        augmentation: DSA operations, or none; default: as the set's method was published, else all
        cutmix: probability that a batch is mixed by CutMix; default: as the set's method was
            published, else 0
        schedule: how the learning rate falls: drops, where drop_at says; cosine, epoch by epoch to
            0; or half_cosine, to a half; default: as the set's method was published, else drops
        warm_up: epochs before that, in which the learning rate rises from a hundredth; default: as
            the set's method was published, else 0
        zoom: least share of an image's area that the operation zoom shows; default: as the set's
            method was published, else 0.08
        labels: file of soft labels of the one set, which cmidd relabel makes; batches, augmentation
            and mixing are those that it is of. With it or a teacher the defaults above are, where
            no published method says more, adamw, 0.001, 0.01, cosine, and those of cmidd relabel
        teacher: banks; networks learn the mean of the logits of all their networks, for each batch
        soft_loss: between those logits and a network's: kl or mse; default: as the set's method was
            published, else kl
        temperature: of kl; default: as the set's method was published, else 20
        temperature_squared: multiply kl by the square of the temperature; default: as the set's
            method was published, else not
        ce_weight: weight of the cross-entropy of labels, which is added; default: as the set's
            method was published, else 0
        ddranking: also the scores LRS and ARS of DD-Ranking, by their formulas of shares: how far a
            set's accuracy is that of its images, and not of labels and augmentation
        real_accuracy: of networks on all real images, a share such as 0.85, for LRS; default: they
            are trained for --all_real_epochs
        lrs_weight: weight in LRS of the gain over random real images
        ars_weight: weight in ARS of what is trained with augmentation
        seed: of the networks
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
        together: networks trained at once; default: 1 on a CPU, on a GPU 5 small ones
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
    optimizer: str | None = option(None, choices=OPTIMIZERS)
    lr: float | None = None
    drop_at: tuple[float, ...] | None = None
    drop_by: float | None = option(None, above=0)
    weight_decay: float | None = option(None, least=0)
    batch_size: int | None = option(None, least=1)
    augmentation: str | None = option(None, names="augmentation")
    cutmix: float | None = option(None, least=0)
    schedule: str | None = option(None, choices=SCHEDULES)
    warm_up: int | None = option(None, least=0)
    zoom: float | None = option(None, above=0)
    labels: Path | None = option(None, names="labels")
    teacher: tuple[Path, ...] = option((), names="teacher")
    soft_loss: str | None = option(None, choices=SOFT_LOSSES)
    temperature: float | None = option(None, above=0)
    temperature_squared: bool | None = None
    ce_weight: float | None = option(None, least=0)
    ddranking: bool = False
    real_accuracy: float | None = None
    lrs_weight: float = 0.5
    ars_weight: float = 0.5
    seed: int = 0
    precision: str | None = option(None, choices=PRECISIONS)
    together: int | None = option(None, least=1)
    out: Path = Path("runs/evaluation.json")
    resume: bool = False
    dry_run: bool = False

    def check(self) -> None:
        """Raise where there is nothing to evaluate, or nothing that DD-Ranking scores."""
        if not (self.sets or self.random_real or self.all_real):
            raise ValueError(
                "sets: expected something to evaluate; name the folder of a run, or give "
                "--random_real 10"
            )
        if self.ddranking and not self.sets:
            raise ValueError(
                "sets: expected synthetic sets to score with ddranking; name the folder of a run"
            )
        check_shares(self.drop_at, self.cutmix, self.zoom)
        check_schedule(self.schedule, self.drop_at)
        self._check_teacher()
        for name in ("real_accuracy", "lrs_weight", "ars_weight"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {share:g}")
            if not self.ddranking and share != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"{name}: expected ddranking with it; give --ddranking too")

    def _check_teacher(self) -> None:
        """Raise where what networks learn of a teacher cannot be told, or has no teacher."""
        if self.labels is not None:
            if self.teacher:
                raise ValueError("labels, teacher: expected one of them, got both")
            if len(self.sets) != 1 or self.random_real or self.all_real:
                raise ValueError(
                    "labels: expected the one set that they are of, and no real images; give a "
                    "command for each"
                )
        if self.labels is not None or self.teacher:
            if self.ddranking:
                raise ValueError("ddranking: expected it without labels and teacher")
            check_temperature(self.soft_loss, asdict(self))
            return
        for name in OF_TEACHER:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: expected labels or a teacher with it; give one too")

    def recipe(self, record: Mapping[str, Any], taught: Mapping[str, Any] | None = None) -> Recipe:
        """How networks are trained on a set with this record, if it did not learn its own rate.

        `taught` is as `recipe_of` takes it.
        """
        return recipe_of(
            record,
            taught=taught,
            epochs=self.epochs,
            optimizer=self.optimizer,
            lr=self.lr,
            drop_at=self.drop_at,
            drop_by=self.drop_by,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            augmentation=self.augmentation,
            cutmix=self.cutmix,
            schedule=self.schedule,
            warm_up=self.warm_up,
            zoom=self.zoom,
            soft_loss=self.soft_loss,
            temperature=self.temperature,
            temperature_squared=self.temperature_squared,
            ce_weight=self.ce_weight,
            precision=self.precision,
        )

    def real_recipe(self, taught: Mapping[str, Any] | None = None) -> Recipe:
        """How networks are trained on all real images."""
        return replace(self.recipe({}, taught), epochs=self.all_real_epochs)


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
        out: JSON file of what every network finds, of each class too; default: none
        plot: PNG of the classes with their spread over networks, the sets side by side; default:
            beside the file of out, if there is one
        overwrite: replace the files that are there
    """

    bank: Path = option(names="bank")
    sets: tuple[Path, ...] = option((), names="set", positional=True)
    random_real: int | None = option(None, least=1)
    all_real: bool = False
    layer: str = "features"
    seed: int = 0
    out: Path | None = None
    plot: Path | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Raise where there is nothing to score, or a file may not be written."""
        if not (self.sets or self.random_real or self.all_real):
            raise ValueError(
                "sets: expected something to score; name the folder of a run, or give "
                "--random_real 10"
            )
        for name, path, ending in (("out", self.out, ".json"), ("plot", self.plot, ".png")):
            if path is not None and path.suffix.lower() != ending:
                raise ValueError(f"{name}: expected a file whose name ends in {ending}, got {path}")
        for name, path in self.files().items():
            if path.is_dir():
                raise IsADirectoryError(f"{name}: {path} is a folder; name a file in it")
            if path.exists() and not self.overwrite:
                raise FileExistsError(
                    f"{name}: {path} exists already; add --overwrite, or name another file"
                )

    def files(self) -> dict[str, Path]:
        """The files to write, by the names of their options."""
        beside = None if self.out is None else self.out.with_suffix(".png")
        named = {"out": self.out, "plot": self.plot or beside}
        return {name: path for name, path in named.items() if path is not None}
