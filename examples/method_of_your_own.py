"""A distillation method of your own, registered with `cmidd`.

The method of this file moves two images per class so that the means of random features of each
class come nearer to those of real images: relu(W x), with another matrix W in every iteration. It
has a loss, one option and settings of its own. Loop, files, seeds, CMI, evaluation and report are
those of `cmidd`. The script prints the accuracy on test images of networks that are trained on the
result, and of those that are trained on real images.

The lines after `cmidd.register` run it. With `from cmidd.cli import main` and `main()` in their
place, this file is the command `cmidd` with one more method:
`python method_of_your_own.py distill features --ipc 10`.
"""

from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import cmidd
from cmidd.methods import Options, generator, option


@dataclass(frozen=True)
class FeatureOptions(Options):
    """What the method can be told.

    Args:
        width: random features of an image
    """

    width: int = option(512, least=1)


class FeatureMeans(cmidd.Method):
    """The steps of the method on one dataset."""

    network_spec = "mlp"  # which evaluation trains

    def __init__(
        self,
        data: cmidd.Dataset,
        labels: Tensor,
        options: FeatureOptions,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepare steps on images whose labels are `labels`."""
        self.width, self.seed, self.device = options.width, seed, device
        self.real = data.to_input(data.train.images).flatten(1).to(device)
        self.of_real = share_of_class(data.train.labels, data.num_classes).to(device)
        self.of_images = share_of_class(labels, data.num_classes).to(device)

    def draw(self, iteration: int, update: int) -> Tensor:
        """What an update draws depends on seed, iteration and update alone, so runs can resume."""
        draws = generator(self.seed, "features", iteration, update)
        return torch.randn(self.real.shape[1], self.width, generator=draws)

    def loss_and_gradient(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to the images, `(N, channels, H, W)`."""
        matrix = draws.to(self.device) / self.width**0.5
        leaf = images.detach().requires_grad_()
        of_real = self.of_real @ torch.relu(self.real @ matrix)
        of_images = self.of_images @ torch.relu(leaf.flatten(1) @ matrix)
        loss = (of_real - of_images).square().sum()
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def share_of_class(labels: Tensor, classes: int) -> Tensor:
    """The matrix `(C, N)` that takes rows to the means of their classes."""
    of_class = torch.nn.functional.one_hot(labels, classes).float().T
    return of_class / of_class.sum(dim=1, keepdim=True)


def settings(data: cmidd.Dataset, ipc: int) -> cmidd.Published:
    """What holds where the user says nothing."""
    loop = {
        "iterations": 300,
        "init": "real",
        "lr_images": 0.1 * ipc,
        "report_every": 10,
        "checkpoint_every": 100,
    }
    return cmidd.Published(loop, evaluation={"epochs": 100}, origin="ours")


cmidd.register("features", cmidd.MethodEntry(FeatureMeans, FeatureOptions, settings))

data = cmidd.load_dataset("digits")
run = cmidd.prepare("features", data, cmidd.DistillOptions(ipc=2))
start = cmidd.SyntheticSet.of(data, run.images.detach().clone(), run.labels)
with TemporaryDirectory() as folder:
    result = cmidd.distill(run, run.folder(f"{folder}/run"))
recipe = cmidd.Recipe(epochs=100, lr=0.05)
for name, images in (("features", result), ("real images", start)):
    (found,) = cmidd.evaluate_set(images, data, "mlp", repeats=3, recipe=recipe, say=lambda _: None)
    print(f"{name:<12} accuracy {found.mean:.1%} +- {found.std:.1%}")
