"""The words that `cmidd` takes: commands, methods and their options, and the help of all of them.

Nothing here imports torch, so that the help and a typing error need not wait for it.
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

from cmidd.cli.flags import HelpFormatter, Parser, options_of, parser_of
from cmidd.options import names
from cmidd.options.cmi import CMIOptions
from cmidd.options.commands import (
    BankRunOptions,
    DataOptions,
    EvaluateOptions,
    ExpertRunOptions,
    ExportOptions,
    ReportOptions,
    RunOptions,
    ScoreOptions,
)
from cmidd.options.distill import DistillOptions
from cmidd.options.fields import Options
from cmidd.options.methods import METHOD_OPTIONS
from cmidd.options.pretrained import BankOptions, ExpertOptions

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
    "evaluate": Command(
        (DataOptions, EvaluateOptions),
        "train fresh networks on a set",
        "Train fresh networks on sets and test them on real images.",
    ),
    "score": Command(
        (DataOptions, ScoreOptions),
        "CMI of a set, class by class",
        "Print the CMI of sets by every network of a bank.",
    ),
    "export": Command(
        (ExportOptions,),
        "a set as PNG files, or as the field's .pt files",
        "Write a synthetic set in forms that other tools read.",
    ),
    "report": Command(
        (ReportOptions,),
        "one page with images, curves, accuracies",
        "Draw one page of runs.",
    ),
}
"""All but `distill`, which has a command for each method."""

_EPILOG = """\
A first run, offline, in a few minutes on two cores:

  cmidd pretrain --networks 4 --epochs 20
  cmidd distill dm --iterations 500 --bank runs/bank.safetensors --out runs/dm-cmi
  cmidd evaluate --sets "[runs/dm-cmi/result.safetensors]" --random_real 10 --epochs 300
  cmidd report --runs "[runs/dm-cmi]" --evaluations "[runs/evaluation.json]" \\
      --bank runs/bank.safetensors

datasets (--dataset):
{datasets}

networks (--network):
{networks}
"""


class Given(NamedTuple):
    """A command line as it was read."""

    command: str
    method: str | None
    """Of `distill`."""
    parts: list[Any]
    """The options, in dataclasses of the command's groups."""


def read(arguments: Sequence[str] | None = None) -> Given:
    """What a command line asks for; help and mistakes of spelling end the process here."""
    given = build_parser().parse_args(arguments)
    of_command = given[given.command]
    if given.command != "distill":
        return Given(given.command, None, options_of(COMMANDS[given.command].groups, of_command))
    method = of_command.method
    return Given("distill", method, options_of(_of_distill(method), of_command[method]))


def build_parser() -> Parser:
    """The parser of all commands."""
    datasets = "\n".join(f"{name}: {known.about}" for name, known in names.DATASETS.items())
    parser = Parser(
        prog="cmidd",
        description="Distil a dataset into a few images per class, regularised by CMI.",
        epilog=_EPILOG.format(datasets=_indented(datasets), networks=_indented(names.NETWORKS)),
        formatter_class=HelpFormatter,
        version=_version(),
    )
    commands = parser.add_subcommands(dest="command")
    distill = Parser(description="Distil with one of the methods.")
    commands.add_subcommand("distill", distill, help="make the synthetic images")
    for name, command in COMMANDS.items():
        of_command = parser_of(command.groups, command.description)
        commands.add_subcommand(name, of_command, help=command.about)
    methods = distill.add_subcommands(dest="method")
    for name, options in METHOD_OPTIONS.items():
        about = sys.modules[options.__module__].__doc__ or name
        of_method = parser_of(_of_distill(name), about)
        # A key of the run's config.yaml, which can be given back by --config.
        of_method.add_argument("--method", choices=[name], default=name, help=SUPPRESS)
        methods.add_subcommand(name, of_method, help=about.splitlines()[0])
    return parser


def _of_distill(method: str) -> _Groups:
    return DataOptions, RunOptions, DistillOptions, CMIOptions, METHOD_OPTIONS[method]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _version() -> str:
    try:
        return metadata.version("cmikernels")
    except metadata.PackageNotFoundError:  # a source tree that was not installed
        return "unknown"
