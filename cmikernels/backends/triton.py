"""Backend of the Triton kernels: any GPU that Triton serves, and its interpreter on CPU tensors.

A call's plan follows from its sizes alone (nothing is tuned on first use):

    tiles    every class fits a tile in registers: one launch reads once and writes once
    sweeps   many larger classes: a program each, reading twice, the second time from L2
    slots    few large classes: several programs each; sums, centroids, then value and gradient
    wide     rows wider than a tile: the same, column by column

then one launch adds up the value where it is a single number.
"""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmikernels.problem import Problem, arithmetic_dtype, as_rows

NAME = "triton"
DEVICE_TYPE = "cuda"  # AMD's too, by torch's name for them

# Elements of a float32 tile; float64 has half of them. Above the first, registers run out.
_CLASS_TILE = 8192  # a class in registers
_SMALL_TILE = 1024  # small classes share a tile up to this
_ROW_TILE = 2048  # rows of a larger class
_WIDEST_ROW = 8192
_WIDE_TILE = (2, 1024)  # rows and columns of a tile for rows beyond that
_MEANS_TILE = (16, 128)  # slots and columns summed at once
_SUM_BLOCK = 2048
_ELEMENTS_PER_WARP = 512
_PROGRAMS_PER_PROCESSOR = 4
_MOST_REGISTERS = 168  # of a thread: three blocks of four warps fit a multiprocessor


@dataclass(frozen=True)
class Chip:
    """What plans depend on: multiprocessors and bytes of L2 cache."""

    processors: int
    cache_bytes: int


@dataclass(frozen=True)
class Plan:
    """How a call is computed."""

    kind: str  # "tiles", "sweeps", "slots" or "wide"
    programs: int
    parts: int  # of the value: one for each group of classes, class or slot
    block_classes: int
    block_rows: int
    block_channels: int
    num_warps: int
    rows_per_slot: int | None  # of slots and wide


@functools.lru_cache(maxsize=4096)
def make_plan(
    num_rows: int,
    num_classes: int,
    largest: int,
    channels: int,
    element_size: int,
    ragged: bool,
    weighted: bool,
    chip: Chip,
) -> Plan:
    """Choose from N, C, the rows of the largest class, M, bytes of a feature, and the chip.

    `weighted`: the rows' weights differ, so that a second number is summed beside each probability.
    """
    fit = 2 if element_size == 8 or weighted else 1
    programs = _PROGRAMS_PER_PROCESSOR * chip.processors
    width = _power_of_2(channels)
    rows = _power_of_2(largest)
    # A tile for the largest class is wasted on classes that are much smaller.
    lopsided = num_classes * largest > 4 * num_rows and rows * width * fit > _SMALL_TILE
    if rows * width * fit <= _CLASS_TILE and not lopsided:
        together = max(1, _SMALL_TILE // fit // (rows * width))
        together = min(together, _power_of_2(max(1, num_classes // programs)))
        groups = _ceil_div(num_classes, together)
        warps = _warps(together * rows * width * fit)
        return Plan("tiles", min(groups, programs), groups, together, rows, width, warps, None)
    if width * fit > _WIDEST_ROW:
        kind, (block_rows, block_channels) = "wide", _WIDE_TILE
    else:
        kind, block_rows, block_channels = "slots", max(1, _ROW_TILE // fit // width), width
    warps = _warps(block_rows * block_channels * fit)
    if kind == "slots" and num_classes >= chip.processors and not lopsided:
        class_bytes = _ceil_div(num_rows, num_classes) * channels * element_size
        if 2 * class_bytes * chip.processors <= chip.cache_bytes:
            shape = (1, block_rows, block_channels)
            return Plan("sweeps", num_classes, num_classes, *shape, warps, None)
    rows_per_slot = _ceil_div(_ceil_div(num_rows, programs), block_rows) * block_rows
    slots = num_classes * _ceil_div(largest, rows_per_slot)
    if ragged:
        slots = num_rows // rows_per_slot + num_classes
    return Plan(kind, slots, slots, 1, block_rows, block_channels, warps, rows_per_slot)


def build_options(num_warps: int) -> dict[str, Any]:
    """How Triton is to compile. A stated limit keeps ptxas from spilling to fit more blocks."""
    options: dict[str, Any] = {"num_warps": num_warps, "enable_fp_fusion": True}
    if torch.version.hip is None:
        options["maxnreg"] = min(_MOST_REGISTERS, 65536 // (32 * num_warps))
    return options


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_2(number: int) -> int:
    """The smallest power of 2 that is at least a number."""
    return 1 << max(number - 1, 0).bit_length()


def _warps(elements: int) -> int:
    return min(16, max(4, elements // _ELEMENTS_PER_WARP))


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _load() -> tuple[Any, str]:
    """The kernels, or why there are none. Importing Triton takes a second, so not before needed."""
    try:
        return importlib.import_module("cmikernels.backends.triton_kernels"), ""
    except Exception as error:  # whatever a broken installation raises
        return None, f"{type(error).__name__}: {error}"


def obstacle(device_type: str) -> str | None:
    """Why this backend cannot serve tensors of that device type; None when it can."""
    if device_type == "cpu":
        if not _interpreting():
            return "it computes on GPUs (and for tests on the CPU, under TRITON_INTERPRET=1)"
    elif device_type != "cuda":
        return "it computes on NVIDIA and AMD GPUs only"
    elif not torch.cuda.is_available() and not _interpreting():
        return "torch sees no GPU"
    kernels, error = _load()
    if kernels is None:
        return f"Triton cannot be imported ({error}); run: pip install triton"
    return None


def describe() -> str:
    """How it will run here."""
    import triton

    if _interpreting():
        return f"Triton {triton.__version__}, interpreted, very slow"
    return f"Triton {triton.__version__} on {torch.cuda.get_device_name()}"


def forward(
    features: Tensor, problem: Problem, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Value and gradient of its sum, made together."""
    sizes = {"none": (problem.num_rows,), "class": (problem.num_classes,)}
    size = sizes.get(problem.reduction, ())
    value = torch.empty(size, dtype=arithmetic_dtype(features.dtype), device=features.device)
    gradient = None
    if with_gradient:
        gradient = torch.empty(features.shape, dtype=features.dtype, device=features.device)
    _run(features, problem, value=value, gradient=gradient)
    return value, gradient


def scale(gradient: Tensor, features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
    """Make the gradient anew in place, where the device finds grad_value other than 1.

    That moves as many bytes as scaling would, needs no second kernel and rounds once.
    """
    _run(features, problem, gradient=gradient, incoming=grad_value, skip_one=True)
    return gradient


def backward(features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
    """Gradient of the rows' divergences with the weights that grad_value gives them."""
    gradient = torch.empty(features.shape, dtype=features.dtype, device=features.device)
    _run(features, problem, gradient=gradient, incoming=grad_value)
    return gradient


def centroids(features: Tensor, problem: Problem) -> Tensor:
    """Mean probabilities of each class, `(C, M)`; zeros for a class without rows."""
    shape = (problem.num_classes, features.shape[-1])
    dtype = arithmetic_dtype(features.dtype)
    result = torch.empty(shape, dtype=dtype, device=features.device)
    _run(features, problem, means=result)
    return result


@functools.cache
def _chip(device: torch.device) -> Chip:
    if device.type == "cpu":  # interpreted
        return Chip(processors=2, cache_bytes=1 << 20)
    properties = torch.cuda.get_device_properties(device)
    return Chip(properties.multi_processor_count, getattr(properties, "L2_cache_size", 4 << 20))


def _run(
    features: Tensor,
    problem: Problem,
    *,
    value: Tensor | None = None,
    gradient: Tensor | None = None,
    means: Tensor | None = None,
    incoming: Tensor | None = None,
    skip_one: bool = False,
) -> None:
    """Launch what fills the outputs that are given."""
    if problem.num_rows == 0:
        for output in (value, means):
            if output is not None:
                output.zero_()
        return
    with torch.cuda.device_of(features):
        _Call(features, problem, incoming, skip_one).run(value, gradient, means)


class _Call:
    """One call's arguments as the kernels take them, and the launches of each kind of plan."""

    def __init__(
        self, features: Tensor, problem: Problem, incoming: Tensor | None, skip_one: bool
    ) -> None:
        classes = problem.classes
        rows = as_rows(features.resolve_neg())
        self.problem, self.device = problem, features.device
        self.dtype = arithmetic_dtype(features.dtype)
        self.kernels, _ = _load()
        reduction = "total" if problem.reduction in ("mean", "sum") else problem.reduction
        self.weight = problem.row_scale if reduction == "total" else problem.weight
        # Row weights that differ bring the term rho, unless the centroid is a given one.
        self.has_rho = incoming is not None and reduction == "none" and problem.centroids is None
        self.plan = make_plan(
            problem.num_rows,
            problem.num_classes,
            problem.rows_per_class if classes is None else classes.largest,
            rows.shape[1],
            rows.element_size(),
            classes is not None,
            self.has_rho,
            _chip(features.device),
        )
        self.sizes: dict[str, Any] = {
            "offsets": None if classes is None else classes.offsets,
            "rows_per_class": problem.rows_per_class,
        }
        self.slots: dict[str, Any] = {"rows_per_slot": self.plan.rows_per_slot}
        self.options: dict[str, Any] = {
            "incoming": None if incoming is None else incoming.contiguous(),
            "num_classes": problem.num_classes,
            "ARITHMETIC": self.kernels.ARITHMETIC[self.dtype],
            "REDUCTION": reduction,
            "SKIP_ONE": skip_one and reduction != "none",
        }
        self.features: dict[str, Any] = {
            "features": rows,
            "row_stride": rows.stride(0),
            "channel_stride": rows.stride(1),
            "channels": rows.shape[1],
            "inverse_tau": 1.0 / problem.temperature,
        }
        self.order = {"order": None if classes is None else classes.order}
        self.build = build_options(self.plan.num_warps)
        self.block = {"BLOCK_N": self.plan.block_rows, "BLOCK_M": self.plan.block_channels}

    def run(self, value: Tensor | None, gradient: Tensor | None, means: Tensor | None) -> None:
        """Fill the outputs that are given."""
        plan, reduction = self.plan, self.options["REDUCTION"]
        # The value, where the last launch writes it itself, or a part from each program.
        parts = value
        direct = reduction == "none" or (reduction == "class" and plan.rows_per_slot is None)
        if value is not None and not direct:
            parts = self.empty(plan.parts)
        outputs = {"value": parts, "gradient": gradient}
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
            self.kernels.class_tiles,
            (self.plan.programs,),
            **self.features,
            **self.order,
            **self.sizes,
            **self.options,
            **self.block,
            **outputs,
            given=self.problem.centroids,
            means=means,
            weight=self.weight,
            BLOCK_C=self.plan.block_classes,
        )

    def sweeps(self, outputs: dict[str, Any], means: Tensor | None) -> None:
        """A program for each class."""
        self.launch(
            self.kernels.class_rows,
            (self.plan.programs,),
            **self.features,
            **self.order,
            **self.sizes,
            **self.slots,
            **self.options,
            **self.block,
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
        if means is not None:
            return
        extra: dict[str, Any] = statistics if wide else {"mean_weights": None, "means": None}
        self.launch(
            self.kernels.wide_rows if wide else self.kernels.class_rows,
            (self.plan.programs,),
            **self.features,
            **self.order,
            **self.sizes,
            **self.slots,
            **self.options,
            **self.block,
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
        plan, channels = self.plan, self.features["channels"]
        sums = self.empty(plan.parts, channels)
        weighted_sums = self.empty(plan.parts, channels) if self.has_rho else None
        kernel, grid = self.kernels.slot_sums, (plan.programs,)
        if statistics:
            kernel = self.kernels.slot_column_sums
            grid = (plan.programs, _ceil_div(channels, plan.block_channels))
        self.launch(
            kernel,
            grid,
            **self.features,
            **self.order,
            **self.sizes,
            **self.slots,
            **self.options,
            **self.block,
            **statistics,
            mean_weights=self.mean_weights(),
            sums=sums,
            weighted_sums=weighted_sums,
        )
        q = self.empty(self.problem.num_classes, channels) if means is None else means
        rho = torch.empty_like(q) if self.has_rho else None
        block_slots, block_channels = _MEANS_TILE
        self.launch(
            self.kernels.class_means,
            (self.problem.num_classes, _ceil_div(channels, block_channels)),
            **self.sizes,
            **self.slots,
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
        statistics = {"peaks": self.empty(self.problem.num_rows)}
        statistics["totals"] = torch.empty_like(statistics["peaks"])
        total = self.options["REDUCTION"] == "total"
        self.launch(
            self.kernels.row_statistics,
            (self.problem.num_rows,),
            **self.features,
            **statistics,
            incoming=self.options["incoming"],
            ARITHMETIC=self.options["ARITHMETIC"],
            SKIP_ONE=self.options["SKIP_ONE"] and total,
            BLOCK_M=_SUM_BLOCK,
        )
        return statistics

    def mean_weights(self) -> Tensor | None:
        """Mean of the rows' weights in each class, where rho needs it."""
        if not self.has_rho:
            return None
        result = self.empty(self.problem.num_classes)
        self.launch(
            self.kernels.weight_means,
            (self.problem.num_classes,),
            **self.order,
            **self.sizes,
            incoming=self.options["incoming"],
            mean_weights=result,
            BLOCK=_SUM_BLOCK // 4,
        )
        return result

    def add_up(self, parts: Tensor | None, value: Tensor) -> None:
        """One value from all parts, or each class's from those of its slots."""
        by_class = self.options["REDUCTION"] == "class"
        self.launch(
            self.kernels.sum_values,
            (self.problem.num_classes if by_class else 1,),
            **self.sizes,
            rows_per_slot=self.plan.rows_per_slot if by_class else None,
            parts=parts,
            value=value,
            num_values=self.plan.parts,
            scale=self.weight,
            BLOCK=_SUM_BLOCK,
        )

    def empty(self, *size: int) -> Tensor:
        """Workspace in the arithmetic type."""
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def launch(self, kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
        """Start a kernel on the current stream."""
        kernel[grid](**arguments, **self.build)
