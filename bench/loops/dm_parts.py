"""The parts of a DM step as functions of the iteration: of our loop, the plain one, convolutions.

step               all of the following: one update of the synthetic images
networks           fresh weights of DM's network; the plain loop also reads that of CMI
real batch         real images chosen and normalised
augmentation       of real and synthetic images, and back to the synthetic ones
real branch        class means of the embeddings of real images
synthetic branch   those of synthetic images, the loss, and back to the images
regulariser        CMI and back; our loop leaves it out at ipc 1, where it is always 0
optimiser          SGD on the images
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from bench.loops.setup import (
    CONVOLUTIONS,
    PLAIN,
    SEED,
    Loops,
    Result,
    Run,
    Setup,
    batches,
    convolutions,
)
from bench.plain.dm import augmented
from cmidd.augment import augment, draw
from cmidd.methods.dm import DM, DMOptions, whole_classes
from cmidd.networks import Network
from cmidd.seeds import generator

STEP, NETWORKS, REAL_BATCH, AUGMENTATION = "step", "networks", "real batch", "augmentation"
REAL, SYNTHETIC, REGULARISER = "real branch", "synthetic branch", "regulariser"
OPTIMISER = "optimiser"


def loops(setup: Setup, variants: Mapping[str, dict[str, Any]]) -> Loops:
    """All that is measured, ours under the options of each variant."""
    found: Loops = {PLAIN: _plain(setup)}
    for name, options in variants.items():
        parts = _ours(setup, _our_loop(setup, **options))
        # They differ in the real branch alone: the first stands for all.
        kept = parts if len(found) == 1 else (STEP, REAL)
        found[name] = {part: parts[part] for part in kept}
    return found | {CONVOLUTIONS: _convolutions(setup)}


def _our_loop(setup: Setup, **options: Any) -> DM:
    sizes = setup.sizes
    chosen = DMOptions(network=sizes.network, batch_real=sizes.batch_real, **options)
    return DM(setup.dataset, setup.labels, chosen, SEED, setup.device)


def _ours(setup: Setup, loop: DM) -> dict[str, Run]:
    images, labels = setup.images, setup.labels
    real, real_labels = loop.real_batch(0)
    counts = real_labels.bincount().tolist()
    loop.draw_network(0)
    targets = loop.real_means(real, counts)

    def step(iteration: int) -> Result:
        return setup.update(*loop.step(images, iteration), setup.cmi, iteration)

    def augmentation(iteration: int) -> object:
        drawn = draw(loop.strategy, len(counts), generator(SEED, "dsa", iteration))
        changed = [augment(real, loop.strategy, drawn, real_labels)]
        for _, rows in loop.chunks:
            x = images.detach()[rows].requires_grad_()
            y = augment(x, loop.strategy, drawn, labels[rows])
            changed += torch.autograd.grad(y, x, x.detach())
        return changed

    parts: dict[str, Run] = {
        STEP: step,
        NETWORKS: loop.draw_network,
        REAL_BATCH: loop.real_batch,
        AUGMENTATION: augmentation,
        REAL: lambda _: loop.real_means(real, counts),
        SYNTHETIC: lambda _: loop.match(images, targets, lambda x, _: x),
        OPTIMISER: lambda _: setup.optimizer.step(),
    }
    return parts | ({REGULARISER: setup.cmi} if setup.has_cmi else {})


def _plain(setup: Setup) -> dict[str, Run]:
    loop, images = setup.plain_dm, setup.images
    real = loop.real_batches(0)
    network, trained = loop.new_network(0), loop.trained_network(0)
    targets = [network.embed(of_class).mean(dim=0) for of_class in real]

    def step(iteration: int) -> Result:
        loss, value, gradient = loop.step(images, iteration)
        setup.step(gradient)
        return loss + value, gradient

    def augmentation(iteration: int) -> object:
        drawn = loop.draw(iteration)
        changed, kept = [], []
        for c, rows in enumerate(loop.classes):
            kept.append(augmented(real[c], loop.strategy, drawn, c))
            changed.append(augmented(images[rows], loop.strategy, drawn, c))
        given = [images.detach()[rows] for rows in loop.classes]
        return kept, torch.autograd.grad(changed, images, given)

    def match(_: int) -> object:
        means = [network.embed(images[rows]).mean(dim=0) for rows in loop.classes]
        loss = sum((t - m).square().sum() for t, m in zip(targets, means, strict=True))
        return torch.autograd.grad(cast(Tensor, loss), images)

    return {
        STEP: step,
        NETWORKS: lambda iteration: (
            loop.new_network(iteration),
            loop.trained_network(iteration),
        ),
        REAL_BATCH: loop.real_batches,
        AUGMENTATION: augmentation,
        REAL: lambda _: [network.embed(of_class).mean(dim=0) for of_class in real],
        SYNTHETIC: match,
        REGULARISER: lambda _: torch.autograd.grad(loop.weighted_cmi(trained, images), images),
        OPTIMISER: lambda _: setup.optimizer.step(),
    }


def _convolutions(setup: Setup) -> dict[str, Run]:
    """Of our float32 loop, on tensors already there."""
    loop = _our_loop(setup)
    loop.draw_network(0)
    counts = loop.counts
    count = setup.sizes.classes * setup.sizes.batch_real
    of_synthetic = _images_in(counts, loop.chunk)
    images = setup.images.detach()
    placed = images.contiguous(memory_format=loop.layout(images.dtype))
    parts = {
        REAL: convolutions(loop.network, placed, batches(count, loop.chunk)),
        SYNTHETIC: convolutions(loop.network, placed, of_synthetic, "images"),
    }
    if setup.has_cmi:
        chunk_size = setup.regularizer.chunk_size
        assert chunk_size is not None
        trained, sizes = setup.regularizer.networks[0], _images_in(counts, chunk_size)
        parts[REGULARISER] = convolutions(cast(Network, trained), images, sizes, "images")
    branches = list(parts.values())
    return {STEP: lambda iteration: [run(iteration) for run in branches], **parts}


def _images_in(counts: list[int], chunk: int) -> list[int]:
    return [rows.stop - rows.start for _, rows in whole_classes(counts, chunk)]
