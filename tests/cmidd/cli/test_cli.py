from __future__ import annotations

import contextlib
import io
import shlex
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cmidd.cli import main
from cmidd.cli.flags import command_line
from cmidd.options.cmi import CMIOptions
from cmidd.options.commands import (
    BankRunOptions,
    DataOptions,
    ExpertRunOptions,
    ReportOptions,
    RunOptions,
    SetDataOptions,
)
from cmidd.options.dc import DCOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.dm import DMOptions
from cmidd.options.dsa import DSAOptions
from cmidd.options.evaluation import EvaluateOptions, ScoreOptions
from cmidd.options.exchange import ConvertOptions, ExportOptions
from cmidd.options.fields import AS_PUBLISHED
from cmidd.options.idc import IDCOptions
from cmidd.options.idm import IDMOptions
from cmidd.options.iid import IIDOptions
from cmidd.options.infonce import InfoNCEOptions
from cmidd.options.mtt import MTTOptions
from cmidd.options.ncfm import NCFMOptions
from cmidd.options.pretrained import BankOptions, ExpertOptions
from cmidd.options.recover import (
    RecoverCMIOptions,
    RecoverDataOptions,
    RecoverOptions,
    RecoverRunOptions,
)
from cmidd.options.relabel import RelabelOptions, RelabelRunOptions
from tests.support.errors import error_of
from tests.support.parsed import made

OF_A_RUN = DataOptions, RunOptions, DistillOptions, CMIOptions, InfoNCEOptions
COMMANDS: dict[str, tuple[type, ...]] = {
    "pretrain": (DataOptions, BankRunOptions, BankOptions),
    "experts": (DataOptions, ExpertRunOptions, ExpertOptions),
    "distill dm": (*OF_A_RUN, DMOptions),
    "distill dc": (*OF_A_RUN, DCOptions),
    "distill dsa": (*OF_A_RUN, DSAOptions),
    "distill mtt": (*OF_A_RUN, MTTOptions),
    "distill idc": (*OF_A_RUN, IDCOptions),
    "distill idm": (*OF_A_RUN, IDMOptions),
    "distill iid": (*OF_A_RUN, IIDOptions),
    "distill ncfm": (*OF_A_RUN, NCFMOptions),
    "relabel": (SetDataOptions, RelabelRunOptions, RelabelOptions),
    "recover": (RecoverDataOptions, RecoverRunOptions, RecoverOptions, RecoverCMIOptions),
    "evaluate": (SetDataOptions, EvaluateOptions),
    "score": (SetDataOptions, ScoreOptions),
    "convert": (ConvertOptions,),
    "export": (ExportOptions,),
    "report": (ReportOptions,),
}
REQUIRED = {
    "distill mtt": ["--experts=e"],
    "distill ncfm": ["--matching_bank=b"],
    "recover": ["--teacher=t"],
    "relabel": ["s", "--teacher=t"],
    "score": ["--bank=b"],
    "convert": ["s", "--out=o", "--dataset=digits"],
    "export": ["s"],
    "report": ["r"],
}
TEXT = st.from_regex(r"[a-z0-9 _:=,./'\"é{}\[\]#*-]{0,10}[a-z0-9]", fullmatch=True)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(1, 10**9),
    float: st.floats(1e-9, 1e12),
    str: TEXT,
    Path: TEXT.map(Path),
    tuple[str, ...]: st.lists(TEXT, max_size=3).map(tuple),
    tuple[float, ...]: st.lists(st.floats(1e-9, 1e12), max_size=3).map(tuple),
    tuple[Path, ...]: st.lists(TEXT.map(Path), max_size=3).map(tuple),
}


def values_of(group: type, name: str, kind: Any) -> st.SearchStrategy[Any]:
    field = group.__dataclass_fields__[name]  # type: ignore[attr-defined]
    if choices := field.metadata.get("choices"):
        return st.sampled_from(choices)
    if group is CMIOptions and name == "bank":  # without one there are no other options
        return VALUES[Path]
    if group is MTTOptions and name == "soft_labels":  # without them there is no lr_labels
        return st.just(True)
    if field.default is AS_PUBLISHED:  # which stands for None on a command line
        kinds = kind.__args__ if isinstance(kind, UnionType) else (kind,)
        of_kinds = [VALUES[k] for k in kinds if k is not type(None)]
        return st.one_of(st.just(AS_PUBLISHED), *of_kinds)
    if isinstance(kind, UnionType):
        return st.one_of(st.none(), *[VALUES[k] for k in kind.__args__ if k is not type(None)])
    return VALUES[kind]


@cache
def options_of(command: str) -> st.SearchStrategy[list[Any]]:
    """Any options of a command, `resume` apart, which a repeated run does not have."""
    groups = []
    for group in COMMANDS[command]:
        kinds = {k: v for k, v in get_type_hints(group).items() if k != "resume"}
        values = {name: values_of(group, name, kind) for name, kind in kinds.items()}
        groups.append(st.builds(group, **values))
    return st.tuples(*groups).map(list)


def defaults_of(command: str) -> list[Any]:
    return made([*command.split(), *REQUIRED.get(command, [])])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    usages = {"evaluate": "[SETS ...] ", "score": "[SETS ...] ", "export": "[SET] "}
    usages |= {"relabel": "[SET] ", "convert": "[SOURCE] ", "report": "[RUNS ...] "}
    assert text.startswith(f"usage: cmidd {command} {usages.get(command, '')}[options]\n")
    for group in COMMANDS[command]:
        for field in fields(group):
            assert f"--{field.name}" in text


def test_help_names_commands_datasets_and_networks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "pretrain",
        "experts",
        "distill",
        "recover",
        "evaluate",
        "score",
        "report",
        "cifar10",
        "resnet18",
    ):
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
        MTTOptions: {"experts": Path("e")},
        NCFMOptions: {"matching_bank": Path("b")},
        RecoverOptions: {"teacher": (Path("t"),)},
        RelabelRunOptions: {"set": Path("s"), "teacher": (Path("t"),)},
        ScoreOptions: {"bank": Path("b")},
        ConvertOptions: {"source": Path("s"), "out": Path("o"), "dataset": "digits"},
        ExportOptions: {"set": Path("s")},
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


@pytest.mark.parametrize("command", ["distill dm", "distill mtt", "recover", "evaluate"])
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
        else (str(value) if isinstance(value, Path) else None if value is AS_PUBLISHED else value)
        for name, value in values.items()
    }
    path.write_text(yaml.safe_dump(plain))
    assert made([*command.split(), f"--config={path}"]) == parts


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_configuration_sets_the_same_options(command: str, elsewhere: Path) -> None:
    arguments = [*command.split(), *REQUIRED.get(command, [])]
    if DataOptions in COMMANDS[command]:
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


def test_the_folder_of_a_run_is_no_configuration_but_holds_one(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("config.yaml").write_text("ipc: 5\n")
    said = "--config: expected a YAML file, found none at .; did you mean config.yaml?"
    assert said in error_of(["distill", "dm", "--config=."], capsys)


def test_a_configuration_file_may_give_a_list_as_one_value(elsewhere: Path) -> None:
    Path("options.yaml").write_text("sets: a\nlr: 1e-3\n")
    found = made(["evaluate", "--config=options.yaml"])[1]
    assert (found.sets, found.lr) == ((Path("a"),), 1e-3)
    assert made(["evaluate", "b", "--config=options.yaml"])[1].sets == (Path("b"),)


@pytest.mark.parametrize(
    "words",
    [
        "a b --epochs 3 --all_real",
        "--epochs 3 a --all-real b",
        "--sets a b --epochs 3 --all_real",
        "--sets=a --all_real --epochs=3 b",
        "--sets a --sets b --epochs=7 --epochs=3 --no_all_real --all-real",
    ],
)
def test_sets_are_given_with_their_flag_or_without(words: str) -> None:
    found = made(["evaluate", *words.split()])[1]
    assert found == EvaluateOptions(sets=(Path("a"), Path("b")), epochs=3, all_real=True)


def test_what_a_command_is_about_needs_no_flag() -> None:
    assert made(["report", "a", "b", "--evaluations", "c", "d"])[0] == ReportOptions(
        runs=(Path("a"), Path("b")), evaluations=(Path("c"), Path("d"))
    )
    assert made(["export", "a", "--png", "b"])[0] == ExportOptions(Path("a"), png=Path("b"))
    assert made(["score", "a", "--bank", "b"])[1] == ScoreOptions(Path("b"), sets=(Path("a"),))


def test_dashes_serve_for_underscores_and_switches_are_taken_back() -> None:
    found = made(["distill", "dm", "--dry-run", "--zca", "--no-zca", "--lr-images=2"])
    assert (found[0].zca, found[1].dry_run, found[2].lr_images) == (False, True, 2.0)


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_the_help_of_dc_and_dsa_says_which_of_the_two_it_is(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["distill", method, "--help"])
    text = capsys.readouterr().out
    assert ("; `dsa` is the same with augmentation" in text) == (method == "dc")
    assert ("; `dc` goes without" in text) == (method == "dsa")
