from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.plain.idc import PlainIDC
from bench.plain.inputs import random_dataset
from cmidd.augment import Strategy, draw
from cmidd.datasets import Dataset
from cmidd.methods.class_gradients import GradientsClassByClass, GradientsTogether
from cmidd.methods.idc import IDC
from cmidd.options.idc import METRICS, IDCOptions
from cmidd.seeds import generator
from tests.support.compare import relative_error
from tests.support.steps import check_network_trains_between_updates, step
from tests.support.tiny import CPU

RAGGED = (7, 12, 5)  # real images of each class; batches of 6 take all of some
OPTIONS = IDCOptions(
    "convnet:depth=2,width=4",
    factor=2,
    batch_real=6,
    batch_syn=10,
    inner_steps=5,
    metric="mse",
    lr_net=0.1,
    batch_net=7,
    images_net=15,
    cutmix_net=0.5,
    augmentation="idc:color_crop_cutout",
)
SEED, PIXELS = 3, 8
CLASSES = len(RAGGED)


def dataset_of(pixels: int = PIXELS) -> Dataset:
    """Channels differ, so that one of them in the place of another is seen."""
    return replace(random_dataset(RAGGED, pixels), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def labels_of(ipc: int) -> Tensor:
    return torch.arange(CLASSES).repeat_interleave(ipc)


def pixels_of(ipc: int, pixels: int = PIXELS) -> Tensor:
    shape = (CLASSES * ipc, 3, pixels, pixels)
    return torch.rand(shape, generator=generator("pixels", ipc), dtype=torch.float64)


def of_channels(numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1)


def stored(pixels: Tensor) -> Tensor:
    dataset = dataset_of()
    return (pixels - of_channels(dataset.mean)) / of_channels(dataset.std)


def as_pixels(images: Tensor) -> Tensor:
    dataset = dataset_of()
    return images * of_channels(dataset.std) + of_channels(dataset.mean)


def ours(ipc: int, *, way: str = "in turn", pixels: int = PIXELS, **options: Any) -> IDC:
    made = replace(OPTIONS, **options)
    loop = IDC(dataset_of(pixels), labels_of(ipc), made, SEED, CPU, torch.float64)
    names = loop.distance.names
    if way == "together":
        loop.gradients = GradientsTogether(loop.stack, names, 2)
    else:
        loop.gradients = GradientsClassByClass(loop.stack, names, 4)
    return loop


def plain(ipc: int, *, pixels: int = PIXELS, **options: Any) -> PlainIDC:
    made = replace(OPTIONS, **options)
    return PlainIDC(dataset_of(pixels), labels_of(ipc), made, SEED, CPU, torch.float64)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ipc", [1, 10])
def test_updates_with_training_between_them_are_the_plain_loops(ipc: int, metric: str) -> None:
    images, expected = stored(pixels_of(ipc)), plain(ipc, metric=metric)
    loops = [ours(ipc, way=way, metric=metric) for way in ("in turn", "together")]
    for update in range(3):
        loss, gradient = expected.step(images, 2, update)
        for loop in loops:
            found_loss, found = step(loop, images, 2, update)
            assert relative_error(found_loss, loss) < 1e-10
            assert relative_error(found, gradient) < 1e-10
        images = images - 0.01 * gradient


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 1},
        {"factor": 3, "pixels": 10},  # a row and a column of grey are added twice
        {"batch_syn": 3},
        {"cutmix_net": 0.0},
        {"cutmix_net": 1.0, "images_net": 1000},
        {"augmentation": "none"},
        {"augmentation": "idc:color_crop_cutout_flip_scale_rotate"},
    ],
    ids=str,
)
def test_other_settings_are_the_plain_loops(options: dict[str, Any]) -> None:
    images = torch.randn(CLASSES * 2, 3, *[options.get("pixels", PIXELS)] * 2).double()
    expected, loop = plain(2, **options), ours(2, **options)
    for update in range(2):
        loss, gradient = expected.step(images, 0, update)
        found_loss, found = step(loop, images, 0, update)
        assert relative_error(found_loss, loss) < 1e-10
        assert relative_error(found, gradient) < 1e-10


def run_ours(loop: IDC, images: Tensor, lr: float, iterations: int) -> None:
    """What the loop around methods does."""
    optimizer = loop.optimizer([{"params": [images], "lr": lr}], 0.5)
    assert loop.channel_scale is not None
    for iteration in range(iterations):
        loop.constrain_images(images.detach())
        for update in range(loop.updates):
            gradient = step(loop, images, iteration, update)[1]
            images.grad = gradient * loop.channel_scale.view(-1, 1, 1)
            optimizer.step()


def run_plain(loop: PlainIDC, pixels: Tensor, lr: float, iterations: int) -> Tensor:
    """The published order, and what its momentum does afterwards, which all classes come to see."""
    optimizer = torch.optim.SGD([pixels], lr, 0.5)
    for iteration in range(iterations):
        loop.turn(pixels, optimizer, iteration)
    found = []
    for rows in loop.classes:
        found.append(pixels[rows].detach().clone())
        pixels.grad = torch.zeros_like(pixels)
        optimizer.step()
    return torch.cat(found)


@pytest.mark.parametrize("ipc", [1, 10])
def test_an_iteration_of_one_step_for_all_classes_is_that_of_a_step_after_each(ipc: int) -> None:
    pixels = pixels_of(ipc)
    images = stored(pixels).requires_grad_()
    run_ours(ours(ipc), images, 0.002, 1)
    expected = run_plain(plain(ipc), pixels.clone().requires_grad_(), 0.002, 1)
    assert relative_error(expected, pixels) > 1e-4
    assert relative_error(as_pixels(images) - pixels, expected - pixels) < 1e-10


def test_clamping_in_the_published_order_needs_its_option() -> None:
    pixels, lr = pixels_of(1), 0.05
    expected = run_plain(plain(1), pixels.clone().requires_grad_(), lr, 2)
    found = {}
    for per_class_step in (False, True):
        images = stored(pixels).requires_grad_()
        run_ours(ours(1, per_class_step=per_class_step), images, lr, 2)
        found[per_class_step] = relative_error(as_pixels(images) - pixels, expected - pixels)
    assert found[True] < 1e-9
    assert 1e-6 < found[False] < 0.5


def test_what_is_stored_is_clamped_to_pixels() -> None:
    loop = ours(1)
    images = stored(pixels_of(1) * 4 - 2)
    loop.constrain_images(images)
    expected = (pixels_of(1) * 4 - 2).clamp(0, 1)
    torch.testing.assert_close(as_pixels(images), expected, atol=1e-7, rtol=0)


def test_every_update_sees_other_images_and_the_network_as_it_is_trained() -> None:
    loop, images = ours(10), stored(pixels_of(10))
    one, other = loop.draw(0, 1), loop.draw(0, 2)
    assert not torch.equal(one.cells[0], other.cells[0])
    assert not torch.equal(one.real[1], other.real[1])
    check_network_trains_between_updates(loop, images)


def test_the_state_within_an_iteration_is_all_that_it_depends_on() -> None:
    images = stored(pixels_of(2))
    loop = ours(2)
    for update in range(3):
        step(loop, images, 0, update)
    state = {name: tensor.clone() for name, tensor in loop.state().items()}
    expected = step(loop, images, 0, 3)
    again = ours(2)
    again.load_state(state)
    assert all(map(torch.equal, step(again, images, 0, 3), expected))
    step(again, images, 0, 4)
    assert again.state() == {}
    with pytest.raises(RuntimeError, match="update 3 of iteration 0: updates are 0 to 4"):
        step(again, images, 0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 9}, "factor: expected one that leaves pixels of 8 x 8 in every cell, got 9"),
        ({"factor": 5}, "factor: expected one that leaves pixels of 8 x 8 in every cell, got 5"),
        ({"metric": "l2"}, "metric: expected mse or l1 or rows or cosine, got 'l2'"),
        ({"cutmix_net": 1.5}, "cutmix_net: expected a probability from 0 to 1, got 1.5"),
        ({"batch_syn": 0}, "batch_syn: expected at least 1, got 0"),
        (
            {"network": "mlp"},
            "network: expected one with convolutions, whose gradients are matched",
        ),
        ({"network": "convnet:norm=batch"}, "network: expected one whose features depend on one"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(1, **options)


def test_whitened_images_are_refused() -> None:
    with pytest.raises(ValueError, match="zca: expected images without whitening"):
        IDC(dataset_of().whitened(), labels_of(1), OPTIONS, SEED, CPU)


def test_augmentation_is_flip_color_one_of_three_and_cutout_in_turn() -> None:
    strategy = Strategy.parse("idc:rotate_cutout_crop_color_scale_flip")
    assert str(strategy) == "idc:rotate_cutout_crop_color_scale_flip"
    drawn = draw(strategy, 300, generator("draws"))
    names = [[strategy.operations[k] for k in row] for row in drawn.operations.tolist()]
    assert {(a, b, d) for a, b, _, d in names} == {("flip", "color", "cutout")}
    counts = Counter(third for _, _, third, _ in names)
    assert counts.keys() == {"crop", "scale", "rotate"}
    assert min(counts.values()) > 60
    of_batch = draw(strategy, 300, generator("draws"), one_operation=True).operations
    assert len(set(map(tuple, of_batch.tolist()))) == 1
    assert len(of_batch) == 300
    less = Strategy.parse("idc:color_crop_flip", mirror=False)
    assert draw(less, 2, generator("draws")).operations.tolist() == [[0, 1], [0, 1]]
