"""The commands: `cmidd pretrain | experts | distill METHOD | evaluate | score | export | report`.

Every command is a function (`commands.py`) and a few dataclasses of options (`options.py`, and
beside the methods), whose fields are its flags (`flags.py`).
"""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence

import torch

import cmikernels
from cmidd.cli.commands import (
    pretrain,
    run_evaluate,
    run_experts,
    run_export,
    run_method,
    run_report,
    run_score,
)
from cmidd.cli.flags import HelpFormatter, Parser, options_of, parser_of
from cmidd.cli.options import (
    BankRunOptions,
    DataOptions,
    EvaluateOptions,
    ExpertRunOptions,
    ExportOptions,
    ReportOptions,
    RunOptions,
    ScoreOptions,
)
from cmidd.datasets import DATASETS
from cmidd.methods import METHODS
from cmidd.networks import describe_networks
from cmidd.option_fields import Options
from cmidd.pretrained.bank import BankOptions
from cmidd.pretrained.experts import ExpertOptions
from cmidd.regularization import CMIOptions
from cmidd.run import DistillOptions
from cmidd.storage.tensor_file import FileError

_Groups = tuple[type[Options], ...]

# command -> what it runs, its options, a line of help
COMMANDS: dict[str, tuple[Callable[..., None], _Groups, str]] = {
    "pretrain": (pretrain, (DataOptions, BankRunOptions, BankOptions), "train the bank"),
    "experts": (
        run_experts,
        (DataOptions, ExpertRunOptions, ExpertOptions),
        "train what MTT matches",
    ),
    "evaluate": (run_evaluate, (DataOptions, EvaluateOptions), "train fresh networks on a set"),
    "score": (run_score, (DataOptions, ScoreOptions), "CMI of a set, class by class"),
    "export": (run_export, (ExportOptions,), "a set as PNG files, or as the field's .pt files"),
    "report": (run_report, (ReportOptions,), "one page with images, curves, accuracies"),
}

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


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def build_parser() -> Parser:
    """The parser of all commands."""
    datasets = "\n".join(f"{name}: {text}" for name, text in DATASETS.items())
    parser = Parser(
        prog="cmidd",
        description="Distil a dataset into a few images per class, regularised by CMI.",
        epilog=_EPILOG.format(
            datasets=_indented(datasets), networks=_indented(describe_networks())
        ),
        formatter_class=HelpFormatter,
        version=cmikernels.__version__,
    )
    commands = parser.add_subcommands(dest="command")
    distill = Parser(description="Distil with one of the methods.")
    commands.add_subcommand("distill", distill, help="make the synthetic images")
    for name, (function, groups, text) in COMMANDS.items():
        commands.add_subcommand(name, parser_of(groups, function.__doc__), help=text)
    methods = distill.add_subcommands(dest="method")
    for name, entry in METHODS.items():
        about = sys.modules[entry.make.__module__].__doc__ or name
        parser_of_method = parser_of(_of_distill(name), about)
        # A key of the run's config.yaml, which can be given back by --config.
        parser_of_method.add_argument("--method", choices=[name], default=name, help=SUPPRESS)
        methods.add_subcommand(name, parser_of_method, help=about.splitlines()[0])
    return parser


def _of_distill(method: str) -> _Groups:
    return DataOptions, RunOptions, DistillOptions, CMIOptions, METHODS[method].options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors that the user can mend are one line, without a traceback."""
    given = build_parser().parse_args(arguments)
    of_command = given[given.command]
    try:
        if given.command == "distill":
            method = of_command.method
            run_method(method, *options_of(_of_distill(method), of_command[method]))
        else:
            function, groups, _ = COMMANDS[given.command]
            function(*options_of(groups, of_command))
    except (FileError, ValueError, OSError, FloatingPointError, ImportError) as error:
        if os.environ.get("CMIDD_TRACEBACK"):
            raise
        sys.exit(f"cmidd: {error}")
    except torch.OutOfMemoryError as error:
        if os.environ.get("CMIDD_TRACEBACK"):
            raise
        sys.exit(
            f"cmidd: {str(error).partition('. ')[0]}; take smaller chunks, batches or networks"
        )
    except KeyboardInterrupt:
        resumes = given.command in ("pretrain", "experts", "distill")
        sys.exit("cmidd: interrupted" + ("; add --resume to continue" if resumes else ""))
