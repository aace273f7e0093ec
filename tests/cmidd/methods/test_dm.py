from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.plain import dm as plain_dm
from bench.plain.cmi import PlainCMI
from bench.plain.dm import PlainDM
from bench.plain.inputs import random_dataset, save_each, untrained_bank
from cmidd import augment
from cmidd.augment_operations import LATER, OPERATIONS
from cmidd.methods import dm
from cmidd.methods.dm import DM
from cmidd.networks import freeze
from cmidd.options.dm import DMOptions
from cmidd.seeds import generator
from cmikernels import CMIRegularizer
from tests.support.compare import relative_error
from tests.support.steps import step

CPU = torch.device("cpu")
RAGGED = (7, 12, 4, 9, 6)  # real images of each class; batches of 8 take all of some
OPTIONS = DMOptions(network="convnet:depth=2,width=8", batch_real=8)
BANK = "resnet18:width=4"
WEIGHT = 100.0  # makes the gradient of CMI as large as that of DM
SEED, ITERATION = 3, 5

Result = tuple[Tensor, Tensor, Tensor]  # loss of DM, weighted CMI, gradient of their sum


def labels_of(ipc: int) -> Tensor:
    return torch.arange(len(RAGGED)).repeat_interleave(ipc)


def images_of(ipc: int, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = (ipc * len(RAGGED), 3, 16, 16)
    return torch.randn(shape, generator=generator("synthetic", ipc)).to(dtype)


def ours(
    ipc: int = 2,
    dtype: torch.dtype = torch.float64,
    *,
    seed: int = SEED,
    mirror: bool = True,
    real: Sequence[int] = RAGGED,
    **options: Any,
) -> DM:
    dataset = random_dataset(real, 16, mirror=mirror)
    return DM(dataset, labels_of(ipc), replace(OPTIONS, **options), seed, CPU, dtype)


def plain(
    ipc: int = 2,
    dtype: torch.dtype = torch.float64,
    *,
    mirror: bool = True,
    cmi: PlainCMI | None = None,
    **options: Any,
) -> PlainDM:
    dataset = random_dataset(RAGGED, 16, mirror=mirror)
    return PlainDM(dataset, labels_of(ipc), replace(OPTIONS, **options), SEED, CPU, dtype, cmi=cmi)


def regularizer(dtype: torch.dtype) -> CMIRegularizer:
    bank = [freeze(network.to(dtype)) for network in untrained_bank(BANK, 16, len(RAGGED))]
    return CMIRegularizer(bank, WEIGHT, seed=SEED, chunk_size=20)


def our_result(ipc: int, augmentation: str, with_cmi: bool, dtype: torch.dtype) -> Result:
    images = images_of(ipc, dtype)
    loss, gradient = step(ours(ipc, dtype, augmentation=augmentation), images, ITERATION)
    if not with_cmi:
        return loss, torch.zeros_like(loss), gradient
    images.requires_grad_()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "every class has one image")
        value = regularizer(dtype)(images, labels_of(ipc), step=ITERATION)
    return loss, value.detach(), gradient + torch.autograd.grad(value, images)[0]


def plain_result(
    ipc: int, augmentation: str, with_cmi: bool, dtype: torch.dtype, folder: Path
) -> Result:
    files = save_each(untrained_bank(BANK, 16, len(RAGGED)), folder)
    cmi = PlainCMI(files, BANK, WEIGHT, regularizer(dtype).draw) if with_cmi else None
    loop = plain(ipc, dtype, augmentation=augmentation, cmi=cmi)
    return loop.step(images_of(ipc, dtype), ITERATION)


over_losses = pytest.mark.parametrize(
    ("ipc", "augmentation", "with_cmi"),
    list(itertools.product((1, 10, 50), ("none", OPTIONS.augmentation), (False, True))),
)


@over_losses
def test_a_step_is_the_plain_loops_in_float64(
    ipc: int, augmentation: str, with_cmi: bool, tmp_path: Path
) -> None:
    got = our_result(ipc, augmentation, with_cmi, torch.float64)
    expected = plain_result(ipc, augmentation, with_cmi, torch.float64, tmp_path)
    assert relative_error(got[0], expected[0]) < 1e-10
    # At ipc 1 CMI is 0, where the published expression leaves rounding.
    torch.testing.assert_close(got[1], expected[1], rtol=1e-10, atol=1e-10 if ipc == 1 else 0)
    assert relative_error(got[2], expected[2]) < 1e-10


@pytest.mark.parametrize("plain_dtype", [torch.float32, torch.float64])
@over_losses
def test_a_step_in_float32_is_near_the_plain_loops(
    ipc: int, augmentation: str, with_cmi: bool, plain_dtype: torch.dtype, tmp_path: Path
) -> None:
    got = our_result(ipc, augmentation, with_cmi, torch.float32)
    expected = plain_result(ipc, augmentation, with_cmi, plain_dtype, tmp_path)
    assert relative_error(got[0] + got[1], expected[0] + expected[1]) < 1e-5
    assert relative_error(got[2], expected[2]) < 1e-2


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("iteration", range(3))
def test_all_operations_in_turn_are_the_plain_loops(iteration: int, mirror: bool) -> None:
    strategy = f"all:{OPTIONS.augmentation}"
    got = step(ours(mirror=mirror, augmentation=strategy), images_of(2), iteration)
    expected = plain(mirror=mirror, augmentation=strategy).step(images_of(2), iteration)
    assert relative_error(got[0], expected[0]) < 1e-10
    assert relative_error(got[1], expected[2]) < 1e-10


def test_every_operation_changes_the_same_images_in_both_loops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_ours: Counter[str] = Counter()
    in_plain: Counter[str] = Counter()
    apply = augment._apply

    def counted_apply(part: augment.Part, images: Tensor) -> Tensor:
        in_ours[part.operation] += len(images)
        return apply(part, images)

    def counted(name: str, operation: plain_dm.Operation) -> plain_dm.Operation:
        def call(images: Tensor, u: list[float]) -> Tensor:
            in_plain[name] += len(images)
            return operation(images, u)

        return call

    monkeypatch.setattr(augment, "_apply", counted_apply)
    for name, (columns, operation) in plain_dm.DSA.items():
        monkeypatch.setitem(plain_dm.DSA, name, (columns, counted(name, operation)))
    loop, rival = ours(batch_real=2), plain(batch_real=2)
    for iteration in range(50):
        step(loop, images_of(2), iteration)
        rival.step(images_of(2), iteration)
    assert set(in_ours) == set(OPERATIONS) - set(LATER)
    assert in_ours == in_plain


def test_a_step_depends_on_seed_and_iteration_alone() -> None:
    images = images_of(2)
    loss, gradient = step(ours(), images, 7)
    used = ours()
    step(used, images, 0)
    again = step(used, images, 7)
    assert torch.equal(again[0], loss)
    assert torch.equal(again[1], gradient)
    assert not torch.equal(step(ours(), images, 8)[0], loss)
    assert not torch.equal(step(ours(seed=SEED + 1), images, 7)[0], loss)


def test_a_step_leaves_images_and_the_global_generator_alone() -> None:
    images = images_of(2).requires_grad_()
    before, state = images.detach().clone(), torch.get_rng_state()
    step(ours(), images, 0)
    assert torch.equal(images, before)
    assert images.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_differ_from_iteration_to_iteration() -> None:
    loop = ours()
    weights = []
    for iteration in range(4):
        loop.load_network(loop.draw(iteration, 0).weights)
        weights.append(torch.cat([p.flatten() for p in loop.network.parameters()]))
    for one, other in itertools.combinations(weights, 2):
        assert (one != other).double().mean() > 0.9  # norms are constant


@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_size_of_chunks_changes_nothing(
    chunk: int, ipc: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, gradient = step(ours(ipc), images_of(ipc), 0)
    monkeypatch.setattr(dm, "images_per_chunk", lambda *_: chunk)
    got = step(ours(ipc), images_of(ipc), 0)
    assert relative_error(got[0], loss) < 1e-12
    assert relative_error(got[1], gradient) < 1e-12


def test_classes_with_other_numbers_of_images_match_one_by_one() -> None:
    counts = (3, 1, 20, 2, 5)
    dataset = random_dataset(RAGGED, 16)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.randn(len(labels), 3, 16, 16, generator=generator("uneven")).double()
    got = step(DM(dataset, labels, OPTIONS, SEED, CPU, torch.float64), images, 0)
    expected = PlainDM(dataset, labels, OPTIONS, SEED, CPU, torch.float64).step(images, 0)
    assert relative_error(got[0], expected[0]) < 1e-10
    assert relative_error(got[1], expected[2]) < 1e-10


def test_a_class_smaller_than_the_batch_gives_all_its_images_once() -> None:
    loop = ours(batch_real=1000)
    plan, train = loop.plan(loop.draw(0, 0)), loop.dataset.train
    labels = torch.cat([train.labels[chunk.rows] for chunk in plan.real])
    real = torch.cat([loop.real_batch(chunk._replace(changes=[])) for chunk in plan.real])
    assert torch.equal(labels, train.labels)
    for c in range(len(RAGGED)):
        expected = loop.dataset.to_input(train.of_class(c), torch.float64).flatten(1)
        distances = torch.cdist(real[labels == c].flatten(1), expected)
        assert sorted(distances.argmin(dim=1).tolist()) == list(range(RAGGED[c]))
        assert distances.min(dim=1).values.max() == 0


def means(real_dtype: str, **options: Any) -> Tensor:
    """Class means of 5 x 32 real images in a wider network."""
    network = "convnet:depth=2,width=32"
    sizes = [32] * len(RAGGED)
    loop = ours(2, torch.float32, real=sizes, network=network, batch_real=32,
                real_dtype=real_dtype, **options)  # fmt: skip
    draws = loop.draw(0, 0)
    loop.load_network(draws.weights)
    (found,) = loop.real_statistics(loop.plan(draws).real, sizes)
    return found


def test_bfloat16_moves_class_means_little() -> None:
    exact, rounded = means("float32"), means("bfloat16")
    assert rounded.dtype == torch.float32
    assert 0 < relative_error(rounded, exact) < 5e-3


def test_bfloat16_on_the_real_branch_gives_nearly_the_same_step() -> None:
    images = images_of(10, torch.float32)
    exact = step(ours(10, torch.float32), images, 0)
    rounded = step(ours(10, torch.float32, real_dtype="bfloat16"), images, 0)
    assert relative_error(rounded[0], exact[0]) < 1e-2
    assert relative_error(rounded[1], exact[1]) < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("real_dtype", ["float32", "bfloat16"])
def test_a_compiled_real_branch_gives_the_same_means(real_dtype: str) -> None:
    tolerance = 1e-5 if real_dtype == "float32" else 5e-3
    exact, compiled = means(real_dtype), means(real_dtype, compile=True)
    assert relative_error(compiled, exact) < tolerance
