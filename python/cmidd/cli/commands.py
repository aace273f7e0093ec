"""What each command does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cmidd.augment import Strategy
from cmidd.cli.costs import disk_of, estimate
from cmidd.cli.data import load, load_for
from cmidd.cli.exchange import run_convert, run_export
from cmidd.cli.flags import command_line
from cmidd.cli.training_costs import (
    Evaluated,
    cost_of_bank,
    cost_of_evaluation,
    cost_of_experts,
)
from cmidd.datasets import Dataset
from cmidd.device import usable_device, with_precision
from cmidd.evaluate import evaluate_set, evaluation_protocol
from cmidd.evaluation_file import EvaluationFile
from cmidd.first_images import first_images
from cmidd.loop import distill
from cmidd.methods import fill_in_published
from cmidd.networks import build_network
from cmidd.networks.usual import usual_network
from cmidd.options.cmi import CMIOptions
from cmidd.options.commands import (
    BankRunOptions,
    DataOptions,
    EvaluateOptions,
    ExpertRunOptions,
    ReportOptions,
    RunOptions,
    ScoreOptions,
    SetDataOptions,
)
from cmidd.options.distill import DistillOptions
from cmidd.options.pretrained import BankOptions, ExpertOptions
from cmidd.options.recipe import Recipe
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.pretrained.experts import fill_in_experts, train_experts
from cmidd.progress import progress
from cmidd.run import prepare, run_folder
from cmidd.score import BATCH, score, score_batches, train_batches
from cmidd.storage.going_on import check_new
from cmidd.storage.growing_file import partial_path
from cmidd.storage.lock import busy_first, locked
from cmidd.storage.output import check_room
from cmidd.storage.run_folder import check_folder, versions
from cmidd.synthetic import SyntheticSet, file_of
from cmidd.training_file import training_path


def pretrain(data: DataOptions, run: BankRunOptions, options: BankOptions) -> None:
    """Train the networks in whose feature space CMI is measured."""
    if run.dry_run:
        print(cost_of_bank(load(data), options, usable_device(data.device)))
        return
    with busy_first(run.out):
        check_new(run.out, partial_path(run.out), resume=run.resume)
    _say_if_new(run.out, resume=run.resume)
    with locked(run.out):
        train_bank(
            run.out,
            load(data),
            options,
            usable_device(data.device),
            resume=run.resume,
            command=command_line("pretrain", (data, run, options)),
        )
    print(f"the bank: {run.out}")


def _say_if_new(out: Path, *, resume: bool) -> None:
    """Say so where there is nothing to go on with."""
    begun = (out, partial_path(out), training_path(out))
    if resume and not any(path.exists() for path in begun):
        print(f"nothing at {out} yet: it starts anew")


def run_experts(data: DataOptions, run: ExpertRunOptions, options: ExpertOptions) -> None:
    """Train networks and keep their weights after every epoch, for MTT to match."""
    device, command = usable_device(data.device), command_line("experts", (data, run, options))
    if run.dry_run:
        dataset = load(data)
        print(cost_of_experts(dataset, _experts_filled_in(dataset, options), device))
        return
    with busy_first(run.out):
        check_new(run.out, partial_path(run.out), resume=run.resume)
    _say_if_new(run.out, resume=run.resume)
    with locked(run.out):
        dataset = load(data)
        options = _experts_filled_in(dataset, options)
        train_experts(run.out, dataset, options, device, resume=run.resume, command=command)
    print(f"the experts: {run.out}")


def _experts_filled_in(dataset: Dataset, options: ExpertOptions) -> ExpertOptions:
    """Options with what suits the dataset, which the user is told."""
    options, known = fill_in_experts(dataset, options)
    if known:
        print(f"not given, so as known: {known}")
    return options


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
    out = run.folder(method)
    if run.dry_run:
        dataset = load(data)
        options, of_method = _filled_in(method, dataset, options, of_method)
        print(estimate(prepare(method, dataset, options, of_method, cmi, device=data.device)))
        return
    with busy_first(out, folder=True):
        check_folder(out, resume=run.resume)
    with locked(out, folder=True):
        dataset = load(data)
        options, of_method = _filled_in(method, dataset, options, of_method)
        parts = (options, *with_precision((cmi, of_method), usable_device(data.device)))
        asked = {**asdict(data), "held_out": dataset.held_out}  # 0 asks for none, as null does
        folder = run_folder(out, method, dataset, parts, resume=run.resume, asked=asked)
        if folder.finished:
            print(f"{folder.path} is finished already")
        else:
            prepared = prepare(method, dataset, options, of_method, cmi, device=data.device)
            if not folder.has_checkpoint:
                check_room(out, disk_of(prepared), "ipc")
                print("a few updates are tried, to say what the run costs", flush=True)
                print(estimate(prepared))
            distill(prepared, folder, command)
    evaluation = EvaluateOptions(sets=(folder.result,), out=folder.path / "evaluation.json")
    print(f"the synthetic set: {folder.result}")
    print("try it:", command_line("evaluate", (data, evaluation)))


def _filled_in(
    method: str, dataset: Dataset, options: DistillOptions, of_method: Any
) -> tuple[DistillOptions, Any]:
    """Options with what is published, which the user is told."""
    options, of_method, known = fill_in_published(method, dataset, options.ipc, options, of_method)
    if known:
        print(f"not given, so as known: {known}")
    return options, of_method


def run_evaluate(data: SetDataOptions, options: EvaluateOptions) -> None:
    """Train fresh networks on sets and test them on real images."""
    if options.dry_run:
        plan = _plan(data, options)
        print(cost_of_evaluation(plan.evaluated(options), options.together, plan.device))
        return
    with busy_first(options.out):
        check_new(options.out, resume=options.resume)
    _say_if_new(options.out, resume=options.resume)
    with locked(options.out):
        _evaluate(data, options)
    print(f"the results: {options.out}")


class _Plan(NamedTuple):
    """What is evaluated, by the names of sets."""

    dataset: Dataset
    device: torch.device
    sets: dict[str, SyntheticSet]
    recipes: dict[str, Recipe]
    networks: dict[str, tuple[str, ...]]

    def evaluated(self, options: EvaluateOptions) -> list[Evaluated]:
        """How each set is evaluated."""
        found = []
        for name, each in self.sets.items():
            seen = each.seen()
            judge, recipe, _ = evaluation_protocol(
                seen, self.dataset, self.recipes[name], options.lr
            )
            networks = self.networks[name]
            found.append(Evaluated(name, seen, judge, recipe, networks, options.repeats))
        return found


def _plan(data: SetDataOptions, options: EvaluateOptions) -> _Plan:
    dataset, device = load_for(options.sets, data), usable_device(data.device)
    sets = _sets(dataset, options.sets, options.random_real, options.seed)
    recipes = {name: options.recipe(each.record) for name, each in sets.items()}
    if options.all_real:
        train, name = dataset.train, "all real images"
        sets[name] = SyntheticSet.of(dataset, dataset.to_input(train.images), train.labels)
        recipes[name] = replace(options.recipe({}), epochs=options.all_real_epochs)
    networks = _networks(dataset, sets, options.networks)
    channels, size, _ = dataset.shape
    for name in sets:  # so that a mistake in the last is not found after hours with the first
        Strategy.parse(recipes[name].augmentation, mirror=dataset.mirror)
        for spec in networks[name]:
            build_network(spec, channels, size, dataset.num_classes)
    return _Plan(dataset, device, sets, recipes, networks)


def _evaluate(data: SetDataOptions, options: EvaluateOptions) -> None:
    """Fill the file of results, whose lock is held."""
    dataset, device, sets, recipes, networks = _plan(data, options)
    file = EvaluationFile(
        options.out,
        {"dataset": dataset.name, "held_out": dataset.held_out, "seed": options.seed},
        {"command": command_line("evaluate", (data, options)), "versions": versions()},
        resume=options.resume,
    )
    for name, each in sets.items():
        print(name, end=": ", flush=True)
        evaluate_set(
            each,
            dataset,
            networks[name],
            repeats=options.repeats,
            recipe=recipes[name],
            lr=options.lr,
            seed=options.seed,
            device=device,
            together=options.together,
            store=file.of(name, each),
        )


def _networks(
    dataset: Dataset, sets: Mapping[str, SyntheticSet], given: tuple[str, ...] | None
) -> dict[str, tuple[str, ...]]:
    """The architectures to train on each set: the given ones, or the one that it was made for.

    Sets of real images, and of tools that do not say, take those of all others.
    """
    own = {name: each.record.get("network") for name, each in sets.items()}
    every = tuple(dict.fromkeys(spec for spec in own.values() if spec is not None))
    others = every or (usual_network(dataset.shape.height),)
    return {name: given or ((spec,) if spec else others) for name, spec in own.items()}


def run_score(data: SetDataOptions, options: ScoreOptions) -> None:
    """Print the CMI and NCMI of sets by every network of a bank."""
    dataset, device = load_for(options.sets, data), usable_device(data.device)
    bank = Bank.load(options.bank, device)
    sets = _sets(dataset, options.sets, options.random_real, options.seed)
    for each in sets.values():
        each.whiten(dataset).check_made_for(bank.record, f"bank: {options.bank}")
    if options.all_real:
        dataset.check_made_for(bank.record, f"bank: {options.bank}")
    for name, each in sets.items():
        seen = each.seen()
        found = score(bank, seen.images.to(device), seen.labels.to(device), options.layer)
        print(f"{name}\n{found.table(dataset.class_names)}")
    if options.all_real:
        count = len(dataset.train)
        batches = partial(train_batches, dataset, device)
        steps = len(bank) * -(-count // BATCH)
        with progress(total=steps, unit="batch", desc="scoring", leave=False) as bar:
            found = score_batches(bank, batches, options.layer, bar.update)
        print(f"all {count} real images\n{found.table(dataset.class_names)}")


def _sets(
    dataset: Dataset, paths: Sequence[Path], random_real: int | None, seed: int
) -> dict[str, SyntheticSet]:
    """Sets by the name that results call them."""
    sets = {}
    for path in map(file_of, paths):
        loaded = sets[str(path)] = SyntheticSet.load(path)
        loaded.whiten(dataset).check_made_for(loaded.record, str(path))
    if random_real is not None:
        name = f"random real images, {random_real} per class"
        real = first_images(dataset, random_real, "real", seed, count_option="random_real")
        sets[name] = SyntheticSet.of(dataset, *real)
    return sets


def run_report(options: ReportOptions) -> None:
    """Draw one page of runs, and say what their evaluations show."""
    from cmidd.report import write_report

    shown = write_report(
        options.runs,
        options.out,
        evaluations=options.evaluations,
        bank=options.bank,
        device=usable_device(options.device),
        overwrite=options.overwrite,
    )
    print(*shown, f"the report: {options.out}", sep="\n")


COMMANDS: dict[str, Callable[..., None]] = {
    "pretrain": pretrain,
    "experts": run_experts,
    "evaluate": run_evaluate,
    "score": run_score,
    "convert": run_convert,
    "export": run_export,
    "report": run_report,
}
"""What each command of `parser.py` runs; `distill` is `run_method`."""
