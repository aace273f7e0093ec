"""What `EmpiricalCMI` is built on where torchmetrics is not installed: as much of its protocol.

A metric has states, each with a default and a function that reduces those of several processes,
stacked. `compute` reduces them first where torch.distributed runs, and puts them back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Reduction = Callable[[Tensor], Tensor]


class MetricBase(nn.Module):
    """The part of `torchmetrics.Metric` that needs nothing but torch."""

    compute: Callable[[], Tensor]
    update: Callable[..., None]

    def __init__(
        self, process_group: dist.ProcessGroup | None = None, sync_on_compute: bool = True
    ) -> None:
        super().__init__()
        self.process_group, self.sync_on_compute = process_group, sync_on_compute
        self._computed: Tensor | None = None  # as torchmetrics has them
        self._update_count = 0
        self._defaults: dict[str, Tensor] = {}
        self._reductions: dict[str, Reduction] = {}
        self._alone = self.compute
        self.compute = self._compute

    def add_state(
        self, name: str, default: Tensor, dist_reduce_fx: Reduction, persistent: bool = False
    ) -> None:
        """A tensor that updates change, and how those of several processes become one."""
        self._defaults[name], self._reductions[name] = default, dist_reduce_fx
        self.register_buffer(name, default.clone(), persistent=persistent)

    @property
    def metric_state(self) -> dict[str, Tensor]:
        """All states."""
        return {name: getattr(self, name) for name in self._defaults}

    def reset(self) -> None:
        """Forget everything."""
        for name, default in self._defaults.items():
            setattr(self, name, default.to(getattr(self, name).device, copy=True))

    def merge_state(self, incoming_state: Any) -> None:
        """Take what another metric, or its `metric_state`, has seen."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Update, and the value of this batch alone."""
        before = self.metric_state
        self.reset()
        self.update(*args, **kwargs)
        value = self._alone()
        self.merge_state(before)
        return value

    def _load_from_state_dict(self, *args: Any) -> None:
        for name, state in self.metric_state.items():  # not in place: it may be of inference mode
            setattr(self, name, state.clone())
        super()._load_from_state_dict(*args)

    def _compute(self) -> Tensor:
        """The value over all processes."""
        if not self.sync_on_compute or not (dist.is_available() and dist.is_initialized()):
            return self._alone().squeeze()
        before = self.metric_state
        for name, state in before.items():
            gathered = [
                torch.empty_like(state) for _ in range(dist.get_world_size(self.process_group))
            ]
            dist.all_gather(gathered, state.contiguous(), group=self.process_group)
            setattr(self, name, self._reductions[name](torch.stack(gathered)))
        try:
            return self._alone().squeeze()
        finally:
            for name, state in before.items():
                setattr(self, name, state)
