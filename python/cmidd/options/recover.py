"""What `cmidd recover` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmidd.options.commands import DataOptions
from cmidd.options.fields import AS_PUBLISHED, Options, option
from cmidd.options.recipe import PRECISIONS

RECIPES = ("sre2l", "cda", "dwa", "edc")
"""Published ways to recover images, by which options are filled in."""

STARTS = ("noise", "real", "rded")
"""What recovered images may start from."""

CURRICULA = ("none", "cosine", "linear", "step")
"""How the least area that a step sees may fall."""


@dataclass(frozen=True)
class RecoverDataOptions(DataOptions):
    """The real images, and where to compute.

    Args:
        dataset: name, or folder:PATH, arrays:PATH.npz, hub:NAME; cmidd --help lists the names
        data: folder that holds downloaded datasets
        size: height and width to resize folders of pictures to
        keep_decoded: GiB of decoded pictures that a process keeps; none, so that memory does not
            grow with the images that are made
        zca: whiten the images (ZCA), which recovered ones are not
        held_out: share of the training images to hold out and to judge by in the place of the test
            images, such as 0.2; for choosing settings
        device: cpu, cuda, cuda:1, ...; default: cuda where there is one
    """

    keep_decoded: float = option(0.0, least=0)

    def check(self) -> None:
        """Raise where there is no such dataset, or one whose images are whitened."""
        super().check()
        if self.zca:
            raise ValueError(
                "zca: expected images that are not whitened, as recovered ones are kept in the "
                "range of pixels; leave it out"
            )


@dataclass(frozen=True)
class RecoverRunOptions(Options):
    """The run.

    Args:
        out: folder of the run
        resume: go on with the run that is in the folder; several processes may do so at once
        dry_run: say what the run costs in time, memory and disk, and end there
    """

    out: Path = Path("runs/recover")
    resume: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class RecoverOptions(Options):
    """The recovered images.

    Args:
        teacher: files of trained networks with batch norm, as cmidd pretrain makes them; of several
            networks each step takes one
        recipe: whose published settings fill in what is not given
        ipc: images per class
        start: first images: noise, real or rded (the parts of real images that the teacher finds
            easiest); default: as published
        rded_factor: parts in a row and in a column of an image that rded starts; default: 2 from
            100 pixels on, else 1
        iterations: steps on each batch; 0 leaves the first images as they are; default: as
            published
        lr: learning rate of Adam, which falls along a cosine to 0; default: as published
        batch_size: images that are made together, at most; memory grows with it, not with the
            classes and ipc; default: as published
        order: of images in batches: class (all of a class together, as far as they fit) or image
            (one of each class in turn, as SRe2L has it, where CMI is 0)
        augmentation: operations that a step applies to all of a batch alike, such as all:zoom_flip;
            flip is left out where mirrored images change class; default: as published
        zoom: least share of the area that the operation zoom shows; default: as published
        curriculum: how that share falls from zoom_from on: none (it does not), cosine, linear or
            step; default: as published
        zoom_from: what it falls from; at least zoom
        curriculum_share: share of the steps in which it falls
        jitter: pixels by which a step rolls the images down and to the right, at most; default: as
            published
        patches: parts in a row and in a column that a step puts in another order; 1: none; default:
            as published
        bn_weight: weight of the distance to the statistics that batch norm keeps; default: as
            published
        first_bn_weight: factor of that weight for the first batch norm
        var_weight: factor for distances of variances; default: as published
        class_statistics: share in which the statistics to match are those of the batch's classes,
            which takes a pass over the real images; default: as published
        average: share of the former steps in the running average of a batch's statistics; 0: none;
            default: as published
        perturb_steps: steps by which the teacher's weights move before a batch, up the loss of its
            first images; default: as published
        perturb_size: how far they move in all; default: as published, or 0.015 where perturb_steps
            are given
        seed: of everything that is drawn
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
    """

    teacher: tuple[Path, ...] = option(names="teacher")
    recipe: str = option("sre2l", choices=RECIPES)
    ipc: int = option(10, least=1)
    start: str = option(AS_PUBLISHED, choices=STARTS)
    rded_factor: int = option(AS_PUBLISHED, least=1)
    iterations: int = option(AS_PUBLISHED, least=0)
    lr: float = option(AS_PUBLISHED, above=0)
    batch_size: int = option(AS_PUBLISHED, least=1)
    order: str = option("class", choices=("class", "image"))
    augmentation: str = option(AS_PUBLISHED, names="augmentation")
    zoom: float = option(AS_PUBLISHED, above=0)
    curriculum: str = option(AS_PUBLISHED, choices=CURRICULA)
    zoom_from: float = option(1.0, above=0)
    curriculum_share: float = option(1.0, above=0)
    jitter: int = option(AS_PUBLISHED, least=0)
    patches: int = option(AS_PUBLISHED, least=1)
    bn_weight: float = option(AS_PUBLISHED, least=0)
    first_bn_weight: float = option(10.0, least=0)
    var_weight: float = option(AS_PUBLISHED, least=0)
    class_statistics: float = option(AS_PUBLISHED, least=0)
    average: float = option(AS_PUBLISHED, least=0)
    perturb_steps: int = option(AS_PUBLISHED, least=0)
    perturb_size: float = option(AS_PUBLISHED, least=0)
    seed: int = 0
    precision: str | None = option(None, choices=PRECISIONS)

    def check(self) -> None:
        """Raise where there is no teacher, a share is none, or no step is left."""
        if not self.teacher:
            raise ValueError("teacher: expected at least one file of networks, got none")
        for name in ("zoom", "zoom_from", "curriculum_share", "class_statistics", "average"):
            share = getattr(self, name)
            if share is not AS_PUBLISHED and share > 1:
                raise ValueError(f"{name}: expected a share up to 1, got {share:g}")
        if self.average == 1:
            raise ValueError("average: expected a share below 1, got 1, which no step would change")
        if self.curriculum == "step" and self.curriculum_share == 1:
            raise ValueError(
                "curriculum_share: expected a share below 1 with curriculum step, got 1, after "
                "which no step is left"
            )


@dataclass(frozen=True)
class RecoverCMIOptions(Options):
    """The regulariser.

    Args:
        cmi_weight: weight of the mean CMI over a batch; 0: none
        bank: file of trained networks, made by cmidd pretrain, in which CMI is measured; default:
            in the teacher of the step
        cmi_layer: features (the embedding), logits, or the name of a layer
        cmi_chunk: images that go through a network at once for CMI; default:
            50 on a CPU, 512 of 32 x 32 pixels on a GPU
    """

    cmi_weight: float = 0.0
    bank: Path | None = option(None, names="bank")
    cmi_layer: str = "features"
    cmi_chunk: int | None = option(None, least=1)

    def check(self) -> None:
        """Raise where there is a bank for nothing."""
        if self.bank is not None and not self.cmi_weight:
            raise ValueError("cmi_weight: expected a weight other than 0 with bank, got 0")
