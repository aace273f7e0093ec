from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cmidd.datasets import Dataset
from cmidd.report.page import element, text
from cmidd.report.pictures import MOST_CLASSES
from tests.support.report_files import (
    CLASSES,
    Page,
    make_bank,
    make_dataset,
    make_evaluation,
    make_run,
    report,
)

HOSTILE = "<script>alert('$x$')</script> & \"co\""
SECTIONS = ["Accuracy", "Synthetic images", "Loss and CMI", "Features", "How it was made"]
RUNS = ("cmi", "plain", "going")  # of `page`


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that `page` is made of."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "cmi", dataset, ipc=12)
    make_run(folder / "plain", dataset, ipc=1, weight=0.0)
    make_run(folder / "going", dataset, finished=False)
    make_bank(folder / "bank", dataset)
    make_evaluation(folder / "e.json", dataset.name, {"a": {"mlp": (0.5,)}})
    return folder


def report_of(folder: Path) -> Page:
    runs = [folder / name for name in RUNS]
    files = {"evaluations": [folder / "e.json"], "bank": folder / "bank"}
    return report(folder, *runs, overwrite=True, **files)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    """A report with all there is."""
    return report_of(folder)


@pytest.fixture(scope="module")
def bare_page(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A report of one result that was copied without its log."""
    folder = tmp_path_factory.mktemp("bare")
    make_run(folder / "copied", dataset, weight=0.0, record={"command": "", "versions": {}})
    (folder / "copied" / "log.jsonl").unlink()
    return report(folder, folder / "copied")


def test_every_section_is_there_in_order(page: Page, bare_page: Page) -> None:
    assert re.findall(r"<h2>(.*?)</h2>", page.source) == SECTIONS
    assert re.findall(r"<h2>(.*?)</h2>", bare_page.source) == SECTIONS


def test_the_title_says_dataset_method_and_images_per_class(dataset: Dataset, page: Page) -> None:
    title = f"{dataset.name} distilled by DM, 1, 2 and 12 images per class"
    assert page.texts.count(title) == 2  # of the window and of the page


def test_the_page_loads_nothing(page: Page) -> None:
    names = {name for name, _ in page.elements}
    assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    for forbidden in ("http:", "https:", "url(", "@import"):
        assert forbidden not in page.source
    for _, attributes in page.elements:
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:image/png").startswith("data:image/png")


def test_its_policy_forbids_the_browser_all_other_loads(page: Page) -> None:
    (policy,) = (meta["content"] for meta in page.of("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_picture_has_words_and_twice_the_pixels_it_takes(page: Page) -> None:
    pictures = page.of("img")
    assert len(pictures) == len(RUNS) * CLASSES + 2 + len(RUNS)  # strips, curves, t-SNE
    for attributes in pictures:
        assert attributes["alt"]
        png = base64.b64decode(attributes["src"].partition(",")[2])
        assert Image.open(io.BytesIO(png)).width == 2 * int(attributes["width"])


def test_pictures_with_lines_and_letters_have_a_dark_twin(page: Page) -> None:
    twins = page.of("source")
    assert len(twins) == 2 + len(RUNS)
    for twin in twins:
        assert twin["media"] == "(prefers-color-scheme: dark)"
        assert twin["srcset"].startswith("data:image/png;base64,")


def test_the_same_runs_give_the_same_page(folder: Path, page: Page) -> None:
    assert report_of(folder).source == page.source


def test_hostile_names_are_text(dataset: Dataset, tmp_path: Path) -> None:
    files = {HOSTILE: {"command": HOSTILE, HOSTILE: HOSTILE}}
    record = {"command": HOSTILE, "versions": {HOSTILE: HOSTILE}, "made_with": files}
    names = [HOSTILE, "b", "c"]
    run = make_run(tmp_path / "<b>run", dataset, class_names=names, record=record)
    results = {HOSTILE: {HOSTILE: (0.5,)}}
    evaluation = make_evaluation(tmp_path / "<i>.json", dataset.name, results)
    page = report(tmp_path, run, evaluations=[evaluation])
    assert {"script", "b", "i"}.isdisjoint(name for name, _ in page.elements)
    # Class, set, network, command, a version's name and number, and a file's four.
    assert page.text.count(HOSTILE) == 10
    assert f"2 synthetic images of class {HOSTILE}" in page.alts()


# Readers of HTML change these: a carriage return to a new line, a zero to a replacement.
@given(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_was(content: str) -> None:
    page = Page(element("p", content, title=content))
    assert "".join(page.texts) == content
    assert page.elements == [("p", {"title": content})]


def test_a_file_name_that_is_no_unicode_can_be_written() -> None:
    assert text("caf\udce9").encode() == b"caf?"


def test_without_evaluations_it_says_how_to_get_them(bare_page: Page) -> None:
    assert "cmidd report --evaluations" in bare_page.section("Accuracy")


def test_the_grid_has_ten_images_of_a_class_at_most(page: Page) -> None:
    for count in (10, 1, 2):  # of 12, 1 and 2
        for c in range(CLASSES):
            images = "image" if count == 1 else "images"
            assert f"{count} synthetic {images} of class {c}" in page.alts()


def test_of_many_classes_the_first_are_shown_and_it_says_so(
    dataset: Dataset, tmp_path: Path
) -> None:
    names = [f"class {c}" for c in range(MOST_CLASSES + 5)]
    page = report(tmp_path, make_run(tmp_path / "run", dataset, ipc=1, class_names=names))
    note = f"the first {MOST_CLASSES} of {MOST_CLASSES + 5} classes"
    assert note in page.section("Synthetic images")
    assert len(page.alts("1 synthetic image of")) == MOST_CLASSES


def test_the_legend_names_every_run_and_its_regulariser(folder: Path, page: Page) -> None:
    legend = page.section("Loss and CMI")
    for name, regulariser in zip(RUNS, ("CMI weight 100", "no CMI", "CMI"), strict=True):
        assert f"{folder / name} ({regulariser})" in legend


def test_without_cmi_there_is_no_curve_of_it(dataset: Dataset, tmp_path: Path) -> None:
    page = report(tmp_path, make_run(tmp_path / "run", dataset, weight=0.0))
    assert page.alts("Loss")
    assert not page.alts("CMI")


def test_zeros_for_cmi_as_older_logs_have_them_are_no_curve(
    dataset: Dataset, tmp_path: Path
) -> None:
    for name, finished in (("done", True), ("going", False)):
        run = make_run(tmp_path / name, dataset, weight=0.0, finished=finished)
        (run / "log.jsonl").write_text('{"iteration": 1, "loss": 2.0, "cmi": 0.0}\n')
        page = report(tmp_path / name, run)
        assert f"{run} (no CMI)" in page.section("Loss and CMI")
        assert not page.alts("CMI")


def test_a_result_that_was_copied_alone_has_no_curves(bare_page: Page) -> None:
    assert "copied (no log)" in bare_page.section("Loss and CMI")
    assert not bare_page.alts("Loss")


def test_features_have_a_panel_for_each_run(folder: Path, page: Page) -> None:
    names = [f"t-SNE of the features of {folder / name}" for name in RUNS]
    assert page.alts("t-SNE") == names
    assert "30 real test images" in page.section("Features")


def test_under_them_is_the_cmi_by_all_networks_of_the_bank(folder: Path, page: Page) -> None:
    features = page.source[page.source.index("<h2>Features") :]
    cells = {
        name: re.findall("<td>(.*?)</td>", found[1])
        for name in RUNS
        if (found := re.search(rf'<th scope="row">{folder / name}</th>(.*?)</tr>', features))
    }
    assert cells["plain"] == ["no CMI", "0 ± 0", "0", "0"]  # one image per class
    mean, least, largest = (float(cell.split()[0]) for cell in cells["cmi"][1:])
    assert 0 < least < mean < largest


def test_without_a_bank_it_says_how_to_get_features(bare_page: Page) -> None:
    assert "cmidd pretrain" in bare_page.section("Features")
    assert not bare_page.alts("t-SNE")


def test_an_unfinished_run_is_shown_with_a_remark(folder: Path, page: Page) -> None:
    remark = f"{folder / 'going'} is not finished: its images are those of iteration 1,234."
    assert remark in page.texts
    assert "not finished, iteration 1,234" in page.section("Synthetic images")


def test_how_it_was_made_has_commands_configuration_and_versions(
    dataset: Dataset, page: Page
) -> None:
    made = page.section("How it was made")
    for expected in ("cmidd distill dm --seed 7", "torch 9.9.9", dataset.name):
        assert expected in made
    for expected in ("e.json", "cmidd evaluate --seed 3", "torch 8.8.8"):
        assert expected in made


def test_a_result_of_unknown_origin_says_so(bare_page: Page) -> None:
    made = bare_page.section("How it was made")
    assert "The command was not recorded." in made
    assert "Versions were not recorded." in made


def test_a_report_that_fails_leaves_the_old_page(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    (tmp_path / "report.html").write_text("the old page")
    monkeypatch.setattr("cmidd.storage.output.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        report(tmp_path, folder / "plain", overwrite=True)
    assert (tmp_path / "report.html").read_text() == "the old page"
