"""CMIRegularizer in a loop: steps, real centroids, autocast, the compiler, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cmikernels import ClassIndex, CMIRegularizer, class_centroids
from tests.support.compare import relative_error
from tests.support.small_network import (
    CHANNELS,
    RAGGED,
    WEIGHT,
    assert_same,
    evaluate,
    expected,
    features_of,
    make_images,
    make_network,
)
from tests.support.tables import make_labels, make_probabilities


def test_draws_depend_on_seed_and_step_alone() -> None:
    networks = [make_network(seed) for seed in range(8)]
    one, same = (CMIRegularizer(networks, networks_per_step=3, seed=1) for _ in range(2))
    other = CMIRegularizer(networks, networks_per_step=3, seed=2)
    one(make_images(4), make_labels((2, 2)))
    steps = range(40)
    draws = [one.draw(step) for step in steps]
    assert [same.draw(step) for step in reversed(steps)] == draws[::-1]
    assert [other.draw(step) for step in steps] != draws
    assert all(len(set(draw)) == 3 for draw in draws)
    assert {number for draw in draws for number in draw} == set(range(8))


def test_step_counts_on_from_the_last_one() -> None:
    networks = [make_network(seed) for seed in range(8)]
    images, labels = make_images(4), make_labels((2, 2))
    counting, told = CMIRegularizer(networks), CMIRegularizer(networks)
    values = [float(counting(images, labels).detach()) for _ in range(6)]
    assert values == [float(told(images, labels, step=step).detach()) for step in range(6)]
    assert len(set(values)) > 1
    counting(images, labels, step=40)
    assert float(counting(images, labels).detach()) == float(told(images, labels, step=41).detach())


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_every_k_steps_the_others_give_zero_with_a_graph(chunk_size: int | None) -> None:
    regularizer = CMIRegularizer(make_network(), chunk_size=chunk_size, every=3)
    images, labels = make_images(4), make_labels((2, 2))
    applied = []
    for _ in range(7):
        value = regularizer(images, labels)
        (gradient,) = torch.autograd.grad(value, images)
        assert value.dtype == torch.float64
        assert bool(value.detach() > 0) == bool(gradient.any())
        applied.append(bool(gradient.any()))
    assert applied == [True, False, False] * 2 + [True]


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_one_image_per_class_is_zero_with_one_warning(chunk_size: int | None) -> None:
    regularizer = CMIRegularizer(make_network(), chunk_size=chunk_size)
    images = make_images(3)
    with pytest.warns(UserWarning, match="every class has one image") as caught:
        value = regularizer(images, torch.tensor([2, 0, 1]))
    (gradient,) = torch.autograd.grad(value, images)
    assert [warning.filename for warning in caught] == [__file__]
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_one_image_per_class_is_compared_with_given_centroids(chunk_size: int | None) -> None:
    network, images, labels = make_network(), make_images(3), torch.tensor([2, 0, 1])
    centroids = make_probabilities((3, CHANNELS)).double()
    regularizer = CMIRegularizer(network, WEIGHT, chunk_size=chunk_size, centroids=centroids)
    ours = evaluate(regularizer, images, labels)
    assert ours[0] > 0
    assert_same(ours, expected(features_of(network), images, labels, centroids=centroids))


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_labels_need_not_reach_the_last_class_of_the_centroids(chunk_size: int | None) -> None:
    network, images, labels = make_network(), make_images(4), torch.tensor([1, 0, 1, 0])
    centroids = make_probabilities((6, CHANNELS)).double()
    regularizer = CMIRegularizer(network, WEIGHT, chunk_size=chunk_size, centroids=centroids)
    theirs = expected(features_of(network), images, labels, centroids=centroids[:2])
    assert_same(evaluate(regularizer, images, labels), theirs)


@pytest.mark.parametrize("layer", ["features", "logits", "hidden"])
@pytest.mark.parametrize("chunk_size", [None, 4, 50])
def test_autocast_changes_nothing(chunk_size: int | None, layer: str) -> None:
    network, images = make_network(0, torch.float32), make_images(len(RAGGED), torch.float32)
    regularizer = CMIRegularizer(network, WEIGHT, chunk_size=chunk_size, layer=layer)
    plain = evaluate(regularizer, images, RAGGED)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images).dtype == torch.bfloat16
        value = regularizer(images, RAGGED, step=0)
    (gradient,) = torch.autograd.grad(value, images)
    assert torch.equal(value, plain[0])
    assert torch.equal(gradient, plain[1])


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_network_in_bfloat16_is_warned_of(chunk_size: int | None) -> None:
    regularizer = CMIRegularizer(make_network(0, torch.bfloat16), chunk_size=chunk_size)
    with pytest.warns(UserWarning, match="bfloat16 has images and a grad.*use float32 networks"):
        regularizer(make_images(len(RAGGED), torch.bfloat16), RAGGED)


def test_real_centroids_count_every_image_once_however_batches_come() -> None:
    networks = [make_network(seed) for seed in range(2)]
    images, temperature = make_images(len(RAGGED)), 2.0
    regularizer = CMIRegularizer(networks, temperature=temperature)
    whole = torch.stack(
        [
            class_centroids(features_of(network)(images), RAGGED, temperature=temperature)
            for network in networks
        ]
    )
    rows = torch.arange(len(RAGGED)).chunk(7)
    batches = [(images[some], RAGGED[some]) for some in rows]
    for order in (batches, batches[::-1]):
        ours = regularizer.real_centroids(order, 5)
        assert ours.shape == (2, 5, CHANNELS)
        assert not ours.requires_grad
        assert relative_error(ours, whole) <= 1e-7


def test_real_centroids_of_the_images_themselves_give_their_own_cmi() -> None:
    network, images = make_network(), make_images(len(RAGGED))
    regularizer = CMIRegularizer(network, WEIGHT)
    value = regularizer(images, RAGGED)
    regularizer.centroids = regularizer.real_centroids([(images.detach(), RAGGED)], 5)
    assert relative_error(regularizer(images, RAGGED), value) <= 1e-6


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("as_index", [False, True], ids=["labels", "index"])
def test_real_centroids_of_images_and_labels_are_those_of_batches(
    as_index: bool, chunk_size: int | None
) -> None:
    networks, images = [make_network(seed) for seed in range(2)], make_images(len(RAGGED))
    sizes: list[int] = []
    networks[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    regularizer = CMIRegularizer(networks, chunk_size=chunk_size)
    labels = ClassIndex(RAGGED) if as_index else RAGGED
    ours = regularizer.real_centroids(images, labels)
    assert max(sizes) == (chunk_size or len(RAGGED))
    theirs = regularizer.real_centroids([(images, RAGGED)], 5)
    assert ours.shape == theirs.shape
    assert relative_error(ours, theirs) <= 1e-12


@pytest.mark.parametrize("order", [1, -1])
def test_real_centroids_find_the_number_of_classes(order: int) -> None:
    images, labels = make_images(6), torch.tensor([0, 1, 0, 2, 1, 3])
    regularizer = CMIRegularizer(make_network())
    batches = [(images[some], labels[some]) for some in torch.split(torch.arange(6), 2)][::order]
    ours = regularizer.real_centroids(batches)
    assert relative_error(ours, regularizer.real_centroids(batches, num_classes=4)) <= 1e-12
    assert relative_error(ours, regularizer.real_centroids(images, labels)) <= 1e-12
    assert ours.shape == (1, 4, CHANNELS)


def test_real_centroids_come_from_a_loader() -> None:
    images = make_images(len(RAGGED)).detach()
    loader = DataLoader(TensorDataset(images, RAGGED), 7)
    regularizer = CMIRegularizer(make_network())
    whole = regularizer.real_centroids(images, RAGGED)
    assert relative_error(regularizer.real_centroids(loader), whole) <= 1e-12


@pytest.mark.parametrize("batches", [[], [(make_images(3).detach(), torch.tensor([3, 0, 3]))]])
def test_real_centroids_of_a_class_without_images_are_an_error(batches: Any) -> None:
    missing = r"\[1, 2\]" if batches else r"\[0, 1, 2, 3\]"
    with pytest.raises(ValueError, match=f"batches: expected images of every class.*{missing}"):
        CMIRegularizer(make_network()).real_centroids(batches, 4)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("chunk_size", [None, 4, 50])
def test_a_compiled_training_step_gives_the_same_numbers(chunk_size: int | None) -> None:
    networks = [make_network(seed) for seed in range(4)]
    regularizer = CMIRegularizer(networks, WEIGHT, chunk_size=chunk_size)
    index, images = ClassIndex(RAGGED), make_images(len(RAGGED))

    def loss(images: Tensor) -> Tensor:
        value: Tensor = regularizer(images.sin(), index)
        return 2 * value + images.square().sum()

    # Recorded and not made errors of: torch itself hides one of its own, on the way to be shown.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = torch.compile(loss, backend="aot_eager")
        ours = [torch.autograd.grad(compiled(images), images)[0] for _ in range(4)]
    assert [str(warning.message) for warning in caught] == []
    regularizer.step = 0
    for gradient in ours:
        (plain,) = torch.autograd.grad(loss(images), images)
        assert relative_error(gradient, plain) <= 1e-10


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_transforms_of_torch_func_are_refused(chunk_size: int | None) -> None:
    regularizer = CMIRegularizer(make_network(), chunk_size=chunk_size)
    images = make_images(len(RAGGED)).detach()
    with pytest.raises(RuntimeError, match=r"torch.func.grad, .*use torch.autograd.grad"):
        torch.func.grad(lambda x: regularizer(x, RAGGED))(images)
    with pytest.raises(RuntimeError, match=r"torch.func.vmap is refused, .*; give all at once"):
        torch.func.vmap(lambda x: regularizer(x, RAGGED))(images[None])


CALL = """
import torch
from cmikernels import CMIRegularizer
images = torch.ones(4, 3, requires_grad=True)
regularizer = CMIRegularizer(torch.nn.Linear(3, 2).eval().requires_grad_(False))
regularizer(images, torch.tensor([0, 0, 1, 1])).backward()
"""


@pytest.mark.parametrize("program", ["import cmikernels", CALL], ids=["import", "call"])
def test_the_compiler_is_not_loaded(program: str) -> None:
    program += "\nimport sys; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


# Printed: what one value and gradient adds to the peak of resident memory, in bytes.
MEASURE = """
import sys
import torch
from cmidd.networks import build_network, freeze, initialize
from cmikernels import CMIRegularizer
torch.set_num_threads(1)
images_per_class, chunk_size = map(int, sys.argv[1:])
network = build_network("resnet18:width=16", 3, 32, 10)
initialize(network, torch.Generator().manual_seed(0))
regularizer = CMIRegularizer(freeze(network), chunk_size=chunk_size or None)

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if "VmHWM" in line) * 1024

def call(images, labels):
    regularizer(images.requires_grad_(), labels).backward()

call(torch.ones(2, 3, 32, 32), torch.zeros(2).long())  # whatever is loaded at first use
images = torch.empty(10 * images_per_class, 3, 32, 32).normal_()
labels = torch.arange(10).repeat(images_per_class)
before = peak()
call(images, labels)
print(peak() - before)
"""


def activations(images_per_class: int, chunk_size: int) -> int:
    """Bytes that a call needs beyond the gradient; chunk size 0 is one batch."""
    finished = subprocess.run(
        [sys.executable, "-c", MEASURE, str(images_per_class), str(chunk_size)],
        # A fixed threshold makes glibc return every large block at once, as the peak assumes.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return int(finished.stdout) - 10 * images_per_class * 4 * 3 * 32 * 32


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_images() -> None:
    few = activations(10, 50)
    assert activations(10, 0) > 1.5 * few, "the measurement missed the activations"
    assert activations(500, 50) <= 1.2 * few
