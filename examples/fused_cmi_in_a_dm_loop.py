"""Distribution matching (DM) written by hand in plain torch, with `fused_cmi` on features.

Five synthetic digits per class are moved so that their mean features in random networks come nearer
to those of real digits. `fused_cmi` adds the conditional mutual information of their features in a
network that was trained on the real digits. The script prints, for real images, for DM and for DM
with CMI, the CMI of the images in that network, and the accuracy on test images of fresh networks
that are trained on them.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cmikernels import ClassIndex, fused_cmi

CLASSES, IMAGES_PER_CLASS, ITERATIONS, WEIGHT = 10, 5, 100, 1.0

digits = load_digits()
pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8)
targets = torch.tensor(digits.target)
real, real_labels, test, test_labels = pixels[400:], targets[400:], pixels[:400], targets[:400]
rows_of_class = [(real_labels == c).nonzero().flatten() for c in range(CLASSES)]
labels = torch.arange(CLASSES).repeat_interleave(IMAGES_PER_CLASS)  # of the synthetic images


def convnet() -> nn.Sequential:
    """A fresh network. What comes before its last layer makes the features of an image."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def train(images: Tensor, labels: Tensor, steps: int) -> nn.Sequential:
    """A network that is trained with batches of 100 images, and frozen."""
    network = convnet()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(steps):
        batch = torch.randperm(len(images))[:100]
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def draw_real(count: int) -> Tensor:
    """So many random real images of each class, class by class."""
    return real[torch.cat([rows[torch.randperm(len(rows))[:count]] for rows in rows_of_class])]


def class_means(features: Tensor) -> Tensor:
    """Mean features `(C, M)` of classes that stand in order and are equally large."""
    return features.view(CLASSES, -1, features.shape[1]).mean(dim=1)


def distil(trained: nn.Sequential, weight: float) -> Tensor:
    """Synthetic images, which start from real ones; every call draws the same."""
    torch.manual_seed(1)
    images = draw_real(IMAGES_PER_CLASS).requires_grad_()
    optimizer = torch.optim.SGD([images], lr=1.0, momentum=0.5)
    classes = ClassIndex(labels)  # checks and sorts the labels once, for all iterations
    for _ in range(ITERATIONS):
        embed = convnet().requires_grad_(False)[:-1]  # random, and another one every time
        loss = (class_means(embed(draw_real(32))) - class_means(embed(images))).square().sum()
        loss = loss + fused_cmi(trained[:-1](images), classes, weight=weight)  # the line of CMI
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return images.detach()


def report(name: str, images: Tensor, trained: nn.Sequential) -> None:
    """Print the images' CMI, and mean and standard deviation of the accuracy of three networks."""
    torch.manual_seed(2)
    found = [train(images, labels, steps=100)(test).argmax(1) == test_labels for _ in range(3)]
    accuracies = torch.stack(found).float().mean(dim=1)
    cmi = fused_cmi(trained[:-1](images), labels)
    print(f"{name:<12} CMI {cmi:.3f}   accuracy {accuracies.mean():.1%} +- {accuracies.std():.1%}")


torch.manual_seed(0)
trained = train(real, real_labels, steps=200)
report("real images", draw_real(IMAGES_PER_CLASS), trained)
report("DM", distil(trained, weight=0.0), trained)
report("DM with CMI", distil(trained, weight=WEIGHT), trained)
