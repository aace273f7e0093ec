from __future__ import annotations

from collections.abc import Callable

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

    def fetched(loss: Tensor) -> Callable[[], float]:
        def number() -> float:
            events.append("read")
            return loss.item()

        return number

    monkeypatch.setattr(ranks, "wait", lambda: events.append("wait"))
    monkeypatch.setattr("cmidd.methods.pixel_steps.fetched", fetched)
    images = stored_images()
    steps = steps_of(images)
    for _ in range(3):
        steps.take(images, torch.tensor(1.0))
    assert events == ["wait", "wait", "read", "wait", "read"]


def test_a_loss_is_read_when_the_next_step_or_somebody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[float] = []

    def fetched(loss: Tensor) -> Callable[[], float]:
        def number() -> float:
            read.append(loss.item())
            return read[-1]

        return number

    monkeypatch.setattr("cmidd.methods.pixel_steps.fetched", fetched)
    images = stored_images()
    steps = steps_of(images)
    for loss in (5.0, 6.0, 7.0):
        steps.take(images, torch.tensor(loss))
    assert read == [5.0, 6.0]
    assert steps.size == 0.1 / 4
    assert read == [5.0, 6.0, 7.0]
    steps.take(images, torch.tensor(8.0))
    assert steps.state()["plateau"].tolist() == [5.0, 0.0, 0.1 / 8]
    assert read == [5.0, 6.0, 7.0, 8.0]
    steps.take(images, torch.tensor(9.0))
    steps.load_state({"plateau": torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)})
    assert steps.size == 0.5
    assert read[-1] == 8.0  # the last loss was of another run


@pytest.mark.parametrize("state", [{}, {"plateau": torch.zeros(2)}, {"speed": torch.zeros(3)}])
def test_another_state_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="expected the state of a step size, got"):
        steps_of(stored_images()).load_state(state)
