from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from cmidd import ranks
from cmidd.methods.pixel_steps import PixelSteps
from cmidd.methods.stored_cells import StoredCells
from tests.support.tiny import CPU, tiny_dataset

STORED = StoredCells(tiny_dataset(), 2, "test", CPU, torch.float64)


def steps_of(images: Tensor, lr: float = 0.1, *, in_one: float = 1.0) -> PixelSteps:
    return PixelSteps(torch.optim.SGD([images], lr), STORED, 0, in_one=in_one)


def stored_images() -> Tensor:
    images = torch.linspace(-1, 1, 128, dtype=torch.float64).view(2, 1, 8, 8)
    images.grad = torch.ones_like(images)
    return images


def test_a_step_is_taken_on_pixels() -> None:
    images = stored_images()
    expected = images * STORED.std + STORED.mean - 0.1
    steps_of(images).take(images, torch.tensor(1.0))
    torch.testing.assert_close(images * STORED.std + STORED.mean, expected)


def test_the_step_size_is_the_one_that_was_asked_for() -> None:
    """And not that of a step as long as many; both are halved, and put back to the bit."""
    images = stored_images()
    steps = steps_of(images, 0.3, in_one=3.0)
    assert steps.size == pytest.approx(0.1)
    for _ in range(2):
        steps.take(images, torch.tensor(1.0))
    assert steps.size == pytest.approx(0.05)
    again = steps_of(images, 0.3, in_one=3.0)
    again.load_state(steps.state())
    assert again.optimizer.param_groups[0]["lr"] == steps.optimizer.param_groups[0]["lr"] == 0.15


def test_ranks_are_waited_for_before_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a GPU does not notice that another rank is gone."""
    events: list[str] = []

    class Loss:
        def item(self) -> float:
            events.append("item")
            return 1.0

    monkeypatch.setattr(ranks, "wait", lambda: events.append("wait"))
    images = stored_images()
    steps_of(images).take(images, cast("Tensor", Loss()))
    assert events == ["wait", "item"]


@pytest.mark.parametrize("state", [{}, {"plateau": torch.zeros(2)}, {"speed": torch.zeros(3)}])
def test_another_state_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="expected the state of a step size, got"):
        steps_of(stored_images()).load_state(state)
