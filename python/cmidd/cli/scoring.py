"""`cmidd score`: CMI and NCMI of sets by the networks of a bank."""

from __future__ import annotations

from functools import partial

from cmidd.cli.data import load_for, load_sets
from cmidd.device import usable_device
from cmidd.options.commands import ScoreOptions, SetDataOptions
from cmidd.pretrained.bank import Bank
from cmidd.progress import progress
from cmidd.score import BATCH, score, score_batches, train_batches


def run_score(data: SetDataOptions, options: ScoreOptions) -> None:
    """Print the CMI and NCMI of sets by every network of a bank."""
    dataset, device = load_for(options.sets, data), usable_device(data.device)
    bank = Bank.load(options.bank, device)
    sets = load_sets(dataset, options.sets, options.random_real, options.seed)
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
