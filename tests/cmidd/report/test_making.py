"""What a report says of where its parts come from, and where it is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from cmidd.datasets import Dataset
from cmidd.pretrained.bank import Bank
from tests.support.report_files import make_bank, make_dataset, make_run, report


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"))


def test_files_of_networks_have_their_commands_once_and_before_the_runs(
    dataset: Dataset, tmp_path: Path
) -> None:
    files = {
        "bank": {"command": "cmidd pretrain --networks=3", "networks": 3, "lr": 0.05},
        "experts": {"experts": 9, "mean": [0.5]},  # as a file of before commands were kept
    }
    config = {"bank": "runs/b", "experts": "runs/x"}
    for name in ("first", "second"):
        make_run(tmp_path / name, dataset, record={"made_with": files}, config=config)
    make_run(tmp_path / "going", dataset, finished=False, record={"made_with": files})
    bank = make_bank(tmp_path / "other", dataset, command="cmidd pretrain --networks=2")
    runs = [tmp_path / name for name in ("first", "second", "going")]
    page = report(tmp_path, *runs, bank=bank)
    made = page.source[page.source.index("<h2>How it was made") :]
    assert re.findall("<h3>(.*?)</h3>", made) == [
        "bank: runs/b", "experts: runs/x", f"bank: {bank}", *map(str, runs)
    ]  # fmt: skip
    assert re.findall("<pre>cmidd pretrain.*?</pre>", made) == [
        "<pre>cmidd pretrain --networks=3</pre>", "<pre>cmidd pretrain --networks=2</pre>"
    ]  # fmt: skip
    of_experts = made[made.index("experts: runs/x") : made.index(f"bank: {bank}")]
    assert "The command was not recorded." in of_experts
    assert re.findall('<th scope="row">(.*?)</th><td>(.*?)</td>', of_experts) == [("experts", "9")]


def test_the_bank_of_runs_and_features_is_listed_once(dataset: Dataset, tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank", dataset, command="cmidd pretrain")
    record = {"made_with": {"bank": Bank.load(bank, torch.device("cpu")).record}}
    run = make_run(tmp_path / "run", dataset, record=record, config={"bank": str(bank)})
    assert report(tmp_path, run, bank=bank).source.count("<h3>bank: ") == 1


def test_a_run_that_diverged_is_marked_at_the_top(dataset: Dataset, tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", dataset)
    far = make_run(tmp_path / "far", dataset, scale=1e7)
    loud = make_run(tmp_path / "loud", dataset)
    (loud / "log.jsonl").write_text(
        "".join(
            json.dumps({"iteration": k, "loss": loss, "cmi": 0.1}) + "\n"
            for k, loss in enumerate((0.5, 7.0, 700.0))
        )
    )
    page = report(tmp_path, good, far, loud)
    warnings = re.findall('<p class="warning">(.*?)</p>', page.source)
    assert len(warnings) == 2
    assert re.match(rf"{far} seems to have diverged: images left .*e\+07 stand", warnings[0])
    assert warnings[1] == f"{loud} seems to have diverged: the loss grew from 0.5 to 700."


def test_a_page_that_is_there_is_kept_unless_told(dataset: Dataset, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dataset)
    (tmp_path / "report.html").write_text("the old page")
    with pytest.raises(
        FileExistsError, match=r"out: .*report\.html exists already; add --overwrite, or name"
    ):
        report(tmp_path, tmp_path / "not looked at")
    assert (tmp_path / "report.html").read_text() == "the old page"
    assert "the old page" not in report(tmp_path, run, overwrite=True).source


def test_a_place_that_cannot_be_written_is_an_error_before_anything_is_drawn(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", dataset)
    monkeypatch.setattr("cmidd.report._images", pytest.fail)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"out: .*file is a file; expected a folder"):
        report(tmp_path / "file", run)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(IsADirectoryError, match=r"out: .* is a folder; name a file in it"):
        report(tmp_path, run)
