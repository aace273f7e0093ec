"""A small script of the structure that many of the field have, for the diff of the guide."""

import torch
from torch import nn

from cmidd import load_dataset

device, ipc, batch_real, iterations = "cpu", 5, 32, 30
data = load_dataset("digits")
num_classes, channel = data.num_classes, data.shape.channels


class ConvNet(nn.Module):
    """Two blocks and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channel, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(64, num_classes)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """What enters the classifier."""
        embedding: torch.Tensor = self.features(images).flatten(1)
        return embedding


def get_images(c: int, n: int) -> torch.Tensor:
    """Random real images of a class."""
    of_class = data.train.of_class(c)
    return data.to_input(of_class[torch.randperm(len(of_class))[:n]]).to(device)


torch.manual_seed(0)
image_syn = torch.cat([get_images(c, ipc) for c in range(num_classes)]).requires_grad_()
label_syn = torch.arange(num_classes, device=device).repeat_interleave(ipc)
optimizer_img = torch.optim.SGD([image_syn], lr=1.0, momentum=0.5)

for it in range(iterations):
    net = ConvNet().to(device).requires_grad_(False)
    loss = torch.tensor(0.0, device=device)
    for c in range(num_classes):
        img_real = get_images(c, batch_real)
        img_syn = image_syn[c * ipc : (c + 1) * ipc]
        loss += (net.embed(img_real).mean(0) - net.embed(img_syn).mean(0)).square().sum()
    optimizer_img.zero_grad()
    loss.backward()
    optimizer_img.step()
    if it % 10 == 0:
        print(f"iteration {it}: loss {loss:.3f}")
