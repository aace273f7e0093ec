"""The meter, on functions that are counted by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from bench.budget.as_on_gpu import metered
from bench.budget.count import Count
from bench.budget.meter import REST, Meter
from bench.budget.operations import list_launches
from bench.budget.prediction import milliseconds
from cmidd.captured import CALLS_BEFORE, Captured
from cmidd.datasets.streamed import taken
from cmidd.parcel import fetched
from cmikernels import ClassIndex, cmi, fused_cmi, norm_act_pool

META = torch.device("meta")


@pytest.fixture
def meter() -> Iterator[Meter]:
    with metered() as found:
        yield found


def there(*shape: int, **options: Any) -> Tensor:
    return torch.empty(shape, device="meta", **options)


def test_a_convolution_with_a_bias_and_its_backward(meter: Meter) -> None:
    images, weight, bias = there(2, 3, 8, 8), there(4, 3, 3, 3), there(4)
    for tensor in (weight, bias):
        tensor.requires_grad_()
    forward = meter.total(lambda: F.conv2d(images, weight, bias, padding=1))
    of_one = 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    sizes = {"images": 2 * 3 * 8 * 8, "weight": 4 * 27, "bias": 4, "maps": 2 * 4 * 8 * 8}
    assert (forward.launches, forward.flops) == (2, of_one)
    assert forward.bytes == 4 * sum(sizes.values())
    assert (forward.copies, forward.waits) == (0, 0)

    maps = F.conv2d(images, weight, bias, padding=1)
    incoming = torch.empty_like(maps)

    def backward(*leaves: Tensor) -> Count:
        return meter.total(lambda: torch.autograd.grad(maps, leaves, incoming, retain_graph=True))

    both = backward(weight, bias)
    assert (both.launches, both.flops) == (2, of_one)
    read = sizes["maps"] + sizes["images"] + sizes["weight"]
    assert both.bytes == 4 * (read + sizes["weight"] + sizes["bias"])
    assert (backward(bias).launches, backward(bias).flops) == (1, 0)


def test_groups_make_a_convolution_smaller(meter: Meter) -> None:
    images, weight = there(2, 6, 8, 8), there(4, 3, 3, 3, requires_grad=True)
    found = meter.total(lambda: F.conv2d(images, weight, groups=2))
    assert (found.launches, found.flops) == (1, 2 * (2 * 4 * 6 * 6) * 27)


def test_products_of_matrices(meter: Meter) -> None:
    one, other, bias = there(4, 5, 6), there(4, 6, 7), there(7)
    for product, of_how_many in (
        (lambda: one @ other, 4),
        (lambda: torch.baddbmm(bias, one, other), 4),
        (lambda: one[0] @ other[0], 1),
        (lambda: F.linear(one[0], other[0].T, bias), 1),
    ):
        found = meter.total(product)
        assert (found.launches, found.flops) == (1, of_how_many * 2 * 5 * 6 * 7)


def test_windows_and_what_is_around_them(meter: Meter) -> None:
    x = there(2, 3, 8, 8, requires_grad=True)
    padded = meter.total(lambda: F.pad(x, (1, 1, 1, 1)))
    assert padded.launches == 2
    assert padded.bytes == 4 * 2 * 3 * (8 * 8 + 10 * 10)
    windows = x.unfold(2, 3, 1)
    assert meter.total(lambda: x.unfold(2, 3, 1)) == Count()
    back = meter.total(lambda: torch.autograd.grad(windows, x, torch.empty_like(windows)))
    assert back.operations == {"aten::unfold_backward": 2}
    around = F.pad(x, (1, 1, 1, 1))
    back = meter.total(lambda: torch.autograd.grad(around, x, torch.empty_like(around)))
    assert back.operations == {"aten::constant_pad_nd": 1}


def test_views_are_free_and_numbers_in_another_order_are_not(meter: Meter) -> None:
    x = there(4, 6)
    views = lambda: x.view(2, 2, 6).transpose(1, 2)[0].unsqueeze(0).expand(3, -1, -1).detach()  # noqa: E731
    assert meter.total(views) == Count()
    assert meter.total(lambda: torch.empty_like(x)) == Count()
    moved = meter.total(lambda: x.T.contiguous())
    assert (moved.launches, moved.bytes) == (1, 2 * 4 * 24)


def test_bytes_are_what_is_in_memory(meter: Meter) -> None:
    x, row = there(4, 6), there(6)
    assert meter.total(lambda: x + row.expand(4, 6)).bytes == 4 * (24 + 6 + 24)
    assert meter.total(lambda: x.zero_()).bytes == 4 * 24
    assert meter.total(lambda: x.add_(1)).bytes == 4 * 48
    rows = there(2, dtype=torch.int64).zero_()
    assert meter.total(lambda: there(1000, 6)[rows]).bytes == 2 * 8 + 4 * 2 * (2 * 6)
    assert meter.total(lambda: torch.add(x, x, out=there(4, 6))).bytes == 4 * 3 * 24


@pytest.mark.parametrize(
    ("copy", "size", "launches"),
    [
        (lambda: torch.ones(10).to("meta"), 40, 0),
        (lambda: torch.ones(10).to("meta", non_blocking=True), 40, 0),
        (lambda: torch.ones(10).pin_memory().to("meta"), 40, 0),
        (lambda: there(10).copy_(torch.ones(10)), 40, 0),
        (lambda: torch.tensor([1.0, 2.0], device="meta"), 8, 0),
        (lambda: torch.as_tensor([1, 2], device="meta"), 16, 0),
        (lambda: there(3).new_tensor([1.0, 2.0]), 8, 0),
        (lambda: there(5, 3)[torch.tensor([0, 4])], 16, 1),
    ],
)
def test_a_copy_to_the_device_waits(
    meter: Meter, copy: Callable[[], Tensor], size: int, launches: int
) -> None:
    found = meter.total(copy)
    assert (found.copies, found.copied_bytes, found.waits) == (1, size, 1)
    assert found.launches == launches


def test_a_copy_of_pinned_memory_need_not_wait(meter: Meter) -> None:
    buffer = torch.empty(10, pin_memory=True)
    assert buffer.is_pinned()
    for pinned in (torch.ones(10).pin_memory(), buffer, buffer[2:]):
        found = meter.total(lambda pinned=pinned: pinned.to("meta", non_blocking=True))  # type: ignore[misc]
        assert (found.copies, found.waits) == (1, 0)


def test_what_is_made_or_stays_on_one_side_is_no_copy(meter: Meter) -> None:
    x = there(3)
    on_cpu = meter.total(lambda: torch.ones(3).double().sum().item())
    assert on_cpu == Count()
    made = meter.total(lambda: (torch.zeros(3, device="meta"), torch.full((), 2.0, device="meta")))
    assert (made.launches, made.copies) == (2, 0)
    cast = meter.total(lambda: x.to(torch.bfloat16))
    assert (cast.launches, cast.copies, cast.bytes) == (1, 0, 3 * (4 + 2))
    assert meter.total(lambda: x * torch.tensor(2.0)).copies == 0  # one number goes with the launch


READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "bool": lambda x: bool(x[0]),
    "int": lambda x: int(x[0]),
    "float": lambda x: float(x[0]),
    "if": lambda x: 1 if x[0] else 2,
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x.bool()),
    "mask": lambda x: x[x.bool()],
    "numbers at a mask": lambda x: x.index_put_((x.bool(),), torch.empty_like(x)),
    "equal": lambda x: torch.equal(x, x),
    "copy to the CPU": lambda x: torch.empty(3).copy_(x),
    "repeats": lambda x: torch.repeat_interleave(x, x.long(), output_size=None, dim=0),
}


@pytest.mark.parametrize("name", READS)
def test_reading_is_a_wait(meter: Meter, name: str) -> None:
    x = there(3)
    meter.parts = {}
    try:
        READS[name](x)
    except RuntimeError:
        assert name == "repeats"  # of which nobody knows how many there are
    assert meter.here.waits == 1


def test_what_fills_in_or_says_its_size_is_no_wait(meter: Meter) -> None:
    x = there(3)

    def program() -> None:
        x[x.bool()] = 0.0
        x.masked_fill_(x.bool(), 1.0)
        torch.repeat_interleave(x, x.long(), output_size=9, dim=0)

    assert meter.total(program).waits == 0


def test_what_came_from_the_cpu_reads_as_that_and_all_else_as_one(meter: Meter) -> None:
    numbers = torch.tensor([3, 5]).to("meta")
    assert numbers.tolist() == torch.tensor([3, 5], device="meta").tolist() == [3, 5]
    assert numbers.add_(1).tolist() == [1, 1]
    assert there(2).tolist() == [1.0, 1.0]
    assert there(1).isfinite().all().item() is True


def test_norms(meter: Meter) -> None:
    x, weight = there(2, 4, 8, 8, requires_grad=True), there(4, requires_grad=True)
    y = F.group_norm(x, 2, weight, weight)
    assert meter.total(lambda: F.group_norm(x, 2, weight, weight)).launches == 3
    incoming = torch.empty_like(y)
    once = meter.total(lambda: torch.autograd.grad(y, x, incoming))
    assert once.operations == {"aten::native_group_norm_backward": 5}


@pytest.mark.parametrize("mapped", [False, True])
def test_our_norm_is_counted_as_it_is_launched(meter: Meter, mapped: bool) -> None:
    x, weight = there(6, 2, 4, 8, 8, requires_grad=True), there(6, 4, requires_grad=True)

    def all_orders() -> None:
        call: Callable[..., Tensor] = torch.vmap(norm_act_pool) if mapped else norm_act_pool
        given = (x, weight, weight) if mapped else (x[0], weight[0], weight[0])
        out = call(*given)
        (gradient,) = torch.autograd.grad(out, given[0], torch.empty_like(out), create_graph=True)
        torch.autograd.grad(gradient, given[0], torch.empty_like(gradient))

    found = meter.total(all_orders)
    ours = {name: n for name, n in found.operations.items() if name.startswith("cmikernels")}
    assert ours == {
        "cmikernels::norm_act_pool": 1,
        "cmikernels::norm_act_pool_backward": 2,
        "cmikernels::norm_act_pool_double_backward": 2,
    }


def test_cmi_is_one_launch_there_and_one_back(meter: Meter) -> None:
    features = there(40, 512, requires_grad=True)
    index = ClassIndex(torch.arange(4).repeat_interleave(10)).to("meta")
    value = fused_cmi(features, index, weight=3.0)
    forward = meter.total(lambda: fused_cmi(features, index, weight=3.0))
    assert (forward.launches, forward.waits) == (1, 0)
    assert forward.bytes == 4 * (2 * 40 * 512 + 1)
    incoming = there()
    backward = meter.total(lambda: torch.autograd.grad(value, features, incoming))
    assert (backward.launches, backward.waits) == (1, 0)


def test_an_optimizer_works_on_lists(meter: Meter) -> None:
    parameters = [there(8, 3), there(8)]
    for parameter in parameters:
        parameter.requires_grad_().grad = torch.empty_like(parameter)
    optimizer = torch.optim.SGD(parameters, 0.1)
    found = meter.total(optimizer.step)
    assert found.operations == {"aten::_foreach_add_": 1}
    assert found.bytes == 4 * 3 * (24 + 8)


@pytest.mark.parametrize(("momentum", "lists"), [(0.0, 2), (0.9, 3)])
def test_a_whole_step_of_an_optimizer_is_a_launch(
    meter: Meter, momentum: float, lists: int
) -> None:
    parameters = [there(8, 3), there(8)]
    for parameter in parameters:
        parameter.requires_grad_().grad = torch.empty_like(parameter)
    optimizer = torch.optim.SGD(parameters, 0.1, momentum, fused=True)
    optimizer.step()
    found = meter.total(optimizer.step)
    assert found.operations == {"aten::_fused_sgd_": 1}
    assert found.bytes == 4 * (24 + 8) * (2 * lists - 1)  # gradients are not written


def test_a_number_that_is_fetched_for_later_is_not_waited_for(meter: Meter) -> None:
    x = there().fill_(3.0)
    read: list[Callable[[], float]] = []
    found = meter.total(lambda: read.append(fetched(x)))
    assert (found.launches, found.copies, found.waits) == (0, 0, 0)
    assert meter.total(lambda: read[0]()) == Count()
    assert read[0]() == 1.0  # what was not computed
    assert meter.total(lambda: there().copy_(x).cpu()).waits == 1


def test_what_a_graph_does_again_is_one_call(meter: Meter) -> None:
    x, total = there(4, 6), there()

    def work(y: Tensor) -> None:
        total.add_((x * y).sum())

    again = Captured(work, META)
    plain = meter.total(lambda: again(x))
    assert (plain.launches, plain.calls) == (3, 3)
    for _ in range(CALLS_BEFORE - 1):
        again(x)
    captured, found = (meter.total(lambda: again(x)) for _ in range(2))
    assert (found.launches, found.calls) == (4, 2)  # with the copy to where the graph reads
    assert found.bytes == plain.bytes + 2 * 4 * 24
    assert captured - found == meter.total(lambda: x.clone())


def test_a_graph_that_would_wait_is_refused(meter: Meter) -> None:
    def work(x: Tensor) -> None:
        x.tolist()

    again = Captured(work, META)
    for _ in range(CALLS_BEFORE):
        again(there(4, 6))
    with pytest.raises(RuntimeError, match=r"expected work that can be captured, got .*'waits in"):
        again(there(4, 6))


def test_a_time_is_predicted_of_bytes_arithmetic_and_kernels(meter: Meter) -> None:
    x = there(1000, 1000)
    assert meter.total(lambda: x + 1).nanoseconds == 8_000_000 / 4e12 * 1e9 + 700
    assert meter.total(lambda: there(3).tolist()).nanoseconds == 0
    images, weight = there(256, 128, 32, 32), there(128, 128, 3, 3)
    found = meter.total(lambda: F.conv2d(images, weight, padding=1))
    assert found.flops == 2 * 256 * 128 * 32 * 32 * 128 * 9
    assert found.nanoseconds == round(found.flops / 135e12 * 1e9) + 700
    assert milliseconds(Count(calls=1000, nanoseconds=3_000_000)) == (3.0, 7.0, 7.0)
    assert milliseconds(Count(calls=100, nanoseconds=3_000_000)) == (3.0, 0.7, 3.0)
    assert milliseconds(Count(calls=100, waits=1, nanoseconds=3_000_000)) == (3.0, 0.7, 3.7)


def test_lists_that_are_long_or_large_take_several_launches() -> None:
    assert list_launches([0], 2) == 0
    assert list_launches([1] * 64, 2) == 1
    assert list_launches([1] * 65, 2) == 2
    assert list_launches([1] * 65, 1) == 1
    assert list_launches([320 * 65536], 1) == 1
    assert list_launches([320 * 65536 + 1], 1) == 2
    assert list_launches([319 * 65536, 2 * 65536], 1) == 2


def test_parts_are_the_outermost_ranges(meter: Meter) -> None:
    x = there(3)

    def program() -> None:
        x.exp()
        with record_function("one"):
            x.exp()
            with record_function("inside"):
                x.exp()
        with record_function("two"):
            x.tolist()

    found = meter.count(program)
    assert {name: (count.launches, count.waits) for name, count in found.items()} == {
        REST: (1, 0),
        "one": (2, 0),
        "two": (0, 1),
    }


def test_the_line_is_named(meter: Meter) -> None:
    images, rows = there(9, 3), torch.tensor([1, 2])
    found = meter.total(lambda: taken(images, rows))
    ((line, times),) = found.lines.items()
    assert times == 1
    assert line.startswith("copies in cmidd/datasets/streamed.py:")
    assert line.endswith(" taken")
    (line,) = meter.total(lambda: images.tolist()).lines
    assert line.startswith("waits in test_meter.py:")


def test_counts_add_up() -> None:
    one = Count(1, 10, 100, 1, 4, 2)
    one.lines["a"] = 2
    assert one + one == one * 2
    assert one * 2 - one == one
    assert one - one == Count()


def test_nothing_is_left_of_it() -> None:
    before = cmi.has_memory  # type: ignore[attr-defined]
    with metered():
        assert cmi.has_memory is not before  # type: ignore[attr-defined]
    assert cmi.has_memory is before  # type: ignore[attr-defined]
    with pytest.raises(NotImplementedError):
        there(3).nonzero()
