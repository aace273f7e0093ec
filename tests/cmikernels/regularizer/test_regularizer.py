"""CMIRegularizer: chunks give what one batch gives, and the network's features are the oracle's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from cmikernels import ClassIndex, CMIRegularizer
from cmikernels.embedding import embed
from tests.conftest import examples
from tests.support.compare import relative_error
from tests.support.small_network import (
    CHANNELS,
    RAGGED,
    WEIGHT,
    Features,
    assert_same,
    evaluate,
    expected,
    features_of,
    make_images,
    make_network,
)
from tests.support.tables import CLASS_SIZES, DEVICE_OF, make_labels, make_probabilities

CHUNK_SIZES = (1, 3, 7, 50)
SIZES = ("one class", "equal", "ragged", "empty classes", "one large among tiny", "many tiny")


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_chunks_give_what_one_batch_gives(sizes: str, chunk_size: int) -> None:
    labels = make_labels(CLASS_SIZES[sizes], shuffle_seed=2)
    images, network = make_images(len(labels)), make_network()
    chunked = CMIRegularizer(network, WEIGHT, chunk_size=chunk_size)
    whole = CMIRegularizer(network, WEIGHT, chunk_size=None)
    assert_same(evaluate(chunked, images, labels), evaluate(whole, images, labels))


@examples("cpu")
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    chunk_size=st.integers(1, 20),
    shuffled=st.booleans(),
    given_centroids=st.booleans(),
    temperature=st.sampled_from((0.5, 1.0, 3.0)),
)
def test_any_classes_in_any_chunks_give_what_the_oracle_gives(
    sizes: list[int], chunk_size: int, shuffled: bool, given_centroids: bool, temperature: float
) -> None:
    assume(max(sizes) > (0 if given_centroids else 1))
    labels = make_labels(sizes, shuffle_seed=3 if shuffled else None)
    centroids = make_probabilities((len(sizes), CHANNELS)).double() if given_centroids else None
    images, network = make_images(len(labels)), make_network()
    options: dict[str, Any] = {"centroids": centroids, "temperature": temperature}
    regularizer = CMIRegularizer(network, WEIGHT, chunk_size=chunk_size, **options)
    ours = evaluate(regularizer, images, ClassIndex(labels, len(sizes)))
    assert_same(ours, expected(features_of(network), images, labels, **options))


@pytest.mark.parametrize("chunk_size", [3, 50])
def test_float32_chunks_are_within_rounding_of_float64(chunk_size: int) -> None:
    images = make_images(len(RAGGED), torch.float32)
    regularizer = CMIRegularizer(make_network(0, torch.float32), WEIGHT, chunk_size=chunk_size)
    ours = evaluate(regularizer, images, RAGGED)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    wide = images.detach().double().requires_grad_()
    assert_same(ours, expected(features_of(make_network()), wide, RAGGED), 1e-5)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_every_backend_serves(backend: str, chunk_size: int | None) -> None:
    device = DEVICE_OF[backend]
    network = make_network(0, torch.float32).to(device)
    images = make_images(9, torch.float32).detach().to(device).requires_grad_()
    labels = make_labels((2, 6, 1), shuffle_seed=4)
    regularizer = CMIRegularizer(network, WEIGHT, chunk_size=chunk_size, backend=backend)
    ours = evaluate(regularizer, images, labels.to(device))
    wide = images.detach().cpu().double().requires_grad_()
    assert_same(ours, expected(features_of(make_network()), wide, labels), 1e-4)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_class_index_gives_what_its_labels_give(chunk_size: int | None) -> None:
    images, regularizer = make_images(len(RAGGED)), CMIRegularizer(make_network())
    regularizer.chunk_size = chunk_size
    by_labels = evaluate(regularizer, images, RAGGED)
    assert_same(evaluate(regularizer, images, ClassIndex(RAGGED)), by_labels, 0)


def test_classes_may_be_others_in_every_call() -> None:
    network, images = make_network(), make_images(len(RAGGED))
    regularizer = CMIRegularizer(network, WEIGHT, chunk_size=4)
    for labels in (RAGGED, RAGGED.flip(0), RAGGED):
        ours = evaluate(regularizer, images, ClassIndex(labels))
        assert_same(ours, expected(features_of(network), images, labels))


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_several_networks_are_averaged_each_with_its_own_centroids(chunk_size: int | None) -> None:
    images, networks = make_images(len(RAGGED)), [make_network(seed) for seed in range(3)]
    centroids = make_probabilities((3, 5, CHANNELS)).double()
    regularizer = CMIRegularizer(
        networks, WEIGHT, chunk_size=chunk_size, centroids=centroids, networks_per_step=2
    )
    drawn = regularizer.draw(7)
    terms = [
        expected(features_of(networks[k]), images, RAGGED, centroids=centroids[k]) for k in drawn
    ]
    values, gradients = zip(*terms, strict=True)
    mean = torch.stack(values).mean(), torch.stack(gradients).mean(0)
    assert_same(evaluate(regularizer, images, RAGGED, step=7), mean)


class _Embedding(nn.Module):
    """A network that says what its features are, and has a linear layer elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_network()

    def embed(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network[:2](images)  # (N, 3, H, W)
        return maps


def _in_place() -> nn.Sequential:
    """A network whose `hidden` layer's output is worked on in place."""
    network = make_network()
    network.bent_again = nn.ReLU(inplace=True)
    return network.eval()


LAYERS: dict[str, tuple[Callable[[], Any], str, Callable[[Any], Features]]] = {
    "input of the last linear layer": (make_network, "features", lambda network: network[:-1]),
    "embed": (lambda: _Embedding().eval(), "features", lambda network: network.embed),
    "logits": (make_network, "logits", lambda network: network),
    "submodule": (make_network, "conv", lambda network: network.conv),
    "submodule before work in place": (_in_place, "hidden", lambda network: network[:5]),
}


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("layer", LAYERS)
def test_features_are_taken_where_layer_says(layer: str, chunk_size: int | None) -> None:
    make, name, features = LAYERS[layer]
    network, images = make(), make_images(len(RAGGED))
    regularizer = CMIRegularizer(network, WEIGHT, chunk_size=chunk_size, layer=name)
    assert_same(evaluate(regularizer, images, RAGGED), expected(features(network), images, RAGGED))


def test_no_hook_stays_on_the_network() -> None:
    network = make_network()
    for layer in ("features", "conv"):
        CMIRegularizer(network, layer=layer)(make_images(4), make_labels((2, 2)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_only_a_chunk_at_a_time_and_only_large_classes_twice() -> None:
    network, seen = make_network(), list[tuple[int, bool]]()
    network.register_forward_pre_hook(
        lambda _, inputs: seen.append((len(inputs[0]), inputs[0].requires_grad))
    )
    labels = make_labels((2, 1, 7, 4, 1, 3), shuffle_seed=5)
    evaluate(CMIRegularizer(network, chunk_size=4), make_images(len(labels)), labels)
    large = [(3, False), (4, False), (3, True), (4, True)]
    assert seen == [(3, True), *large, (4, True), (4, True)]


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_gradient_is_scaled_by_what_comes_in_and_handed_out_again(chunk_size: int | None) -> None:
    network, latent = make_network(), make_images(len(RAGGED))
    regularizer = CMIRegularizer(network, WEIGHT, chunk_size=chunk_size)
    images = latent * 2
    loss = 3 * regularizer(images, RAGGED) + images.square().sum()
    (first,) = torch.autograd.grad(loss, latent, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, latent)
    assert torch.equal(first, kept)
    assert relative_error(second, first) <= 1e-15
    doubled = (latent.detach() * 2).requires_grad_()
    _, gradient = expected(features_of(network), doubled, RAGGED)
    assert relative_error(first, 2 * (3 * gradient + 2 * doubled)) <= 1e-10


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_gradients_add_up_over_losses(chunk_size: int | None) -> None:
    images, networks = make_images(len(RAGGED)), [make_network(0), make_network(1)]
    for network in networks:
        loss = CMIRegularizer(network, WEIGHT, chunk_size=chunk_size)(images, RAGGED)
        torch.autograd.backward(loss)
    apart = [expected(features_of(network), images, RAGGED)[1] for network in networks]
    assert images.grad is not None
    assert relative_error(images.grad, apart[0] + apart[1]) <= 1e-10


def test_a_second_derivative_of_chunks_is_an_error_that_says_what_to_do() -> None:
    images = make_images(len(RAGGED))
    value = CMIRegularizer(make_network())(images, RAGGED)
    with pytest.raises(RuntimeError, match=r"create_graph; chunk_size=None keeps the graph"):
        torch.autograd.grad(value, images, create_graph=True)


def test_without_chunks_the_second_derivative_is_exact() -> None:
    regularizer = CMIRegularizer(make_network(), chunk_size=None)
    labels = make_labels((2, 1))
    assert torch.autograd.gradgradcheck(lambda x: regularizer(x, labels), make_images(3))


@pytest.mark.parametrize("chunk_size", [None, 4, 50])
def test_without_grad_there_is_a_value_only(chunk_size: int | None) -> None:
    images = make_images(len(RAGGED))
    regularizer = CMIRegularizer(make_network(), WEIGHT, chunk_size=chunk_size)
    value, _ = evaluate(regularizer, images, RAGGED)
    with torch.no_grad():
        without_grad = regularizer(images, RAGGED)
    of_constants = regularizer(images.detach(), RAGGED)
    for ours in (without_grad, of_constants):
        assert not ours.requires_grad
        assert relative_error(ours, value) <= 1e-12


@pytest.mark.parametrize("chunk_size", [None, 4, 50])
def test_network_and_images_stay_as_they_are(chunk_size: int | None) -> None:
    network, images = make_network(), make_images(len(RAGGED))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = images.detach().clone()
    evaluate(CMIRegularizer(network, chunk_size=chunk_size), images, make_labels((33,)))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(images, before)
    assert images.grad is None


class _EmbedsPatches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 3, 2)
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(images).mean(dim=(2, 3)))
        return logits


def test_a_layer_called_embed_is_not_taken_for_the_embedding() -> None:
    network = _EmbedsPatches().eval().requires_grad_(False)
    images = torch.randn(5, 1, 4, 4)
    torch.testing.assert_close(embed(network, images), network.embed(images).mean(dim=(2, 3)))


class _WorksInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.sub_(1.0))
        return logits


def test_a_network_that_works_in_place_does_not_reach_the_images() -> None:
    regularizer = CMIRegularizer(_WorksInPlace().eval().requires_grad_(False), chunk_size=2)
    images = torch.randn(5, 4)
    before = images.clone()
    for labels in (torch.tensor([0, 0, 1, 1, 2]), torch.zeros(5, dtype=torch.int64)):
        regularizer(images, labels)
    assert torch.equal(images, before)
