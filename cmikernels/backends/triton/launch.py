"""A call's launches, one after the other on the current stream."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from cmikernels.backends.operations import in_memory, in_order
from cmikernels.backends.triton.plan import Chip, ceil_div, make_plan
from cmikernels.backends.triton.rows import class_rows, slot_sums
from cmikernels.backends.triton.slots import class_means, sum_values, weight_means
from cmikernels.backends.triton.tiles import class_tiles
from cmikernels.backends.triton.wide import row_statistics, slot_column_sums, wide_rows
from cmikernels.problem import Problem, arithmetic_dtype

_ARITHMETIC = {torch.float32: tl.float32, torch.float64: tl.float64}
_MEANS_TILE = (16, 128)  # slots and columns summed at once
_ROW_BLOCK, _SUM_BLOCK, _VALUE_BLOCK = 2048, 1024, 8192  # numbers taken at once
_WARP_BYTES = 512  # what a warp reads at once, 16 bytes a thread
_MOST_REGISTERS = 168  # of a thread: three blocks of four warps fit a multiprocessor


@functools.cache
def chip_of(device: torch.device) -> Chip:
    """What plans for a device depend on."""
    if device.type == "cpu":  # interpreted: the fewer the steps, the faster
        return Chip(processors=2, cache_bytes=1 << 20, row_tile=16384)
    properties = torch.cuda.get_device_properties(device)
    return Chip(properties.multi_processor_count, getattr(properties, "L2_cache_size", 4 << 20))


@functools.cache
def build_options(num_warps: int) -> dict[str, Any]:
    """How Triton is to compile. A stated limit keeps ptxas from spilling to fit more blocks."""
    options: dict[str, Any] = {"num_warps": num_warps, "enable_fp_fusion": False}
    if torch.version.hip is None:
        options["maxnreg"] = min(_MOST_REGISTERS, 65536 // (32 * num_warps))
    return options


def launch(kernel: Any, grid: tuple[int, ...], num_warps: int, **arguments: Any) -> None:
    """Start a kernel where there is something to do."""
    if math.prod(grid) > 0:
        kernel[grid](**arguments, **build_options(num_warps))


class Call:
    """One call's arguments as the kernels take them, and the launches of each kind of plan."""

    def __init__(
        self, features: Tensor, problem: Problem, incoming: Tensor | None, unless_one: bool
    ) -> None:
        classes = problem.classes
        features, row_stride, channel_stride = in_memory(features)
        channels = features.shape[-1]
        reduction = "total" if problem.reduction in ("mean", "sum") else problem.reduction
        self.problem, self.device, self.channels = problem, features.device, channels
        self.dtype = arithmetic_dtype(features.dtype)
        self.weight = problem.row_scale if reduction == "total" else problem.weight
        # Row weights that differ bring the term rho, unless the centroid is a given one.
        self.has_rho = incoming is not None and reduction == "none" and problem.centroids is None
        self.plan = plan = make_plan(
            problem.num_rows,
            problem.num_classes,
            problem.rows_per_class if classes is None else classes.largest,
            channels,
            features.element_size(),
            classes is not None,
            self.has_rho,
            chip_of(features.device),
        )
        self.order: dict[str, Any] = {"order": None if classes is None else classes.order}
        self.sizes: dict[str, Any] = {
            "offsets": None if classes is None else classes.offsets,
            "rows_per_class": problem.rows_per_class,
        }
        self.features: dict[str, Any] = {
            "features": features,
            "row_stride": row_stride,
            "channel_stride": channel_stride,
            "channels": channels,
            "inverse_tau": 1.0 / problem.temperature,
        }
        self.options: dict[str, Any] = {
            "incoming": None if incoming is None else in_order(incoming),
            "num_classes": problem.num_classes,
            "ARITHMETIC": _ARITHMETIC[self.dtype],
            "REDUCTION": reduction,
            "UNLESS_ONE": unless_one and reduction != "none",
        }
        together = min(plan.block_channels, _WARP_BYTES // features.element_size())
        block = {
            "BLOCK_K": plan.block_channels // together,
            "BLOCK_N": plan.block_rows,
            "BLOCK_J": together,
        }
        self.rows = self.features | self.order | self.sizes | self.options | block
        self.even: dict[str, Any] = {"EVEN": channels == plan.block_channels}

    def run(self, value: Tensor | None, gradient: Tensor | None, means: Tensor | None) -> None:
        """Fill the outputs that are given."""
        plan, reduction = self.plan, self.options["REDUCTION"]
        # The value, where the last launch writes it itself, or a part from each program.
        parts = value
        direct = reduction == "none" or (reduction == "class" and plan.rows_per_slot is None)
        if value is not None and not direct:
            parts = self.empty(plan.programs)
        outputs: dict[str, Any] = {"value": parts, "gradient": gradient}
        if plan.kind == "tiles":
            self.tiles(outputs, means)
        elif plan.kind == "sweeps":
            self.sweeps(outputs, means)
        else:
            self.slotted(outputs, means)
        if value is not None and not direct:
            self.add_up(parts, value)

    def tiles(self, outputs: dict[str, Any], means: Tensor | None) -> None:
        """Everything in one launch."""
        self.launch(
            class_tiles,
            (self.plan.programs,),
            **self.rows,
            **outputs,
            given=self.problem.centroids,
            means=means,
            weight=self.weight,
            BLOCK_C=self.plan.block_classes,
        )

    def sweeps(self, outputs: dict[str, Any], means: Tensor | None) -> None:
        """A program for each class."""
        self.launch(
            class_rows,
            (self.plan.programs,),
            **self.even,
            **self.rows,
            rows_per_slot=self.plan.rows_per_slot,
            **outputs,
            given=self.problem.centroids,
            class_q=None,
            class_rho=None,
            mean_weights=self.mean_weights(),
            means=means,
            weight=self.weight,
        )

    def slotted(self, outputs: dict[str, Any], means: Tensor | None) -> None:
        """Sums of each slot, centroids of each class, then value and gradient of each slot."""
        wide = self.plan.kind == "wide"
        statistics = self.row_statistics() if wide else {}
        q = rho = None
        if self.problem.centroids is None:
            q, rho = self.class_means(statistics, means)
        if outputs["value"] is None and outputs["gradient"] is None:
            return
        extra: dict[str, Any] = statistics
        if not wide:
            extra = {"mean_weights": None, "means": None, **self.even}
        self.launch(
            wide_rows if wide else class_rows,
            (self.plan.programs,),
            **self.rows,
            rows_per_slot=self.plan.rows_per_slot,
            **outputs,
            **extra,
            given=self.problem.centroids,
            class_q=q,
            class_rho=rho,
            weight=self.weight,
        )

    def class_means(
        self, statistics: dict[str, Any], means: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Centroids `(C, M)`, and rho where there is one."""
        plan, channels = self.plan, self.channels
        sums = self.empty(plan.sums, channels)
        weighted_sums = self.empty(plan.sums, channels) if self.has_rho else None
        kernel, programs, extra = slot_sums, plan.sums, self.even
        if statistics:
            kernel, extra = slot_column_sums, statistics
            programs *= ceil_div(channels, plan.block_channels)
        self.launch(
            kernel,
            (programs,),
            **self.rows,
            rows_per_slot=plan.rows_per_sum,
            **extra,
            mean_weights=self.mean_weights(),
            sums=sums,
            weighted_sums=weighted_sums,
        )
        q = self.empty(self.problem.num_classes, channels) if means is None else means
        rho = torch.empty_like(q) if self.has_rho else None
        block_slots, block_channels = _MEANS_TILE
        self.launch(
            class_means,
            (self.problem.num_classes * ceil_div(channels, block_channels),),
            num_warps=4,
            **self.sizes,
            rows_per_slot=plan.rows_per_sum,
            **self.options,
            sums=sums,
            weighted_sums=weighted_sums,
            q=q,
            rho=rho,
            channels=channels,
            BLOCK_S=block_slots,
            BLOCK_M=block_channels,
        )
        return q, rho

    def row_statistics(self) -> dict[str, Any]:
        """Peak and total of each row."""
        statistics: dict[str, Any] = {"peaks": self.empty(self.problem.num_rows)}
        statistics["totals"] = torch.empty_like(statistics["peaks"])
        total = self.options["REDUCTION"] == "total"
        self.launch(
            row_statistics,
            (self.problem.num_rows,),
            num_warps=4,
            **self.features,
            **statistics,
            incoming=self.options["incoming"],
            ARITHMETIC=self.options["ARITHMETIC"],
            UNLESS_ONE=self.options["UNLESS_ONE"] and total,
            BLOCK_M=_ROW_BLOCK,
        )
        return statistics

    def mean_weights(self) -> Tensor | None:
        """Mean of the rows' weights in each class, where rho needs it."""
        if not self.has_rho:
            return None
        result = self.empty(self.problem.num_classes)
        self.launch(
            weight_means,
            (self.problem.num_classes,),
            num_warps=4,
            **self.order,
            **self.sizes,
            incoming=self.options["incoming"],
            mean_weights=result,
            BLOCK=_SUM_BLOCK,
        )
        return result

    def add_up(self, parts: Tensor | None, value: Tensor) -> None:
        """One value from all parts, or each class's from those of its slots."""
        by_class = self.options["REDUCTION"] == "class"
        self.launch(
            sum_values,
            (self.problem.num_classes if by_class else 1,),
            **self.sizes,
            rows_per_slot=self.plan.rows_per_slot if by_class else None,
            parts=parts,
            value=value,
            num_values=self.plan.programs,
            scale=self.weight,
            BLOCK=_SUM_BLOCK if by_class else _VALUE_BLOCK,
            num_warps=4 if by_class else 16,
        )

    def empty(self, *size: int) -> Tensor:
        """Workspace in the arithmetic type."""
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def launch(
        self, kernel: Any, grid: tuple[int, ...], *, num_warps: int | None = None, **arguments: Any
    ) -> None:
        """Start a kernel on the current stream."""
        kernel[grid](**arguments, **build_options(num_warps or self.plan.num_warps))
