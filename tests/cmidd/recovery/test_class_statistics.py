"""The statistics of classes are those of all their images at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.plain import recover as plain
from cmidd.recovery import class_statistics
from cmidd.recovery.class_statistics import (
    ClassStatistics,
    channels_of,
    measure,
    statistics_file,
)
from cmidd.recovery.statistics import watched
from cmidd.storage.tensor_file import FileError
from tests.support.recovered import recover_options, tiny_recovery
from tests.support.tiny import CPU, tiny_dataset


def test_they_are_measured_in_batches_and_averaged_over_labels(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_statistics, "_BATCH", 4)  # of six images a class
    data = tiny_dataset()
    teachers = tiny_recovery(recover_options(teacher)).task.teachers
    channels = [channels_of(each, data, CPU) for each in teachers]
    file = statistics_file(tmp_path / "file", data, channels, {})
    assert file.missing() == [0, 1, 2]
    for c in (2, 0, 1):
        file.put(c, measure(data, teachers, c, CPU))
    file.complete()
    found = ClassStatistics(tmp_path / "file", channels).of(torch.tensor([2, 2, 0]), 1)
    real = [data.to_input(data.train.of_class(c)) for c in range(3)]
    of_classes = [plain.class_statistics(teachers[1], images) for images in real]
    with torch.no_grad(), watched(teachers[1]) as seen:
        teachers[1](real[0])
    norms = plain.batch_norms(teachers[1])
    assert len(found) == len(seen) == len(norms)
    for each, place in zip(found, (norms.index(s.norm) for s in seen), strict=True):
        for ours, k in ((each.mean, 0), (each.var, 1)):
            expected = (2 * of_classes[2][place][k] + of_classes[0][place][k]) / 3
            assert (ours - expected).abs().max() < 1e-5 * (1 + expected.abs().max())
    assert (found[0].mean - of_classes[1][0][0]).abs().max() > 1e-3


def test_a_damaged_file_is_an_error_that_names_it(teacher: Path, tmp_path: Path) -> None:
    data = tiny_dataset()
    teachers = tiny_recovery(recover_options(teacher)).task.teachers[:1]
    channels = [channels_of(each, data, CPU) for each in teachers]
    path = tmp_path / "file"
    file = statistics_file(path, data, channels, {})
    for c in range(3):
        file.put(c, measure(data, teachers, c, CPU))
    file.complete()
    whole = path.read_bytes()
    wanted = ClassStatistics(path, channels)
    wanted.of(torch.tensor([1]), 0)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(FileError, match=rf"{path}: .*"):
        wanted.of(torch.tensor([0, 1, 2]), 0)
    path.write_bytes(whole[:-9])
    with pytest.raises(FileError, match=rf"{path}: expected a safetensors file"):
        wanted.of(torch.tensor([0]), 0)
    path.write_bytes(whole)
    with pytest.raises(FileError, match="expected 3 numbers of a class in mean of 0, got"):
        ClassStatistics(path, [[3]]).of(torch.tensor([0]), 0)
