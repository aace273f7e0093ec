"""The table of DD-Ranking's scores: a row for each set and network that has some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmidd.report.page import Html, element, join, paragraph, table

_ABOUT = (
    "Scores of DD-Ranking by their formulas of shares, both from 0 to 1: mean ± standard "
    "deviation of n networks. LRS falls where a set's accuracy is that of its labels, ARS where it "
    "is that of augmentation. They are not to be compared with scores of percentages."
)


@dataclass(frozen=True)
class Spread:
    """A score of networks of one architecture."""

    mean: float
    std: float
    count: int

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Spread:
        """As an evaluation has it."""
        return cls(float(record["mean"]), float(record["std"]), len(record["of_networks"]))


@dataclass(frozen=True)
class Scores:
    """LRS and ARS of one set."""

    name: str
    network: str
    lrs: Spread
    ars: Spread
    weights: tuple[float, float]

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Scores:
        """As an evaluation has them."""
        return cls(
            str(record["set"]),
            str(record["network"]),
            Spread.of_record(record["lrs"]),
            Spread.of_record(record["ars"]),
            (float(record["lrs_weight"]), float(record["ars_weight"])),
        )


def robustness_table(scores: Sequence[Scores]) -> Html:
    """All scores of all files, each once; nothing where there are none."""
    if not scores:
        return join([])
    lines = [
        [
            each.name,
            each.network,
            _cell(each.lrs),
            _cell(each.ars),
            *map("{:g}".format, each.weights),
        ]
        for each in dict.fromkeys(scores)
    ]
    header = ["set", "network", "LRS", "ARS", "weight of LRS", "weight of ARS"]
    return join([paragraph(_ABOUT), table(header, lines)])


def _cell(spread: Spread) -> Html:
    deviation = f" ± {spread.std:.3f}" if spread.count > 1 else ""
    note = element("small", f"n = {spread.count}")
    return element("td", f"{spread.mean:.3f}{deviation} ", note)
