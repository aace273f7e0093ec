"""A run with InfoNCE keeps what runs promise: its settings, its bits, its ranks, its costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from cmidd import ranks
from cmidd.cli import main
from cmidd.cli.costs import estimate
from cmidd.datasets import load_dataset
from cmidd.datasets.streamed import StreamedImages
from cmidd.infonce_term import InfoNCETerm
from cmidd.loop import distill
from cmidd.options.cmi import CMIOptions
from cmidd.options.infonce import InfoNCEOptions
from cmidd.run import prepare
from cmidd.storage.run_folder import read_log
from cmidd.synthetic import SyntheticSet
from tests.cmidd.test_infonce import (
    DATASET,
    MIM,
    SEVERAL,
    method_of,
    prepared,
    random_images,
    term_of,
)
from tests.cmidd.test_resume import run_until
from tests.support.dataset_files import random_sets, write_tree
from tests.support.ranks import on_ranks
from tests.support.tiny import (
    CPU,
    DM_OPTIONS,
    IDC_OPTIONS,
    NETWORK,
    NO_CMI,
    OPTIONS,
    mtt_options,
    quiet,
    tiny_bank,
    tiny_experts,
    tiny_run,
)


def in_folder(
    path: Path, infonce: InfoNCEOptions | None, *, resume: bool = False, **changes: Any
) -> SyntheticSet:
    options = replace(OPTIONS, init="real", **changes)
    run = prepare("dm", DATASET, options, DM_OPTIONS, infonce=infonce, device=CPU, say=quiet)
    return distill(run, run.folder(path, resume=resume), say=quiet)


def test_without_a_weight_nothing_tells_of_it(tmp_path: Path) -> None:
    made = in_folder(tmp_path / "run", InfoNCEOptions())
    texts = [(tmp_path / "run" / name).read_text() for name in ("config.yaml", "log.jsonl")]
    assert not any("mim" in text for text in (*texts, json.dumps(made.record)))


def test_a_run_goes_on_with_the_same_settings_alone(tmp_path: Path) -> None:
    whole = in_folder(tmp_path / "whole", SEVERAL)
    config = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())
    assert config["mim_layers"] == ["features", "features.1", "logits"]
    assert (config["mim_weight"], config["mim_bank"]) == (0.5, None)
    path = tmp_path / "run"
    in_folder(path, SEVERAL, iterations=5)
    for other, message in (
        (None, "mim_weight: 0.5 there, None now"),
        (replace(SEVERAL, mim_weight=0.6), "mim_weight: 0.5 there, 0.6 now"),
        (replace(SEVERAL, mim_layers=("features",)), r"mim_layers: \[.*\] there, \['features'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            in_folder(path, other, resume=True)
    assert torch.equal(in_folder(path, SEVERAL, resume=True).images, whole.images)
    in_folder(tmp_path / "without", None, iterations=5)
    with pytest.raises(ValueError, match=r"mim_weight: None there, 0\.5 now"):
        in_folder(tmp_path / "without", MIM, resume=True)


def test_a_run_does_not_go_on_with_another_bank(tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    tiny_bank(bank, DATASET)
    options = replace(MIM, mim_bank=bank)
    in_folder(tmp_path / "run", options, iterations=5)
    bank.unlink()
    tiny_bank(bank, DATASET, seed=1)
    with pytest.raises(ValueError, match="was begun with another mim_bank than the one"):
        in_folder(tmp_path / "run", options, resume=True)


def test_a_run_stopped_at_any_write_goes_on_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = replace(OPTIONS, init="real", iterations=2, checkpoint_every=1)
    given: Any = {"method": ("idc", IDC_OPTIONS), "infonce": SEVERAL}
    tiny_run(tmp_path / "whole", loop, **given)
    files = "result.safetensors", "log.jsonl"
    whole = [(tmp_path / "whole" / file).read_bytes() for file in files]
    stops = 0
    while run_until(stops + 1, path := tmp_path / f"{stops + 1}", monkeypatch, loop, **given):
        stops += 1
        tiny_run(path, loop, resume=True, **given)
        assert [(path / file).read_bytes() for file in files] == whole
    assert stops > 10


def test_pictures_that_stay_encoded_give_the_same_run(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "set", random_sets(4, 3, 8, 8))
    found = []
    for more in ({}, {"keep_decoded": 0, "on_demand": True}):
        data = load_dataset(f"folder:{folder}", **more)  # type: ignore[arg-type]
        assert isinstance(data.train.source, StreamedImages) == bool(more)
        path = tmp_path / f"run {len(more)}"
        found.append(tiny_run(path, replace(OPTIONS, iterations=2), dataset=data, infonce=MIM))
    assert torch.equal(found[0].images, found[1].images)


def run_each(folder: Path, experts: Path) -> None:
    batch, bank = replace(MIM, mim_on="batch"), experts.with_name("bank")
    cmi, of_bank = CMIOptions(bank=bank, cmi_weight=5.0), replace(MIM, mim_bank=bank)
    for name, options, infonce, of_cmi in (
        ("dm", DM_OPTIONS, SEVERAL, NO_CMI),
        ("idc", IDC_OPTIONS, MIM, NO_CMI),
        ("mtt", mtt_options(experts, batch_syn=3), batch, NO_CMI),
        ("dm with both", DM_OPTIONS, of_bank, cmi),
    ):
        loop = replace(OPTIONS, init="real", iterations=4, lr_images=1.0)
        tiny_run(folder / name, loop, of_cmi, method=(name.split()[0], options), infonce=infonce)


def share(name: str, given: Any) -> tuple[Tensor, Tensor]:
    method, images = method_of(name, given, 2), random_images(2)
    gradient = torch.zeros_like(images)
    return term_of(method, images, SEVERAL).add(images, gradient, 1, logged=False), gradient


def compare_shares(folder: Path, experts: Path, expected: list[tuple[Tensor, Tensor]]) -> None:
    given = ("dm", DM_OPTIONS), ("idc", IDC_OPTIONS)
    for (name, options), whole in zip(given, expected, strict=True):
        found = share(name, options)
        assert found[0] < whole[0]
        ranks.add_up(*found)
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    run_each(folder, experts)


def test_ranks_make_the_images_of_one_process(tmp_path: Path) -> None:
    experts = tmp_path / "experts"
    tiny_experts(experts, DATASET)
    tiny_bank(tmp_path / "bank", DATASET)
    run_each(tmp_path / "one", experts)
    whole = [share("dm", DM_OPTIONS), share("idc", IDC_OPTIONS)]
    on_ranks(2, compare_shares, tmp_path, tmp_path / "shared", experts, whole)
    for name in ("dm", "idc", "mtt", "dm with both"):
        one, shared = tmp_path / "one" / name, tmp_path / "shared" / name
        torch.testing.assert_close(
            SyntheticSet.load(shared).images, SyntheticSet.load(one).images, rtol=1e-5, atol=1e-5
        )
        logs = [read_log(each / "log.jsonl") for each in (shared, one)]
        for of_shared, of_one in zip(*logs, strict=True):
            assert of_shared == pytest.approx(of_one, rel=1e-3)
            assert "weighted_mim" in of_one
            assert ("weighted_cmi" in of_one) == (name == "dm with both")


def test_a_weight_that_is_too_large_is_suspected(tmp_path: Path) -> None:
    said: list[str] = []
    loop = replace(OPTIONS, lr_images=1e6)
    tiny_run(tmp_path, loop, infonce=MIM, say=said.append)
    assert said[0].endswith("lr_images 1e+06 or mim_weight 0.5 may be too large")


def test_an_estimate_counts_it_in_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    now, updates = [0.0], []

    def add(_: InfoNCETerm, images: Tensor, *words: Any, logged: bool) -> Tensor:
        now[0] += 5
        updates.append(words[1:])
        return images.new_zeros(())

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(InfoNCETerm, "add", add)
    assert estimate(prepared(MIM)).seconds == 5
    assert updates == [(0, 0), (0, 0)]


def test_the_command_takes_its_options_and_goes_on(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "dm", f"--network={NETWORK}", "--batch_real=8", "--ipc=1", "--device=cpu",
             "--out=runs/dm", "--mim_weight=0.5", "--mim_layers", "features", "logits",
             "--mim_batch_real=4"]  # fmt: skip
    main([*words, "--iterations=2", "--dry_run"])
    assert "an iteration" in capsys.readouterr().out
    main([*words, "--iterations=2"])
    main([*words, "--iterations=3", "--resume"])
    config = yaml.safe_load(Path("runs/dm/config.yaml").read_text())
    assert (config["mim_layers"], config["mim_batch_real"]) == (["features", "logits"], 4)
    record = SyntheticSet.load("runs/dm").record
    assert "--mim_weight=0.5 --mim_layers features logits --mim_batch_real=4" in record["command"]
    main(["distill", "dm", "--config=runs/dm/config.yaml", "--out=runs/dm", "--resume"])
    assert "is finished already" in capsys.readouterr().out
    main(["report", "runs/dm", "--out=report.html", "--device=cpu"])
    Path("runs/dm/result.safetensors").unlink()  # and it is not finished
    main(["report", "runs/dm", "--out=unfinished.html", "--device=cpu"])
    for page in ("report.html", "unfinished.html"):
        text = Path(page).read_text()
        assert "DM, 1 image per class, no CMI, InfoNCE weight 0.5" in text
        assert "runs/dm (no CMI, InfoNCE weight 0.5)" in text
        assert "InfoNCE against iterations, a line a run" in text
