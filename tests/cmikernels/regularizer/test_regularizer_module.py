"""CMIRegularizer as an `nn.Module`: its own state, and nothing of the networks'."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Sequence
from typing import overload

import pytest
import torch
from torch import Tensor, nn

from cmikernels import CMIRegularizer
from tests.support.small_network import (
    CHANNELS,
    RAGGED,
    WEIGHT,
    evaluate,
    make_images,
    make_network,
)
from tests.support.tables import make_labels, make_probabilities

IMAGES, LABELS = make_images(4), make_labels((2, 2))
CENTROIDS = make_probabilities((2, CHANNELS)).double()
NETWORKS = [make_network(seed) for seed in range(4)]


class _Distiller(nn.Module):
    """What a user puts the regulariser into."""

    def __init__(self, networks: nn.Module | Sequence[nn.Module], **options: Tensor) -> None:
        super().__init__()
        self.images = nn.Parameter(IMAGES.detach().clone())
        self.regularizer = CMIRegularizer(networks, **options)  # type: ignore[arg-type]


FORMS: dict[str, nn.Module | Sequence[nn.Module]] = {
    "one": NETWORKS[0],
    "a list": NETWORKS,
    "a ModuleList": nn.ModuleList(NETWORKS),
}


@pytest.mark.parametrize("form", FORMS)
def test_networks_are_not_among_the_parameters_children_and_state(form: str) -> None:
    distiller = _Distiller(FORMS[form])
    assert [name for name, _ in distiller.named_parameters()] == ["images"]
    assert list(distiller.regularizer.children()) == []
    assert set(distiller.state_dict()) == {"images", "regularizer._extra_state"}


@pytest.mark.parametrize("form", FORMS)
def test_networks_stay_out_where_they_are_set_later(form: str) -> None:
    distiller = _Distiller(NETWORKS[1])
    distiller.regularizer.networks = FORMS[form]  # type: ignore[assignment]
    assert list(distiller.regularizer.children()) == []
    assert evaluate(distiller.regularizer, IMAGES, LABELS)[0] > 0


def test_training_mode_does_not_reach_the_networks() -> None:
    distiller = _Distiller(NETWORKS).train()
    assert not any(module.training for network in NETWORKS for module in network.modules())
    assert distiller.regularizer(distiller.images, LABELS) > 0


def test_the_networks_keep_their_dtype_and_the_centroids_theirs() -> None:
    distiller = _Distiller(NETWORKS, centroids=CENTROIDS.float()).bfloat16()
    assert distiller.images.dtype == torch.bfloat16
    assert next(NETWORKS[0].parameters()).dtype == torch.float64
    assert distiller.regularizer.centroids is not None
    assert torch.equal(distiller.regularizer.centroids, CENTROIDS.float())


def test_to_moves_the_centroids() -> None:
    distiller = _Distiller(NETWORKS, centroids=CENTROIDS).to("meta")
    assert distiller.regularizer.centroids is not None
    assert distiller.regularizer.centroids.is_meta
    assert not next(NETWORKS[0].parameters()).is_meta


def test_a_parameter_for_centroids_does_not_become_one_of_the_module() -> None:
    distiller = _Distiller(NETWORKS, centroids=nn.Parameter(CENTROIDS, requires_grad=False))
    assert [name for name, _ in distiller.named_parameters()] == ["images"]


def test_a_saved_state_goes_on_where_it_stood() -> None:
    first = _Distiller(NETWORKS)
    for _ in range(3):
        first.regularizer(first.images, LABELS)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = _Distiller(NETWORKS)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.regularizer.step == 3
    with torch.no_grad():
        for _ in range(4):
            ahead, behind = (d.regularizer(d.images, LABELS) for d in (first, second))
            assert torch.equal(ahead, behind)


def test_a_state_that_was_saved_is_all_tensors() -> None:
    state = _Distiller(NETWORKS, centroids=CENTROIDS).state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())


@pytest.mark.parametrize("given", [None, CENTROIDS.flip(0)], ids=["none", "others"])
def test_saved_centroids_are_restored_whether_some_were_given_or_not(given: Tensor | None) -> None:
    state = CMIRegularizer(NETWORKS, WEIGHT, centroids=CENTROIDS).state_dict()
    regularizer = CMIRegularizer(NETWORKS, WEIGHT, centroids=given)
    regularizer.load_state_dict(state)
    assert regularizer.centroids is not None
    assert torch.equal(regularizer.centroids, CENTROIDS)
    assert regularizer.centroids is not state["centroids"]


def test_a_state_without_centroids_is_missed_where_some_were_given() -> None:
    regularizer = CMIRegularizer(NETWORKS, centroids=CENTROIDS)
    with pytest.raises(RuntimeError, match=r'Missing key.*"centroids"'):
        regularizer.load_state_dict(CMIRegularizer(NETWORKS).state_dict())


def test_repr_shows_the_options_and_the_step() -> None:
    regularizer = CMIRegularizer(
        NETWORKS, 2000.0, layer="hidden", centroids=CENTROIDS, networks_per_step=2, seed=7
    )
    regularizer(IMAGES, LABELS)
    assert repr(regularizer) == (
        "CMIRegularizer(networks=4, weight=2000.0, chunk_size=50, layer='hidden', "
        "temperature=1.0, centroids=(2, 5), networks_per_step=2, every=1, seed=7, backend=None, "
        "precision=None, step=1)"
    )


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_computes_the_same(how: str) -> None:
    regularizer = CMIRegularizer(NETWORKS, WEIGHT, centroids=CENTROIDS)
    regularizer(IMAGES, LABELS)
    if how == "pickle":
        copied = pickle.loads(pickle.dumps(regularizer))
    else:
        copied = copy.deepcopy(regularizer)
    assert repr(copied) == repr(regularizer)
    assert torch.equal(copied(IMAGES, LABELS), regularizer(IMAGES, LABELS))


class _Lazy(Sequence[nn.Module]):
    """Networks made when they are asked for, and which were."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 1000

    @overload
    def __getitem__(self, number: int) -> nn.Module: ...
    @overload
    def __getitem__(self, number: slice) -> list[nn.Module]: ...
    def __getitem__(self, number: int | slice) -> nn.Module | list[nn.Module]:
        assert isinstance(number, int)
        self.asked.append(number)
        return make_network(number)


def test_a_lazy_sequence_is_asked_for_what_is_drawn_alone() -> None:
    networks = _Lazy()
    regularizer = CMIRegularizer(networks, WEIGHT, networks_per_step=2)
    _Distiller(networks).train().state_dict()
    assert networks.asked == []
    evaluate(regularizer, make_images(len(RAGGED)), RAGGED, step=5)
    assert networks.asked == regularizer.draw(5)
    assert regularizer.networks is networks


def test_a_named_layer_asks_a_lazy_sequence_for_its_first_network() -> None:
    networks = _Lazy()
    CMIRegularizer(networks, layer="hidden")
    assert networks.asked == [0]
