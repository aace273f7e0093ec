"""InfoNCE beside a method: what it adds to a step, and what it is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.first_images import first_images
from cmidd.infonce_term import InfoNCETerm
from cmidd.methods import METHODS, Method, fill_in_published
from cmidd.methods.dm import DM
from cmidd.networks import build_network, freeze, initialize
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.infonce import InfoNCEOptions
from cmidd.pretrained.bank import Bank
from cmidd.run import Run, prepare
from cmidd.seeds import generator
from cmidd.storage.run_folder import read_log
from cmidd.storage.tensor_file import FileError
from tests.support.infonce import infonce_by_hand
from tests.support.steps import step
from tests.support.tiny import (
    CLASSES,
    CPU,
    DM_OPTIONS,
    IDC_OPTIONS,
    NETWORK,
    OPTIONS,
    quiet,
    tiny_bank,
    tiny_dataset,
    tiny_run,
)

DATASET = tiny_dataset()
SEED = 3
MIM = InfoNCEOptions(mim_weight=0.5, mim_batch_real=4)
SEVERAL = replace(MIM, mim_layers=("features", "features.1", "logits"), mim_temperature=0.4)


def method_of(name: str, options: Any, ipc: int) -> Method:
    """In float64."""
    labels = torch.arange(len(CLASSES)).repeat_interleave(ipc)
    _, of_method, _ = fill_in_published(name, DATASET, ipc, OPTIONS, options)
    return METHODS[name].make(DATASET, labels, of_method, SEED, CPU, torch.float64)


def term_of(
    method: Method,
    images: Tensor,
    options: InfoNCEOptions = MIM,
    dataset: Dataset = DATASET,
    precision: str = "float32",
) -> InfoNCETerm:
    labels = torch.arange(len(CLASSES)).repeat_interleave(len(images) // len(CLASSES))
    return InfoNCETerm(options, dataset, images, labels, method, SEED, precision=precision)


def random_images(ipc: int) -> Tensor:
    count = len(CLASSES) * ipc
    return torch.randn(count, 1, 8, 8, generator=generator("images", ipc), dtype=torch.float64)


def real_rows(options: InfoNCEOptions, *words: int) -> Tensor:
    """Row numbers of the real images of an update, by the names of their streams."""
    offsets, found = DATASET.train.offsets.tolist(), []
    for c in range(len(CLASSES)):
        draws = generator(SEED, "mim real", *words, c)
        order = torch.randperm(offsets[c + 1] - offsets[c], generator=draws)
        found.append(offsets[c] + order[: options.mim_batch_real])
    return torch.cat(found)


def fresh_network(*words: int) -> Any:
    network = build_network(NETWORK, 1, 8, len(CLASSES))
    initialize(network, generator(SEED, "mim network", *words))
    return freeze(network.double())


def layers_by_hand(network: Any, images: Tensor, layers: tuple[str, ...]) -> list[Tensor]:
    embedding = network.embed(images)
    maps = network.features[1](network.features[0](images))
    known = {
        "features": embedding,
        "logits": network.head(embedding),
        "features.1": maps.mean(dim=(2, 3)),
    }
    return [known[layer] for layer in layers]


def by_hand(
    network: Any, method: Method, images: Tensor, options: InfoNCEOptions, *words: int
) -> tuple[Tensor, Tensor]:
    """The weighted value and its gradient, by the double loop over images in one batch."""
    rows = real_rows(options, *words)
    real = DATASET.to_input(DATASET.train.images[rows], torch.float64)
    x = images.detach().requires_grad_()
    seen, labels = x, torch.arange(len(CLASSES)).repeat_interleave(len(images) // len(CLASSES))
    if method.view is not None:
        seen, labels = method.view(x, labels)
    value, of_method = torch.zeros((), dtype=torch.float64), 1
    if method.view is not None:
        of_method = len(CLASSES)  # in IDC
    features = (layers_by_hand(network, each, options.mim_layers) for each in (seen, real))
    for queries, keys in zip(*features, strict=True):
        loss = infonce_by_hand(
            queries, labels, keys, DATASET.train.labels[rows], options.mim_temperature
        )
        value = value + options.mim_weight * of_method * loss
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize(("name", "given"), [("dm", DM_OPTIONS), ("idc", IDC_OPTIONS)])
def test_value_and_gradient_are_those_of_a_plain_loop(
    name: str, given: Any, ipc: int, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk is not None:
        monkeypatch.setattr("cmidd.infonce_term.images_per_chunk", lambda *_: chunk)
    method, images = method_of(name, given, ipc), random_images(ipc)
    assert (method.view is not None) == (name == "idc")
    term = term_of(method, images, SEVERAL)
    before = torch.randn(images.shape, generator=generator("before"), dtype=torch.float64)
    gradient = before.clone()
    value = term.add(images, gradient, 2, 1, logged=False)
    expected = by_hand(fresh_network(2, 1), method, images, SEVERAL, 2, 1)
    torch.testing.assert_close(value, expected[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient - before, expected[1], rtol=1e-10, atol=1e-14)


def test_every_update_has_its_own_network_and_real_images() -> None:
    images = random_images(1)
    term = term_of(method_of("dm", DM_OPTIONS, 1), images)
    found = []
    for words in ((0, 0), (0, 1), (1, 0), (0, 0)):
        network, rows = term.draw(*words)
        found.append((network.head.weight.clone(), rows))
    assert torch.equal(found[0][0], found[3][0])
    assert torch.equal(found[0][1], found[3][1])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(found[one][0], found[other][0])
        assert not torch.equal(found[one][1], found[other][1])
    assert [int(c) for c in DATASET.train.labels[found[0][1]]] == [0] * 4 + [1] * 4 + [2] * 4


def test_a_batch_is_compared_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method, images = method_of("dm", DM_OPTIONS, 2), random_images(2)
    batch = torch.tensor([5, 0, 1])
    with pytest.raises(ValueError, match="mim_on: batch is for methods that draw batches"):
        term_of(method, images, replace(MIM, mim_on="batch"))
    monkeypatch.setattr(method, "first_batch", lambda _: batch)
    gradient = torch.zeros_like(images)
    term_of(method, images, replace(MIM, mim_on="batch")).add(images, gradient, 0, logged=False)
    rows, network = real_rows(MIM, 0, 0), fresh_network(0, 0)
    x = images[batch].requires_grad_()
    real = DATASET.to_input(DATASET.train.images[rows], torch.float64)
    loss = infonce_by_hand(
        network.embed(x), torch.tensor([2, 0, 0]), network.embed(real), DATASET.train.labels[rows],
        MIM.mim_temperature,
    )  # fmt: skip
    expected = torch.autograd.grad(MIM.mim_weight * loss, x)[0]
    torch.testing.assert_close(gradient[batch], expected, rtol=1e-10, atol=1e-14)
    assert not gradient[[2, 3, 4]].any()


def test_networks_of_a_bank_take_the_place_of_fresh_ones(bank_file: Path) -> None:
    method, images = method_of("dm", DM_OPTIONS, 2), random_images(2)
    options, numbers = replace(MIM, mim_bank=bank_file), set()
    term = term_of(method, images, options)
    for iteration in range(6):
        draws = generator(SEED, "mim network", iteration, 0)
        numbers.add(number := int(torch.randint(3, (), generator=draws)))
        gradient = torch.zeros_like(images)
        value = term.add(images, gradient, iteration, logged=False)
        network = Bank.load(bank_file, CPU)[number].double()
        expected = by_hand(network, method, images, options, iteration, 0)
        torch.testing.assert_close(value, expected[0], rtol=1e-10, atol=0)
        torch.testing.assert_close(gradient, expected[1], rtol=1e-10, atol=1e-14)
    assert len(numbers) > 1


def test_in_bfloat16_it_is_rounded_and_weights_are_not() -> None:
    method, images = method_of("dm", DM_OPTIONS, 2), random_images(2).float()
    found = []
    for precision in ("float32", "bfloat16"):
        term, gradient = term_of(method, images, SEVERAL, precision=precision), images * 0
        found.append((term.add(images, gradient, 0, logged=False), gradient))
        weight = term.draw(0, 0)[0].head.weight
        assert torch.equal(weight, fresh_network(0, 0).head.weight.float())
    (value, gradient), (rounded, of_rounded) = found
    assert rounded.dtype == of_rounded.dtype == torch.float32
    assert value != rounded
    assert rounded.item() == pytest.approx(value.item(), rel=0.02)
    assert 0 < (of_rounded - gradient).norm() < 0.1 * gradient.norm()


def test_scales_of_a_method_are_those_of_its_gradient_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = replace(OPTIONS, init="real", iterations=1, seed=SEED, momentum=0.0)
    first, of_classes = first_images(DATASET, 2, "real", SEED)[0], torch.tensor([1.0, 0.5, 0.0])
    infonce = replace(MIM, mim_weight=20.0)
    plain = tiny_run(tmp_path / "plain", loop, infonce=infonce)
    monkeypatch.setattr(DM, "class_scale", of_classes)
    monkeypatch.setattr(DM, "channel_scale", torch.tensor([2.0]))
    scaled = tiny_run(tmp_path / "scaled", loop, infonce=infonce)
    factors = 2 * of_classes[plain.labels].view(-1, 1, 1, 1)
    expected = first + factors * (plain.images - first)
    torch.testing.assert_close(scaled.images, expected, rtol=1e-4, atol=1e-5)


def test_the_loop_takes_steps_on_the_sum_and_logs_both(tmp_path: Path, cmi: CMIOptions) -> None:
    loop = replace(OPTIONS, iterations=3, report_every=1, seed=SEED, momentum=0.0)
    made = tiny_run(tmp_path / "run", loop, infonce=MIM)
    method = DM(DATASET, made.labels, DM_OPTIONS, SEED, CPU)
    images, values = first_images(DATASET, 2, "real", SEED)[0], []
    for iteration in range(3):
        _, gradient = step(method, images, iteration)
        value, more = by_hand(
            fresh_network(iteration, 0), method, images.double(), MIM, iteration, 0
        )
        assert more.norm() > 0.01 * gradient.norm()
        images = images - gradient - more.float()
        values.append(value.item())
    torch.testing.assert_close(made.images, images, rtol=1e-4, atol=1e-5)
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["weighted_mim"] for line in log] == pytest.approx(values, rel=1e-4)
    assert [line["mim"] for line in log] == pytest.approx([2 * v for v in values], rel=1e-4)
    assert made.record["mim_weight"] == 0.5
    tiny_run(tmp_path / "both", loop, cmi, infonce=MIM)
    (line, *_) = read_log(tmp_path / "both" / "log.jsonl")
    assert [*line] == ["iteration", "loss", "cmi", "mim", "weighted_cmi", "weighted_mim"]
    assert line["mim"] == pytest.approx(log[0]["mim"], rel=1e-6)


def test_it_brings_images_to_their_class(tmp_path: Path) -> None:
    last = []
    for weight in (1e-9, 20.0):
        path = tmp_path / f"{weight:g}"
        options = replace(OPTIONS, iterations=30, report_every=1, init="noise")
        tiny_run(path, options, infonce=replace(MIM, mim_weight=weight))
        last.append(sum(line["mim"] for line in read_log(path / "log.jsonl")[-5:]) / 5)
    assert last[1] < last[0] - 0.05


# --- what the user is told


def prepared(infonce: InfoNCEOptions, **changes: Any) -> Run:
    options = DistillOptions(**{"ipc": 2, "init": "real", "iterations": 2, **changes})
    return prepare("dm", DATASET, options, DM_OPTIONS, infonce=infonce, device=CPU, say=quiet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mim_layers": ("feature",)}, "mim_layers: expected .* got 'feature'; did you mean"),
        ({"mim_layers": ("features", "features.7")}, "mim_layers: expected 'features', 'logits'"),
        ({"mim_layers": ("features", "logits", "features")}, "expected each layer once, got feat"),
        ({"mim_layers": ()}, "mim_layers: expected at least one, got none"),
        ({"mim_temperature": 1e-7}, r"mim_temperature: expected .* \[1e-6, 1e6\], got 1e-07"),
        ({"mim_temperature": 0.0}, "mim_temperature: expected more than 0"),
        ({"mim_weight": -1.0}, "mim_weight: expected at least 0, got -1.0"),
        ({"mim_weight": 0.0}, "mim_weight: expected more than 0, as other options of InfoNCE"),
        ({"mim_batch_real": 0}, "mim_batch_real: expected at least 1, got 0"),
        ({"mim_on": "some"}, "mim_on: expected all or batch, got 'some'"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(replace(MIM, **changes))


def test_layers_are_no_text() -> None:
    with pytest.raises(TypeError, match=r"mim_layers: expected a tuple of names, got the text 'f"):
        prepared(replace(MIM, mim_layers="features"))  # type: ignore[arg-type]


def test_a_network_with_batch_norm_is_refused() -> None:
    method, images = method_of("dm", DM_OPTIONS, 1), random_images(1)
    method.network_spec = "convnet:norm=batch,depth=1"
    with pytest.raises(ValueError, match=r"mim_weight: network: .* or none, or give mim_bank"):
        term_of(method, images)


def test_a_bank_has_to_be_there_and_of_the_dataset(tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, FileError), match="expected a file with a bank"):
        prepared(replace(MIM, mim_bank=tmp_path / "none"))
    tiny_bank(tmp_path / "bank", tiny_dataset("other"))
    with pytest.raises(ValueError, match=r"mim_bank: .* expected dataset tiny as tiny has it, got"):
        prepared(replace(MIM, mim_bank=tmp_path / "bank"))
