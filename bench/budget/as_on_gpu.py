"""Makes torch and cmikernels go the ways of a GPU on torch's device `meta`, with a meter on.

CMI is counted as the CUDA kernels compute it, augmentation and norm, activation and pooling as the
Triton kernels; memory is pinned, and optimizers work on lists of tensors.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx.experimental import _config as fx
from torch.overrides import TorchFunctionMode

from bench.budget.meter import Meter
from bench.budget.operations import cmi_launches, memory_of, tensors_in
from cmidd import captured, parcel, progress
from cmikernels import backends
from cmikernels.changes import operations as changes
from cmikernels.norm import operations as norm
from cmikernels.norm.layout import channels_last, read_in_layout
from cmikernels.problem import Problem

_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
_NORM = ("norm_act_pool", "norm_act_pool_backward", "norm_act_pool_double_backward")


class _FromData(TorchFunctionMode):
    """Sees tensors that are made on the device of numbers that Python has: each is a copy."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One call of torch."""
        options = kwargs or {}
        made = func(*args, **options)
        if func in _FROM_DATA and made.is_meta:
            data = args[1] if func is Tensor.new_tensor else args[0] if args else options["data"]
            if not isinstance(data, Tensor):
                with torch._C.DisableTorchFunction():
                    numbers = torch.tensor(data, dtype=made.dtype)
                self.meter.copy(numbers)
                self.meter.remember(made, numbers)
        return made


class _OnMeta:
    """The backend of CMI: launches and bytes are those of the CUDA kernels."""

    NAME, DEVICE_TYPE = "counted", "meta"

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def obstacle(self, device_type: str) -> str | None:
        """It serves `meta` alone."""
        return None if device_type == "meta" else "it counts, on meta"

    def describe(self) -> str:
        """How it runs."""
        return "computes nothing"

    def fill(self, features: Tensor, problem: Problem, **outputs: Any) -> None:
        """Note a call."""
        if problem.num_rows:
            tensors = tensors_in(features, problem.centroids, outputs)
            launches = cmi_launches(features, problem, means=outputs.get("means") is not None)
            self.meter.launch("cmikernels::cmi", launches, sum(map(memory_of, tensors)))


class _CountedGraphs:
    """In the place of CUDA graphs: what is captured counts when it is done again."""

    def __init__(self, meter: Meter, device: torch.device) -> None:
        self.meter, self.device = meter, device

    def before(self, work: Callable[[], None]) -> None:
        """Do work that will be captured."""
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Count it; what notes that it is done, in one call."""
        count = self.meter.apart(work)
        if count.copies or count.waits:
            raise RuntimeError(f"expected work that can be captured, got {count.lines}")
        return partial(self.meter.again, count)


@contextmanager
def metered() -> Iterator[Meter]:
    """A meter, and what makes torch and cmikernels go the ways of a GPU on `meta`."""
    meter = Meter()
    compute = norm._run

    def run(order: int, inputs: Any, incoming: Any, outputs: dict[str, Tensor]) -> None:
        if not inputs[0].is_meta:
            compute(order, inputs, incoming, outputs)
            return
        read = read_in_layout(inputs[:-1], incoming, channels_last(inputs[0]))
        moved = sum(map(memory_of, tensors_in(read, outputs)))
        sums = any(name in outputs for name in ("weight_grad", "bias_grad"))  # a launch of its own
        meter.launch(f"cmikernels::{_NORM[order]}", 1 + sums, moved)

    def change(_: int, *tensors: Tensor | None) -> None:
        meter.launch("cmikernels::changes", 1, sum(map(memory_of, tensors_in(tensors))))

    known = {"counted": _OnMeta(meter), **backends._BACKENDS}
    optimizers = importlib.import_module("torch.optim.optimizer")
    with ExitStack() as stack:

        def put(holder: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(holder, name, value))

        put(norm, "_run", run)
        put(changes, "_run", change)
        put(parcel, "_pins", lambda _: True)
        put(progress, "time", SimpleNamespace(monotonic=float))  # no second passes
        put(backends, "_BACKENDS", known)
        for kind in ("foreach", "fused"):
            name = f"_get_{kind}_kernels_supported_devices"
            devices = [*getattr(optimizers, name)(), "meta"]
            put(optimizers, name, partial(list, devices))
        graphs = {"meta": partial(_CountedGraphs, meter)}
        stack.enter_context(mock.patch.dict(captured.GRAPHS, graphs))
        for name in ("class_index", "cmi", "norm_act_pool", "problem"):
            # To a mode they would else give registered operations, as to a compiler.
            put(importlib.import_module(f"cmikernels.{name}"), "has_memory", lambda _: True)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
        stack.enter_context(fx.patch(meta_nonzero_assume_all_nonzero=True))  # type: ignore[attr-defined]
        stack.enter_context(_FromData(meter))
        stack.enter_context(meter)
        yield meter
