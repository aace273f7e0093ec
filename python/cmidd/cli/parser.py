"""The words that `cmidd` takes: commands, methods and their options, and the help of all of them.

Nothing here imports torch, so that the help and a typing error need not wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from cmidd.cli.config import as_yaml, read_config
from cmidd.cli.flags import (
    CONFIG,
    PRINT_CONFIG,
    UsageError,
    flags_of,
    hint,
    options_of,
    read_words,
    see,
)
from cmidd.cli.help import entries, help_of, help_of_commands
from cmidd.options import names
from cmidd.options.cmi import CMIOptions
from cmidd.options.commands import (
    BankRunOptions,
    DataOptions,
    ExpertRunOptions,
    ReportOptions,
    RunOptions,
    SetDataOptions,
)
from cmidd.options.distill import DistillOptions
from cmidd.options.evaluation import EvaluateOptions, ScoreOptions
from cmidd.options.exchange import ConvertOptions, ExportOptions
from cmidd.options.fields import Options
from cmidd.options.infonce import InfoNCEOptions
from cmidd.options.methods import METHOD_OPTIONS
from cmidd.options.pretrained import BankOptions, ExpertOptions
from cmidd.options.recover import (
    RecoverCMIOptions,
    RecoverDataOptions,
    RecoverOptions,
    RecoverRunOptions,
)
from cmidd.options.relabel import RelabelOptions, RelabelRunOptions

_HELP = {"-h", "--help"}
_Groups = tuple[type[Options], ...]


class Command(NamedTuple):
    """What a command takes, and its help."""

    groups: _Groups
    about: str
    """For the list of commands."""
    description: str


COMMANDS = {
    "pretrain": Command(
        (DataOptions, BankRunOptions, BankOptions),
        "train the bank",
        "Train the networks in whose feature space CMI is measured.",
    ),
    "experts": Command(
        (DataOptions, ExpertRunOptions, ExpertOptions),
        "train what MTT matches",
        "Train networks and keep their weights after every epoch, for MTT to match.",
    ),
    "recover": Command(
        (RecoverDataOptions, RecoverRunOptions, RecoverOptions, RecoverCMIOptions),
        "make the synthetic images from trained networks, batch by batch",
        "Recover images from trained networks (SRe2L, CDA, DWA, EDC), a batch at a time.",
    ),
    "relabel": Command(
        (SetDataOptions, RelabelRunOptions, RelabelOptions),
        "soft labels of a set by teachers",
        "Keep the logits of teachers for every image that training on a set sees.",
    ),
    "evaluate": Command(
        (SetDataOptions, EvaluateOptions),
        "train fresh networks on a set",
        "Train fresh networks on sets and test them on real images.",
    ),
    "score": Command(
        (SetDataOptions, ScoreOptions),
        "CMI of a set, class by class",
        "Print the CMI and NCMI of sets by every network of a bank, and keep and draw them.",
    ),
    "convert": Command(
        (ConvertOptions,),
        "a set of another tool, to be used like one of ours",
        "Make a synthetic set of the file of another tool. Nothing in the file is executed.",
    ),
    "export": Command(
        (ExportOptions,),
        "a set as PNG files, as other tools' .pt files, or for the Hugging Face hub",
        "Write a synthetic set in forms that other tools read.",
    ),
    "report": Command(
        (ReportOptions,),
        "one page with images, curves, accuracies",
        "Draw one page of runs.",
    ),
}
"""All but `distill`, which has a command for each method."""

_ABOUTS = {
    "distill": "make the synthetic images",
    **{name: command.about for name, command in COMMANDS.items()},
}

_EPILOG = """\
Options are written --name value or --name=value, switches --name and --no_name, and a dash serves
for an underscore. cmidd COMMAND --help lists them. Threads sleep soon where they wait, so that
other processes can compute (GOMP_SPINCOUNT=10000), unless GOMP_SPINCOUNT or OMP_WAIT_POLICY is set.

A first run, offline, in a few minutes on two cores:

  cmidd pretrain --networks 4 --epochs 20
  cmidd distill dm --iterations 500 --bank runs/bank.safetensors --out runs/dm-cmi
  cmidd evaluate runs/dm-cmi --random_real 10 --epochs 300
  cmidd report runs/dm-cmi --evaluations runs/evaluation.json --bank runs/bank.safetensors

datasets (--dataset):
{datasets}

networks (--network):
{networks}"""


class Given(NamedTuple):
    """A command line as it was read."""

    command: str
    method: str | None
    """Of `distill`."""
    parts: list[Any]
    """The options, in dataclasses of the command's groups."""
    typed: Mapping[str, str]
    """By the name of an option, how an error calls it: as a flag, or as a key of a file."""

    @property
    def is_finished(self) -> bool:
        """Whether it is a run whose result is there."""
        for part in self.parts:
            if isinstance(part, RecoverRunOptions):
                return (part.out / "result.safetensors").exists()
            if isinstance(part, RunOptions) and self.method is not None:
                return (part.folder(self.method) / "result.safetensors").exists()
        return False


def read(arguments: Sequence[str]) -> Given | str:
    """What a command line asks for: a command, or text to print and no more."""
    words = list(arguments)
    if words[:1] == ["--version"]:
        return f"cmidd {_version()}"
    first = _first(words, "cmidd", _ABOUTS)
    if first is None:
        return _help()
    if first != "distill":
        command = COMMANDS[first]
        return _read(words[1:], first, None, command.groups, command.description)
    abouts = {name: about_method(name).partition("\n")[0] for name in METHOD_OPTIONS}
    method = _first(words[1:], "cmidd distill", abouts)
    if method is None:
        return help_of_commands("cmidd distill METHOD", "Distil with one of the methods.", abouts)
    return _read(words[2:], "distill", method, groups_of_method(method), about_method(method))


def groups_of_method(name: str) -> _Groups:
    """What `distill` takes for a method."""
    added = CMIOptions, InfoNCEOptions
    return (DataOptions, RunOptions, DistillOptions, *added, METHOD_OPTIONS[name])


def about_method(name: str) -> str:
    """The help of a method: the docstring of the file that its options stand in."""
    return sys.modules[METHOD_OPTIONS[name].__module__].__doc__ or name


def _first(words: Sequence[str], program: str, known: Mapping[str, str]) -> str | None:
    """The command or method that words begin with; None where help is asked for."""
    what = "method" if program.endswith("distill") else "command"
    if not words:
        raise UsageError(f"expected a {what}: {', '.join(known)}{see(program)}")
    word = words[0]
    if word in _HELP:
        return None
    if word in known:
        return word
    if word.startswith("-"):
        raise UsageError(f"expected a {what} first, got {word}{see(program)}")
    if what == "command" and word in METHOD_OPTIONS:
        raise UsageError(f"no command {word}; did you mean cmidd distill {word}? See cmidd --help")
    raise UsageError(f"no {what} {word}{hint(word, known, program)}")


def _read(
    words: Sequence[str], command: str, method: str | None, groups: _Groups, about: str
) -> Given | str:
    program = " ".join(["cmidd", command, *([] if method is None else [method])])
    if _HELP & set(words):
        return help_of(program, about, groups)
    flags = flags_of(groups)
    found = read_words(words, flags, program)
    prints = found.pop(PRINT_CONFIG.name, False)
    path = found.pop(CONFIG.name, None)
    values = {} if path is None else read_config(path, flags, program)
    typed = {
        name: f"{path}: {name}" if name in values and name not in found else f"--{name}"
        for name in flags
    }
    parts = options_of(groups, {**values, **found}, typed, program)
    return as_yaml(parts).rstrip() if prints else Given(command, method, parts, typed)


def _help() -> str:
    about = "Distil a dataset into a few images per class, regularised by CMI."
    datasets = entries([(name, known.about) for name, known in names.DATASETS.items()])
    networks = "\n".join(f"  {line}" for line in names.NETWORKS.splitlines())
    commands = help_of_commands("cmidd COMMAND", about, _ABOUTS)
    return f"{commands}\n\n{_EPILOG.format(datasets=datasets, networks=networks)}"


def _version() -> str:
    try:
        return metadata.version("cmikernels")
    except metadata.PackageNotFoundError:  # a source tree that was not installed
        return "unknown"
