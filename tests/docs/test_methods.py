"""The settings on the pages of the methods are those in the code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cmidd.methods import METHODS
from cmidd.methods.dc import STEPS
from cmidd.methods.idc import SETTINGS as SETTINGS_OF_IDC
from cmidd.methods.idm import IPCS
from cmidd.methods.idm import SETTINGS as SETTINGS_OF_IDM
from cmidd.methods.iid import WEIGHTS, WEIGHTS_ON_IDM
from cmidd.methods.mtt import SETTINGS, Setting
from cmidd.options.ncfm import NCFMOptions
from cmidd.options.pretrained import BankOptions
from cmidd.recovery.published import NAMES as RECIPES
from cmidd.recovery.published import SETTINGS as SETTINGS_OF_RECOVERY
from cmidd.recovery.published import published as published_of_recovery
from tests.support.tiny import tiny_dataset

DOCS = Path(__file__).parents[2] / "docs" / "methods"
NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashionmnist": "Fashion-MNIST",
    "tinyimagenet": "Tiny-ImageNet",
    "imagenet": "ImageNet",
    "digits": "digits",
}


def rows(page: str) -> list[str]:
    """The lines of the tables of a page."""
    return [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_cmi_are_those_of_the_methods(method: str) -> None:
    weights = METHODS[method].cmi_weights
    expected = [
        row(method.upper(), NAMES[dataset], *of_dataset, origin)
        for origin, table in (("published", weights.published), ("ours", weights.ours))
        for dataset, of_dataset in table.items()
    ]
    found = [line for line in rows("cmi.md") if line.startswith(f"| {method.upper()} |")]
    assert found == expected


def test_the_bank_is_the_default_one() -> None:
    options = BankOptions()
    (networks,) = (line for line in rows("cmi.md") if line.startswith("| networks of the bank"))
    assert networks.split(" | ")[2] == str(options.networks)
    (training,) = (line for line in rows("cmi.md") if line.startswith("| their training"))
    for words in (
        f"{options.epochs} epochs",
        f"learning rate {options.lr}",
        f"weight decay {options.weight_decay}",
        f"batches of {options.batch_size}",
    ):
        assert words in training


def test_settings_are_those_of_mcmi() -> None:
    published = BankOptions(objective="mcmi", from_bank=DOCS)
    moving = replace(published, centroids="moving")
    cells = [line.split(" | ") for line in rows("mcmi.md") if " | " in line]
    found = {of_line[1]: of_line[2] for of_line in cells}
    for name in ("mcmi_weight", "epochs", "lr", "schedule", "batch_size", "weight_decay",
                 "augmentation", "centroids"):  # fmt: skip
        assert found[f"`--{name}`"].strip("`") == str(getattr(published, name))
    assert found["`--centroid_decay`"] == str(moving.decay)
    assert found["-"] == str(published.recipe().momentum)


def test_updates_and_epochs_are_those_of_dc() -> None:
    table = [row(ipc, *of_ipc, "published") for ipc, of_ipc in STEPS.items()]
    assert [line for line in rows("dc_dsa.md") if line in table] == table


def test_weights_of_the_terms_are_those_of_iid() -> None:
    for name, weight in WEIGHTS.items():
        (line,) = (line for line in rows("iid.md") if f" `--{name}` " in line)
        assert line.split(" | ")[2:] == [
            str(weight),
            str(WEIGHTS_ON_IDM[name]),
            "published for CIFAR-10 at 10 images per class |",
        ]


def of_setting(dataset: str, ipc: int, setting: Setting) -> str:
    return row(
        NAMES[dataset],
        ipc,
        setting.student_steps,
        setting.expert_epochs,
        setting.max_start_epoch,
        f"{setting.lr_images:g}",
        f"{setting.lr_step_size:g}",
        "experts'" if setting.step_size is None else f"{setting.step_size:g}",
        setting.batch_syn or "all",
        "yes" if setting.whitened else "no",
        "ours" if dataset == "digits" else "published",
    )


def test_settings_are_those_of_mtt() -> None:
    expected = [of_setting(*key, setting) for key, setting in SETTINGS.items()]
    found = [line for line in rows("mtt.md") if line.count("|") == 12]
    assert found[2:] == expected


def test_settings_are_those_of_ncfm() -> None:
    table = [line for line in rows("ncfm.md") if line.count("|") == 7][2:]
    assert len(table) == 3
    for dataset, ipc in (("cifar100", 10), ("tinyimagenet", 10), ("tinyimagenet", 50)):
        published = METHODS["ncfm"].published(tiny_dataset(dataset), ipc)
        names = {"sgd": "SGD, momentum 0.5", "adamw": "AdamW"}
        expected = row(
            NAMES[dataset],
            ipc,
            names[published.options["optimizer"]],
            f"{published.loop['lr_images']:g}",
            published.evaluation["epochs"],
            "published",
        )
        assert expected in table
    for name, default in (("frequencies", 4096), ("batch_real", 1024), ("patience", 500)):
        (line,) = (line for line in rows("ncfm.md") if f"`--{name}`" in line)
        assert line.split(" | ")[2] == str(default) == str(getattr(NCFMOptions(DOCS), name))


SIDES = {"mnist": 28, "fashionmnist": 28, "tinyimagenet": 64, "digits": 8}


def test_settings_are_those_of_idc() -> None:
    expected = [
        row(
            NAMES[dataset],
            setting.metric,
            f"{setting.lr_images * (SIDES.get(dataset, 32) / setting.side) ** 2:g}",
            setting.images_net,
            f"{setting.cutmix:g}",
            f"`idc:{setting.augmentation}`",
            setting.origin,
        )
        for dataset, setting in SETTINGS_OF_IDC.items()
    ]
    found = [line for line in rows("idc.md") if line.count("|") == 8]
    assert found[2:] == expected


def test_settings_are_those_of_idm() -> None:
    expected = [
        row(
            NAMES[dataset],
            ipc,
            f"{setting.accuracy_weight[k]:g}",
            setting.steps_net[k],
            setting.origin,
        )
        for dataset, setting in SETTINGS_OF_IDM.items()
        for k, ipc in enumerate(IPCS)
    ]
    found = [line for line in rows("idm.md") if line.count("|") == 6]
    assert found[2:] == expected


def test_settings_are_those_of_recovery() -> None:
    expected, columns = [], ("iterations", "lr", "bn_weight", "batch_size")
    for recipe, dataset in SETTINGS_OF_RECOVERY:
        settings = published_of_recovery(tiny_dataset(dataset), recipe)
        numbers = [f"{settings[name]:g}" for name in columns]
        augmentation = f"`{settings['augmentation']}`"
        expected.append(row(RECIPES[recipe], NAMES[dataset], *numbers, augmentation, "published"))
    found = [line for line in rows("recover.md") if line.count("|") == 9]
    assert found[2:] == expected


def test_what_a_recipe_adds_is_what_its_settings_have() -> None:
    table = [line for line in rows("recover.md") if line.count("|") == 8][2:]
    for line in table:
        option = line.split(" | ")[1].strip("`-")
        if option == "jitter":  # in words
            continue
        cells = dict(zip(RECIPES, line.split(" | ")[2:6], strict=True))
        for recipe, dataset in SETTINGS_OF_RECOVERY:
            value = published_of_recovery(tiny_dataset(dataset), recipe)[option]
            usual, _, of_imagenet = cells[recipe].partition("; ImageNet ")
            cell = of_imagenet if of_imagenet and dataset == "imagenet" else usual
            assert cell == (value if isinstance(value, str) else f"{value:g}"), (option, recipe)
