"""What `cmidd report` says in sentences of the evaluations that it is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cmidd.cli import main
from cmidd.report import write_report
from tests.support.report_files import Results, make_dataset, make_evaluation, make_run, taught

HEAD = "Accuracy on real test images (%), mean of 2 networks mlp"
REAL = "random real images, 2 per class"
SIZES = {"one": 3, "random real images, 1 per class": 3, "all real images": 36}  # of three classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs that tests name."""
    folder = tmp_path_factory.mktemp("runs")
    dataset = make_dataset(folder)
    make_run(folder / "one", dataset, ipc=1, weight=0.0)
    make_run(folder / "plain", dataset, weight=0.0, config={"bank": None, "cmi_weight": None})
    make_run(folder / "cmi", dataset, config={"bank": "b", "cmi_weight": 100.0})
    make_run(folder / "other", dataset, weight=0.0, config={"batch_real": 64})
    return folder


def evaluated(folder: Path, results: Results, **more: Any) -> Path:
    """A file of results, in which names of runs stand for their sets."""
    files = {name: str(folder / name / "result.safetensors") for name in results}
    files = {name: file if Path(file).exists() else name for name, file in files.items()}
    dataset = yaml.safe_load((folder / "one" / "config.yaml").read_text())["dataset"]
    path = make_evaluation(
        folder / "evaluation.json",
        dataset,
        {files[name]: found for name, found in results.items()},
        {files[name]: size for name, size in SIZES.items() if name in files},
    )
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return path


def said(folder: Path, *runs: str, results: Results, **more: Any) -> list[str]:
    """What is said of runs and of the results."""
    return write_report(
        [folder / name for name in runs],
        folder / "report.html",
        evaluations=[evaluated(folder, results, **more)],
        device=torch.device("cpu"),
        overwrite=True,
    )


def test_sets_that_were_learned_by_a_teacher_are_compared_among_themselves(folder: Path) -> None:
    results: Results = {"plain": {"mlp": (0.5, 0.5)}, "cmi": {"mlp": (0.6, 0.6)}}
    path = evaluated(folder, results)
    record = json.loads(path.read_text())
    record["results"] += [taught(each, "logits of t") for each in record["results"]]
    path.write_text(json.dumps(record))
    runs = [folder / name for name in results]
    out, device = folder / "report.html", torch.device("cpu")
    lines = write_report(runs, out, evaluations=[path], device=device, overwrite=True)
    by = ", a teacher's logits by KL at temperature 20"
    assert lines[1:3] == [
        "  2 images per class: DM + CMI 60.0, DM 50.0",
        f"  2 images per class{by}: DM + CMI 60.0, DM 50.0",
    ]
    effect = "10.0 points more than without, standard error 0.0"
    assert lines[3:] == [
        f"  CMI in DM at 2 images per class: {effect}",
        f"  CMI in DM at 2 images per class{by}: {effect}",
    ]


def test_a_line_has_the_sets_of_one_size_the_best_first(folder: Path) -> None:
    accuracies = {REAL: 0.5, "plain": 0.625, "all real images": 0.96, "one": 0.4}
    accuracies |= {"random real images, 1 per class": 0.45}
    results = {name: {"mlp": (found, found)} for name, found in accuracies.items()}
    assert said(folder, "one", "plain", results=results) == [
        f"{HEAD}:",
        "  1 image per class: random real images 45.0, DM 40.0",
        "  2 images per class: DM 62.5, random real images 50.0",
        "  12 images per class: all real images 96.0",
    ]


@pytest.mark.parametrize(
    ("with_cmi", "effect"),
    [
        # Deviations of samples 0.028 and 0.021, each over two networks: 0.035 / sqrt(2).
        ((0.60, 0.64), "2.5 points more than without, standard error 2.5"),
        ((0.50, 0.54), "7.5 points fewer than without, standard error 2.5"),
        ((0.595, 0.595), "as many points as without, standard error 1.5"),
        ((0.62,), "2.5 points more than without, of one network"),
    ],
)
def test_the_effect_of_cmi_has_its_sign_and_its_error(
    folder: Path, with_cmi: tuple[float, ...], effect: str
) -> None:
    results: Results = {"plain": {"mlp": (0.58, 0.61)}, "cmi": {"mlp": with_cmi}}
    lines = said(folder, "cmi", "plain", results=results)
    assert lines[-1] == f"  CMI in DM at 2 images per class: {effect}"
    assert len(lines) == 3


def test_runs_that_differ_in_more_than_cmi_are_not_compared(folder: Path) -> None:
    results: Results = {"other": {"mlp": (0.5, 0.5)}, "cmi": {"mlp": (0.6, 0.6)}}
    lines = said(folder, "cmi", "other", results=results)
    assert lines[1:] == ["  2 images per class: DM + CMI 60.0, DM 50.0"]


def test_sets_that_one_method_made_are_called_by_their_files(folder: Path) -> None:
    results: Results = {"other": {"mlp": (0.5, 0.5)}, "plain": {"mlp": (0.6, 0.6)}}
    lines = said(folder, "plain", "other", results={**results, "a.pt": {"mlp": (0.1, 0.1)}})
    files = [folder / name / "result.safetensors" for name in ("plain", "other")]
    assert lines[1] == f"  2 images per class: {files[0]} 60.0, {files[1]} 50.0, a.pt 10.0"


def test_each_architecture_has_its_lines(folder: Path) -> None:
    results: Results = {
        "one": {"mlp": (0.5, 0.5), "lenet": (0.7,)},
        "plain": {"mlp": (0.6, 0.6, 0.6)},
    }
    assert said(folder, "one", "plain", results=results, seed=3) == [
        f"{HEAD.replace('2', '2 to 3')}, seed 3:",
        "  1 image per class: DM 50.0",
        "  2 images per class: DM 60.0",
        "Accuracy on real test images (%), one network lenet, seed 3:",
        "  1 image per class: DM 70.0",
    ]


def test_a_number_of_images_that_classes_do_not_share_is_said_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "all real images", 1438)
    results: Results = {"all real images": {"mlp": (0.9, 0.9)}}
    assert said(folder, "one", results=results)[1] == "  1,438 images: all real images 90.0"


def test_without_evaluations_nothing_is_said(folder: Path) -> None:
    out = folder / "report.html"
    given = [folder / "one"]
    assert write_report(given, out, device=torch.device("cpu"), overwrite=True) == []


def test_the_command_says_it_before_the_place_of_the_report(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluated(folder, {"one": {"mlp": (0.5, 0.5)}})
    out = folder / "said.html"
    main(["report", str(folder / "one"), "--evaluations", str(path), "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{HEAD}:", "  1 image per class: DM 50.0", f"the report: {out}"]
