"""Steps of an optimizer that was published to move pixels, on images that are stored otherwise.

Stored are z = (x - mean) / std of the pixels x. A step of AdamW on x is

    z <- z - r d (z + mean / std) - (r / std) m / (sqrt(s) + 1e-8)

with step size r, weight decay d, and the averages m and s of dL/dx = (1 / std) dL/dz and of its
square, corrected for those that were not. It is taken on pixels, which are then stored again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cmidd import ranks
from cmidd.methods.stored_cells import StoredCells
from cmidd.parcel import fetched

_STATE = "plateau"


class PixelSteps:
    """An optimizer of stored images, whose step size is halved where the loss no longer falls."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        stored: StoredCells,
        patience: int,
        *,
        in_one: float = 1.0,
    ) -> None:
        """Prepare steps of one parameter.

        Args:
            optimizer: of the images alone.
            stored: how they are stored.
            patience: updates without a smaller loss after which the step size is halved.
            in_one: how many steps that were asked for a step of the optimizer is as long as.
        """
        self.optimizer, self.stored, self.in_one = optimizer, stored, in_one
        self.plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)
        self._last_loss: Callable[[], float] | None = None  # of which the plateau is not told yet

    @property
    def size(self) -> float:
        """The step size that was asked for, as often halved as it was."""
        self._settle()
        return float(self.optimizer.param_groups[0]["lr"]) / self.in_one

    def take(self, images: Tensor, loss: Tensor) -> None:
        """Move the images, whose `.grad` is by their pixels, after an update with this loss."""
        ranks.wait()  # before a GPU is waited for, which would not notice one gone
        self._settle()
        self.stored.to_pixels(images)
        self.optimizer.step()
        self.stored.from_pixels(images)
        self._last_loss = fetched(loss.detach())

    def _settle(self) -> None:
        """Let the last loss decide on the next step; until then a GPU need not have come to it."""
        if self._last_loss is not None:
            self.plateau.step(self._last_loss())
            self._last_loss = None

    def state(self) -> dict[str, Tensor]:
        """The smallest loss, for how many updates there was none, and the optimizer's step size."""
        self._settle()
        step_size = self.optimizer.param_groups[0]["lr"]
        now = self.plateau.best, self.plateau.num_bad_epochs, step_size
        return {_STATE: torch.tensor(now, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        if state.keys() != {_STATE} or state[_STATE].shape != (3,):
            raise ValueError(f"expected the state of a step size, got {', '.join(state)}")
        self._last_loss = None
        best, bad, size = state[_STATE].tolist()
        self.plateau.best, self.plateau.num_bad_epochs = best, int(bad)
        self.optimizer.param_groups[0]["lr"] = size
