"""What an operation asks of a GPU: launches, bytes, and arithmetic of convolutions and products.

Launches, of which `ours` are as the CUDA and Triton kernels are launched:

    views, memory without numbers              0
    convolution                                1, and 1 for its bias
    its backward                               1 for each output that is asked for
    group norm, its backward                   3, 5
    backward of select, slice and unfold       2: zeros, and a copy or sums
    padding                                    2: the number around, and a copy
    foreach, a whole step of an optimizer      those of torch's kernels for lists of tensors
    all else                                   1
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from bench.gpu import chips
from bench.gpu.model import LAUNCHES, plan_of
from bench.harness.shapes import Shape
from cmikernels.problem import Problem

_FREE = ("aten::empty", "aten::new_empty", "aten::detach", "aten::_unsafe_view", "aten::set_",
         "aten::resize_", "aten::record_stream")  # fmt: skip
_SEVERAL = {
    "aten::native_group_norm": 3,
    "aten::native_group_norm_backward": 5,
    "aten::select_backward": 2,
    "aten::slice_backward": 2,
    "aten::unfold_backward": 2,
}
_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
_PICKING = ("aten::index", "aten::index_select", "aten::gather")
"""They read of their source what they write, and the places."""
_STEPS = "aten::_fused"  # whole ones of optimizers
_OVERWRITING = ("aten::copy_", "aten::fill_", "aten::zero_")

# Of torch's multi_tensor_apply: numbers that a block has, blocks of a launch, and its tensors by
# how many lists there are.
_CHUNK = 65536
_MOST_BLOCKS = 320
_MOST_TENSORS = (110, 64, 48, 36, 30)


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors among values and in their lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(*value)
        elif isinstance(value, dict):
            found += tensors_in(*value.values())
    return found


def launches_of(function: Any, arguments: Sequence[Any], made: Any) -> int:
    """Kernels of an operation on a GPU, which gave `made`."""
    name = _name(function)
    if _is_free(function):
        return 0
    if name == "aten::convolution":
        return 1 + (arguments[2] is not None)
    if name == "aten::convolution_backward":
        return sum(each is not None for each in made)
    if name.startswith(("aten::_foreach", _STEPS)):
        most = 5 if name.startswith(_STEPS) else None  # after which are counters of steps
        lists = [each for each in arguments[:most] if isinstance(each, list) and tensors_in(each)]
        in_place = function._schema.is_mutable
        sizes = [tensor.numel() for tensor in lists[0]]
        return list_launches(sizes, len(lists) + (not in_place))
    if name == "aten::constant_pad_nd":
        return 1 + any(pixels > 0 for pixels in arguments[1])  # else a part is copied
    results = tensors_in(made)
    if results and not any(tensor.numel() for tensor in results):
        return 0
    return _SEVERAL.get(name, 1)


def list_launches(sizes: Iterable[int], lists: int) -> int:
    """Launches of an operation on lists of tensors of such sizes, `lists` being those it uses."""
    most = _MOST_TENSORS[min(lists, len(_MOST_TENSORS)) - 1]
    launches = tensors = blocks = 0
    for size in sizes:
        count = math.ceil(size / _CHUNK)
        tensors += count > 0
        for left in reversed(range(count)):
            blocks += 1
            if blocks == _MOST_BLOCKS or (tensors == most and not left):
                launches += 1
                blocks, tensors = 0, int(left > 0)
    return launches + (blocks > 0)


def bytes_of(function: Any, arguments: Any, options: dict[str, Any], made: Any) -> int:
    """What an operation reads and writes: its tensors, each as large as it is in memory."""
    if _is_free(function):
        return 0
    name = _name(function)
    read = tensors_in(arguments, {k: v for k, v in options.items() if k != "out"})
    written = tensors_in(arguments[0] if made is None else made)
    if name.startswith(_STEPS):
        written += tensors_in(arguments[2:5])  # what it keeps of each parameter
    if name in _PICKING:
        read = [*read[1:], *written]
    elif name in _OVERWRITING:
        read = read[1:]
    elif name == "aten::_foreach_copy_":
        read = read[len(written) :]
    return sum(memory_of(tensor) for tensor in (*read, *written))


def memory_of(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers: what is expanded is there once."""
    sizes = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0]
    return math.prod(sizes) * tensor.element_size()


def flops_of(function: Any, arguments: Sequence[Any], made: Any) -> int:
    """Multiplications and additions of convolutions, of their backward and of products of matrices.

    0 of all else.
    """
    name = _name(function)
    if name in _PRODUCTS:
        *_, one, _ = tensors_in(arguments)
        return 2 * int(made.numel()) * one.shape[-1]
    if name == "aten::convolution":
        times, maps, transposed = 1, made, arguments[6]
        images, weight = arguments[:2]
    elif name == "aten::convolution_backward":
        times, transposed = sum(each is not None for each in made[:2]), arguments[7]
        maps, images, weight = arguments[:3]
    else:
        return 0
    of_one: int = 2 * (images if transposed else maps).numel() * weight[0].numel()
    return times * of_one


def cmi_launches(features: Tensor, problem: Problem, *, means: bool = False) -> int:
    """Those of `csrc/cuda/launch.cu` for a call on an H200."""
    largest = features.shape[-2] if problem.classes is None else problem.classes.largest
    shape = Shape(problem.num_classes, max(largest, 1), features.shape[-1])
    plan = plan_of(shape, features.dtype, chips.H200, ragged=problem.classes is not None)
    slotted = plan["kind"] in ("slots", "wide")
    by_class = problem.reduction == "class" and not means
    return LAUNCHES[plan["kind"]] + (by_class and (slotted or plan["cluster"] > 1))


@functools.cache
def _name(function: Any) -> str:
    return str(function._schema.name)


@functools.cache
def _is_free(function: Any) -> bool:
    name = _name(function)
    return function.is_view or name.startswith(_FREE) or not name.startswith(("aten", "cmik"))
