"""The files of published settings hold what the methods have, and the commands take all of it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

from cmidd.cli.parser import Given, read
from cmidd.options.fields import AS_PUBLISHED

FOLDER = Path(__file__).parents[2] / "examples/configs"
EXPECTED: dict[str, str] = dict(runpy.run_path(str(FOLDER / "make.py"))["configs"]())


def test_there_is_a_file_for_every_setting_and_no_other() -> None:
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("**/*.yaml")}
    assert there == set(EXPECTED)


@pytest.mark.parametrize("path", EXPECTED)
def test_a_file_is_what_the_code_has_as_published(path: str) -> None:
    assert (FOLDER / path).read_text() == EXPECTED[path], "run python examples/configs/make.py"


@pytest.mark.parametrize("path", EXPECTED)
def test_the_command_in_its_first_line_takes_all_of_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    first, *_ = EXPECTED[path].splitlines()
    given = read(first.removeprefix("# cmidd ").split())
    assert isinstance(given, Given)
    found = {name: value for part in given.parts for name, value in vars(part).items()}
    wanted = yaml.safe_load(EXPECTED[path])
    assert wanted.pop("method", None) == given.method
    assert {name: found[name] for name in wanted if not isinstance(found[name], Path)} == {
        name: value for name, value in wanted.items() if not isinstance(found[name], Path)
    }
    left = {name for name, value in found.items() if value is AS_PUBLISHED}
    assert left <= {"report_every", "checkpoint_every", "batch_syn", "step_size"}


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("cifar10/dm-ipc10-cmi.yaml", "cmi_weight", 8000),
        ("cifar100/dsa-ipc50-cmi.yaml", "cmi_weight", 20000),
        ("svhn/dm-ipc1.yaml", "iterations", 20000),
        ("cifar10/mtt-ipc1.yaml", "student_steps", 50),
        ("cifar100/mtt-ipc50.yaml", "zca", True),
        ("tinyimagenet/mtt-ipc10.yaml", "zca", False),
        ("cifar10/iid-ipc10.yaml", "centre_weight", 0.05),
        ("cifar10/iid-idm-ipc10.yaml", "centre_weight", 0.01),
        ("cifar100/idm-ipc10.yaml", "steps_net", 50),
        ("tinyimagenet/idm-ipc50.yaml", "accuracy_weight", 0.8),
        ("cifar100/teacher.yaml", "lr", 0.1),
        ("tinyimagenet/teacher.yaml", "warm_up", 5),
    ],
)
def test_some_numbers_of_the_papers(path: str, name: str, value: object) -> None:
    assert yaml.safe_load((FOLDER / path).read_text())[name] == value


@pytest.mark.parametrize(
    ("dataset", "title"), [("cifar100", "CIFAR-100"), ("tinyimagenet", "Tiny-ImageNet")]
)
def test_the_settings_of_teachers_are_those_of_the_guide(dataset: str, title: str) -> None:
    told = yaml.safe_load((FOLDER / dataset / "teacher.yaml").read_text())
    falls = f"{told['lr']:g}, along a cosine to 0"
    if "warm_up" in told:
        falls += f", after {told['warm_up']} epochs of warm-up"
    cells = [
        title,
        f"`{told['network']}`",
        told["epochs"],
        falls,
        told["weight_decay"],
        told["batch_size"],
        f"`{told['augmentation']}`",
    ]
    page = (FOLDER.parents[1] / "docs/guide/teachers.md").read_text()
    assert f"| {' | '.join(map(str, cells))} |" in page.splitlines()
