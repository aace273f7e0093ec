"""One step for all classes moves images as the published steps after each class do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmidd.methods.class_steps import adamw_after_each_class, sgd_after_each_class
from cmidd.seeds import generator

ITERATIONS, NUMBERS = 60, 50
Gradient = Callable[[int, int], Tensor]  # (C, NUMBERS) by iteration and term


def gradients(classes: int, noise: float, calibration: float) -> Gradient:
    """Of two terms, of every size, turning slowly, each with noise of its own."""
    draws = generator("gradients", classes)
    sizes = torch.logspace(-2, 1, NUMBERS, dtype=torch.float64)
    first, second = (torch.randn(classes, NUMBERS, generator=draws) * sizes for _ in range(2))

    def of(iteration: int, term: int) -> Tensor:
        base = calibration * second if term else first
        drawn = torch.randn(base.shape, generator=generator("noise", iteration, term))
        return base * torch.tensor(iteration / 40).cos() + noise * base.abs() * drawn

    return of


def by_class(optimizer: torch.optim.Optimizer, images: Tensor, of: Gradient, terms: int) -> Tensor:
    """The way of images through steps after each class, of each term in turn."""
    way = []
    for iteration in range(ITERATIONS):
        for term in range(terms):
            for c, gradient in enumerate(of(iteration, term)):
                images.grad = torch.zeros_like(images)
                images.grad[c] = gradient
                optimizer.step()
        way.append(images.detach().clone())
    return torch.stack(way)


def together(optimizer: torch.optim.Optimizer, images: Tensor, of: Gradient, terms: int) -> Tensor:
    """The way of images through a step of all classes, by the sum of all terms."""
    way = []
    for iteration in range(ITERATIONS):
        images.grad = torch.stack([of(iteration, term) for term in range(terms)]).sum(0)
        optimizer.step()
        way.append(images.detach().clone())
    return torch.stack(way)


def first(classes: int) -> Tensor:
    drawn = torch.rand(classes, NUMBERS, dtype=torch.float64, generator=generator("images"))
    return drawn.requires_grad_()


@pytest.mark.parametrize("classes", [10, 30])
@pytest.mark.parametrize(("noise", "calibration"), [(0.0, 0.1), (1.0, 0.1), (1.0, 1.0)])
def test_adamw_goes_as_far_and_the_same_way(classes: int, noise: float, calibration: float) -> None:
    of, theirs, ours = gradients(classes, noise, calibration), first(classes), first(classes)
    start = first(classes).detach()
    published = by_class(torch.optim.AdamW([theirs], 0.001, weight_decay=5e-4), theirs, of, 2)
    group = {"params": [ours], "lr": 0.001}
    optimizer, longer = adamw_after_each_class([group], 5e-4, classes)
    assert longer == pytest.approx((2 * classes) ** 0.5)
    found = together(optimizer, ours, of, 2)
    for iteration in (4, ITERATIONS - 1):
        there, here = published[iteration] - start, found[iteration] - start
        assert 0.9 < here.norm() / there.norm() < 1.15
        assert F.cosine_similarity(here.flatten(), there.flatten(), 0) > 0.95
    plain = together(torch.optim.AdamW([first(classes)], 0.001), first(classes), of, 2)
    assert (plain[4] - start).norm() < 0.5 * (published[4] - start).norm()


def test_adamw_decays_images_without_a_gradient_as_all_steps_do() -> None:
    theirs, ours = first(5), first(5)
    still: Gradient = lambda *_: torch.zeros(5, NUMBERS, dtype=torch.float64)  # noqa: E731
    published = by_class(torch.optim.AdamW([theirs], 0.001, weight_decay=0.5), theirs, still, 2)
    optimizer, _ = adamw_after_each_class([{"params": [ours], "lr": 0.001}], 0.5, 5)
    torch.testing.assert_close(together(optimizer, ours, still, 2), published, rtol=1e-3, atol=0)


def test_sgd_leaves_images_of_the_first_class_where_steps_after_each_class_do() -> None:
    of, theirs, ours = gradients(10, 1.0, 0.0), first(10), first(10)
    published = by_class(torch.optim.SGD([theirs], 0.01, momentum=0.5), theirs, of, 1)
    optimizer = sgd_after_each_class([{"params": [ours], "lr": 0.01}], 0.5, 10)
    found = together(optimizer, ours, of, 1)
    # Of later classes more of the last displacement is still to come.
    torch.testing.assert_close(found[:, 0], published[:, 0], rtol=0, atol=2e-3)
    assert (published[:, 0] - first(10)[0]).abs().max() > 0.1
