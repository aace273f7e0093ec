"""MTT, matching training trajectories (Cazenavette et al., CVPR 2022).

An iteration moves the images so that a network which trains on them for a few steps comes nearer to
where an expert, trained on the real images, is some epochs later. The step size of these steps is
learned with the images, and soft labels are where they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmidd.options.fields import AS_PUBLISHED, Options, option
from cmidd.options.recipe import DSA, PRECISIONS


@dataclass(frozen=True)
class MTTOptions(Options):
    """What the method can be told.

    Args:
        experts: the file that cmidd experts makes
        student_steps: steps on synthetic images of the student, a network like the experts;
            default as published for the dataset and ipc, as that of the next three
        expert_epochs: epochs of the expert that these steps are to equal
        max_start_epoch: the student starts from an expert after fewer epochs than this
        batch_syn: synthetic images a step; default: all
        step_size: first step size of the student; default: the experts' learning rate
        lr_step_size: learning rate of the step size; 0 keeps it
        soft_labels: learn labels too: the softmax of free numbers, so that they stay probabilities
        lr_labels: learning rate of those numbers; default: 1
        augmentation: DSA operations, or none; flip is left out where mirrored images change class
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
    """

    experts: Path = option(names="experts")
    student_steps: int = option(AS_PUBLISHED, least=1)
    expert_epochs: int = option(AS_PUBLISHED, least=1)
    max_start_epoch: int = option(AS_PUBLISHED, least=1)
    batch_syn: int | None = option(AS_PUBLISHED, least=1)
    step_size: float | None = option(AS_PUBLISHED, above=0)
    lr_step_size: float = option(AS_PUBLISHED, least=0)
    soft_labels: bool = False
    lr_labels: float | None = option(None, least=0)
    augmentation: str = option(DSA, names="augmentation")
    precision: str | None = option(None, choices=PRECISIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_labels is not None and not self.soft_labels:
            raise ValueError("lr_labels: expected soft_labels, which it is the learning rate of")
