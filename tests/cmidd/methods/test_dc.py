from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from bench.plain.dc import PlainDC
from bench.plain.inputs import random_dataset
from cmidd.methods.class_gradients import GradientsClassByClass, GradientsTogether
from cmidd.methods.dc import GradientMatching
from cmidd.networks import images_per_chunk
from cmidd.options.dc import METRICS, DCOptions
from cmidd.options.dsa import DSAOptions
from cmidd.seeds import generator
from tests.support.compare import relative_error
from tests.support.steps import check_network_trains_between_updates, step

CPU = torch.device("cpu")
RAGGED = (7, 12, 4)  # real images of each class; batches of 8 take all of some
DSA = DSAOptions().augmentation
OPTIONS = DCOptions(
    "convnet:depth=2,width=4", batch_real=8, outer_steps=3, inner_epochs=2, lr_net=0.1, batch_net=20
)
SEED, ITERATION, PIXELS = 3, 5, 8
WAYS = ("in turn", "together")

Result = tuple[Tensor, Tensor]  # loss, gradient


def labels_of(ipc: int) -> Tensor:
    return torch.arange(len(RAGGED)).repeat_interleave(ipc)


def images_of(ipc: int, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = (ipc * len(RAGGED), 3, PIXELS, PIXELS)
    return torch.randn(shape, generator=generator("synthetic", ipc)).to(dtype)


def ours(
    ipc: int = 2,
    dtype: torch.dtype = torch.float64,
    *,
    way: str = "in turn",
    chunk: int | None = None,
    seed: int = SEED,
    mirror: bool = True,
    real: Sequence[int] = RAGGED,
    labels: Tensor | None = None,
    **options: Any,
) -> GradientMatching:
    """The method; `chunk` images of a class in turn, or classes together, go through at once."""
    dataset = random_dataset(real, PIXELS, mirror=mirror)
    labels = labels_of(ipc) if labels is None else labels
    loop = GradientMatching(dataset, labels, replace(OPTIONS, **options), seed, CPU, dtype)
    names = loop.distance.names
    if way == "together":
        loop.gradients = GradientsTogether(loop.stack, names, chunk or 2)
    else:
        loop.gradients = GradientsClassByClass(loop.stack, names, chunk or 3)
    return loop


def plain(
    ipc: int = 2,
    dtype: torch.dtype = torch.float64,
    *,
    mirror: bool = True,
    labels: Tensor | None = None,
    **options: Any,
) -> PlainDC:
    dataset = random_dataset(RAGGED, PIXELS, mirror=mirror)
    labels = labels_of(ipc) if labels is None else labels
    return PlainDC(dataset, labels, replace(OPTIONS, **options), SEED, CPU, dtype)


def updates(
    loop: GradientMatching | PlainDC, images: Tensor, iteration: int = ITERATION, count: int = 3
) -> list[Result]:
    """Those of one iteration; the images take a step of SGD after each."""
    results = []
    for update in range(count):
        if isinstance(loop, PlainDC):
            loss, gradient = loop.step(images, iteration, update)
        else:
            loss, gradient = step(loop, images, iteration, update)
        results.append((loss, gradient))
        images = images - 0.1 * gradient
    return results


def assert_equal(got: list[Result], expected: list[Result], tolerance: float = 1e-10) -> None:
    for (loss, gradient), (expected_loss, expected_gradient) in zip(got, expected, strict=True):
        assert loss.dtype == gradient.dtype == expected_gradient.dtype
        assert relative_error(loss, expected_loss) < tolerance
        assert relative_error(gradient, expected_gradient) < tolerance


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("augmentation", ["none", DSA])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_updates_with_training_between_them_are_the_plain_loops_in_float64(
    ipc: int, augmentation: str, metric: str
) -> None:
    options: dict[str, Any] = {"augmentation": augmentation, "metric": metric}
    images, count = images_of(ipc), 2 if ipc == 50 else 3
    expected = updates(plain(ipc, **options), images, count=count)
    for way in WAYS:
        chunk = 16 if way == "in turn" and ipc == 50 else None
        assert_equal(
            updates(ours(ipc, way=way, chunk=chunk, **options), images, count=count), expected
        )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("operation", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_each_operation_alone_is_the_plain_loops(operation: str, way: str) -> None:
    got = updates(ours(way=way, augmentation=operation), images_of(2), count=2)
    assert_equal(got, updates(plain(augmentation=operation), images_of(2), count=2))


def test_a_dataset_without_mirrors_is_never_flipped() -> None:
    strategy = f"all:{DSA}"
    got = updates(ours(mirror=False, augmentation=strategy), images_of(2))
    assert_equal(got, updates(plain(mirror=False, augmentation=strategy), images_of(2)))


@pytest.mark.parametrize("way", WAYS)
def test_classes_with_other_numbers_of_images_are_the_plain_loops(way: str) -> None:
    labels = torch.arange(3).repeat_interleave(torch.tensor((3, 1, 20)))
    images = torch.randn(len(labels), 3, PIXELS, PIXELS, generator=generator("uneven")).double()
    assert_equal(
        updates(ours(labels=labels, way=way), images), updates(plain(labels=labels), images)
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("metric", METRICS)
def test_float32_is_near_float64(metric: str, way: str) -> None:
    options: dict[str, Any] = {"metric": metric, "augmentation": DSA}
    got = updates(ours(10, torch.float32, way=way, **options), images_of(10, torch.float32))
    exact = updates(ours(10, **options), images_of(10))
    for (loss, gradient), (exact_loss, exact_gradient) in zip(got, exact, strict=True):
        assert loss.dtype == gradient.dtype == torch.float32
        assert relative_error(loss, exact_loss) < 1e-5
        assert relative_error(gradient, exact_gradient) < 1e-2


@pytest.mark.parametrize(("way", "chunks"), [("in turn", (1, 7, 100)), ("together", (1, 3, 100))])
def test_the_size_of_chunks_changes_nothing_but_rounding(way: str, chunks: tuple[int, ...]) -> None:
    results = [
        updates(ours(10, way=way, chunk=chunk, augmentation=DSA), images_of(10)) for chunk in chunks
    ]
    for got in results[1:]:
        assert_equal(got, results[0])


def test_no_part_is_larger_than_asked_for_however_many_images_a_class_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = ours(10, chunk=3, batch_real=8)
    seen: list[int] = []
    forward = loop.stack.network.forward

    def noting(x: Tensor) -> Tensor:
        seen.append(len(x))
        return forward(x)

    monkeypatch.setattr(loop.stack.network, "forward", noting)
    step(loop, images_of(10), 0)
    assert max(seen) == 3
    # Synthetic ones go through once for the whole gradient and once for their own.
    assert sum(seen) == sum(min(8, real) for real in RAGGED) + 2 * len(images_of(10))


def test_gradients_that_nobody_differentiates_again_keep_no_graph_for_it() -> None:
    # Its norm is torch's own, whose events are known.
    loop = ours(way="together", network="convnet:depth=2,width=4,pooling=max")
    images = images_of(2)
    classes = range(len(RAGGED)), [2] * len(RAGGED)
    with profile(activities=[ProfilerActivity.CPU]) as once:
        loop.gradients(images, *classes)
    with profile(activities=[ProfilerActivity.CPU]) as twice:
        loop.gradients.match(images, *classes, lambda g: (g.sum(), torch.ones_like(g)))
    backward = "aten::native_group_norm_backward"  # which second derivatives cannot go through
    used, used_twice = ({event.key for event in p.key_averages()} for p in (once, twice))
    assert backward in used
    assert backward not in used_twice


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_updates_whatever_came_before() -> None:
    images = images_of(10, torch.float32)

    def loop() -> GradientMatching:
        return ours(10, torch.float32, chunk=8, real=(32, 20, 16), batch_real=20)

    expected = updates(loop(), images)
    compiled = loop()
    compiled.stack.compile(8)  # and parts of 4 and 2, and batches of 20 and 10, are left alone
    counters.clear()
    first = updates(compiled, images)
    assert counters["frames"]["ok"] == 1
    for (loss, gradient), (expected_loss, expected_gradient) in zip(first, expected, strict=True):
        assert relative_error(loss, expected_loss) < 1e-5
        assert relative_error(gradient, expected_gradient) < 1e-2
    again = updates(compiled, images)
    for got, expected_bits in zip(again, first, strict=True):
        assert all(map(torch.equal, got, expected_bits))
    assert counters["frames"]["ok"] == 1


def test_what_is_compiled_are_whole_parts() -> None:
    loop = ours(compile=True)
    part = images_per_chunk(CPU, PIXELS, 0)
    assert part > loop.batch_real
    assert loop.stack._compiled_for == {loop.batch_real, len(labels_of(2))}
    assert ours().stack._compiled is None


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("way", WAYS)
def test_filters_that_are_dead_for_all_images_give_finite_numbers(way: str, metric: str) -> None:
    loop = ours(way=way, metric=metric, network="convnet:depth=2,width=4,norm=none")
    draws = loop.draw(ITERATION, 0)
    loop.load_network(draws.weights)
    with torch.no_grad():
        loop.stack.state["features.0.weight"][:, :2] = 0.0
        loop.stack.state["features.0.bias"][:, :2] = -1.0
    loss, gradient = loop.match(images_of(2), draws, loop.plan(draws).groups)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()


def test_a_class_smaller_than_the_batch_gives_all_its_images_once() -> None:
    loop = ours(batch_real=1000)
    rows = loop.draw(0, 0).real
    offsets = loop.dataset.train.offsets.tolist()
    for of_class, (first, last) in zip(rows, itertools.pairwise(offsets), strict=True):
        assert sorted(of_class.tolist()) == list(range(first, last))


def test_draws_depend_on_seed_iteration_and_update_alone() -> None:
    images = images_of(2)
    expected = updates(ours(augmentation=DSA), images)
    used = ours(augmentation=DSA)
    updates(used, images_of(2) + 1, iteration=2, count=2)
    assert_equal(updates(used, images), expected, tolerance=1e-15)
    assert_equal(updates(used, images), expected, tolerance=1e-15)
    for other in (
        updates(ours(augmentation=DSA, seed=SEED + 1), images),
        updates(ours(augmentation=DSA), images, iteration=ITERATION + 1),
    ):
        assert all(relative_error(a[1], b[1]) > 0.1 for a, b in zip(other, expected, strict=True))


def test_every_update_takes_other_real_images_and_another_network() -> None:
    loop = ours()
    assert not torch.equal(loop.draw(0, 0).real[1], loop.draw(0, 1).real[1])
    check_network_trains_between_updates(loop, images_of(2))


def test_images_their_gradients_and_the_global_generator_are_left_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    images = images_of(2).requires_grad_()
    before = images.detach().clone()
    loop = ours(augmentation=DSA)
    results = [step(loop, images, 0, update) for update in range(2)]
    assert torch.equal(images, before)
    assert images.grad is None
    assert not any(t.requires_grad for result in results for t in result)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrong", [(0, 1), (0, 3), (1, 2), (0, -1)])
def test_an_update_out_of_order_is_refused(wrong: tuple[int, int]) -> None:
    loop = ours()
    images = images_of(2)
    step(loop, images, 0, 0)
    step(loop, images, 0, 1)
    with pytest.raises(RuntimeError, match=f"update {wrong[1]} of iteration {wrong[0]}"):
        step(loop, images, *wrong)
    step(loop, images, 0, 2)


def test_the_first_step_of_all_is_an_update_0() -> None:
    with pytest.raises(RuntimeError, match="update 1 of iteration 0"):
        step(ours(), images_of(2), 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "l1"}, "metric: expected rows or mse or cosine, got 'l1'"),
        ({"outer_steps": None}, "outer_steps: expected a whole number from 1 on, got None"),
        ({"inner_epochs": 0}, "inner_epochs: expected at least 1, got 0"),
        ({"batch_real": 2.5}, "batch_real: expected a whole number from 1 on, got 2.5"),
        ({"batch_net": True}, "batch_net: expected a whole number from 1 on, got True"),
        ({"network": "convnet:norm=batch"}, "network: expected one whose features depend on one"),
        ({"augmentation": "colour"}, "augmentation: no operation 'colour'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(**options)


def test_the_number_of_updates_is_the_options() -> None:
    assert ours(outer_steps=7).updates == 7
