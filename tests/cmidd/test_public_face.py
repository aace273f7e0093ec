"""What a notebook needs is in `cmidd` itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cmidd
from cmidd.report.runs import read_runs
from tests.support.tiny import DM_OPTIONS, DSA_OPTIONS, OPTIONS, quiet, tiny_dataset


def test_a_whole_job_from_python(tmp_path: Path) -> None:
    data = cmidd.load_dataset("digits")
    bank = cmidd.train_bank(
        f"{tmp_path}/bank",  # text does for a path
        data,
        cmidd.BankOptions(network="mlp", networks=2, epochs=1),
        torch.device("cpu"),
        say=quiet,
    )
    assert isinstance(bank, cmidd.Bank)
    assert len(cmidd.Bank.load(f"{tmp_path}/bank")) == 2
    run = cmidd.prepare(
        "dm",
        data,
        cmidd.DistillOptions(ipc=2, iterations=3),
        cmi=cmidd.CMIOptions(bank=tmp_path / "bank", cmi_weight=1.0),
        device="cpu",
        say=quiet,
    )
    assert run.options.lr_images == 1.0  # as published
    result = cmidd.distill(run, run.folder(f"{tmp_path}/run"))
    loaded = cmidd.SyntheticSet.load(tmp_path / "run" / "result.safetensors")
    assert torch.equal(loaded.images, result.images)
    recipe = cmidd.Recipe(epochs=3)
    (shown,), _ = read_runs([tmp_path / "run"], with_dataset=False)
    assert shown.images_per_class == 2
    (accuracy,) = cmidd.evaluate_set(
        loaded, data, "mlp", repeats=1, recipe=recipe, lr=0.05, say=quiet
    )
    assert 0 <= accuracy.mean <= 1
    network = cmidd.train_on(loaded, data, "mlp", recipe=recipe)
    assert network(data.to_input(data.test.images)).shape == (359, 10)
    again = cmidd.distill(run, run.folder(tmp_path / "run", resume=True), say=quiet)
    assert torch.equal(again.images, result.images)
    with pytest.raises(RuntimeError, match="images have moved already; prepare another"):
        cmidd.distill(run, run.folder(tmp_path / "another"))
    with pytest.raises(FileExistsError, match="holds a run already"):
        run.folder(tmp_path / "run")


def test_a_set_is_judged_by_its_own_dataset(tmp_path: Path) -> None:
    data = tiny_dataset()
    run = cmidd.prepare("dm", data, OPTIONS, DM_OPTIONS, device="cpu", say=quiet)
    result = cmidd.distill(run, run.folder(tmp_path))
    other = tiny_dataset("other")
    for use in (cmidd.evaluate_set, cmidd.train_on):
        with pytest.raises(ValueError, match="synthetic_set: expected dataset other as other has"):
            use(result, other)


def test_options_of_another_method_are_named() -> None:
    with pytest.raises(TypeError, match="expected DMOptions for dm, got DSAOptions"):
        cmidd.prepare("dm", tiny_dataset(), OPTIONS, DSA_OPTIONS)
    with pytest.raises(ValueError, match=r"mtt needs experts; give MTTOptions\(...\)"):
        cmidd.prepare("mtt", tiny_dataset())
    with pytest.raises(ValueError, match="init: expected a value, got None"):
        cmidd.DistillOptions(init=None)  # type: ignore[arg-type]


def test_the_options_of_every_method_are_public() -> None:
    # Without those that other tests register.
    for name in ("dm", "dc", "dsa", "mtt", "idc", "idm", "iid", "ncfm"):
        assert cmidd.METHODS[name].options is getattr(cmidd, f"{name.upper()}Options")


def test_every_public_name_is_there_and_documented() -> None:
    for name in cmidd.__all__:
        assert name == "METHODS" or getattr(cmidd, name).__doc__
    with pytest.raises(AttributeError, match="module 'cmidd' has no attribute 'nothing'"):
        cmidd.nothing  # noqa: B018


def test_importing_it_imports_nothing_that_may_be_missing() -> None:
    words = "import cmidd, sys; print(sorted({'torch', 'safetensors', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
