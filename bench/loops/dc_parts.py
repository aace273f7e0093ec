"""The parts of a DC or DSA iteration: of our loop, the plain one, convolutions.

update                all of one update of the synthetic images, but for training the network
network               fresh weights; where there is CMI the plain loop also reads its network
real gradients        those of real images of every class
synthetic gradients   those of synthetic images, the distance, and back to the images
regulariser           CMI and back; at ipc 1, where it is always 0, in neither loop
inner training        one epoch of the network on the synthetic images

An iteration is one "network", and `per_iteration` says how many of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch

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
from bench.plain.dc import PlainDC, distance
from cmidd.methods.dc import DCOptions, GradientMatching, InTurn, steps

UPDATE, NETWORK, REAL = "update", "network", "real gradients"
SYNTHETIC, REGULARISER, EPOCH = "synthetic gradients", "regulariser", "inner training"


def per_iteration(ipc: int) -> dict[str, int]:
    """How often the published iteration does each part."""
    outer, inner = steps(ipc)
    return {NETWORK: 1, UPDATE: outer, EPOCH: (outer - 1) * inner}


def loops(setup: Setup, kind: type[DCOptions], variants: Mapping[str, dict[str, Any]]) -> Loops:
    """All that is measured, of DC or DSA by their kind of options, and variants of our loop."""
    sizes = setup.sizes
    # The network stays what it is with steps of length 0, which take as long as others.
    options = kind(sizes.network, sizes.batch_real, outer_steps=1, inner_epochs=1, lr_net=0.0)
    given = (setup.dataset, setup.labels, options, SEED, setup.device)
    ours = {
        name: GradientMatching(
            setup.dataset, setup.labels, replace(options, **changes), SEED, setup.device
        )
        for name, changes in variants.items()
    }
    return {
        PLAIN: _plain(setup, PlainDC(*given)),
        **{name: _ours(setup, loop) for name, loop in ours.items()},
        CONVOLUTIONS: _convolutions(setup, GradientMatching(*given)),
    }


def _ours(setup: Setup, loop: GradientMatching) -> dict[str, Run]:
    images = setup.images.detach()
    loop.draw_network(0)
    chunks, first = [], 0  # classes that go through the network together
    for count in batches(setup.sizes.classes, loop.gradients.classes):
        chunks.append(slice(first, first + count))
        first += count
    real = []
    for classes in chunks:
        rows = torch.cat(loop.real_rows(0, 0)[classes])
        x = loop.dataset.to_input(loop.images[rows.to(loop.device)], loop.dtype)
        real.append((x, loop.dataset.train.labels[rows].to(loop.labels.device)))
    targets = [loop.gradients(*batch) for batch in real]

    def update(iteration: int) -> Result:
        return setup.update(*loop.match(images, iteration, 0), setup.cmi, iteration)

    def match(_: int) -> object:
        found = []
        for classes, target in zip(chunks, targets, strict=True):
            rows = slice(classes.start * setup.ipc, classes.stop * setup.ipc)
            distance = partial(loop.distance, real=target)
            found.append(loop.gradients.match(images[rows], loop.labels[rows], distance))
        return found

    parts: dict[str, Run] = {
        UPDATE: update,
        NETWORK: loop.draw_network,
        REAL: lambda _: [loop.gradients(*batch) for batch in real],
        SYNTHETIC: match,
        EPOCH: lambda iteration: loop.train_network(images, iteration, 0),
    }
    return parts | ({REGULARISER: setup.cmi} if setup.has_cmi else {})


def _plain(setup: Setup, loop: PlainDC) -> dict[str, Run]:
    images, networks = setup.images, [loop.new_network]
    loop.network = loop.new_network(0)
    real = loop.real_batches(0, 0)
    targets = [loop.gradients(of_class, c) for c, of_class in enumerate(real)]
    if setup.has_cmi:
        networks.append(setup.plain_dm.trained_network)
        trained = setup.plain_dm.trained_network(0)

    def cmi(_: int) -> Result:
        value = setup.plain_dm.weighted_cmi(trained, images)
        return value.detach(), torch.autograd.grad(value, images)[0]

    def update(iteration: int) -> Result:
        return setup.update(*loop.match(images, iteration, 0), cmi, iteration)

    def match(_: int) -> object:
        distances = [
            distance(loop.gradients(images[rows], c, create_graph=True), target, "rows")
            for c, (rows, target) in enumerate(zip(loop.classes, targets, strict=True))
        ]
        return torch.autograd.grad(torch.stack(distances).sum(), images)

    parts: dict[str, Run] = {
        UPDATE: update,
        NETWORK: lambda iteration: [make(iteration) for make in networks],
        REAL: lambda _: [loop.gradients(of_class, c) for c, of_class in enumerate(real)],
        SYNTHETIC: match,
        EPOCH: lambda iteration: loop.train_network(images.detach(), iteration, 0),
    }
    return parts | ({REGULARISER: cmi} if setup.has_cmi else {})


def _convolutions(setup: Setup, loop: GradientMatching) -> dict[str, Run]:
    """Of our loop, on tensors already there, where weights alone are differentiated by."""
    images = setup.images.detach()
    network = deepcopy(loop.stack.network).to(images.device)  # of the stack it is structure alone
    count, gradients = setup.sizes.batch_real, loop.gradients
    of_class = batches(count, gradients.part if isinstance(gradients, InTurn) else count)
    of_epoch = batches(len(images), loop.options.batch_net)
    return {
        REAL: convolutions(network, images, of_class * setup.sizes.classes, "weights"),
        EPOCH: convolutions(network, images, of_epoch, "weights"),
    }
