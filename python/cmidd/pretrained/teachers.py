"""Teachers: trained networks whose logits and statistics others learn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from cmidd.datasets import Dataset
from cmidd.pretrained.bank import Bank


def load_teachers(
    paths: Sequence[Path], dataset: Dataset, device: torch.device, *, option: str = "teacher"
) -> list[nn.Module]:
    """All networks of the files that an option names, frozen and in eval mode.

    They take images as `dataset.to_input` makes them, and give logits of the dataset's classes.
    """
    return [network for path in paths for network in Bank.load_for(dataset, path, option, device)]
