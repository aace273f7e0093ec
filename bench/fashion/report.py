"""Tables of the recorded rows: beside what is published, and over iterations."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from bench.fashion.cases import PUBLISHED, PUBLISHED_ITERATIONS, SWEEPS, TABLE, Case
from bench.harness.records import Record, Row, rows_of
from bench.harness.tables import table

_REAL = {"random": "random real images", "all": "all real images"}


def report(record: Record) -> str:
    """Everything in Markdown."""
    shown = record.settings["rows"]
    if shown in SWEEPS:
        return _sweep(record.rows, SWEEPS[shown])
    parts = [_against_published(record.rows), _effects(record.rows), _over_iterations(record.rows)]
    return "\n\n".join(filter(None, parts))


def title_of(case: Case) -> str:
    """What networks are trained on, in words."""
    name = _REAL.get(case.method, case.method.upper())
    name += f" + CMI of weight {case.weight:g}" if case.weight else ""
    return name + (f", {case.label}" if case.label else "")


def _groups(cases: Sequence[Case]) -> dict[tuple[str, int, float, str], list[Case]]:
    """Cases that differ in their seeds alone, by images per class."""
    groups: dict[tuple[str, int, float, str], list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.ipc or math.inf):
        groups.setdefault((case.method, case.ipc, case.weight, case.label), []).append(case)
    return groups


def _last(rows: Sequence[Row], cases: Sequence[Case]) -> list[Row]:
    """Of each seed the row after the most iterations that most seeds have."""
    found = [row for case in cases for row in rows_of(rows, **case.about())]
    seeds = Counter(row["iterations"] for row in found)
    if not seeds:
        return []
    chosen = max(seeds, key=lambda iterations: (seeds[iterations], iterations))
    return rows_of(found, iterations=chosen)


def _percent(rows: Sequence[Row]) -> str:
    mean, deviation = mean_and_deviation(rows)
    return f"{mean:.1f} ± {deviation:.1f}"


def mean_and_deviation(rows: Sequence[Row]) -> tuple[float, float]:
    """In %, over all networks of all rows."""
    values = [100 * each for row in rows for each in row["accuracies"]]
    return statistics.mean(values), statistics.pstdev(values)


def _against_published(rows: Sequence[Row]) -> str:
    lines = []
    for (method, ipc, weight, label), cases in _groups(TABLE).items():
        last = _last(rows, cases)
        known = None if weight else PUBLISHED.get((method, ipc, label))
        published = "-" if known is None else str(known)
        usual = PUBLISHED_ITERATIONS.get(method)
        of = "-" if usual is None else f"{usual:,}"
        head = [ipc or "all", title_of(cases[0])]
        if not last:
            lines.append([*head, "not run yet", published, "-", of, "-", "-", "-"])
            continue
        networks = "+".join(str(len(row["accuracies"])) for row in last)
        iterations = f"{last[0]['iterations']:,}" if cases[0].is_distilled else "-"
        lines.append(
            [*head, _percent(last), published, iterations, of, last[0]["epochs"], networks,
             len(last)]
        )  # fmt: skip
    header = ["images per class", "trained on", "accuracy, %", "published, %", "iterations",
              "published with", "epochs", "networks", "seeds"]  # fmt: skip
    return table(header, lines)


def _effects(rows: Sequence[Row]) -> str:
    """What CMI adds, seed by seed."""
    lines = []
    for (method, ipc, weight, label), cases in _groups(TABLE).items():
        if not weight:
            continue
        plain = [case for case in TABLE if (case.method, case.ipc, case.weight, case.label)
                 == (method, ipc, 0.0, label)]  # fmt: skip
        gains = _gains(rows, plain, cases)
        if gains:
            lines.append(
                f"{method.upper()} at {ipc} images per class: CMI of weight {weight:g} adds "
                f"{_gains_text(gains)}."
            )
    return "\n\n".join(lines)


def _gains(rows: Sequence[Row], before: Sequence[Case], after: Sequence[Case]) -> list[float]:
    """What the cases `after` reach more than those `before`, seed by seed."""
    last = _last(rows, [*after, *before])
    reached: list[dict[int, list[float]]] = []
    for cases in (before, after):
        found = [row for case in cases for row in rows_of(last, **case.about())]
        reached.append({row["seed"]: row["accuracies"] for row in found})
    seeds = sorted(reached[0].keys() & reached[1].keys())
    return [_gain(reached[0][seed], reached[1][seed]) for seed in seeds]


def _gains_text(gains: Sequence[float]) -> str:
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 2 else None
    each = ", ".join(f"{gain:+.1f}" for gain in gains)
    few = "one seed" if len(gains) == 1 else "two seeds"
    sure = few if error is None else f"standard error {error:.2f}"
    return f"{statistics.mean(gains):+.1f} points ({sure}; seed by seed {each})"


def _gain(without: Sequence[float], with_cmi: Sequence[float]) -> float:
    """In points, over networks that were trained alike on both."""
    pairs = list(zip(without, with_cmi, strict=False))
    return 100 * statistics.mean(after - before for before, after in pairs)


def _over_iterations(rows: Sequence[Row]) -> str:
    """Accuracy after every stage that was evaluated."""
    lines = [
        [name, f"{stage:,}", _percent(here), sum(len(row["accuracies"]) for row in here)]
        for name, stages in stages_of(rows).items()
        for stage, here in stages.items()
    ]
    if not lines:
        return ""
    header = ["trained on", "iterations", "accuracy, %", "networks"]
    return f"Over iterations:\n\n{table(header, lines)}"


def stages_of(rows: Sequence[Row]) -> dict[str, dict[int, list[Row]]]:
    """Of each distilled set its rows, of all seeds, stage by stage."""
    lines = {}
    for cases in _groups([case for case in TABLE if case.is_distilled]).values():
        found = [row for case in cases for row in rows_of(rows, **case.about())]
        stages = {row["iterations"]: rows_of(found, iterations=row["iterations"]) for row in found}
        if stages:
            name = f"{title_of(cases[0])} at {cases[0].ipc} per class"
            lines[name] = dict(sorted(stages.items()))
    return lines


def _sweep(rows: Sequence[Row], cases: Sequence[Case]) -> str:
    """Every setting, judged by images that were held out; the first one is what others add to."""
    groups = _groups(cases)
    first = next(iter(groups.values()))
    lines, effects = [], []
    for alike in groups.values():
        case = alike[0]
        last = _last(rows, alike)
        shown = _percent(last) if last else "not run yet"
        networks = "+".join(str(len(row["accuracies"])) for row in last) or "-"
        iterations = f"{last[0]['iterations']:,}" if last else "-"
        name = title_of(case)
        lines.append([case.ipc, name, shown, iterations, networks])
        gains = _gains(rows, first, alike) if alike is not first else []
        if len(gains) > 1:
            effects.append(f"{name}: {_gains_text(gains)} beside {title_of(first[0])}.")
    header = ["images per class", "trained on", "accuracy, %", "iterations", "networks"]
    judged = (
        "Distilled from four fifths of the training images of each class and tested on the others, "
        "which neither the bank nor the experts have seen."
    )
    return "\n\n".join([table(header, lines), *effects, judged])
