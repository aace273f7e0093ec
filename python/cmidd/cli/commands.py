"""What each command does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from cmidd import ranks
from cmidd.cli.costs import disk_of, estimate
from cmidd.cli.data import load
from cmidd.cli.evaluation import run_evaluate
from cmidd.cli.exchange import run_convert, run_export
from cmidd.cli.filling import filling
from cmidd.cli.flags import command_line
from cmidd.cli.recovery import run_recover
from cmidd.cli.relabelling import run_relabel
from cmidd.cli.scoring import run_score
from cmidd.cli.training_costs import cost_of_bank, cost_of_experts
from cmidd.datasets import Dataset
from cmidd.device import usable_device, with_precision
from cmidd.loop import distill
from cmidd.methods import fill_in_published
from cmidd.options.cmi import CMIOptions
from cmidd.options.commands import (
    BankRunOptions,
    DataOptions,
    ExpertRunOptions,
    ReportOptions,
    RunOptions,
)
from cmidd.options.distill import DistillOptions
from cmidd.options.evaluation import EvaluateOptions
from cmidd.options.infonce import InfoNCEOptions
from cmidd.options.pretrained import BankOptions, ExpertOptions
from cmidd.pretrained.bank import train_bank, with_source
from cmidd.pretrained.experts import fill_in_experts, train_experts
from cmidd.run import prepare, run_folder
from cmidd.storage.lock import busy_first, locked
from cmidd.storage.output import check_room
from cmidd.storage.run_folder import check_folder


def pretrain(data: DataOptions, run: BankRunOptions, options: BankOptions) -> None:
    """Train the networks in whose feature space CMI is measured."""
    if run.dry_run:
        dataset = load(data)
        options, _ = with_source(dataset, options)
        print(cost_of_bank(dataset, options, usable_device(data.device)))
        return
    with filling(run.out, resume=run.resume):
        train_bank(
            run.out,
            load(data),
            options,
            usable_device(data.device),
            resume=run.resume,
            command=command_line("pretrain", (data, run, options)),
        )
    print(f"the bank: {run.out}")


def run_experts(data: DataOptions, run: ExpertRunOptions, options: ExpertOptions) -> None:
    """Train networks and keep their weights after every epoch, for MTT to match."""
    device, command = usable_device(data.device), command_line("experts", (data, run, options))
    if run.dry_run:
        dataset = load(data)
        print(cost_of_experts(dataset, _experts_filled_in(dataset, options), device))
        return
    with filling(run.out, resume=run.resume):
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
    infonce: InfoNCEOptions,
    of_method: Any,
) -> None:
    """Distil, and say what to do with the result."""
    command = command_line(f"distill {method}", (data, run, options, cmi, infonce, of_method))
    out = run.folder(method)
    if run.dry_run:
        dataset = load(data)
        options, of_method = _filled_in(method, dataset, options, of_method)
        given = options, of_method, cmi
        print(estimate(prepare(method, dataset, *given, infonce=infonce, device=data.device)))
        return
    if ranks.is_first():
        with busy_first(out, folder=True):
            check_folder(out, resume=run.resume)
    with ranks.only_first(partial(locked, out, folder=True)):
        dataset = load(data)
        options, of_method = _filled_in(method, dataset, options, of_method)
        cmi_there, there = with_precision((cmi, of_method), usable_device(data.device))
        parts = (options, cmi_there, infonce, there)
        asked = {**asdict(data), "held_out": dataset.held_out}  # 0 asks for none, as null does
        folder = run_folder(out, method, dataset, parts, resume=run.resume, asked=asked)
        if ranks.from_first(lambda: folder.finished):
            print(f"{folder.path} is finished already")
        else:
            given = options, of_method, cmi
            prepared = prepare(method, dataset, *given, infonce=infonce, device=data.device)
            if ranks.from_first(lambda: not folder.has_checkpoint):
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
    "recover": run_recover,
    "relabel": run_relabel,
    "evaluate": run_evaluate,
    "score": run_score,
    "convert": run_convert,
    "export": run_export,
    "report": run_report,
}
"""What each command of `parser.py` runs; `distill` is `run_method`."""
