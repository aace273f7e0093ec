"""The benchmark of MCMI."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bench import mcmi
from bench.harness.records import Record
from cmidd.datasets import load_dataset
from cmidd.stack import Stack
from tests.support.tiny import CPU, NETWORK, tiny_dataset


def test_students_learn_from_labels_and_from_the_teacher() -> None:
    dataset = tiny_dataset()
    teacher, student = (Stack.fresh(NETWORK, dataset.shape, 3, [seed], CPU) for seed in (0, 1))
    images, labels = dataset.to_input(dataset.train.images), dataset.train.labels
    found = mcmi.distillation(lambda x: teacher(x[None])[0])(student, images[None], labels[None])
    expected = torch.zeros(())
    for known, own, label in zip(
        teacher(images[None])[0], student(images[None])[0], labels, strict=True
    ):
        p, q = (known / 4).softmax(0), (own / 4).softmax(0)
        expected = expected + 0.9 * 16 * (p * (p / q).log()).sum()
        expected = expected + 0.1 * F.cross_entropy(own, label)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, teacher.parameters, allow_unused=True)
    assert all(gradient is None for gradient in gradients)


def test_a_share_has_rows_of_every_class_and_depends_on_the_seed() -> None:
    dataset = load_dataset("digits")
    rows = mcmi.rows_of_share(dataset, 0.05, 0)
    assert dataset.train.labels[rows].bincount().tolist() == [7] * 10
    assert torch.equal(rows, mcmi.rows_of_share(dataset, 0.05, 0))
    assert not torch.equal(rows, mcmi.rows_of_share(dataset, 0.05, 1))
    few = mcmi.rows_of_share(tiny_dataset(), 0.01, 0)
    assert tiny_dataset().train.labels[few].tolist() == [0, 1, 2]


def test_teachers_and_students_are_recorded_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ["--out", str(tmp_path), "--folder", str(tmp_path / "made")]
    words = ["--quick", "--seeds", "0", "1", "--resume", "key", *folders]
    monkeypatch.setattr(sys, "argv", ["bench.mcmi", *words])
    mcmi.main()
    record = Record.read(tmp_path / "mcmi-digits.json")
    names = [mcmi.NONE, mcmi.PLAIN, mcmi.LONGER, mcmi.MCMI]
    assert [(row["seed"], row["teacher"]) for row in record.rows] == [
        (seed, name) for seed in (0, 1) for name in names
    ]
    for row in record.rows:
        assert len(row["students"]) == 1
        assert row["teacher"] == mcmi.NONE or row["cmi"] > 0
    said = mcmi.report(record)
    assert [f"\n| {name} " in said for name in names] == [True] * 4
    monkeypatch.setattr(mcmi, "measure", None)  # all is there
    mcmi.main()
    assert Record.read(tmp_path / "mcmi-digits.json").rows == record.rows


def test_differences_are_seed_by_seed() -> None:
    about = {"data": "digits", "share": 0.05, "accuracy": 0.9, "cmi": 0.1}
    rows = [
        {**about, "seed": seed, "teacher": name, "students": [0.5 + seed / 10 + more]}
        for seed in range(3)
        for name, more in ((mcmi.PLAIN, 0.0), (mcmi.MCMI, 0.02 + seed / 100))
    ]
    settings = {"data": "digits", "share": 0.05, **asdict(mcmi.QUICK)}
    machine = {"cpu": "x", "threads": 1, "torch": "2", "cmikernels": "0", "backends": {}}
    said = mcmi.report(Record("mcmi", machine, settings, rows))
    assert "+3.0 ± 0.6" in said
    assert "60.0 ± 10.0" in said
