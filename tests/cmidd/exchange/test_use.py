"""A converted set is used like one of ours: by every command that takes sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cmidd.cli import main
from cmidd.datasets import load_dataset
from cmidd.first_images import first_images
from cmidd.report.runs import read_runs
from cmidd.synthetic import SyntheticSet
from cmidd.view import View, view_of_cells
from tests.support.errors import error_of
from tests.support.peer_files import LABELS, numbers, pixels, write_idc, write_pair, write_res
from tests.support.report_files import Page

MEASURED = "--normalised_by=measured"
NETWORK = "--network=convnet:width=4,depth=1"
SHAPE = (len(LABELS), 1, 8, 8)


def convert(source: Path, *words: str) -> None:
    main(["convert", str(source), f"--out={source.stem}.safetensors", "--dataset=digits", *words])


@pytest.fixture
def sets(elsewhere: Path) -> list[str]:
    """Sets of digits: one that is stored undecoded, and one with soft labels and a step size."""
    convert(write_idc(Path("data.pt"), pixels(*SHAPE)), "--factor=2")
    soft = numbers(len(LABELS), 10) + 9 * torch.eye(10)[LABELS]
    pair = write_pair(Path(), numbers(*SHAPE), soft, torch.tensor(0.05))
    convert(pair, "--space=normalised", MEASURED)
    return ["data.safetensors", "images_best.safetensors"]


def test_the_command_says_what_it_found(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(write_idc(Path("data.pt"), pixels(*SHAPE)), "--factor=2")
    assert capsys.readouterr().out.splitlines() == [
        "data.pt: format idc, 20 images of digits, seen as 4 each, pixels there, hard labels, no "
        "learned step size",
        "the synthetic set: data.safetensors",
    ]


def test_it_is_evaluated_scored_and_shown(
    sets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    networks = NETWORK.replace("network", "networks", 1)
    main(["evaluate", *sets, networks, "--epochs=2", "--repeats=1", "--device=cpu"])
    results = json.loads(Path("runs/evaluation.json").read_text())["results"]
    assert [result["set"] for result in results] == sets
    rates = [result["evaluations"][0]["recipe"]["lr"] for result in results]
    assert rates == pytest.approx([0.01, 0.05])
    main(["pretrain", NETWORK, "--networks=1", "--epochs=1", "--device=cpu"])
    capsys.readouterr()
    main(["score", *sets, "--bank=runs/bank.safetensors", "--device=cpu"])
    table = capsys.readouterr().out.splitlines()
    assert [line for line in table if not line.startswith(" ")] == sets
    main(["report", *sets, "--evaluations=runs/evaluation.json", "--bank=runs/bank.safetensors"])
    said = capsys.readouterr().out.splitlines()
    assert any("another tool (data.pt) " in line for line in said)
    page = Page(Path("runs/report.html").read_text())
    makers = "another tool (data.pt) and another tool (images_best.pt)"
    assert f"digits distilled by {makers}, 2 images per class" in page.text
    made = page.section("How it was made")
    assert "Converted from data.pt, format idc." in made
    assert "CMI not known" in page.section("Features")
    assert "seen as 4 images each" in page.section("Synthetic images")


def test_it_is_shown_beside_our_runs(sets: list[str]) -> None:
    words = ["--ipc=1", "--iterations=1", "--device=cpu", "--batch_real=2", NETWORK, "--out=dm"]
    main(["distill", "dm", *words])
    paths = [Path("dm"), Path("dm/result.safetensors"), *map(Path, sets)]
    runs, _ = read_runs(paths, with_dataset=False)
    assert [run.method for run in runs[:2]] == ["DM", "DM"]
    assert [bool(run.converted) for run in runs] == [False, False, True, True]
    assert [bool(run.log) for run in runs] == [True, False, False, False]


def test_a_whitened_set_is_shown_with_a_bank_of_whitened_images(elsewhere: Path) -> None:
    convert(write_pair(Path(), numbers(*SHAPE), LABELS), "--space=whitened")
    main(["pretrain", NETWORK, "--zca", "--networks=1", "--epochs=1", "--device=cpu"])
    main(["report", "images_best.safetensors", "--bank=runs/bank.safetensors"])
    shown = Page(Path("runs/report.html").read_text())
    assert "whitened (ZCA)" in shown.section("Synthetic images")
    assert "CMI not known" in shown.section("Features")


def test_a_method_begins_with_what_networks_see_of_it(sets: list[str]) -> None:
    words = ["distill", "dm", "--iterations=0", "--device=cpu", NETWORK, "--batch_real=2"]
    for name, ipc in zip(sets, (8, 2), strict=True):
        main([*words, f"--init=file:{name}", f"--ipc={ipc}", f"--out={ipc}"])
        found = SyntheticSet.load(Path(str(ipc)))
        assert torch.equal(found.images, SyntheticSet.load(Path(name)).seen().images)


def test_a_method_with_its_view_begins_with_what_is_stored(sets: list[str]) -> None:
    data, made = load_dataset("digits"), SyntheticSet.load(Path(sets[0]))
    view = view_of_cells(2, (8, 8), data.mean, data.std)
    images, labels = first_images(data, 2, f"file:{sets[0]}", 0, view=view)
    assert torch.equal(images, made.images)
    assert torch.equal(labels, made.labels)
    for other in (view_of_cells(3, (8, 8), data.mean, data.std), View("cells", {"factor": 4})):
        with pytest.raises(ValueError, match=r"init: .* expected images stored with the view \{"):
            first_images(data, 2, f"file:{sets[0]}", 0, view=other)


def test_it_is_exported(sets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["export", sets[1], "--ddranking=dd", "--pt=pt"])
    assert capsys.readouterr().out.splitlines() == [
        "images_best.pt (normalised), labels_best.pt and lr.pt (learned, 0.05): pt",
        "images.pt (normalised), labels.pt (logits) and lr.pt (learned, 0.05): dd",
    ]
    main(["export", sets[0], "--png=png", "--ddranking=dd0"])
    assert len(list(Path("png").glob("*/*.png"))) == 4 * len(LABELS)
    assert torch.load("dd0/images.pt", weights_only=True).shape == (4 * len(LABELS), 1, 8, 8)


def test_a_set_that_is_there_is_replaced_if_that_is_asked_for(
    sets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(sets[0]).read_bytes()
    write_idc(Path("data.pt"), pixels(*SHAPE, seed=1))
    words = ["convert", "data.pt", f"--out={sets[0]}", "--dataset=digits", "--factor=2"]
    assert "--out: data.safetensors exists already; add --overwrite, or" in error_of(words, capsys)
    assert Path(sets[0]).read_bytes() == before
    main([*words, "--overwrite"])
    assert Path(sets[0]).read_bytes() != before


def test_no_file_that_is_read_is_replaced(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_pair(Path(), numbers(*SHAPE), LABELS, torch.tensor(0.05))
    Path("link.pt").symlink_to(path)
    files = [path, Path("labels_best.pt"), Path("lr_best.pt")]
    before = [file.read_bytes() for file in files]
    words = ["convert", str(path), "--dataset=digits", "--space=normalised", "--overwrite"]
    for out in (*files, Path("link.pt")):
        text = error_of([*words, f"--out={out}"], capsys)
        read = path if out.is_symlink() else out
        assert f"--out: expected another file than {read}, which the set is read from" in text
    told = [*words, "--labels=a.pt", "--lr=b.pt"]
    for old, new in zip(files[1:], ("a.pt", "b.pt"), strict=True):
        Path(new).write_bytes(old.read_bytes())
        assert f"--out: expected another file than {new}" in error_of(
            [*told, f"--out={new}"], capsys
        )
    assert [file.read_bytes() for file in files] == before


def test_a_file_that_cannot_be_read_leaves_nothing(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_res(Path("res.pt"), numbers(*SHAPE))
    path.write_bytes(path.read_bytes()[:-100])
    words = ["convert", "res.pt", "--out=a/set.safetensors", "--dataset=digits", "--factor=1"]
    text = error_of(words, capsys)
    assert text == "cmidd: res.pt: is an archive that is cut short or damaged\n"
    assert not Path("a").exists()


def test_the_file_of_a_set_names_no_place_of_the_machine(elsewhere: Path) -> None:
    (elsewhere / "private").mkdir()
    path = write_res(elsewhere / "private" / "res.pt", numbers(*SHAPE))
    words = ["convert", str(path), "--out=set.safetensors", "--dataset=digits", "--factor=1"]
    main([*words, MEASURED])
    assert SyntheticSet.load("set.safetensors").record["converted"]["file"] == "res.pt"
    assert b"private" not in Path("set.safetensors").read_bytes()
