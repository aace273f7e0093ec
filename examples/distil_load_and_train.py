"""Distil from Python, save, load, and train a model of your own on the result.

`cmidd` distils two digits per class by gradient matching with augmentation (DSA), with CMI in the
features of two networks that it trains first. A model of plain torch then learns from the 20
distilled images. The script prints its accuracy on test images, and that of the same model when it
learns from 20 real images.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import cmidd

NETWORK = "convnet:depth=2,width=32"  # narrower than published, for the time that it takes


def distil(data: cmidd.Dataset, folder: Path) -> None:
    """Write `distilled.safetensors` into the folder."""
    bank = folder / "bank.safetensors"
    cmidd.train_bank(bank, data, cmidd.BankOptions(NETWORK, networks=2, epochs=6, lr=0.05))
    run = cmidd.prepare(
        "dsa",
        data,
        cmidd.DistillOptions(ipc=2, iterations=20),
        cmidd.DSAOptions(NETWORK, batch_real=64),
        cmidd.CMIOptions(bank),
    )
    result = cmidd.distill(run, run.folder(folder / "run"))
    result.save(folder / "distilled.safetensors")


def accuracy(images: Tensor, targets: Tensor, data: cmidd.Dataset) -> float:
    """Train a model of one's own on images, and test it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(288, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        cross_entropy(model(images), targets).backward()
        optimizer.step()
    found = model(data.to_input(data.test.images)).argmax(1)
    return float((found == data.test.labels).float().mean())


data = cmidd.load_dataset("digits")
with TemporaryDirectory() as folder:
    distil(data, Path(folder))
    distilled = cmidd.SyntheticSet.load(f"{folder}/distilled.safetensors").seen()
real = data.to_input(torch.cat([data.train.of_class(c)[:2] for c in range(10)]))
print(f"20 distilled images: accuracy {accuracy(distilled.images, distilled.targets, data):.1%}")
print(f"20 real images:      accuracy {accuracy(real, distilled.labels, data):.1%}")
