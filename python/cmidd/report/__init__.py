"""One HTML page about runs: what they reached, what they look like, how they were made.

`runs` and `accuracy` read files, `pictures` draws, `features` looks through a bank, `making` lists
commands, `page` writes HTML; `summary` says in sentences what the accuracies are. The page is one
file that loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cmidd.divergence import signs_of_divergence
from cmidd.report.accuracy import Evaluation, accuracy_table, read_evaluation
from cmidd.report.features import LoadedBank, feature_parts
from cmidd.report.making import making
from cmidd.report.page import (
    Html,
    code,
    columns,
    element,
    heading,
    join,
    page,
    paragraph,
    section,
)
from cmidd.report.pictures import MOST_CLASSES, Curve, curves, line_key, strip
from cmidd.report.runs import RunSummary, read_runs
from cmidd.report.summary import summary
from cmidd.storage.output import check_replaced, check_writable, write_text

__all__ = ["write_report"]

_MOST_IMAGES = 10  # of a class, in the grid


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    evaluations: Sequence[Path] = (),
    bank: Path | None = None,
    device: torch.device,
    overwrite: bool = False,
) -> list[str]:
    """Write the page, atomically, and return in lines what the evaluations show.

    The dataset is loaded, as the first run's configuration says, for the features and for runs that
    are not finished; without them the page needs the runs' files only.

    Args:
        runs: folders of runs of one dataset, finished or with a checkpoint.
        out: the page.
        evaluations: files that `cmidd evaluate` wrote, for the accuracy table.
        bank: file of trained networks, for the section on features.
        device: where the networks run.
        overwrite: whether a page that is there may be replaced.
    """
    check_replaced(out, overwrite=overwrite, such_as="report.html")
    read, dataset = read_runs(runs, with_dataset=bank is not None)
    evaluated = [read_evaluation(path) for path in evaluations]
    _check_evaluations(evaluated, read[0])
    loaded = None if bank is None or dataset is None else LoadedBank.load(bank, dataset, device)
    check_writable(out.parent, "out")
    write_text(
        out,
        page(
            _title(read),
            _summary(read),
            section("Accuracy", _accuracy(evaluated)),
            section("Synthetic images", _images(read)),
            section("Loss and CMI", _curves(read)),
            section("Features", _features(read, loaded)),
            section("How it was made", making(read, evaluated, loaded)),
        ),
    )
    return summary(read, evaluated)


def _check_evaluations(evaluations: Sequence[Evaluation], run: RunSummary) -> None:
    ours = run.synthetic.record["dataset"]
    for evaluation in evaluations:
        if evaluation.dataset != ours:
            raise ValueError(
                f"evaluations: expected {ours} as for {run.name}, got {evaluation.dataset} in "
                f"{evaluation.name}"
            )
        if evaluation.held_out != evaluations[0].held_out:
            raise ValueError(
                f"evaluations: {evaluations[0].name} is of {evaluations[0].judges}, "
                f"{evaluation.name} of {evaluation.judges}; make a report for each"
            )


def _title(runs: Sequence[RunSummary]) -> str:
    methods = list(dict.fromkeys(run.method for run in runs))
    sizes = sorted({run.images_per_class for run in runs})
    images = "image" if sizes == [1] else "images"
    name = runs[0].synthetic.record["dataset"]
    count = _listed([str(size) for size in sizes])
    return f"{name} distilled by {_listed(methods)}, {count} {images} per class"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _summary(runs: Sequence[RunSummary]) -> Html:
    sets = "set" if len(runs) == 1 else "sets"
    return join(
        [
            paragraph(
                f"{len(runs)} distilled {sets}: what networks learn from the images, what these "
                "look like, how loss and CMI went, how a trained network sees them, and the "
                "commands that made all of it.",
                class_="faint",
            ),
            *(paragraph(text, class_="warning") for run in runs for text in _warnings(run)),
        ]
    )


def _warnings(run: RunSummary) -> list[str]:
    warnings = []
    if run.iteration is not None:
        warnings.append(
            f"{run.name} is not finished: its images are those of iteration {run.iteration:,}."
        )
    largest = run.synthetic.images.abs().max().item()
    signs = signs_of_divergence(largest, run.log)
    warnings += [f"{run.name} seems to have diverged: {sign}." for sign in signs]
    return warnings


def _accuracy(evaluations: Sequence[Evaluation]) -> Html:
    if not evaluations:
        return paragraph(
            "Left out: no evaluations were given. ",
            code("cmidd evaluate"),
            " makes a file of them for ",
            code("cmidd report --evaluations"),
            ".",
        )
    return accuracy_table(evaluations)


def _features(runs: Sequence[RunSummary], loaded: LoadedBank | None) -> Html:
    if loaded is None:
        return paragraph(
            "Left out: no bank of trained networks was given. ",
            code("cmidd pretrain"),
            " makes one; with it (",
            code("cmidd report --bank"),
            ") the report shows a t-SNE of the features and the CMI of each set.",
        )
    return feature_parts(runs, loaded)


def _images(runs: Sequence[RunSummary]) -> Html:
    count = runs[0].synthetic.record["num_classes"]
    note = "" if count <= MOST_CLASSES else f", of the first {MOST_CLASSES} of {count} classes"
    return join(
        [
            paragraph(f"At most {_MOST_IMAGES} images of a class{note}; each pixel is a square."),
            columns(join([heading(run.name, run.about()), _grid(run)]) for run in runs),
        ]
    )


def _grid(run: RunSummary) -> Html:
    pixels, labels = run.seen.pixels(), run.seen.labels
    names = run.synthetic.record["class_names"][:MOST_CLASSES]
    places = min(_MOST_IMAGES, int(labels.bincount().max()))
    cells = []
    for c, name in enumerate(names):
        own = pixels[labels == c][:_MOST_IMAGES]
        images = "image" if len(own) == 1 else "images"
        cells += [
            element("span", name),
            strip(own, places, f"{len(own)} synthetic {images} of class {name}"),
        ]
    return element("div", *cells, class_="grid")


def _curves(runs: Sequence[RunSummary]) -> Html:
    loss = [_curve(number, run, "loss") for number, run in enumerate(runs) if run.log]
    cmi = [_curve(number, run, "cmi") for number, run in enumerate(runs) if run.log and run.has_cmi]
    mim = [
        _curve(number, run, "mim")
        for number, run in enumerate(runs)
        if run.mim_weight and any("mim" in line for line in run.log)
    ]
    steps = [
        _curve(number, run, "step_size")
        for number, run in enumerate(runs)
        if all("step_size" in line for line in run.log) and run.log
    ]
    keys = [
        element("li", line_key(number), f"{run.name} ({run.terms if run.log else 'no log'})")
        for number, run in enumerate(runs)
    ]
    drawn = []
    if loss:
        drawn.append(curves(loss, "loss of the method", "Loss against iterations, a line a run"))
    if cmi:
        drawn.append(curves(cmi, "CMI (nats), unweighted", "CMI against iterations, a line a run"))
    if mim:
        title = "InfoNCE against iterations, a line a run"
        drawn.append(curves(mim, "InfoNCE (nats), unweighted", title))
    if steps:
        title = "Learned step size against iterations, a line a run"
        drawn.append(curves(steps, "learned step size", title))
    return join(
        [
            paragraph("Values as logged, faint, and their running mean."),
            element("ul", *keys, class_="legend"),
            columns(drawn),
        ]
    )


def _curve(number: int, run: RunSummary, name: str) -> Curve:
    lines = [line for line in run.log if name in line]
    return Curve(number, [line["iteration"] for line in lines], [line[name] for line in lines])
