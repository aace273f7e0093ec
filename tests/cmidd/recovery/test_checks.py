"""A recovery refuses what would change nothing, or cannot be, before it begins."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from cmidd.recovery import checks
from cmidd.recovery.checks import check_teachers
from tests.support.recovered import recover_options, tiny_recovery
from tests.support.tiny import CPU, tiny_dataset


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"perturb_steps": 3, "perturb_size": 0.0}, "perturb_size: expected more than 0 with"),
        ({"perturb_size": 0.1}, "perturb_size: 0.1 would change nothing without perturb_steps"),
        ({"augmentation": "none", "zoom": 0.5}, "zoom: 0.5 would .* zoom in augmentation"),
        ({"augmentation": "none", "curriculum": "linear"}, "curriculum: linear would change"),
        ({"zoom_from": 0.7}, "zoom_from: 0.7 would change nothing without a curriculum"),
        ({"curriculum_share": 0.5}, "curriculum_share: 0.5 would change nothing without a curr"),
        ({"curriculum": "cosine", "zoom_from": 0.2}, "zoom_from: expected at least zoom, 0.3, .*"),
        ({"bn_weight": 0.0, "var_weight": 2.0}, "var_weight: 2.0 would .* without bn_weight"),
        ({"bn_weight": 0.0, "first_bn_weight": 2.0}, "first_bn_weight: 2.0 would change nothing"),
        ({"bn_weight": 0.0, "class_statistics": 0.5}, "class_statistics: 0.5 would change"),
        ({"bn_weight": 0.0, "average": 0.5}, "average: 0.5 would change nothing"),
        ({"rded_factor": 2}, "rded_factor: 2 would change nothing without start rded"),
        ({"start": "rded", "rded_factor": 3}, "rded_factor: expected a number that divides 8 x 8"),
        ({"start": "rded", "rded_factor": 2}, "ipc: expected at most 1 with start rded and rded"),
        ({"start": "real", "ipc": 7}, "ipc: class ant of tiny has 6 real images, fewer than 7"),
    ],
)
def test_what_would_change_nothing_or_cannot_be_is_refused(
    changes: dict[str, Any], words: str, teacher: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_recovery(recover_options(teacher, **changes))


def test_more_cells_than_candidates_are_refused(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CANDIDATES", 5)
    options = recover_options(teacher, start="rded", rded_factor=1, ipc=5)
    tiny_recovery(options)
    with pytest.raises(ValueError, match=re.escape("ipc: expected at most 5 with start rded")):
        tiny_recovery(replace(options, ipc=6))


@pytest.mark.parametrize("recipe", ["sre2l", "cda", "dwa", "edc"])
def test_what_is_filled_in_can_be_given(recipe: str, teacher: Path) -> None:
    options = recover_options(teacher, recipe=recipe, ipc=1, bn_weight=0.0, augmentation="none")
    filled_in = tiny_recovery(options).options
    assert tiny_recovery(filled_in).options == filled_in


def test_steps_of_the_teacher_without_a_size_take_the_published_one(teacher: Path) -> None:
    recovery = tiny_recovery(recover_options(teacher, perturb_steps=2))
    options = recovery.options
    assert recovery.filled_in.endswith("; perturb_size that of DWA)")
    assert (options.perturb_steps, options.perturb_size) == (2, 0.015)


class Idle(nn.Module):
    """A network with a batch norm that its forward does not go through."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(images.flatten(1))
        return found


def test_a_batch_norm_that_no_image_meets_does_not_serve(teacher: Path) -> None:
    options = recover_options(teacher, bn_weight=1.0)
    with pytest.raises(ValueError, match="teacher: expected networks with batch norm"):
        check_teachers([Idle()], tiny_dataset(), options, CPU)
