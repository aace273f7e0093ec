"""`cmidd relabel`: teachers label every image that training on a set sees."""

from __future__ import annotations

from dataclasses import replace

from cmidd.cli.data import load_for, load_sets
from cmidd.cli.filling import filling
from cmidd.cli.flags import command_line
from cmidd.cli.training_costs import cost_of_labels
from cmidd.device import usable_device
from cmidd.options.commands import SetDataOptions
from cmidd.options.evaluation import EvaluateOptions
from cmidd.options.relabel import RelabelOptions, RelabelRunOptions
from cmidd.pretrained.teachers import load_teachers
from cmidd.relabelling import Relabelling, relabel


def run_relabel(data: SetDataOptions, run: RelabelRunOptions, options: RelabelOptions) -> None:
    """Keep the logits of teachers for every image that training on a set sees."""
    command = command_line("relabel", (data, replace(run, dry_run=False), options))
    if run.dry_run:
        print(cost_of_labels(_relabelling(data, run, options), command))
        return
    with filling(run.out, resume=run.resume):
        relabel(run.out, _relabelling(data, run, options), resume=run.resume, command=command)
    evaluation = EvaluateOptions(sets=(run.set,), labels=run.out)
    print(f"the soft labels: {run.out}")
    print("try it:", command_line("evaluate", (data, evaluation)))


def _relabelling(
    data: SetDataOptions, run: RelabelRunOptions, options: RelabelOptions
) -> Relabelling:
    dataset, device = load_for((run.set,), data), usable_device(data.device)
    (synthetic_set,) = load_sets(dataset, (run.set,), None, options.seed).values()
    teachers = load_teachers(run.teacher, synthetic_set.whiten(dataset), device)
    return Relabelling(synthetic_set, dataset, teachers, options, device)
