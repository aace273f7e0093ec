"""How all on the page was made: commands, settings and versions, in the order of the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmidd.report.accuracy import Evaluation
from cmidd.report.features import LoadedBank
from cmidd.report.page import Html, digits, element, heading, join, paragraph, table
from cmidd.report.runs import RunSummary

# What a file of networks says of itself and its dataset, which are no settings of its command.
_NO_SETTINGS = ("command", "format", "kind", "mean", "num_classes", "shape", "std")


def making(
    runs: Sequence[RunSummary],
    evaluations: Sequence[Evaluation],
    loaded: LoadedBank | None,
) -> Html:
    """Files of networks, each once, then runs, then evaluations.

    Args:
        runs: whose results name the files they were made with.
        evaluations: of the accuracy table.
        loaded: whose bank drew the features.
    """
    parts = []
    for name, record in _network_files(runs, loaded):
        settings = {key: value for key, value in record.items() if key not in _NO_SETTINGS}
        parts += [element("h3", name), _command(record.get("command")), _settings(settings)]
    for run in runs:
        record = run.synthetic.record
        parts += [
            heading(run.name, run.about()),
            paragraph(_origin(run)) if run.converted else _command(record.get("command")),
            _settings({**run.config, **run.converted}),
            _versions(record.get("versions", {})),
        ]
    for evaluation in evaluations:
        parts += [
            element("h3", evaluation.name),
            _command(evaluation.command),
            _versions(evaluation.versions),
        ]
    return join(parts)


def _origin(run: RunSummary) -> str:
    """Which file of another tool a set was."""
    about = run.converted
    return f"Converted from {about.get('file')}, format {about.get('format')}."


def _network_files(
    runs: Sequence[RunSummary], loaded: LoadedBank | None
) -> list[tuple[str, Mapping[str, Any]]]:
    """Banks and experts by name, with their records, which tell them apart."""
    found = [
        (kind, run.config.get(kind), record)
        for run in runs
        for kind, record in run.synthetic.record.get("made_with", {}).items()
    ]
    if loaded is not None:
        found.append(("bank", loaded.path, loaded.bank.record))
    files: list[tuple[str, Mapping[str, Any]]] = []
    for kind, path, record in found:
        if all(record != known for _, known in files):
            files.append((kind if path is None else f"{kind}: {path}", record))
    return files


def _settings(settings: Mapping[str, Any]) -> Html:
    rows = [
        (name, "not set" if value is None else digits(value, 6)) for name, value in settings.items()
    ]
    return element(
        "details", element("summary", "configuration"), table(["setting", "value"], rows)
    )


def _command(command: str | None) -> Html:
    if not command:
        return paragraph("The command was not recorded.", class_="faint")
    return element("pre", command)


def _versions(versions: Mapping[str, Any]) -> Html:
    if not versions:
        return paragraph("Versions were not recorded.", class_="faint")
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return paragraph(f"Versions: {listed}", class_="faint")
