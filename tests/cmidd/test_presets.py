from __future__ import annotations

import pytest

from cmidd.networks import build_network
from cmidd.presets import (
    OUR_WEIGHTS,
    PUBLISHED_WEIGHTS,
    bank_network,
    cmi_weight,
)


@pytest.mark.parametrize(
    ("dataset", "at_10", "at_50"),
    [("svhn", 18000, 500), ("cifar10", 8000, 2000), ("cifar100", 2000, 500)],
)
def test_published_weights_of_dm(dataset: str, at_10: float, at_50: float) -> None:
    for ipc, value in ((10, at_10), (50, at_50)):
        weight = cmi_weight("dm", dataset, ipc)
        assert (weight.value, weight.origin) == (value, "published")


@pytest.mark.parametrize(("ipc", "near"), [(1, 10), (9, 10), (29, 10), (30, 50), (51, 50)])
def test_another_number_of_images_takes_the_nearest_weight_and_says_so(ipc: int, near: int) -> None:
    weight = cmi_weight("dm", "cifar10", ipc)
    assert weight.value == cmi_weight("dm", "cifar10", near).value
    assert weight.origin == f"published for {near} images per class, the nearest"


def test_a_weight_of_ours_is_not_called_published() -> None:
    assert cmi_weight("dm", "digits", 10).origin == "ours, none is published"
    assert not OUR_WEIGHTS["dm"].keys() & PUBLISHED_WEIGHTS["dm"].keys()


@pytest.mark.parametrize(("method", "dataset"), [("dm", "mnist"), ("new", "cifar10")])
def test_without_a_weight_one_is_asked_for(method: str, dataset: str) -> None:
    with pytest.raises(ValueError, match=f"cmi_weight: none is known for {method} on {dataset}"):
        cmi_weight(method, dataset, 10)


@pytest.mark.parametrize(
    ("dataset", "size", "network"),
    [
        ("cifar10", 32, "resnet18"),
        ("folder:flowers", 8, "resnet18:norm=group"),
        ("digits", 8, "resnet18:width=16,norm=group"),
    ],
)
def test_the_network_of_a_bank_suits_the_images(dataset: str, size: int, network: str) -> None:
    assert bank_network(dataset, size) == network
    build_network(network, 1, size, 10)


