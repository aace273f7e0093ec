"""What `cmidd convert` and `cmidd export` do."""

from __future__ import annotations

import shlex

from cmidd.evaluation_file import results_of
from cmidd.exchange import check_folders, convert, export_ddranking, export_png, export_pt
from cmidd.exchange.hub_folder import check_library, export_hub
from cmidd.options.exchange import ConvertOptions, ExportOptions
from cmidd.storage.output import check_replaced, check_writable
from cmidd.synthetic import SyntheticSet, file_of


def run_convert(options: ConvertOptions) -> None:
    """Make a synthetic set of the file of another tool."""
    check_replaced(options.out, overwrite=options.overwrite)
    made = convert(options)
    check_writable(options.out.parent, "out")
    made.save(options.out)
    print(f"{options.source}: {_in_words(made)}")
    print(f"the synthetic set: {options.out}")


def _in_words(made: SyntheticSet) -> str:
    about = made.record["converted"]
    seen, stored = len(made.seen().labels), len(made.labels)
    words = [f"format {about['format']}", f"{stored} images of {made.record['dataset']}"]
    if seen != stored:
        words.append(f"seen as {seen // stored} each")
    labels = "hard labels" if made.soft_labels is None else "soft labels"
    words += [f"{about['space']} there", labels]
    rate = made.learned_lr
    words.append("no learned step size" if rate is None else f"learned step size {rate:g}")
    return ", ".join(words)


def run_export(options: ExportOptions) -> None:
    """Write a synthetic set in forms that other tools read."""
    synthetic_set = SyntheticSet.load(options.set)
    evaluation = None
    if options.hub is not None:
        check_library()
        path = file_of(options.set).parent / "evaluation.json"
        evaluation = results_of(path, synthetic_set) if path.is_file() else None
    check_folders(options.folders())
    space = "normalised" if synthetic_set.whitening is None else "normalised and whitened"
    rate = synthetic_set.learned_lr
    learned = "" if rate is None else f" and lr.pt (learned, {rate:g})"
    comma = " and" if rate is None else ","
    if options.png is not None:
        export_png(synthetic_set, options.png)
        count = len(synthetic_set.seen().labels)
        print(f"{count} images, a folder for each class: {options.png}")
    if options.pt is not None:
        export_pt(synthetic_set, options.pt)
        print(f"images_best.pt ({space}){comma} labels_best.pt{learned}: {options.pt}")
    if options.ddranking is not None:
        export_ddranking(synthetic_set, options.ddranking)
        labels = "classes" if synthetic_set.soft_labels is None else "logits"
        print(f"images.pt ({space}){comma} labels.pt ({labels}){learned}: {options.ddranking}")
    if options.hub is not None:
        export_hub(synthetic_set, options.hub, evaluation)
        print(f"a table, the set and a card: {options.hub}")
        print("read README.md there, add a licence, and upload it:")
        print(f"hf upload YOU/NAME {shlex.quote(str(options.hub))} --repo-type dataset")
