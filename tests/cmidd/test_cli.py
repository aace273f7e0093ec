from __future__ import annotations

import contextlib
import io
import json
import runpy
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_type_hints
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cmidd import cli
from cmidd.bank import BankOptions
from cmidd.cli import build_parser, command_line, main
from cmidd.distill import CMIOptions, DistillOptions
from cmidd.dm import DMOptions
from cmidd.options import (
    DataOptions,
    EvaluateOptions,
    PretrainRunOptions,
    ReportOptions,
    RunOptions,
    ScoreOptions,
)
from cmidd.synthetic import SyntheticSet

COMMANDS: dict[str, tuple[type, ...]] = {
    "pretrain": (DataOptions, PretrainRunOptions, BankOptions),
    "distill dm": (DataOptions, RunOptions, DistillOptions, CMIOptions, DMOptions),
    "evaluate": (DataOptions, EvaluateOptions),
    "score": (DataOptions, ScoreOptions),
    "report": (ReportOptions,),
}
REQUIRED = {"score": ["--bank=b"], "report": ["--runs=[r]"]}
# Other text may be YAML, which a flag's value is first taken for: `null`, `1:`, `{}`.
TEXT = st.from_regex(r"[a-e][a-z0-9 _:=,./'\"é-]{0,10}[a-z0-9]", fullmatch=True)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(1, 10**9),
    float: st.floats(0, 1e12, allow_subnormal=False),
    str: TEXT,
    Path: TEXT.map(Path),
    tuple[str, ...]: st.lists(TEXT, max_size=3).map(tuple),
    tuple[Path, ...]: st.lists(TEXT.map(Path), max_size=3).map(tuple),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    if isinstance(kind, UnionType):
        return st.one_of(st.none(), *[VALUES[k] for k in kind.__args__ if k is not type(None)])
    return VALUES[kind]


@cache
def options_of(command: str) -> st.SearchStrategy[list[Any]]:
    """Any options of a command, `resume` apart, which a repeated run does not have."""
    groups = []
    for group in COMMANDS[command]:
        kinds = {k: v for k, v in get_type_hints(group).items() if k != "resume"}
        groups.append(st.builds(group, **{name: values_of(kind) for name, kind in kinds.items()}))
    return st.tuples(*groups).map(list)


parser = cache(build_parser)


def made(arguments: Sequence[str]) -> list[Any]:
    """The options that `main` hands to the command."""
    parts: list[Any] = []

    def keep(*given: Any) -> None:
        parts.extend(part for part in given if not isinstance(part, str))

    stand_ins = {name: (keep, *rest) for name, (_, *rest) in cli._COMMANDS.items()}
    with (
        patch.object(cli, "build_parser", parser),
        patch.object(cli, "run_method", keep),
        patch.dict(cli._COMMANDS, stand_ins),
    ):
        main(arguments)
    return parts


def defaults_of(command: str) -> list[Any]:
    return made([*command.split(), *REQUIRED.get(command, [])])


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails says."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    code = stopped.value.code
    assert code not in (0, None)
    return (f"{code}\n" if isinstance(code, str) else "") + capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for group in COMMANDS[command]:
        for field in fields(group):
            assert f"--{field.name}" in text


def test_help_names_commands_datasets_and_networks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for word in ("pretrain", "distill", "evaluate", "score", "report", "cifar10", "resnet18"):
        assert word in text


def test_the_commands_of_the_help_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out.replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  cmidd ")]
    assert len(commands) == 4
    for words in commands:
        assert made(words[1:])


@pytest.mark.parametrize("command", COMMANDS)
def test_without_flags_the_options_are_their_defaults(command: str) -> None:
    required: dict[type, Any] = {
        ScoreOptions: {"bank": Path("b")},
        ReportOptions: {"runs": (Path("r"),)},
    }
    expected = [group(**required.get(group, {})) for group in COMMANDS[command]]
    assert defaults_of(command) == expected


def test_flags_set_options() -> None:
    found = made(["distill", "dm", "--ipc", "3", "--bank", "b", "--resume", "--lr_images", "1e-3"])
    expected = defaults_of("distill dm")
    expected[1] = replace(expected[1], resume=True)
    expected[2] = replace(expected[2], ipc=3, lr_images=1e-3)
    expected[3] = replace(expected[3], bank=Path("b"))
    assert found == expected


@pytest.mark.parametrize("command", ["distill dm", "evaluate"])
@given(data=st.data())
def test_a_command_line_parses_back_to_the_same_options(command: str, data: st.DataObject) -> None:
    parts = data.draw(options_of(command))
    words = shlex.split(command_line(command, parts))
    assert words[0] == "cmidd"
    assert made(words[1:]) == parts


@pytest.mark.parametrize("command", COMMANDS)
@settings(max_examples=30)
@given(data=st.data())
def test_a_yaml_file_sets_the_same_options(
    command: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parts = data.draw(options_of(command))
    path = tmp_path_factory.getbasetemp() / "options.yaml"
    values = {field.name: getattr(part, field.name) for part in parts for field in fields(part)}
    plain = {
        name: [str(v) for v in value]
        if isinstance(value, tuple)
        else (str(value) if isinstance(value, Path) else value)
        for name, value in values.items()
    }
    path.write_text(yaml.safe_dump(plain))
    assert made([*command.split(), f"--config={path}"]) == parts


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_configuration_sets_the_same_options(command: str, elsewhere: Path) -> None:
    arguments = [*command.split(), *REQUIRED.get(command, [])]
    if command != "report":
        arguments += ["--dataset=folder:a b"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stopped:
        main([*arguments, "--print_config"])
    assert stopped.value.code == 0
    Path("printed.yaml").write_text(printed.getvalue())
    assert made([*command.split(), "--config=printed.yaml"]) == made(arguments)


def test_flags_after_a_yaml_file_win(elsewhere: Path) -> None:
    Path("options.yaml").write_text("ipc: 5\nseed: 7\n")
    found = made(["distill", "dm", "--config=options.yaml", "--ipc=6"])[2]
    assert (found.ipc, found.seed) == (6, 7)


DM = ["distill", "dm"]
MISTAKES: list[tuple[list[str], str]] = [
    ([], "distill"),
    (["nosuch"], "invalid choice: 'nosuch'"),
    (["distill"], "method"),
    ([*DM, "--nosuch", "3"], "unrecognized arguments: --nosuch"),
    ([*DM, "--ipc", "many"], "ipc"),
    ([*DM, "--ipc", "1.5"], "ipc"),
    ([*DM, "--lr_images", "fast"], "lr_images"),
    ([*DM, "--ipc", "0"], "ipc: expected at least 1, got 0"),
    ([*DM, "--report_every", "0"], "report_every: expected at least 1, got 0"),
    ([*DM, "--checkpoint_every", "-1"], "checkpoint_every: expected at least 1, got -1"),
    ([*DM, "--lr_images", "-1.0"], "learning rate"),
    ([*DM, "--bank", "none", "--cmi_weight", "1"], "none: expected a file with a bank"),
    ([*DM, "--dataset", "nosuch"], "got 'nosuch'"),
    ([*DM, "--dataset", "cifar10"], "cifar10 was not found; looked for data/"),
    ([*DM, "--init", "zeros"], "init: expected noise, real, mix or file:PATH"),
    ([*DM, "--init", "file:none"], "none: expected a file with a synthetic set"),
    ([*DM, "--network", "nosuch"], "network 'nosuch'"),
    ([*DM, "--augmentation", "blur"], "augmentation: no operation 'blur'"),
    ([*DM, "--device", "nosuch"], "device: nosuch cannot be used here"),
    ([*DM, "--config", "none.yaml"], "none.yaml"),
    ([*DM, "--config", "broken.yaml"], "parsing config"),
    ([*DM, "--config", "unknown.yaml"], "has a key that is no option of this command"),
    (["pretrain", "--config", "unknown.yaml"], "does not accept option 'nosuch'"),
    (["evaluate"], "sets: expected something to evaluate"),
    (["evaluate", "--sets", "[none]"], "none: expected a file with a synthetic set"),
    (["evaluate", "--sets", "none"], "sets"),
    (["evaluate", "--random_real", "100000"], "ipc: class 0 of digits has"),
    (["evaluate", "--random_real=2", "--repeats=0"], "repeats: expected at least 1, got 0"),
    (["score"], "bank"),
    (["score", "--bank", "none", "--random_real", "1"], "none: expected a file with a bank"),
    (["pretrain", "--networks", "0"], "networks: expected at least 1, got 0"),
    (["pretrain", "--network", "nosuch"], "network 'nosuch'"),
    (["report"], "runs"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES]
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("broken.yaml").write_text("ipc: [1")
    Path("unknown.yaml").write_text("nosuch: 1\n")
    text = error_of(arguments, capsys)
    assert message in text
    assert text.startswith("cmidd: ")
    assert text.count("\n") == 1
    assert sorted(path.name for path in elsewhere.iterdir()) == ["broken.yaml", "unknown.yaml"]


def test_a_device_that_is_not_there_is_one_line(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = error_of([*DM, "--device", "cuda:77"], capsys)
    assert text.startswith("cmidd: device: cuda:77 cannot be used here: ")
    assert text.count("\n") == 1


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMIDD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="sets: expected something"):
        main(["evaluate"])


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*parts: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_method", interrupt)
    with pytest.raises(SystemExit, match=r"cmidd: interrupted; a run goes on with --resume"):
        main(DM)


TINY = "convnet:width=4,depth=1"
SET = "runs/dm/result.safetensors"
DISTILL = [
    *["distill", "dm", "--ipc=2", "--iterations=6", "--report_every=2", "--network", TINY],
    *["--batch_real=4", "--bank=runs/bank.safetensors"],
]
EVALUATE = [
    *["evaluate", "--sets", f"[{SET}]", "--random_real=2", "--all_real", "--all_real_epochs=1"],
    *["--epochs=3", "--repeats=2", "--networks", f'["{TINY}", "mlp"]'],
]


def test_pretrain_distil_evaluate_and_score(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pretrain", "--network", TINY, "--networks=2", "--epochs=1"])
    assert load_file("runs/bank.safetensors")["trained"].tolist() == [1, 1]
    main(DISTILL)
    said = capsys.readouterr().out
    assert "network 2 of 2: " in said
    assert f"try it: cmidd evaluate --sets {SET}" in said
    config = yaml.safe_load(Path("runs/dm/config.yaml").read_text())
    assert (config["method"], config["ipc"], config["bank"]) == ("dm", 2, "runs/bank.safetensors")
    log = [json.loads(line) for line in Path("runs/dm/log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in log] == [1, 3, 5]
    assert all(line["loss"] > 0 and line["cmi"] > 0 for line in log)

    main(EVALUATE)
    record = json.loads(Path("runs/evaluation.json").read_text())
    assert made(shlex.split(record["command"])[1:]) == made(EVALUATE)
    assert record["dataset"] == "digits"
    assert set(record["versions"]) == {"cmikernels", "torch", "python"}
    names = {SET: 20, "random real images, 2 per class": 20, "all real images": 1438}
    assert {result["set"]: result["images"] for result in record["results"]} == names
    for result in record["results"]:
        assert [evaluation["network"] for evaluation in result["evaluations"]] == [TINY, "mlp"]
        for evaluation in result["evaluations"]:
            assert len(evaluation["accuracies"]) == 2
            assert 0 <= evaluation["mean"] <= 1
            epochs = 1 if result["set"] == "all real images" else 3
            assert evaluation["recipe"]["epochs"] == epochs

    capsys.readouterr()
    main(["score", f"--sets=[{SET}]", "--random_real=2", "--bank=runs/bank.safetensors"])
    table = capsys.readouterr().out.splitlines()
    assert table[0] == SET
    assert [line.split()[0] for line in table[1:12]] == ["all", *"0123456789"]
    assert table[12] == "random real images, 2 per class"


def test_a_run_is_repeated_by_the_command_in_its_result(elsewhere: Path) -> None:
    main(["pretrain", "--network", TINY, "--networks=2", "--epochs=1"])
    main(DISTILL)
    first = Path(SET).read_bytes()
    record = SyntheticSet.load(Path(SET)).record
    Path("runs/dm").rename("runs/before")
    main(shlex.split(record["command"])[1:])
    assert Path(SET).read_bytes() == first


def test_a_run_that_was_moved_goes_on(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*DISTILL[:-1]])
    Path("runs/dm").rename("moved")
    main([*DISTILL[:-1], "--out=moved", "--resume"])
    assert "moved is finished already" in capsys.readouterr().out


def test_python_dash_m_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cmidd", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("cmidd", run_name="__main__")
    assert stopped.value.code == 0
