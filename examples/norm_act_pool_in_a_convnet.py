"""Norm, activation and pooling as one operation, in a ConvNet that was written elsewhere.

`swap` looks for [GroupNorm, ReLU, AvgPool2d(2)] in a sequence of layers and puts a `NormActPool` in
their place, which takes over the norm's parameters. The script prints how far logits and gradients
of the two networks are apart, and how long a step of gradient matching takes through each: the
derivative, by the images, of a distance between gradients. The images are random.
"""

import copy
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cmikernels import NormActPool


def convnet(width: int = 64) -> nn.Sequential:
    """Three times convolution, instance norm, ReLU and average pooling; a linear classifier."""
    layers: list[nn.Module] = []
    for channels in (3, width, width):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 10))


def swap(network: nn.Sequential) -> nn.Sequential:
    """The same network with `NormActPool`; state dicts of either load into the other."""
    layers = list(copy.deepcopy(network))
    for k, (norm, activation, pooling) in enumerate(
        zip(layers[:-2], layers[1:-1], layers[2:], strict=True)
    ):
        if (
            isinstance(norm, nn.GroupNorm)
            and isinstance(activation, nn.ReLU)
            and isinstance(pooling, nn.AvgPool2d)
        ):
            block = NormActPool(norm.num_groups, norm.num_channels, eps=norm.eps)
            block.load_state_dict(norm.state_dict())
            layers[k : k + 3] = [block, nn.Identity(), nn.Identity()]
    return nn.Sequential(*layers)


def matching_step(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The derivative of the squared length of the network's gradient by the images."""
    images = images.detach().requires_grad_()
    loss = cross_entropy(network(images), labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    distance = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    return torch.autograd.grad(distance, images)[0]


def seconds(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Of a step, the median of five."""
    times = []
    for _ in range(5):
        start = perf_counter()
        matching_step(network, images, labels)
        times.append(perf_counter() - start)
    return median(times)


torch.manual_seed(0)
plain = convnet()
fused = swap(plain)
images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
logits = (fused(images) - plain(images)).abs().max()
expected = matching_step(plain, images, labels)
apart = (matching_step(fused, images, labels) - expected).norm() / expected.norm()
before, after = (seconds(network, images, labels) for network in (plain, fused))
print(f"logits differ by {logits:.1e}, derivatives of the distance by {apart:.1e} of their length")
print(f"a step takes {1e3 * before:.0f} ms with torch's layers, {1e3 * after:.0f} with the block")
