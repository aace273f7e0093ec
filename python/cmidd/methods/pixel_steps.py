"""Steps of an optimizer that was published to move pixels, on images that are stored otherwise.

Stored are z = (x - mean) / std of the pixels x. A step of AdamW on x is

    z <- z - r d (z + mean / std) - (r / std) m / (sqrt(s) + 1e-8)

with step size r, weight decay d, and the averages m and s of dL/dx = (1 / std) dL/dz and of its
square, corrected for those that were not. It is taken on pixels, which are then stored again.

A published loop may step after each of C classes in turn, in which all images move: those of a
class by one step with their gradient and by C - 1 without, before their gradient is asked for
again. `after_each` takes these steps. But for where images are clamped, this is the published order
with one difference: there steps are counted for all images together, so that AdamW, which corrects
its averages by the count, begins the more slowly the later a class comes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cmidd.methods.stored_cells import StoredCells

_STATE = "plateau"


class PixelSteps:
    """An optimizer of stored images, whose step size is halved where the loss no longer falls."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        stored: StoredCells,
        patience: int,
        *,
        after_each: int = 1,
    ) -> None:
        """Prepare steps of one parameter.

        Args:
            optimizer: of the images alone.
            stored: how they are stored.
            patience: updates without a smaller loss after which the step size is halved.
            after_each: of so many classes, as which a step is taken.
        """
        self.optimizer, self.stored, self.after_each = optimizer, stored, after_each
        self.plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)

    @property
    def size(self) -> float:
        """The step size."""
        return float(self.optimizer.param_groups[0]["lr"])

    def take(self, images: Tensor, loss: Tensor) -> None:
        """Move the images, whose `.grad` is by their pixels, after an update with this loss."""
        self.stored.to_pixels(images)
        self.optimizer.step()
        if self.after_each > 1:
            images.grad = torch.zeros_like(images)
            for _ in range(self.after_each - 1):
                self.optimizer.step()
        self.stored.from_pixels(images)
        self.plateau.step(loss.item())

    def state(self) -> dict[str, Tensor]:
        """The smallest loss, for how many updates there was none, and the step size."""
        now = self.plateau.best, self.plateau.num_bad_epochs, self.size
        return {_STATE: torch.tensor(now, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        if state.keys() != {_STATE} or state[_STATE].shape != (3,):
            raise ValueError(f"expected the state of a step size, got {', '.join(state)}")
        best, bad, size = state[_STATE].tolist()
        self.plateau.best, self.plateau.num_bad_epochs = best, int(bad)
        self.optimizer.param_groups[0]["lr"] = size
