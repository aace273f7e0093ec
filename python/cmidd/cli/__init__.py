"""The commands: `cmidd pretrain | experts | distill METHOD | evaluate | score | report`.

Every command is a few dataclasses of options (`options.py`, and beside the methods). Their fields
are the flags and the keys of a YAML file (`--config`), their docstrings the help.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import docstring_parser
import torch
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace

import cmikernels
from cmidd.augment import Strategy
from cmidd.cli.costs import estimate
from cmidd.cli.options import (
    DataOptions,
    EvaluateOptions,
    ExpertRunOptions,
    ExportOptions,
    PretrainRunOptions,
    ReportOptions,
    RunOptions,
    ScoreOptions,
    usable_device,
)
from cmidd.datasets import DATASETS, Dataset
from cmidd.distill import DistillOptions, distill
from cmidd.evaluate import evaluate, protocol_of
from cmidd.methods import METHODS, settle
from cmidd.networks import build_network, describe_networks
from cmidd.networks.usual import usual_network
from cmidd.pretrained.bank import Bank, BankOptions, fill
from cmidd.pretrained.experts import ExpertOptions, fill_experts
from cmidd.regularization import CMIOptions
from cmidd.score import score
from cmidd.storage.run_folder import RunFolder, versions
from cmidd.storage.tensor_file import FileError, write_text
from cmidd.synthetic import SyntheticSet, start


def pretrain(data: DataOptions, run: PretrainRunOptions, options: BankOptions) -> None:
    """Train the networks in whose feature space CMI is measured."""
    fill(run.out, data.load(), options, data.torch_device(), resume=run.resume)
    print(f"the bank: {run.out}")


def run_experts(data: DataOptions, run: ExpertRunOptions, options: ExpertOptions) -> None:
    """Train networks and keep their weights after every epoch, for MTT to match."""
    fill_experts(run.out, data.load(), options, data.torch_device(), resume=run.resume)
    print(f"the experts: {run.out}")


def run_method(
    method: str,
    data: DataOptions,
    run: RunOptions,
    options: DistillOptions,
    cmi: CMIOptions,
    of_method: Any,
) -> None:
    """Distil, and say what to do with the result."""
    command = command_line(f"distill {method}", (data, run, options, cmi, of_method))
    dataset, device = data.load(), data.torch_device()
    options, of_method, known = settle(method, dataset, options, of_method)
    settings = _plain({"method": method, **_merged((data, options, cmi, of_method))})
    if known:
        print(f"not given, so as known: {known}")
    if run.dry_run:
        print(estimate(method, dataset, options, cmi, of_method, device))
        return
    folder = RunFolder(run.out or Path("runs") / method, settings, resume=run.resume)
    if not (folder.finished or folder.has_checkpoint):
        print("a few updates are tried, to say what the run costs", flush=True)
        print(estimate(method, dataset, options, cmi, of_method, device))
    distill(method, dataset, options, cmi, of_method, folder, device, command)
    evaluation = EvaluateOptions(sets=(folder.result,), out=folder.path / "evaluation.json")
    print(f"the synthetic set: {folder.result}")
    print("try it:", command_line("evaluate", (data, evaluation)))


def run_evaluate(data: DataOptions, options: EvaluateOptions) -> None:
    """Train fresh networks on sets and test them on real images."""
    if options.out.exists():
        raise FileExistsError(f"out: {options.out} exists already; name another file")
    dataset, device = data.load(), data.torch_device()
    sets = _sets(dataset, options.sets, options.random_real, options.seed)
    recipes = {
        name: options.recipe(made.record.get("evaluation", {})) for name, made in sets.items()
    }
    if options.all_real:
        train, name = dataset.train, "all real images"
        sets[name] = SyntheticSet.of(dataset, dataset.to_input(train.images), train.labels)
        recipes[name] = replace(options.recipe({}), epochs=options.all_real_epochs)
    if not sets:
        raise ValueError("sets: expected something to evaluate; give --sets, or --random_real 10")
    networks = _networks(dataset, sets, options.networks)
    channels, size, _ = dataset.shape
    for name in sets:  # so that a mistake in the last is not found after hours with the first
        Strategy.parse(recipes[name].augmentation, mirror=dataset.mirror)
        for spec in networks[name]:
            build_network(spec, channels, size, dataset.num_classes)
    results: list[dict[str, Any]] = []
    record = {
        "dataset": dataset.name,
        "command": command_line("evaluate", (data, options)),
        "versions": versions(),
        "results": results,
    }
    for name, those in sets.items():
        judge, recipe, about = protocol_of(those, dataset, recipes[name], options.lr)
        print(f"{name}: {about}")
        found = evaluate(
            those.images,
            those.targets,
            judge,
            networks[name],
            repeats=options.repeats,
            recipe=recipe,
            seed=options.seed,
            device=device,
            together=options.together,
        )
        evaluations = [accuracy.as_record() for accuracy in found]
        results.append({"set": name, "images": len(those.labels), "evaluations": evaluations})
        write_text(options.out, json.dumps(record, indent=1) + "\n")
    print(f"the results: {options.out}")


def _networks(
    dataset: Dataset, sets: Mapping[str, SyntheticSet], given: tuple[str, ...] | None
) -> dict[str, tuple[str, ...]]:
    """The architectures to train on each set: the given ones, or the one that it was made for.

    Sets of real images, and of tools that do not say, take those of all others.
    """
    own = {name: those.record.get("network") for name, those in sets.items()}
    every = tuple(dict.fromkeys(spec for spec in own.values() if spec is not None))
    others = every or (usual_network(dataset.shape.height),)
    return {name: given or ((spec,) if spec else others) for name, spec in own.items()}


def run_score(data: DataOptions, options: ScoreOptions) -> None:
    """Print the CMI of sets by every network of a bank."""
    dataset, device = data.load(), data.torch_device()
    bank = Bank.load(options.bank, device)
    sets = _sets(dataset, options.sets, options.random_real, options.seed)
    if not sets:
        raise ValueError("sets: expected something to score; give --sets, or --random_real 10")
    for those in sets.values():
        those.whiten(dataset).check_made_for(bank.record, f"bank: {options.bank}")
    for name, those in sets.items():
        print(name)
        found = score(bank, those.images.to(device), those.labels.to(device), options.layer)
        print(found.table(dataset.class_names))


def _sets(
    dataset: Dataset, paths: Sequence[Path], random_real: int | None, seed: int
) -> dict[str, SyntheticSet]:
    """Sets by the name that results call them."""
    sets = {}
    for path in paths:
        made = sets[str(path)] = SyntheticSet.load(path)
        made.whiten(dataset).check_made_for(made.record, str(path))
    if random_real is not None:
        name = f"random real images, {random_real} per class"
        sets[name] = SyntheticSet.of(dataset, *start(dataset, random_real, "real", seed))
    return sets


def run_export(options: ExportOptions) -> None:
    """Write a synthetic set in forms that other tools read."""
    made = SyntheticSet.load(options.set)
    if options.png is None and options.pt is None:
        raise ValueError("png, pt: expected a folder for at least one of them")
    if options.png is not None:
        made.export_png(options.png)
        print(f"{len(made.labels)} images, a folder for each class: {options.png}")
    if options.pt is not None:
        made.export_pt(options.pt)
        space = "normalised" if made.whitening is None else "normalised and whitened"
        rate = "" if made.learned_lr is None else f"; learning rate {made.learned_lr:g}"
        print(f"images_best.pt ({space}) and labels_best.pt: {options.pt}{rate}")


def run_report(options: ReportOptions) -> None:
    """Draw one page of runs."""
    from cmidd.report import write_report

    write_report(
        options.runs,
        options.out,
        evaluations=options.evaluations,
        bank=options.bank,
        device=usable_device(options.device),
    )
    print(f"the report: {options.out}")


def command_line(command: str, parts: Sequence[Any]) -> str:
    """The command that makes the same again: every option that differs from its default."""
    words = ["cmidd", *command.split()]
    for part in parts:
        for field in fields(part):
            value = getattr(part, field.name)
            if value == field.default or field.name == "resume":
                continue
            if isinstance(value, bool):
                words.append(f"--{field.name}" if value else f"--no_{field.name}")
            else:
                words.append(f"--{field.name}={_text(value)}")
    return shlex.join(words)


def _text(value: Any) -> str:
    is_list = isinstance(value, tuple)
    return json.dumps([str(v) for v in value], ensure_ascii=False) if is_list else str(value)


def _merged(parts: Sequence[Any]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in asdict(part).items()}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as YAML knows them."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in settings.items()}


# command -> what it runs, its options, a line of help
_COMMANDS: dict[str, tuple[Callable[..., None], tuple[type, ...], str]] = {
    "pretrain": (pretrain, (DataOptions, PretrainRunOptions, BankOptions), "train the bank"),
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


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    datasets = "\n".join(f"{name}: {text}" for name, text in DATASETS.items())
    parser = _Parser(
        prog="cmidd",
        description="Distil a dataset into a few images per class, regularised by CMI.",
        epilog=_EPILOG.format(
            datasets=_indented(datasets), networks=_indented(describe_networks())
        ),
        formatter_class=_HelpFormatter,
        version=cmikernels.__version__,
    )
    commands = parser.add_subcommands(dest="command")
    distill = _Parser(description="Distil with one of the methods.")
    commands.add_subcommand("distill", distill, help="make the synthetic images")
    for name, (function, options, text) in _COMMANDS.items():
        commands.add_subcommand(name, _with_options(options, function.__doc__), help=text)
    methods = distill.add_subcommands(dest="method")
    for name, entry in METHODS.items():
        about = sys.modules[entry.make.__module__].__doc__ or name
        parser_of_method = _with_options(_of_distill(name), about)
        # A key of the run's config.yaml, which can be given back by --config.
        parser_of_method.add_argument("--method", choices=[name], default=name, help=SUPPRESS)
        methods.add_subcommand(name, parser_of_method, help=about.splitlines()[0])
    return parser


def _of_distill(method: str) -> tuple[type, ...]:
    return DataOptions, RunOptions, DistillOptions, CMIOptions, METHODS[method].options


def _with_options(groups: Sequence[type], description: str | None) -> ArgumentParser:
    """A parser whose flags are the fields of dataclasses."""
    parser = _Parser(description=description, formatter_class=_HelpFormatter)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    for group in groups:
        about = docstring_parser.parse(group.__doc__ or "")
        helps = {parameter.arg_name: parameter.description for parameter in about.params}
        arguments = parser.add_argument_group((about.short_description or "").rstrip("."))
        types = get_type_hints(group)
        for field in fields(group):
            settings: dict[str, Any] = {"help": helps[field.name], "default": field.default}
            if types[field.name] is bool:
                settings["action"] = ActionYesNo
            else:
                settings["type"] = types[field.name]
            if field.default is MISSING:
                del settings["default"]
                settings["required"] = True
            arguments.add_argument(f"--{field.name}", **settings)
    return parser


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Formulas as they are written, and the default of every option."""


def _made(groups: Sequence[type], given: Namespace) -> list[Any]:
    made = []
    for group in groups:
        values = {field.name: given[field.name] for field in fields(group)}
        for name, value in values.items():
            if type(value) is int and name != "seed" and value < 1:  # all of them count something
                raise ValueError(f"{name}: expected at least 1, got {value}")
        made.append(group(**values))
    return made


class _Parser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with the line."""
        if type(ex) is KeyError:  # what comes of an unknown key, for a command of a command
            message = "the --config file has a key that is no option of this command"
        prog = getattr(ex, "subcommand_parser", self).prog.replace(" [options]", "")
        self.exit(2, f"cmidd: {' '.join(message.split())}; see {prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors that the user can mend are one line, without a traceback."""
    given = build_parser().parse_args(arguments)
    of_command = given[given.command]
    try:
        if given.command == "distill":
            method = of_command.method
            run_method(method, *_made(_of_distill(method), of_command[method]))
        else:
            function, groups, _ = _COMMANDS[given.command]
            function(*_made(groups, of_command))
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
        sys.exit("cmidd: interrupted" + ("; it goes on with --resume" if resumes else ""))
