from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.plain.inputs import random_dataset
from cmidd.methods import Method
from cmidd.methods.dc import GradientMatching
from cmidd.methods.idc import IDC
from cmidd.methods.idm import IDM
from cmidd.options.dc import DCOptions
from cmidd.options.dsa import DSAOptions
from cmidd.options.idc import IDCOptions
from cmidd.options.idm import IDMOptions
from cmidd.seeds import generator
from tests.support.replaying import both
from tests.support.steps import step
from tests.support.tiny import CPU

REAL = random_dataset((7, 12, 5), 8)
SYNTHETIC = torch.arange(3).repeat_interleave(2)
CONVNET = "convnet:depth=2,width=4"
OF_DC: dict[str, Any] = {
    "batch_real": 4, "outer_steps": 3, "inner_epochs": 6, "lr_net": 0.1, "batch_net": 4
}  # fmt: skip
OF_CELLS: dict[str, Any] = {"factor": 2, "batch_real": 4, "batch_net": 10, "lr_net": 0.1}
METHODS: dict[str, Callable[[], Method]] = {
    "dc": lambda: GradientMatching(REAL, SYNTHETIC, DCOptions(CONVNET, **OF_DC), 3, CPU),
    "dsa": lambda: GradientMatching(
        REAL, SYNTHETIC, DSAOptions(CONVNET, augmentation="color_flip", **OF_DC), 3, CPU
    ),
    "idc": lambda: IDC(
        REAL,
        SYNTHETIC,
        IDCOptions(
            CONVNET, metric="mse", inner_steps=3, images_net=20, cutmix_net=0.5,
            augmentation="none", **OF_CELLS,
        ),
        3,
        CPU,
    ),
    "idm": lambda: IDM(
        REAL,
        SYNTHETIC,
        IDMOptions(
            CONVNET, accuracy_weight=0.02, queue_size=3, push_interval=2, steps_net=4,
            networks_trained=2, **OF_CELLS,
        ),
        3,
        CPU,
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_whose_networks_train_by_graphs_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, method: Callable[[], Method]
) -> None:
    def run() -> list[Tensor]:
        matching, found = method(), []
        images = torch.randn(6, 3, 8, 8, generator=generator("synthetic"))
        for iteration in range(3):
            for update in range(matching.updates):
                loss, gradient = step(matching, images, iteration, update)
                images -= 0.1 * gradient
                found += [loss, gradient]
        return found

    expected, found, graphs = both(monkeypatch, run)
    assert graphs.replays > graphs.captures >= 1
    assert all(torch.equal(*each) for each in zip(found, expected, strict=True))
