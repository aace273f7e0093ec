from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.profiler import ProfilerActivity, profile

from cmidd.methods.adjoint import Descent
from cmidd.networks import build_network, initialize
from cmidd.seeds import generator
from tests.support.compare import relative_error


def squares(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Each image is a place that theta is drawn to: sum of label |theta - image|^2 / 2."""
    return (labels * (theta - images).square().sum(dim=1)).sum() / 2


def nonlinear(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return ((images @ theta).sin() * labels.exp()).sum()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator("adjoint", *shape))


def test_one_attracting_image_gives_the_closed_form() -> None:
    # theta_N - x = (1 - a)^N (theta_0 - x)
    steps, rate = 4, torch.tensor(0.3, dtype=torch.float64)
    x, theta, lam = noise(1, 3).requires_grad_(), noise(3), noise(3).flip(0)
    one = torch.ones(1, dtype=torch.float64)
    descent = Descent(squares, lambda _: (x, one), steps, rate, chunk=16)
    path = descent.path(theta)
    of_rate = descent.pull_back(path, lam)
    shrunk = (1 - rate) ** steps
    torch.testing.assert_close(path[-1], x[0].detach() + shrunk * (theta - x[0].detach()))
    torch.testing.assert_close(x.grad, (1 - shrunk) * lam[None])
    expected = -steps * (1 - rate) ** (steps - 1) * ((theta - x[0].detach()) @ lam)
    torch.testing.assert_close(of_rate, expected)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_gradients_are_those_of_the_unrolled_graph(steps: int, chunk: int) -> None:
    x, y = noise(5, 3).requires_grad_(), noise(5).requires_grad_()
    rate, theta, lam = torch.tensor(0.1, dtype=torch.float64), noise(3), noise(3).flip(0)

    def batch(i: int) -> tuple[Tensor, Tensor]:
        rows = (torch.arange(3) + i) % 5
        return x[rows] / (i + 1), y[rows]

    descent = Descent(nonlinear, batch, steps, rate, chunk)
    path = descent.path(theta)
    of_rate = descent.pull_back(path, lam)
    a, weights = rate.clone().requires_grad_(), theta.clone().requires_grad_()
    for i in range(steps):
        loss = nonlinear(weights, *batch(i)) / 3
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
        weights = weights - a * gradient
    expected = torch.autograd.grad(weights @ lam, [x, y, a])
    for got, wanted in zip((x.grad, y.grad, of_rate), expected, strict=True):
        assert got is not None
        assert relative_error(got, wanted) < 1e-12
    assert relative_error(path[-1], weights) < 1e-14


def test_the_gradient_of_a_leaf_is_added_to_what_it_has() -> None:
    x, one = noise(1, 3).requires_grad_(), torch.ones(1, dtype=torch.float64)
    x.grad = torch.full((1, 3), 5.0, dtype=torch.float64)
    rate = torch.tensor(0.3, dtype=torch.float64)
    descent = Descent(squares, lambda _: (x, one), 1, rate, chunk=1)
    descent.pull_back(descent.path(noise(3)), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(x.grad, torch.full_like(x, 5.0))


def peak(run: Callable[[], object]) -> int:
    """Most bytes of tensors that a call has at once, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    results = profiled.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(int(event.nbytes()) for event in events))


@pytest.mark.slow
def test_fifty_steps_take_the_memory_of_one_and_their_weights() -> None:
    # As at full size the graph of a chunk is more than fifty sets of weights.
    network = build_network("convnet:width=8", 3, 32, 10)
    initialize(network, generator(0))
    named = dict(network.named_parameters())
    theta = torch.cat([p.detach().flatten() for p in named.values()])
    images = torch.randn(24, 3, 32, 32, generator=generator("images")).requires_grad_()

    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        pieces = torch.split(theta, [p.numel() for p in named.values()])
        weights = {
            name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)
        }
        logits = functional_call(network, weights, (images,))
        return F.cross_entropy(logits, labels, reduction="sum")

    def gradients(steps: int, chunk: int) -> None:
        batch = images, torch.arange(24) % 10
        descent = Descent(loss, lambda _: batch, steps, torch.tensor(0.01), chunk)
        descent.pull_back(descent.path(theta), torch.ones_like(theta))

    gradients(1, 24)  # whatever is kept from the first use on
    one, many = peak(lambda: gradients(1, 24)), peak(lambda: gradients(50, 24))
    weights = theta.numel() * theta.element_size()
    assert one < many < one + 1.1 * 49 * weights + images.nbytes  # images.grad, from step to step
    assert many < 1.2 * one
    smaller = peak(lambda: gradients(1, 8))
    assert smaller < 0.75 * one, "chunks are not what is measured, so it proves nothing"
