"""Trajectory matching (MTT) written by hand in plain torch, with `CMIRegularizer`.

An expert learns from real digits, and its weights are kept after every epoch. Two synthetic digits
per class are moved so that a few steps of training on them lead from the expert's weights to those
of an epoch later. The regulariser takes the trained expert itself as its network. The script
prints, for real images, for trajectory matching and for trajectory matching with CMI, the CMI of
the images and the accuracy on test images of fresh networks that are trained on them.
"""

import random

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call

from cmikernels import ClassIndex, CMIRegularizer

CLASSES, IMAGES_PER_CLASS, ITERATIONS, WEIGHT = 10, 2, 50, 1.0
EXPERT_EPOCHS, STUDENT_STEPS, STEP_SIZE = 6, 5, 0.2

digits = load_digits()
pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8)
targets = torch.tensor(digits.target)
real, real_labels, test, test_labels = pixels[400:], targets[400:], pixels[:400], targets[:400]
rows_of_class = [(real_labels == c).nonzero().flatten() for c in range(CLASSES)]
labels = torch.arange(CLASSES).repeat_interleave(IMAGES_PER_CLASS)  # of the synthetic images


def convnet() -> nn.Sequential:
    """The architecture of the expert, of its students and of the networks that judge."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def train(network: nn.Module, images: Tensor, labels: Tensor, lr: float, epochs: int) -> nn.Module:
    """Train the network with batches of 100 images."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's weights."""
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """Squared distance of the weights of two networks."""
    return torch.stack([(a[name] - b[name]).square().sum() for name in a]).sum()


def matching_loss(images: Tensor, start: dict[str, Tensor], goal: dict[str, Tensor]) -> Tensor:
    """How far from the goal a student ends, with the graph of all its steps."""
    weights = {name: weight.clone().requires_grad_() for name, weight in start.items()}
    for _ in range(STUDENT_STEPS):
        loss = F.cross_entropy(functional_call(student, weights, (images,)), labels)
        steps = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {
            name: weight - STEP_SIZE * step
            for (name, weight), step in zip(weights.items(), steps, strict=True)
        }
    return distance(weights, goal) / distance(start, goal)


def distil(regularizer: CMIRegularizer) -> Tensor:
    """Synthetic images, which start from real ones; every call draws the same."""
    draws = random.Random(1)
    images = first_images.clone().requires_grad_()
    optimizer = torch.optim.SGD([images], lr=20.0, momentum=0.5)
    classes = ClassIndex(labels)  # checks and sorts the labels once, for all iterations
    for iteration in range(ITERATIONS):
        epoch = draws.randrange(EXPERT_EPOCHS)
        loss = matching_loss(images, trajectory[epoch], trajectory[epoch + 1])
        loss = loss + regularizer(images, classes, step=iteration)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return images.detach()


def report(name: str, images: Tensor) -> None:
    """Print the images' CMI, and mean and standard deviation of the accuracy of three networks."""
    torch.manual_seed(2)
    trained = [train(convnet(), images, labels, lr=0.05, epochs=100) for _ in range(3)]
    right = torch.stack([network(test).argmax(1) == test_labels for network in trained])
    accuracies = right.float().mean(dim=1)
    cmi = CMIRegularizer(expert)(images, labels)
    print(f"{name:<13} CMI {cmi:.3f}   accuracy {accuracies.mean():.1%} +- {accuracies.std():.1%}")


torch.manual_seed(0)
expert, student, trajectory = convnet(), convnet(), []
for _ in range(EXPERT_EPOCHS + 1):
    trajectory.append(weights_of(expert))
    train(expert, real, real_labels, lr=0.1, epochs=1)
expert.eval().requires_grad_(False)  # the network of the regulariser
first_images = real[torch.cat([rows[:IMAGES_PER_CLASS] for rows in rows_of_class])]
report("real images", first_images)
report("MTT", distil(CMIRegularizer(expert, weight=0.0)))
report("MTT with CMI", distil(CMIRegularizer(expert, weight=WEIGHT)))
