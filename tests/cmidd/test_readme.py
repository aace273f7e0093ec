"""What the README and the guide say of sets, datasets and weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cmidd.datasets import DATASETS
from cmidd.first_images import first_images
from cmidd.methods import METHODS
from cmidd.synthetic import SyntheticSet
from tests.support.tiny import CLASSES, tiny_dataset

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DISTILLER_PAGE = (ROOT / "docs" / "guide" / "distiller.md").read_text()
BANK_PAGE = (ROOT / "docs" / "guide" / "bank_and_weight.md").read_text()
DATASET_PAGE = (ROOT / "docs" / "guide" / "datasets.md").read_text()


@pytest.mark.parametrize("soft", [True, False])
def test_a_model_of_ones_own_is_trained_on_a_result(soft: bool, elsewhere: Path) -> None:
    data = tiny_dataset()
    made = SyntheticSet.of(data.whitened(), *first_images(data.whitened(), 5, "real", 0))
    if soft:
        made = replace(made, soft_labels=torch.eye(len(CLASSES))[made.labels])
    made.save("runs/dm-cmi/result.safetensors")
    (block,) = re.findall(r"```python\n((?:(?!```).)*SyntheticSet.*?)```", README, re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, len(CLASSES)))
    names: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.01),
        "data": data,
    }
    exec(block, names)
    (real,) = re.findall(r"^(seen = .*\n.*)\n", DISTILLER_PAGE, re.M)
    exec(real, names)
    found = model(names["inputs"]).argmax(1)
    assert (found == names["classes"]).float().mean() > 0.7  # chance: a third


def test_every_dataset_has_its_layout_in_the_table() -> None:
    table = DATASET_PAGE.partition("| `--dataset` |")[2].partition("\n\n")[0]
    assert re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\| (.*?) \|", table, re.M))) == [
        *DATASETS
    ]


def test_the_table_of_weights_is_what_the_methods_have() -> None:
    table = BANK_PAGE.partition("| method | SVHN | CIFAR-10 | CIFAR-100 |\n")[2].partition("\n\n")[
        0
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[1:]]
    found = {
        name.lower(): {
            dataset: tuple(map(int, cell.split(", ")))
            for dataset, cell in zip(("svhn", "cifar10", "cifar100"), cells, strict=True)
            if cell
        }
        for name, *cells in rows
    }
    assert found == {name: entry.cmi_weights.published for name, entry in METHODS.items()}
