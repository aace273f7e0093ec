"""The parts of an MTT iteration: of our loop, whose adjoint is exact, and of the unrolled graph.

iteration       student steps from an expert's weights, and back through them to the images
expert          weights that the steps start from and that they are to reach, from the file
forward steps   those steps of our loop, without the way back

The plain loop is left out where its graph may take more than half of the memory. There is no CMI.
"""

from __future__ import annotations

import os
import resource

import torch
from torch import Tensor

from bench.harness import memory
from bench.harness.race import Contender
from bench.loops.setup import OURS, PLAIN, SEED, Loops, Result, Run, Setup
from bench.plain.mtt import PlainMTT
from cmidd.methods.adjoint import Descent
from cmidd.methods.mtt import MTT, MTTOptions
from cmidd.networks import build_network, initialize
from cmidd.pretrained.experts import KIND
from cmidd.seeds import generator
from cmidd.storage.tensor_file import write_tensors

ITERATION, EXPERT, FORWARD = "iteration", "expert", "forward steps"

_KEPT = 3 << 20  # bytes of an image of 32 x 32 and a step in the plain loop's graph, as measured


def loops(setup: Setup) -> Loops:
    """All that is measured."""
    options = _options(setup, setup.sizes.student_steps)
    ours = {OURS: _ours(setup, options)}
    if not plain_fits(setup, setup.sizes.student_steps):
        return ours
    return {PLAIN: _plain(setup, options), **ours}


def _options(setup: Setup, steps: int) -> MTTOptions:
    """Published ones, with an expert whose weights are random, which takes as long as another."""
    path, network = setup.folder / "experts.safetensors", setup.sizes.network
    channels, size, _ = setup.dataset.shape
    weights = []  # before and after an epoch
    for epoch in range(2):
        expert = build_network(network, channels, size, setup.sizes.classes)
        initialize(expert, generator("expert", epoch))
        weights.append(torch.cat([p.detach().flatten() for p in expert.parameters()]))
    content = {
        "parameters": torch.stack(weights)[None],
        "accuracy": torch.zeros(1),
        "trained": torch.ones(1, dtype=torch.uint8),
    }
    record = {"network": network, "experts": 1, "epochs": 1, "lr": 0.01}
    write_tensors(path, KIND, content, {**setup.dataset.describe(), **record})
    return MTTOptions(path, steps, expert_epochs=1, max_start_epoch=1, lr_step_size=0.0)


def _ours(setup: Setup, options: MTTOptions) -> dict[str, Run]:
    loop = MTT(setup.dataset, setup.labels, options, SEED, setup.device)
    images, rate = setup.images.detach(), loop.step_size.detach()

    def forward(iteration: int) -> Tensor:
        steps = Descent(
            loop.student_loss,
            lambda step: loop.batch(images, iteration, step),
            loop.steps,
            rate,
            loop.chunk,
        )
        return steps.path(start)

    start, _ = loop.window(0)
    return {
        ITERATION: lambda iteration: loop.step(images, iteration),
        EXPERT: loop.window,
        FORWARD: forward,
    }


def _plain(setup: Setup, options: MTTOptions) -> dict[str, Run]:
    loop = PlainMTT(setup.dataset, setup.labels, options, SEED, setup.device)

    def iterate(iteration: int) -> Result:
        result = loop.step(setup.images, iteration)
        return result.loss, result.images

    return {ITERATION: iterate, EXPERT: loop.window}


def plain_fits(setup: Setup, steps: int) -> bool:
    """Whether the plain loop's graph takes at most half of the memory there is."""
    if setup.device.type == "cuda":
        total = torch.cuda.mem_get_info(setup.device)[1]
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    pixels = setup.images.shape[0] * setup.images.shape[2:].numel()
    return 2 * steps * _KEPT * pixels / 32**2 < total


def peak_bytes(setup: Setup, loop: str, steps: int) -> int | None:
    """Most memory that an iteration of so many steps takes, of this process; None: may not fit."""
    if loop == PLAIN and not plain_fits(setup, steps):
        return None
    parts = {PLAIN: _plain, OURS: _ours}[loop]
    first, measured = [parts(setup, _options(setup, n))[ITERATION] for n in (1, steps)]
    if setup.device.type == "cuda":
        first(0)
        return memory.gpu_peak_extra_bytes(Contender(measured, lambda: 0))
    peak = memory.extra_bytes(lambda: first(0), lambda: measured(0))
    return max(peak, resource.getpagesize())
