"""How networks of a bank see the sets: one t-SNE for all of them, and CMI under each network.

Positions are those of sklearn's TSNE on the embedding by the first network, of real test images
and of every set's images together, so that panels can be compared point by point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.manifold import TSNE

from cmidd.datasets import Dataset
from cmidd.pretrained.bank import Bank
from cmidd.report.page import Html, columns, element, heading, join, paragraph, table
from cmidd.report.pictures import MOST_CLASSES, ClassPoints, Points, class_key, scatter
from cmidd.report.runs import RunSummary
from cmidd.score import features_of, score
from cmidd.seeds import generator

_MOST_REAL = 1000  # test images that t-SNE places


@dataclass(frozen=True)
class LoadedBank:
    """A bank, the dataset that it was trained on, and where its networks run."""

    path: Path
    bank: Bank
    dataset: Dataset
    device: torch.device

    @classmethod
    def load(cls, path: Path, dataset: Dataset, device: torch.device) -> LoadedBank:
        """Read the bank's file, and check that it was trained on the dataset."""
        bank = Bank.load(path, device)
        dataset.check_made_for(bank.record, f"bank: {path}")
        return cls(path, bank, dataset, device)


def feature_parts(runs: Sequence[RunSummary], loaded: LoadedBank) -> Html:
    """The pictures and the table of the runs' sets, as the networks see them."""
    bank, dataset = loaded.bank, loaded.dataset
    placed = _place(runs, loaded)
    shown = min(dataset.num_classes, MOST_CLASSES)
    note = "" if shown == dataset.num_classes else f" Only the first {shown} classes are drawn."
    panels = [
        join(
            [
                heading(run.name, run.about()),
                scatter(placed.real, own, placed.limits, f"t-SNE of the features of {run.name}"),
            ]
        )
        for run, own in zip(runs, placed.sets, strict=True)
    ]
    keys = [
        element("li", class_key(c), name if name == str(c) else f"{c}: {name}")
        for c, name in enumerate(dataset.class_names[:shown])
    ]
    return join(
        [
            paragraph(
                "Embeddings by a network that was trained on the real images "
                f"({loaded.path}, network 1 of {len(bank)}), placed by t-SNE. Small points are "
                f"{len(placed.real.points):,} real {dataset.judges}, large ones the synthetic "
                "images; a number stands above the real images of its class. All panels share one "
                f"t-SNE.{note}"
            ),
            element("ul", *keys, class_="legend"),
            columns(panels),
            _cmi_table(runs, loaded),
        ]
    )


@dataclass(frozen=True)
class _Placed:
    real: ClassPoints
    sets: list[ClassPoints]
    limits: Points  # ((least x, least y), (largest x, largest y)) of all


def _place(runs: Sequence[RunSummary], loaded: LoadedBank) -> _Placed:
    network, dataset = loaded.bank[0], loaded.dataset
    order = torch.randperm(len(dataset.test), generator=generator("report"))
    rows = order[dataset.test.labels[order] < MOST_CLASSES][:_MOST_REAL]
    groups = [(dataset.to_input(dataset.test.source[rows]), dataset.test.labels[rows])]
    for run in runs:
        shown = run.seen.labels < MOST_CLASSES
        groups.append((run.seen.images[shown], run.seen.labels[shown]))
    features = torch.cat(
        [features_of(network, images.to(loaded.device)).cpu() for images, _ in groups]
    )
    # t-SNE needs fewer neighbours than there are others.
    perplexity = min(30.0, (len(features) - 1) / 3)
    points: Points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(
        features.numpy()
    )
    ends = np.cumsum([len(labels) for _, labels in groups])
    placed = [
        ClassPoints(part, labels.numpy())
        for part, (_, labels) in zip(np.split(points, ends[:-1]), groups, strict=True)
    ]
    return _Placed(placed[0], placed[1:], np.stack([points.min(0), points.max(0)]))


def _cmi_table(runs: Sequence[RunSummary], loaded: LoadedBank) -> Html:
    bank, device = loaded.bank, loaded.device
    rows = []
    for run in runs:
        images, labels = run.seen.images.to(device), run.seen.labels.to(device)
        found = score(bank, images, labels)
        spread = f" ± {found.std:.2g}" if len(bank) > 1 else ""
        least, largest = (f"{end(found.of_network):.3g}" for end in (min, max))
        rows.append([run.name, run.cmi, f"{found.mean:.3g}{spread}", least, largest])
    return join(
        [
            paragraph(
                "CMI of the sets in nats, a mean over images: how far they stand from the mean of "
                "their class (always 0 for one image per class). Mean ± standard deviation, least "
                f"and largest of the bank's {len(bank)} networks."
            ),
            table(["set", "distilled with", "mean", "least", "largest"], rows),
        ]
    )
