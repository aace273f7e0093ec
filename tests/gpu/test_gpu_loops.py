"""Steps of the loops on a GPU: nothing waits for it, bits repeat, and graphs do what steps do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.loops.setup import Setup, Sizes
from cmidd.augment import Strategy
from cmidd.methods import METHODS
from cmidd.options.recipe import PUBLISHED_RECIPE
from cmidd.stack import Stack
from cmidd.training import train
from cmidd.training_draws import draw_epochs
from tests.support.tables import GPU

if not GPU:
    pytest.skip("needs a GPU that torch.cuda can use", allow_module_level=True)

DEVICE = "cuda"
SIZES = Sizes(3, 32, 16, "convnet:depth=2,width=16", "resnet18:width=8", student_steps=3)
UPDATES = 2  # of an iteration: the first, and one after the network has trained
RECIPE = replace(PUBLISHED_RECIPE, epochs=12, batch_size=20, cutmix=0.5)


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps(
    method: str, folder: Path, iterations: range, *, strictly: range = range(0)
) -> list[Tensor]:
    """Losses and gradients, in some iterations with no waiting."""
    setup = Setup(method, SIZES, 2, DEVICE, folder)
    loop, found = setup.our_loop(), list[Tensor]()
    for iteration in iterations:
        for update in range(min(UPDATES, loop.updates)):
            if iteration in strictly:
                with waiting_is_an_error():
                    result = loop.step(iteration, update)
            else:
                result = loop.step(iteration, update)
            found += [tensor.clone() for tensor in result]
    return found


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_for_the_gpu_in_a_step(method: str, tmp_path: Path) -> None:
    """After the first ones, in which kernels are compiled and graphs captured."""
    found = steps(method, tmp_path, range(9), strictly=range(6, 9))
    assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize("method", METHODS)
def test_the_bits_of_a_run_repeat(method: str, tmp_path: Path) -> None:
    first, second = (steps(method, tmp_path, range(3)) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def trained(
    monkeypatch: pytest.MonkeyPatch, recipe_changes: dict[str, object], graphs: str, networks: int
) -> list[Tensor]:
    monkeypatch.setenv("CMIDD_CUDA_GRAPHS", graphs)
    recipe, seeds = replace(RECIPE, **recipe_changes), list(range(networks))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(50, 3, 16, 16, generator=generator).to(DEVICE)
    labels = (torch.arange(50) % 3).to(DEVICE)
    stack = Stack.fresh(SIZES.network, (3, 16, 16), 3, seeds, images.device)
    strategy = Strategy.parse(recipe.augmentation)
    train(stack, images, labels, recipe, strategy, draw_epochs(seeds, 50, recipe, strategy))
    return [tensor.detach() for tensor in stack.state.values()]


@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "lr": 1e-3}], ids=["sgd", "adamw"])
def test_captured_steps_are_the_steps(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], networks: int
) -> None:
    """Up to the rounding of the optimizer, which is fused where steps are captured."""
    captured, again, plain = (
        trained(monkeypatch, changes, graphs, networks) for graphs in ("1", "1", "0")
    )
    for one, other, each in zip(captured, again, plain, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, each, rtol=1e-3, atol=1e-4)
