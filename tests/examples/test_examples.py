"""Every example runs as a user runs it, from another folder, and prints what it says it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 60  # of one core, which a neighbour's work does not make longer


def printed_by(name: str, folder: Path) -> str:
    """What an example prints."""
    done = subprocess.run(
        ["sh", "-c", f'ulimit -t {SECONDS} && exec "$@"', "sh", sys.executable, EXAMPLES / name],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=8 * SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert not [*folder.iterdir()]
    return done.stdout


def accuracies(printed: str) -> dict[str, float]:
    """Per cent of test images right, by what stands before it in its line."""
    found = re.findall(r"^(.+?):? +(?:CMI [\d.]+ +)?accuracy ([\d.]+)%", printed, re.MULTILINE)
    return {name: float(accuracy) for name, accuracy in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "least"),
    [
        ("fused_cmi_in_a_dm_loop.py", "DM", 84),
        ("regulariser_on_your_module.py", "DC", 78),
        ("trajectory_matching_with_cmi.py", "MTT", 76),
    ],
)
def test_a_loop_by_hand_beats_real_images_and_cmi_is_lower_with_the_regulariser(
    name: str, method: str, least: float, tmp_path: Path
) -> None:
    printed = printed_by(name, tmp_path)
    accuracy = accuracies(printed)
    assert [*accuracy] == ["real images", method, f"{method} with CMI"], printed
    _, without, with_cmi = (float(cmi) for cmi in re.findall(r"CMI (0\.\d+)", printed))
    assert 0 < with_cmi < 0.85 * without, printed
    for which in (method, f"{method} with CMI"):
        assert accuracy[which] > max(least, accuracy["real images"]), printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "distilled", "real", "least"),
    [
        ("distil_load_and_train.py", "20 distilled images", "20 real images", 84),
        ("method_of_your_own.py", "features", "real images", 84),
    ],
)
def test_distilled_images_beat_as_many_real_ones(
    name: str, distilled: str, real: str, least: float, tmp_path: Path
) -> None:
    printed = printed_by(name, tmp_path)
    accuracy = accuracies(printed)
    assert [*accuracy] == [distilled, real], printed
    assert accuracy[distilled] > max(least, accuracy[real] + 4), printed


@pytest.mark.slow
def test_an_mcmi_teacher_has_more_cmi_and_students_learn_from_both(tmp_path: Path) -> None:
    printed = printed_by("knowledge_from_an_mcmi_teacher.py", tmp_path)
    plain, tuned = (float(cmi) for cmi in re.findall(r"CMI (0\.\d+)", printed))
    assert tuned > 1.1 * plain > 0, printed
    accuracy = accuracies(printed)
    assert [*accuracy] == ["plain teacher", "students of the plain teacher", "MCMI teacher",
                           "students of the MCMI teacher"], printed  # fmt: skip
    assert accuracy["MCMI teacher"] > accuracy["plain teacher"] - 3, printed
    assert min(accuracy.values()) > 75, printed


def test_the_table_names_every_example() -> None:
    table = re.findall(r"^\| \[(.+?)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_the_block_changes_a_network_by_rounding_alone(tmp_path: Path) -> None:
    said = printed_by("norm_act_pool_in_a_convnet.py", tmp_path)
    apart = [float(found) for found in re.findall(r"by (\S+e-\d+)", said)]
    assert len(apart) == 2
    assert all(0 < each < 1e-4 for each in apart)
