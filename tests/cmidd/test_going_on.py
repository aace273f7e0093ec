"""More of what is there already: iterations, networks, experts, repeats of an evaluation."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cmidd.datasets import Dataset
from cmidd.evaluate import evaluate_set
from cmidd.evaluation_file import EvaluationFile
from cmidd.first_images import first_images
from cmidd.interruption import Interrupted
from cmidd.loop import distill
from cmidd.options.cmi import CMIOptions
from cmidd.options.iid import OF_IDM_ALONE
from cmidd.options.recipe import Recipe
from cmidd.pretrained.bank import train_bank
from cmidd.pretrained.experts import train_experts
from cmidd.run import prepare
from cmidd.stack import Stack
from cmidd.storage.tensor_file import FileError
from cmidd.synthetic import SyntheticSet
from tests.support.signals import signalling
from tests.support.tiny import (
    CPU,
    DM_OPTIONS,
    DSA_OPTIONS,
    IDM_OPTIONS,
    NETWORK,
    OPTIONS,
    expert_options,
    iid_options,
    mtt_options,
    ncfm_options,
    quiet,
    tiny_bank,
    tiny_dataset,
    tiny_experts,
    tiny_options,
)

DATASET = tiny_dataset()


# --- runs


def continued(
    path: Path, run: tuple[str, Any], cmi: CMIOptions, *, resume: bool, **changes: Any
) -> tuple[SyntheticSet, list[str]]:
    """A run in a folder that knows all its settings."""
    options = replace(OPTIONS, **{"init": "real", **changes})
    made = prepare(run[0], DATASET, options, run[1], cmi, device=CPU, say=quiet)
    said: list[str] = []
    result = distill(made, made.folder(path, resume=resume), say=said.append)
    return result, said


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory, bank_file: Path) -> dict[str, Any]:
    experts = tmp_path_factory.mktemp("going on") / "experts"
    tiny_experts(experts, DATASET)
    return {"dm": DM_OPTIONS, "dsa": DSA_OPTIONS, "mtt": mtt_options(experts),
            "iid": iid_options(bank_file), "idm": IDM_OPTIONS,
            "ncfm": ncfm_options(bank_file)}  # fmt: skip


@pytest.mark.parametrize("name", ["dm", "dsa", "mtt", "idm", "iid", "ncfm"])
def test_a_finished_run_goes_on_to_more_iterations_with_the_same_bits(
    tmp_path: Path, cmi: CMIOptions, methods: dict[str, Any], name: str
) -> None:
    run = name, methods[name]
    whole, _ = continued(tmp_path / "whole", run, cmi, resume=False)
    path = tmp_path / "run"
    first, _ = continued(path, run, cmi, resume=False, iterations=5)
    result, said = continued(path, run, cmi, resume=True, report_every=1)
    updates = 2 if name == "dsa" else 1
    assert f"going on after {5 * updates} of {8 * updates} updates" in said
    assert not torch.equal(first.images, whole.images)
    assert torch.equal(result.images, whole.images)
    assert yaml.safe_load((path / "config.yaml").read_text())["iterations"] == 8
    assert SyntheticSet.load(path / "result.safetensors").record["config"]["iterations"] == 8


def test_fewer_iterations_and_other_settings_are_named_with_both_values(
    tmp_path: Path, cmi: CMIOptions
) -> None:
    run = "dm", DM_OPTIONS
    continued(tmp_path, run, cmi, resume=False, iterations=5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    expected = r"iterations: 5 there, 3 now, which is fewer; lr_images: .* there, 2.0 now\)"
    with pytest.raises(ValueError, match=expected):
        continued(tmp_path, run, cmi, resume=True, iterations=3, lr_images=2.0)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_of_iid_that_is_older_than_its_bases_goes_on_on_dm(
    tmp_path: Path, cmi: CMIOptions, bank_file: Path
) -> None:
    run = "iid", iid_options(bank_file)
    whole, _ = continued(tmp_path / "whole", run, cmi, resume=False)
    path = tmp_path / "run"
    continued(path, run, cmi, resume=False, iterations=5)
    config = yaml.safe_load((path / "config.yaml").read_text())
    older = {name: v for name, v in config.items() if name not in {"base", *OF_IDM_ALONE}}
    assert older.keys() < config.keys()
    (path / "config.yaml").write_text(yaml.safe_dump(older))
    with pytest.raises(ValueError, match=r"base: None there, 'idm' now"):
        continued(path, ("iid", iid_options(bank_file, "idm")), cmi, resume=True)
    result, _ = continued(path, run, cmi, resume=True)
    assert torch.equal(result.images, whole.images)


def test_a_result_without_its_checkpoint_does_not_go_on(tmp_path: Path, cmi: CMIOptions) -> None:
    run = "dm", DM_OPTIONS
    continued(tmp_path, run, cmi, resume=False, iterations=5)
    (tmp_path / "checkpoint.safetensors").unlink()
    _, said = continued(tmp_path, run, cmi, resume=True, iterations=5)
    assert said == [f"{tmp_path} is finished already"]
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint.* --init=file:.*/result\."):
        continued(tmp_path, run, cmi, resume=True, iterations=8)


# --- banks and experts


@pytest.mark.parametrize("complete", [True, False])
def test_a_bank_takes_more_networks(tmp_path: Path, complete: bool) -> None:
    bank = tmp_path / "bank"
    tiny_bank(bank, DATASET, networks=2)
    if not complete:
        bank.rename(tmp_path / "bank.partial")
    said: list[str] = []
    train_bank(bank, DATASET, tiny_options(networks=4), CPU, resume=True, say=said.append)
    assert said[0] == "2 of 4 networks are there already"
    tiny_bank(tmp_path / "whole", DATASET, networks=4)
    assert bank.read_bytes() == (tmp_path / "whole").read_bytes()
    with pytest.raises(ValueError, match=r"networks: 4 there, 3 now, which is fewer"):
        train_bank(bank, DATASET, tiny_options(networks=3), CPU, resume=True, say=quiet)


def test_a_file_of_experts_takes_more_of_them(tmp_path: Path) -> None:
    experts = tmp_path / "experts"
    tiny_experts(experts, DATASET, experts=1)
    train_experts(experts, DATASET, expert_options(experts=2), CPU, resume=True, say=quiet)
    tiny_experts(tmp_path / "whole", DATASET, experts=2)
    assert experts.read_bytes() == (tmp_path / "whole").read_bytes()
    other = expert_options(experts=3, epochs=3, lr=0.5)
    with pytest.raises(ValueError, match=r"\(epochs: 2 there, 3 now; lr: 0.01 there, 0.5 now\)"):
        train_experts(experts, DATASET, other, CPU, resume=True, say=quiet)


# --- evaluations


class CutError(Exception):
    """In the place of a kill."""


def a_set(dataset: Dataset = DATASET, seed: int = 0) -> SyntheticSet:
    return SyntheticSet.of(dataset, *first_images(dataset, 3, "real", seed))


def evaluated(
    path: Path,
    *,
    made: SyntheticSet | None = None,
    resume: bool = False,
    cut_after: int | None = None,
    epochs: int = 3,
    seed: int = 0,
    **more: Any,
) -> list[str]:
    """Evaluate a set into a file; what was said."""
    said: list[str] = []
    made = made or a_set()
    about = {"command": more.pop("command", "the command")}
    file = EvaluationFile(path, {"dataset": "tiny", "seed": seed}, about, resume=resume)
    store = file.of("the set", made)
    keep, calls = store.keep, 0

    def counted(accuracy: Any) -> None:
        nonlocal calls
        keep(accuracy)
        calls += 1
        if calls == cut_after:
            raise CutError

    store.keep = counted  # type: ignore[method-assign]
    recipe = Recipe(epochs, batch_size=4, optimizer=more.pop("optimizer", "sgd"))
    networks = more.pop("networks", [NETWORK, "mlp:width=8"])
    evaluate_set(
        made, DATASET, networks, recipe=recipe, store=store, seed=seed, say=said.append, **more
    )
    return said


@pytest.mark.parametrize("cut_after", [1, 2, 3, 5])
@pytest.mark.parametrize("together", [1, 2])
def test_an_evaluation_that_was_cut_goes_on_network_by_network(
    tmp_path: Path, cut_after: int, together: int
) -> None:
    options: dict[str, Any] = {"repeats": 3, "together": together}
    evaluated(tmp_path / "whole", **options)
    path = tmp_path / "cut"
    if together == 2 and cut_after == 5:
        cut_after = 4  # groups of two
    with pytest.raises(CutError):
        evaluated(path, cut_after=cut_after, **options)
    there = json.loads(path.read_text())["results"][0]["evaluations"]
    size = [0, 1, 2, 3, 4, 5][cut_after] if together == 1 else [0, 2, 3, 5, 6][cut_after]
    assert sum(len(each["accuracies"]) for each in there) == size
    evaluated(path, resume=True, **options)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_an_evaluation_takes_more_repeats_and_networks(tmp_path: Path) -> None:
    evaluated(tmp_path / "whole", repeats=3)
    evaluated(tmp_path / "few", repeats=2, networks=[NETWORK])
    said = evaluated(tmp_path / "few", resume=True, repeats=3)
    assert (tmp_path / "few").read_bytes() == (tmp_path / "whole").read_bytes()
    assert [line.partition(":")[0] for line in said[1:]] == ["convnet", "convnet", "mlp"]
    assert said[1] == f"{NETWORK}: 2 of 3 networks are there already"
    again = evaluated(tmp_path / "few", resume=True, repeats=1)  # nothing is taken away
    assert again[1] == f"{NETWORK}: 1 of 1 networks are there already"
    assert again[2] == said[2]
    assert (tmp_path / "few").read_bytes() == (tmp_path / "whole").read_bytes()


def test_an_evaluation_tells_of_all_commands_that_made_it(tmp_path: Path) -> None:
    for repeats, command in enumerate(("one", "two", "one", "two"), 1):
        evaluated(tmp_path / "file", resume=True, repeats=repeats, command=command)
    assert json.loads((tmp_path / "file").read_text())["command"] == "one\ntwo"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("at", "epoch"), [(2, 1), (5, 2)])
def test_an_evaluation_says_in_which_epoch_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, epoch: int, optimizer: str
) -> None:
    options: dict[str, Any] = {"repeats": 1, "optimizer": optimizer}
    evaluated(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, at, signal.SIGINT))
        with pytest.raises(Interrupted):
            evaluated(tmp_path / "cut", **options)
    said = evaluated(tmp_path / "cut", resume=True, **options)
    assert said[1] == f"network 1 of 1 ({NETWORK}): going on in epoch {epoch}"
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, r"is an evaluation with other settings \(seed: 0 there, 1 now\)"),
        ({"epochs": 4}, r"on the set with other settings \(epochs: 3 there, 4 now\)"),
        ({"made": a_set(seed=1)}, r"has results of another the set .*\(crc32: \d+ there, \d+ now"),
    ],
)
def test_another_evaluation_is_not_gone_on_with(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = tmp_path / "file"
    evaluated(path, repeats=1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"resume: {path} .*{words}"):
        evaluated(path, resume=True, repeats=1, **changes)
    assert path.read_bytes() == before
    with pytest.raises(FileExistsError, match=rf"out: {path} exists already; add --resume"):
        evaluated(path, repeats=1)


@pytest.mark.parametrize(
    "content",
    [
        *["", "[]", '{"results": [1]}', '{"results": [{"set": "a"}]}'],
        '{"dataset": "tiny", "seed": 0, "results": [{"evaluations": []}]}',
        '{"dataset": "tiny", "seed": 0, "results": [{"set": "the set", "evaluations": '
        '[{"recipe": {"epochs": 3}, "accuracies": []}]}]}',
    ],
)
def test_a_damaged_evaluation_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(FileError, match=rf"{path}: expected the JSON that cmidd evaluate writes"):
        evaluated(path, resume=True)
    assert path.read_text() == content


def test_a_run_that_goes_on_shows_both_parts_in_its_log(tmp_path: Path, cmi: CMIOptions) -> None:
    run = "dm", DM_OPTIONS
    continued(tmp_path, run, cmi, resume=False, iterations=5)
    continued(tmp_path, run, cmi, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 3, 4, 5, 7]  # 4 was the last one
