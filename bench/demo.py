"""The library at its job, on real data, in under a minute: what `make demo` runs.

A small network learns scikit-learn's digits. Its features give CMI a value and a gradient: compared
with float64 and timed, ours beside the published expression. Then the regulariser at work: images
move down the gradient of CMI, the network frozen, and each class draws together.

    python -m bench.demo
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from bench.accuracy import errors
from bench.demo_picture import draw
from bench.harness import race
from bench.memory import peak_extra_bytes
from bench.providers import PROVIDERS, USUAL, contend, make_losses
from bench.records import bytes_text, machine, machine_line, seconds_text, table
from cmikernels import ClassIndex, available_backends, fused_cmi

SEED = 0
EPOCHS, BATCH = 8, 64
LARGE = (200, 50, 1024)  # classes, rows, channels of the second comparison
IMAGES_PER_CLASS, STEPS, STEP_SIZE = 20, 80, 0.02
CMI_WEIGHT, ANCHOR_WEIGHT = 2000.0, 20.0


@dataclass
class Digits:
    """8x8 images in [0, 1] and labels; the last fifth is for testing."""

    images: Tensor  # (1797, 1, 8, 8)
    labels: Tensor  # (1797,)

    @classmethod
    def load(cls) -> Digits:
        """Read what scikit-learn ships."""
        data = load_digits()
        images = torch.from_numpy(data.images).float()[:, None] / 16
        return cls(images, torch.from_numpy(data.target))

    @property
    def num_train(self) -> int:
        """Images before this one are for training."""
        return len(self.labels) * 4 // 5


def _block(channels_in: int, channels_out: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    return [convolution, nn.GroupNorm(channels_out, channels_out), nn.ReLU()]


class Network(nn.Module):
    """Three convolutions, instance norm, and a pooled embedding of 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(1, 32),
            *_block(32, 64),
            nn.MaxPool2d(2),
            *_block(64, 512),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(512, 10)

    def embed(self, images: Tensor) -> Tensor:
        """Features `(N, 512)`."""
        return torch.as_tensor(self.body(images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)`."""
        return torch.as_tensor(self.head(self.embed(images)))


def train(network: Network, digits: Digits) -> float:
    """Train on the first four fifths; returns the accuracy on the rest."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    with tqdm(range(EPOCHS), "training", unit="epoch", leave=False) as progress:
        for _ in progress:
            order = torch.randperm(digits.num_train, generator=generator)
            for batch in torch.split(order, BATCH):
                loss = F.cross_entropy(network(digits.images[batch]), digits.labels[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            progress.set_postfix(loss=f"{loss.item():.4f}")
    with torch.no_grad():
        predicted = network(digits.images[digits.num_train :]).argmax(dim=1)
    return float((predicted == digits.labels[digits.num_train :]).float().mean())


@dataclass
class Comparison:
    """What every provider makes of the same features."""

    short_title: str
    seconds: dict[str, float] = field(default_factory=dict)
    value_errors: dict[str, float] = field(default_factory=dict)
    gradient_errors: dict[str, float] = field(default_factory=dict)


def compare(
    title: str,
    short_title: str,
    providers: Sequence[str],
    features: Tensor,
    classes: ClassIndex | None,
    memory_shape: tuple[int, int, int],
) -> Comparison:
    """Print and return value, errors, time and memory of every provider."""
    features = features.detach().requires_grad_()
    losses = make_losses(providers, features, classes, print)
    contenders = {
        name: contend(loss, "value+gradient", [features], classes) for name, loss in losses.items()
    }
    times = race(contenders, budget=1.5, rounds=(5, 200))
    result = Comparison(short_title)
    rows = []
    for name, loss in losses.items():
        value = loss(features.detach(), classes).item()
        result.value_errors[name], result.gradient_errors[name] = errors(
            loss, features.detach(), classes
        )
        result.seconds[name] = times[name].median
        rows.append(
            (
                PROVIDERS[name].label,
                f"{value:.7g}",
                f"{result.value_errors[name]:.1e}",
                f"{result.gradient_errors[name]:.1e}",
                seconds_text(times[name].median),
                f"{times['published'].median / times[name].median:.1f}x",
                bytes_text(peak_extra_bytes(name, memory_shape, "float32")),
            )
        )
    header = ["", "CMI", "value error", "gradient error", "time", "speed-up", "peak memory"]
    print(f"\n{title}\n{table(header, rows)}")
    return result


@dataclass
class Descent:
    """Images before and after gradient steps on CMI, and CMI on the way."""

    labels: Tensor
    images: tuple[Tensor, Tensor]  # before, after
    features: tuple[Tensor, Tensor]
    curve: list[float]


def descend(network: Network, digits: Digits) -> Descent:
    """Move real images down the gradient of their features' CMI, held by an L2 anchor."""
    chosen = torch.cat(
        [torch.nonzero(digits.labels == digit)[:IMAGES_PER_CLASS, 0] for digit in range(10)]
    )
    originals, labels = digits.images[chosen], digits.labels[chosen]
    classes = ClassIndex(labels)  # checked and sorted once, outside the loop
    images = originals.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=STEP_SIZE)
    curve = []
    for _ in tqdm(range(STEPS), "minimising CMI", unit="step", leave=False):
        cmi = fused_cmi(network.embed(images), classes, weight=CMI_WEIGHT)
        loss = cmi + ANCHOR_WEIGHT * (images - originals).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        curve.append(cmi.item() / CMI_WEIGHT)
    with torch.no_grad():
        features = network.embed(originals), network.embed(images)
        curve.append(fused_cmi(features[1], classes).item())
        kept = (network.head(features[1]).argmax(dim=1) == labels).float().mean().item()
    moved = (images.detach() - originals).square().mean().sqrt().item()
    print(
        f"\n{STEPS} steps on {len(labels)} real images, network frozen: CMI {curve[0]:.2e} -> "
        f"{curve[-1]:.2e}, {curve[0] / curve[-1]:.0f} times less; pixels moved by {moved:.2f} rms "
        f"of a range of 1; {kept:.1%} of the images still read as their digit"
    )
    return Descent(labels, (originals, images.detach()), features, curve)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.demo", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"), help="(%(default)s)")
    picture: Path = parser.parse_args().out
    start = time.perf_counter()
    torch.manual_seed(SEED)
    where = machine_line(machine())
    print(where)
    for name, status in available_backends().items():
        print(f"  backend {name}: {'' if status.available else 'not here: '}{status.detail}")
    digits, network = Digits.load(), Network()
    accuracy = train(network, digits)
    images = len(digits.labels)
    unseen = images - digits.num_train
    print(f"trained on {digits.num_train} digits; {accuracy:.1%} right on the other {unseen}")
    network.requires_grad_(False)
    real = compare(
        f"Features of all {images} digits, ragged classes in file order, 512 channels, float32",
        f"digits\n{images} x 512",
        USUAL,
        network.embed(digits.images),
        ClassIndex(digits.labels),
        (10, images // 10, 512),
    )
    classes, rows, channels = LARGE
    large = compare(
        f"Random features, {classes} classes of {rows} rows, {channels} channels, float32",
        f"random\n{classes * rows} x {channels}",
        list(real.seconds),
        torch.randn(LARGE),
        None,
        LARGE,
    )
    descent = descend(network, digits)
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(picture, descent, real, large, where)
    print(f"\n{time.perf_counter() - start:.0f} s in all. The picture: {picture}")


if __name__ == "__main__":
    main()
