"""Gradient matching (DC) written by hand, with `CMIRegularizer` around your own `nn.Module`.

Two synthetic digits per class are moved so that the gradients that they give a network come nearer
to those of real digits. The regulariser takes two networks of a class of this file, which are
trained here, and gives the weighted CMI of the images. The script prints, for real images, for
gradient matching and for gradient matching with CMI, the CMI of the images and the accuracy on test
images of fresh networks that are trained on them.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cmikernels import ClassIndex, CMIRegularizer

CLASSES, IMAGES_PER_CLASS, ITERATIONS, WEIGHT = 10, 2, 40, 5.0

digits = load_digits()
pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8)
targets = torch.tensor(digits.target)
real, real_labels, test, test_labels = pixels[400:], targets[400:], pixels[:400], targets[:400]
rows_of_class = [(real_labels == c).nonzero().flatten() for c in range(CLASSES)]
labels = torch.arange(CLASSES).repeat_interleave(IMAGES_PER_CLASS)  # of the synthetic images


class YourNetwork(nn.Module):
    """Any module will do: the regulariser takes what enters its last `nn.Linear` as features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.classify = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)`."""
        maps = F.avg_pool2d(self.stem(images), 2)
        maps = F.avg_pool2d(torch.relu(maps + self.block(maps)), 2)
        logits: Tensor = self.classify(maps.flatten(1))
        return logits


def convnet() -> nn.Sequential:
    """The network whose gradients are matched, and which is trained on the result."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def train(network: nn.Module, images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Train the network with batches of 100 images, and freeze it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(steps):
        batch = torch.randperm(len(images))[:100]
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def gradients(network: nn.Module, images: Tensor, label: int, differentiable: bool) -> list[Tensor]:
    """Gradients of the weight matrices, of the cross-entropy of images of one class."""
    loss = F.cross_entropy(network(images), torch.full((len(images),), label))
    matrices = [weights for weights in network.parameters() if weights.ndim > 1]
    found = torch.autograd.grad(loss, matrices, create_graph=differentiable)
    return [each.flatten(1) for each in found]


def matching_loss(images: Tensor) -> Tensor:
    """Sum over classes, layers and rows of 1 - cosine, in a random network."""
    network = convnet()
    loss = torch.zeros(())
    for c, rows in enumerate(rows_of_class):
        batch = real[rows[torch.randperm(len(rows))[:32]]]
        wanted = gradients(network, batch, c, differentiable=False)
        given = gradients(network, images[labels == c], c, differentiable=True)
        for a, b in zip(wanted, given, strict=True):
            loss = loss + (1 - F.cosine_similarity(a, b, dim=1)).sum()
    return loss


def distil(regularizer: CMIRegularizer) -> Tensor:
    """Synthetic images, which start from real ones; every call draws the same."""
    torch.manual_seed(1)
    images = first_images.clone().requires_grad_()
    optimizer = torch.optim.SGD([images], lr=0.1, momentum=0.5)
    classes = ClassIndex(labels)  # checks and sorts the labels once, for all iterations
    for iteration in range(ITERATIONS):
        loss = matching_loss(images) + regularizer(images, classes, step=iteration)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return images.detach()


def report(name: str, images: Tensor) -> None:
    """Print the images' CMI, and mean and standard deviation of the accuracy of three networks."""
    torch.manual_seed(2)
    trained = [train(convnet(), images, labels, steps=100) for _ in range(3)]
    right = torch.stack([network(test).argmax(1) == test_labels for network in trained])
    accuracies = right.float().mean(dim=1)
    cmi = CMIRegularizer(networks, networks_per_step=2)(images, labels)
    print(f"{name:<12} CMI {cmi:.3f}   accuracy {accuracies.mean():.1%} +- {accuracies.std():.1%}")


torch.manual_seed(0)
networks = [train(YourNetwork(), real, real_labels, steps=100) for _ in range(2)]
first_images = real[torch.cat([rows[:IMAGES_PER_CLASS] for rows in rows_of_class])]
report("real images", first_images)
report("DC", distil(CMIRegularizer(networks, weight=0.0)))
report("DC with CMI", distil(CMIRegularizer(networks, weight=WEIGHT)))
