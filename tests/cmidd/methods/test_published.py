from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmidd.cli.flags import documented
from cmidd.datasets import Dataset
from cmidd.methods import METHODS, cmi_weight, evaluation_of, fill_in_published
from cmidd.networks import build_network
from cmidd.networks.usual import bank_network, gradient_network, usual_network
from cmidd.options.dc import DCOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.dm import DMOptions
from cmidd.options.dsa import DSAOptions
from cmidd.options.idc import IDCOptions
from cmidd.options.idm import IDMOptions
from cmidd.options.iid import IIDOptions
from cmidd.options.mtt import MTTOptions
from cmidd.options.ncfm import NCFMOptions
from cmidd.options.recipe import DSA
from tests.support.tiny import tiny_dataset

MADE: dict[str, Any] = {
    "dm": DMOptions(),
    "dc": DCOptions(),
    "dsa": DSAOptions(),
    "mtt": MTTOptions(experts=Path("e")),
    "idc": IDCOptions(),
    "idm": IDMOptions(),
    "iid": IIDOptions(),
    "ncfm": NCFMOptions(matching_bank=Path("b")),
}


def filled_in(
    method: str, dataset: Dataset, loop: DistillOptions, options: Any
) -> tuple[DistillOptions, Any, str]:
    return fill_in_published(method, dataset, loop.ipc, loop, options)


@pytest.mark.parametrize(
    ("method", "dataset", "at_10", "at_50"),
    [
        ("dm", "svhn", 18000, 500),
        ("dm", "cifar10", 8000, 2000),
        ("dm", "cifar100", 2000, 500),
        ("dc", "cifar10", 50000, 10000),
        ("dsa", "svhn", 80000, 10000),
        ("dsa", "cifar10", 50000, 10000),
        ("dsa", "cifar100", 80000, 20000),
        ("idc", "svhn", 50, 50),
        ("idc", "cifar10", 100, 50),
        ("idc", "cifar100", 100, 50),
    ],
)
def test_published_weights(method: str, dataset: str, at_10: float, at_50: float) -> None:
    for ipc, value in ((10, at_10), (50, at_50)):
        weight = cmi_weight(method, dataset, ipc)
        expected = f"published for {dataset} at {ipc} images per class"
        assert (weight.value, weight.origin) == (value, expected)


@pytest.mark.parametrize(("ipc", "near"), [(1, 10), (9, 10), (29, 10), (30, 50), (51, 50)])
def test_another_number_of_images_takes_the_nearest_weight_and_says_so(ipc: int, near: int) -> None:
    weight = cmi_weight("dm", "cifar10", ipc)
    assert weight.value == cmi_weight("dm", "cifar10", near).value
    expected = f"published for cifar10 at {near} images per class, the nearest to your {ipc}"
    assert weight.origin == expected


def test_a_weight_of_ours_is_not_called_published() -> None:
    assert cmi_weight("dm", "digits", 10).origin == "ours for digits at 10 images per class"
    expected = "ours for digits at 10 images per class, the nearest to your 2"
    assert cmi_weight("dm", "digits", 2).origin == expected
    for entry in METHODS.values():
        assert not entry.cmi_weights.ours.keys() & entry.cmi_weights.published.keys()


@pytest.mark.parametrize(
    ("method", "dataset"),
    [
        ("dm", "mnist"),
        ("mtt", "cifar10"),
        ("dc", "svhn"),
        ("idm", "cifar10"),
        ("iid", "cifar10"),
        ("ncfm", "cifar10"),
    ],
)
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


def test_every_method_has_options_to_test() -> None:
    assert {name: type(options) for name, options in MADE.items()} == {
        name: entry.options for name, entry in METHODS.items()
    }


CIFAR10 = tiny_dataset("cifar10")


def settled(method: str, dataset: str, ipc: int) -> dict[str, Any]:
    real = tiny_dataset(dataset)
    loop, options, _ = filled_in(method, real, DistillOptions(ipc=ipc), MADE[method])
    return {**vars(loop), **vars(options)}


@pytest.mark.parametrize(
    ("method", "ipc", "expected"),
    [
        ("dm", 1, {"iterations": 20000, "lr_images": 1.0}),
        ("dm", 99, {"lr_images": 1.0}),
        ("dm", 100, {"lr_images": 10.0}),
        ("dc", 1, {"iterations": 1000, "lr_images": 0.1, "outer_steps": 1, "inner_epochs": 1}),
        ("dsa", 10, {"outer_steps": 10, "inner_epochs": 50}),
        ("dsa", 20, {"outer_steps": 20, "inner_epochs": 25}),
        ("dsa", 30, {"outer_steps": 30, "inner_epochs": 20}),
        ("dc", 40, {"outer_steps": 40, "inner_epochs": 15}),
        ("dc", 50, {"outer_steps": 50, "inner_epochs": 10}),
        ("mtt", 1, {"iterations": 5000, "student_steps": 50, "expert_epochs": 2,
                    "max_start_epoch": 2, "lr_images": 100.0, "lr_step_size": 1e-7}),
        ("mtt", 10, {"student_steps": 30, "max_start_epoch": 20, "step_size": 1e-3}),
        ("mtt", 50, {"lr_images": 1000.0, "max_start_epoch": 40, "lr_step_size": 1e-5}),
        ("iid", 10, {"iterations": 20000, "lr_images": 1.0, "covariance_weight": 0.01,
                     "centre_weight": 0.05}),
    ],
)  # fmt: skip
def test_published_settings_for_cifar10(method: str, ipc: int, expected: dict[str, Any]) -> None:
    assert expected.items() <= settled(method, "cifar10", ipc).items()


@pytest.mark.parametrize("ipc", [*range(2, 10), 11, 35, 49, 51, 100, 1000])
def test_dc_takes_any_number_of_images(ipc: int) -> None:
    found = settled("dc", "mnist", ipc)
    assert 2 <= found["outer_steps"] <= min(ipc, 50)
    assert 10 <= found["inner_epochs"] <= 50
    assert found["outer_steps"] * found["inner_epochs"] <= 550


@pytest.mark.parametrize("method", METHODS)
def test_what_is_given_stays_and_what_is_not_is_told(method: str) -> None:
    given = DistillOptions(iterations=7, report_every=3)
    loop, _, told = filled_in(method, CIFAR10, given, MADE[method])
    assert (loop.iterations, loop.report_every) == (7, 3)
    assert "lr_images" in told
    assert "iterations" not in told
    assert "_every" not in told  # of which nothing is published
    assert loop.checkpoint_every
    assert (
        filled_in(method, CIFAR10, loop, filled_in(method, CIFAR10, given, MADE[method])[1])[2]
        == ""
    )


@pytest.mark.parametrize(
    ("dataset", "ipc", "published"),
    [
        ("cifar10", 1, (50, 2, 2, 100.0, 1e-7, None, None)),
        ("cifar10", 10, (30, 2, 20, 100.0, 1e-5, 1e-3, None)),
        ("cifar10", 50, (30, 2, 40, 1000.0, 1e-5, 1e-3, None)),
        ("cifar100", 1, (20, 3, 20, 1000.0, 1e-5, None, None)),
        ("cifar100", 10, (20, 2, 20, 1000.0, 1e-5, None, None)),
        ("cifar100", 50, (80, 2, 40, 1000.0, 1e-5, None, 125)),
        ("tinyimagenet", 1, (10, 2, 10, 1e4, 1e-4, None, None)),
        ("tinyimagenet", 10, (20, 2, 40, 1e4, 1e-4, None, 200)),
        ("tinyimagenet", 50, (20, 2, 40, 1e4, 1e-4, None, 300)),
    ],
)
def test_published_settings_of_mtt(dataset: str, ipc: int, published: tuple[Any, ...]) -> None:
    names = ("student_steps", "expert_epochs", "max_start_epoch", "lr_images", "lr_step_size",
             "step_size", "batch_syn")  # fmt: skip
    found = settled("mtt", dataset, ipc)
    assert tuple(found[name] for name in names) == published


@pytest.mark.parametrize(
    ("method", "init"),
    [
        ("dm", "real"),
        ("dc", "noise"),
        ("dsa", "real"),
        ("mtt", "real"),
        ("idc", "cells"),
        ("idm", "smooth_cells"),
        ("iid", "real"),
        ("ncfm", "cells"),
    ],
)
def test_methods_start_from_what_they_were_published_with(method: str, init: str) -> None:
    assert settled(method, "cifar10", 10)["init"] == init


def test_sets_of_dc_are_judged_without_augmentation_but_on_mnist() -> None:
    mnist = tiny_dataset("mnist")
    assert evaluation_of("dc", CIFAR10, 10) == {"epochs": 300, "augmentation": "none"}
    on_mnist = {"epochs": 1000, "augmentation": "crop_scale_rotate"}
    assert evaluation_of("dc", mnist, 10) == on_mnist
    for method in ("dm", "dsa", "mtt", "idm", "iid"):
        assert evaluation_of(method, mnist, 10) == {"epochs": 1000, "augmentation": DSA}


def test_only_what_is_none_is_filled_in() -> None:
    _, options, _ = filled_in("mtt", CIFAR10, DistillOptions(), replace(MADE["mtt"], batch_syn=3))
    assert options.batch_syn == 3
    assert settled("mtt", "cifar100", 50)["batch_syn"] == 125
    assert settled("mtt", "tinyimagenet", 10)["batch_syn"] == 200
    assert settled("mtt", "cifar10", 10)["batch_syn"] is None


@pytest.mark.parametrize(
    ("size", "network"),
    [(8, "convnet"), (28, "convnet"), (32, "convnet"), (64, "convnet:depth=4"),
     (128, "convnet:depth=5"), (256, "convnet:depth=6")],
)  # fmt: skip
def test_larger_images_have_deeper_networks(size: int, network: str) -> None:
    assert usual_network(size) == network
    build_network(network, 3, size, 10)


@pytest.mark.parametrize("method", ["dm", "dc", "dsa", "idm", "iid"])
def test_every_method_fills_in_the_depth(method: str) -> None:
    images = replace(CIFAR10.train, source=torch.zeros(18, 1, 64, 64, dtype=torch.uint8))
    large = replace(CIFAR10, train=images, test=images)
    _, options, _ = filled_in(method, large, DistillOptions(), MADE[method])
    assert options.network == "convnet:depth=4"


@pytest.mark.parametrize(
    ("size", "network"), [(8, "convnet:depth=2"), (28, "convnet"), (64, "convnet:depth=4")]
)
def test_gradients_are_matched_where_norms_see_enough_pixels(size: int, network: str) -> None:
    assert gradient_network(size) == network


def test_small_images_are_matched_in_a_network_that_is_less_deep() -> None:
    assert settled("dsa", "digits", 10)["network"] == "convnet:depth=2"


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "origin"),
    [
        ("dm", "cifar10", 10, "(as published)"),
        (
            "dm",
            "folder:pics",
            10,
            "(not published for folder:pics; DM's published default, found on CIFAR-10)",
        ),
        ("dsa", "cifar10", 10, "(as near to what is published as it goes)"),  # of 8 x 8 here
        (
            "dsa",
            "digits",
            7,
            "(not published for digits; as near as it goes to the published default, found on "
            "CIFAR-10)",
        ),
        ("mtt", "cifar10", 12, "(published for 10 images per class, which whitened images: --zca)"),
        ("mtt", "cifar10", 50, "(published for 50 images per class)"),
        (
            "mtt",
            "digits",
            10,
            "(ours, for experts as cmidd experts trains them, for 10 images per class)",
        ),
        ("mtt", "svhn", 10, "(not published for svhn; the published program's default)"),
        ("idc", "digits", 10, "(ours, chosen by training images that were held out, for factor 1)"),
        (
            "idc",
            "folder:pics",
            10,
            "(not published for folder:pics; as near as it goes to IDC's published default, found "
            "on CIFAR-10, for factor 2)",
        ),
        ("iid", "cifar10", 10, "(as published)"),
        (
            "ncfm",
            "cifar10",
            10,
            "(as published, for factor 2)",
        ),
        ("ncfm", "cifar100", 10, "(as published, for factor 2)"),
        (
            "ncfm",
            "digits",
            10,
            "(not published for digits; those of NCFM for CIFAR-10, for factor 2, but factor 1 is "
            "ours)",
        ),
        (
            "iid",
            "svhn",
            50,
            "(not published for svhn at 50 images per class; the weights are those for CIFAR-10 at "
            "10, all else is DM's published default)",
        ),
    ],
)
def test_where_settings_come_from_is_told(method: str, dataset: str, ipc: int, origin: str) -> None:
    told = filled_in(method, tiny_dataset(dataset), DistillOptions(ipc=ipc), MADE[method])[2]
    assert told.endswith(origin)


@pytest.mark.parametrize("method", METHODS)
def test_every_option_has_a_line_of_help(method: str) -> None:
    options = METHODS[method].options
    _, helps = documented(options)
    assert list(helps) == [field.name for field in fields(options)]
    assert all(helps.values())


def test_dsa_is_dc_with_augmentation() -> None:
    assert replace(DSAOptions(), augmentation="none") != DCOptions()  # of another class
    assert vars(DSAOptions()) == {**vars(DCOptions()), "augmentation": DSA}
    assert DSA == "color_crop_cutout_flip_scale_rotate"
