"""What the README of the distiller says to type."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cmidd.datasets import DATASETS
from cmidd.first_images import first_images
from cmidd.synthetic import SyntheticSet
from tests.support.tiny import CLASSES, tiny_dataset

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_first_example_runs_on_a_bank(bank_file: Path) -> None:
    data = tiny_dataset()
    images, labels = first_images(data, 2, "real", 0)
    block = README.partition("```python\n")[2].partition("```")[0]
    assert "runs/bank.safetensors" in block
    images.requires_grad_()
    names = {"labels": labels, "synthetic_images": images, "distillation_loss": 0.0}
    exec(block.replace("runs/bank.safetensors", str(bank_file)), names)
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


@pytest.mark.parametrize("soft", [True, False])
def test_a_model_of_ones_own_is_trained_on_a_result(soft: bool, elsewhere: Path) -> None:
    data = tiny_dataset()
    made = SyntheticSet.of(data.whitened(), *first_images(data.whitened(), 5, "real", 0))
    if soft:
        made = replace(made, soft_labels=torch.eye(len(CLASSES))[made.labels])
    made.save("runs/dm-cmi/result.safetensors")
    (block,) = re.findall(r"```python\n((?:(?!```).)*DataLoader.*?)```", README, re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, len(CLASSES)))
    names = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.01), "data": data}
    exec(block, names)
    (judged,) = re.findall(r"`(judge = .*?)`", README)
    images, labels = re.findall(r"`(judge\.\S+)`", README)
    exec(judged, names)
    found = model(eval(images, names)).argmax(1)
    assert (found == eval(labels, names)).float().mean() > 0.7  # chance: a third


def test_every_dataset_has_its_layout_in_the_table() -> None:
    table = README.partition("| `--dataset` |")[2].partition("\n\n")[0]
    assert re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\| (.*?) \|", table, re.M))) == [
        *DATASETS
    ]
