"""The loop around every method."""

from __future__ import annotations

from dataclasses import dataclass

from cmidd.options.fields import AS_PUBLISHED, Options, option


@dataclass(frozen=True)
class DistillOptions(Options):
    """The distilled images and the loop.

    Args:
        ipc: images per class
        init: first images: real, noise, mix (of two real ones), cells or smooth_cells (real ones in
            the cells of an image of idc, idm or ncfm) or file:PATH (those of a set or of a
            checkpoint); default: as published for the method, which --dry_run prints
        iterations: of the method; default: as published for it
        lr_images: step size on the images; default: as published for the method, dataset and ipc
        momentum: of the steps on the images and on what is learned beside them, by SGD
        seed: of everything that is drawn
        report_every: iterations from one line of the log to the next; default: as suits the method
        checkpoint_every: iterations from one checkpoint to the next; default: as suits the method
    """

    ipc: int = option(10, least=1)
    init: str = option(AS_PUBLISHED, names="first images")
    iterations: int = option(AS_PUBLISHED, least=0)
    lr_images: float = option(AS_PUBLISHED, above=0)
    momentum: float = option(0.5, least=0)
    seed: int = 0
    report_every: int = option(AS_PUBLISHED, least=1)
    checkpoint_every: int = option(AS_PUBLISHED, least=1)
