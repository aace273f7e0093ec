"""Recorded results into docs/results, a page for each kind: every number comes from bench/results.

python -m bench.render
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import (
    block,
    digits,
    evaluation,
    fashion,
    mcmi,
    precision,
    ranks,
    regularizer,
    scale,
    scaling,
)
from bench.budget import report as budget
from bench.gpu import predictions
from bench.harness.records import RESULTS, Record
from bench.kernels import accuracy, overhead, plots, streaming
from bench.kernels import report as kernels
from bench.loops import report as loops

PAGES = RESULTS.parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Kind:
    """A benchmark: the module that runs it, what its page says first, and how a record is shown."""

    module: str
    title: str
    introduction: str
    report: Callable[[Record], str]
    pictures: Callable[[Record, Path], list[Path]] | None = None


KINDS = {
    "kernels": Kind(
        "bench.kernels",
        "Time and memory of a call",
        '"published" is the published expression in eager torch, "exp" one `torch.exp` over the '
        'features, "copy" a copy of them into memory already there; bytes moved are `N M s` for '
        "the value and `2 N M s` with the gradient. Peak memory is what one value+gradient call "
        "needs beyond the features.",
        kernels.report,
        plots.kernels,
    ),
    "accuracy": Kind(
        "bench.kernels.accuracy",
        "Accuracy of value and gradient",
        "How far the value and the gradient are from float64, over how far a class's rows spread.",
        accuracy.report,
        plots.accuracy,
    ),
    "overhead": Kind(
        "bench.kernels.overhead",
        "What a call costs besides its kernel",
        "The same call through every layer, and torch's next op after a call.",
        overhead.report,
    ),
    "streaming": Kind(
        "bench.kernels.streaming",
        "CMI of a stream",
        "Updates of `EmpiricalCMI` with batches of 512 float32 channels in ten classes, beside "
        "`fused_cmi`'s value of the same batch. All index the labels anew, as a stream has to.",
        streaming.report,
    ),
    "predictions": Kind(
        "bench.gpu.predictions",
        "What the model predicts for a GPU",
        "No GPU was at hand: nothing on this page was measured. The model is a roofline by bytes "
        "and issue slots. Clusters are those of the plan, and resident those that the GPU holds at "
        "once; more would start when the first ones have done all their classes.",
        predictions.report,
    ),
    "loops": Kind(
        "bench.loops",
        "Time of whole steps of distillation",
        'The plain loop is structured as the published one; "convolutions" are those of our '
        "float32 loop and nothing else. Parts of a step are, in newer records, the ranges that "
        "the loops name, as a profile of whole steps has them; in older ones each was timed alone.",
        loops.report,
    ),
    "budget": Kind(
        "bench.budget",
        "What each loop asks of a GPU",
        "No GPU was at hand: this was counted on torch's device `meta`, on which the loops take "
        "the branches of a GPU and compute nothing. Images are 32 x 32 of ten classes, 256 real "
        "ones of a class in a batch. A launch is that of a kernel; a convolution with a bias has "
        "two, and our own kernels have as many as they are launched with. The host waits where it "
        "reads a number or copies memory that is not pinned. A line of DM's "
        "log is written after every tenth iteration. A student takes 30 steps in an "
        "iteration. DC and DSA have ten updates in one, and 50 epochs between two. Five ConvNets "
        "have a step in an epoch; their loss is read once a second, of which none passes here.",
        budget.report,
    ),
    "evaluation": Kind(
        "bench.evaluation",
        "Time of evaluation",
        "An epoch of a ConvNet that learns from a distilled set of ten classes, 32 x 32, freed "
        'memory kept. "plain" is structured as published, of torch\'s layers; "convolutions" are '
        "those of ours and nothing else.",
        evaluation.report,
    ),
    "ranks": Kind(
        "bench.ranks",
        "Updates that ranks share",
        "Ten classes of 32 x 32 pixels, a ConvNet-3, 256 real images of a class; DM has CMI by a "
        "ResNet-18, MTT five steps of the student. Each rank has a core and a thread, freed memory "
        'is kept. "sending" is the time in sums over ranks, waiting for the others included; '
        '"summed" are the bytes of these sums on each rank.',
        ranks.report,
    ),
    "scale": Kind(
        "bench.scale",
        "Recovery at scale",
        "A tree of JPEG pictures of many sizes, drawn for this. Each part is a command of `cmidd` "
        'in a process of its own. "steps" are those of each batch; recoveries of few steps are '
        "there for their memory, which follows the batch, and what they wait for is the pass over "
        "all pictures for their mean and deviation, with which each command begins. Classes are "
        "easy to tell apart by real pictures. Other processes ran meanwhile on the two cores.",
        scale.report,
    ),
    "scaling": Kind(
        "bench.scaling",
        "What updates would take on several GPUs",
        "A model: nothing on this page was measured on a GPU. Convolutions and products are "
        "counted; the rates below are assumed. The host works beside the GPU, so an update takes "
        'the longer of the two. "sums" are those over ranks, in which the slower link counts.',
        scaling.report,
    ),
    "regularizer": Kind(
        "bench.regularizer",
        "CMIRegularizer in chunks and all at once",
        "Peak memory and time of the whole regulariser.",
        regularizer.report,
    ),
    "precision": Kind(
        "bench.precision",
        "The precision that the regulariser needs",
        "Image gradients of CMI by trained ResNet-18s are compared with those of the same networks "
        "in float64, over all networks of a bank: the error in the 2-norm, and the cosine. "
        '"Another network" is the cosine of two networks\' gradients in float64, of which a step '
        "draws one. TF32 is emulated: what enters a convolution, forward and backward, is rounded "
        "to 10 bits of mantissa. The outcome is the accuracy of networks that are trained on "
        "digits distilled by DM with CMI, two images of each, from the same first images and with "
        "the same draws. Deviations are over seeds, that of the gap is its standard error. The "
        "CPU's time says nothing of a processor that has bfloat16 instructions.",
        precision.report,
    ),
    "block": Kind(
        "bench.block",
        "Norm, activation and pooling",
        'The block is instance norm with scale and shift, ReLU and means of 2 x 2; "torch" is '
        'three calls of torch. "gradient" is forward and backward, "second order" the gradient of '
        "a function of these gradients with all that comes before. A copy reads the maps once and "
        "writes them once. What is kept for the backward is beside input and output.",
        block.report,
    ),
    "fashion": Kind(
        "bench.fashion",
        "FashionMNIST, beside what is published",
        "Networks are ConvNets of depth 3 and width 128, trained on the set from fresh weights by "
        "the recipe of the method. They are tested on the 10,000 real test images, those of sweeps "
        "on held-out training images. Deviations are over networks, of all seeds together. The "
        "runs are shorter than the published ones, as the table says, and an update of DM, DC and "
        "DSA takes 64 real images of a class, not 256. The bank of the regulariser is two "
        "ResNet-18 of width 16, narrower than the published width of 64, trained for three epochs "
        "on four fifths of the training images. Published figures of DC and DSA are from the "
        "readme of VICO's program, their deviations from the KIP paper (arXiv 2107.13034), which "
        "quotes them.",
        fashion.report,
        fashion.pictures,
    ),
    "digits": Kind(
        "bench.digits",
        "Does CMI help, on scikit-learn's digits",
        "Accuracy of networks trained on distilled sets, on random real images and on all. Images "
        "that hold several, as those of IDC do, are counted as they are stored.",
        digits.report,
    ),
    "mcmi": Kind(
        "bench.mcmi",
        "Students of teachers that MCMI fine-tuned",
        'A teacher is trained on all training images: "plain". It is then fine-tuned by MCMI, and '
        'for as long with weight 0: "plain, trained longer". Students see a share of each '
        "class; T is 4, labels weigh 0.1 and the teacher 0.9. Accuracy is that on test images, and "
        "so is CMI.",
        mcmi.report,
    ),
}


def section(path: Path, page_folder: Path = PAGES) -> str:
    """One result file: heading, tables. Its CSV and the pictures beside the page are made anew."""
    record = Record.read(path)
    kind = KINDS[record.kind]
    record.write_csv(path.with_suffix(".csv"))
    command = f"python -m {kind.module} --name {path.stem}"
    method = record.settings.get("method", "dm")  # of the loops
    if method != "dm":
        command += f" --method {method}"
    if arguments := record.settings.get("arguments"):
        command += f" {arguments}"
    if "gpu" in record.machine:
        command = "bench/gpu/suite.sh --part bench"
    parts = [f"## {path.stem}", f"`{command}`", kind.report(record)]
    pictures = kind.pictures(record, page_folder / path.stem) if kind.pictures else []
    parts += [f"![{each.stem}]({each.name})" for each in pictures]
    return "\n\n".join(parts)


def write_pages(results: Path, folder: Path) -> list[Path]:
    """A page for each kind that has records, and an index of them."""
    folder.mkdir(parents=True, exist_ok=True)
    by_kind: dict[str, list[Path]] = {}
    for path in sorted(results.glob("*.json")):
        by_kind.setdefault(Record.read(path).kind, []).append(path)
    written, index = [], []
    for name, kind in KINDS.items():
        if name not in by_kind:
            continue
        sections = [section(path, folder) for path in by_kind[name]]
        page = folder / f"{name}.md"
        page.write_text("\n\n".join([f"# {kind.title}", kind.introduction, *sections]) + "\n")
        written.append(page)
        index.append(f"- [{kind.title}]({page.name}), from `python -m {kind.module}`")
    readme = folder / "README.md"
    readme.write_text(
        "# Results\n\n"
        "`python -m bench.render` writes these pages from the records in `bench/results`. The "
        "command under a heading takes its numbers anew. Every measured ratio compares contenders "
        "that took turns in one process.\n\n" + "\n".join(index) + "\n"
    )
    return [readme, *written]


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.render", description=__doc__.split("\n\n")[0]
    )
    add = parser.add_argument
    add("--results", type=Path, default=RESULTS, help="folder of the records (%(default)s)")
    add("--pages", type=Path, default=PAGES, help="folder to write into (%(default)s)")
    args = parser.parse_args()
    print("written:", *write_pages(args.results, args.pages))


if __name__ == "__main__":
    main()
