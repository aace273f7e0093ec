from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cmidd.storage import run_folder as run
from cmidd.storage.run_folder import RunFolder, read_log, versions
from cmidd.storage.tensor_file import FileError, write_tensors

CONFIG = {"method": "dm", "ipc": 10, "lr_images": None, "weight": 1e-5, "bank": "a/b", "on": True}
TENSORS = {"images": torch.arange(6.0).view(2, 3), "momentum": torch.full((2, 3), 1e-30)}


def begun(path: Path, *, resume: bool = False, **changes: Any) -> RunFolder:
    folder = RunFolder(path, {**CONFIG, **changes}, resume=resume)
    folder.load_checkpoint()
    return folder


def with_checkpoint(path: Path, *, after: int = 0) -> bytes:
    """A run with two lines of log, a checkpoint, and `after` lines more; the log of before."""
    folder = begun(path)
    with folder.logging(0):
        for iteration in range(2):
            folder.log(iteration, {"loss": 0.5})
        folder.save_checkpoint(2, TENSORS)
        for iteration in range(2, 2 + after):
            folder.log(iteration, {"loss": 0.25})
    return b"".join((path / "log.jsonl").read_bytes().splitlines(keepends=True)[:2])


def test_a_new_folder_is_made_with_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "new"
    folder = begun(path)
    assert not folder.finished
    assert yaml.safe_load((path / "config.yaml").read_text()) == CONFIG


def test_nothing_is_written_before_the_run_begins(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new", CONFIG, resume=False)
    assert not (tmp_path / "new").exists()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    with pytest.raises(FileExistsError, match=rf"out: {tmp_path}/run holds a run.*--resume"):
        begun(tmp_path / "run")


def test_resume_takes_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "new", CONFIG, resume=True).load_checkpoint() is None


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=f"{tmp_path} holds something else than a run"):
            begun(tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_killed_while_its_configuration_was_written_begins_anew(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.partial").write_text("method: d")
    begun(tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG


def test_resume_with_other_settings_names_them(tmp_path: Path) -> None:
    begun(tmp_path)
    before = (tmp_path / "config.yaml").read_bytes()
    expected = "(ipc: 10 there, 50 now; bank: 'a/b' there, None now; new: None there, 1 now)"
    with pytest.raises(ValueError, match=re.escape(expected)):
        begun(tmp_path, resume=True, ipc=50, bank=None, new=1)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_resume_with_another_method_names_that_alone(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(ValueError, match=r"settings \(method: 'dm' there, 'dc' now\); give"):
        begun(tmp_path, resume=True, method="dc", ipc=50)


@pytest.mark.parametrize(
    "content", [b"", b"ipc: [", b"- ipc", b"\xff\xfe", b"!!python/object/apply:os.system ['true']"]
)
def test_a_damaged_configuration_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    begun(tmp_path)
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(FileError, match=rf"{tmp_path}/config.yaml: expected the configuration"):
        begun(tmp_path, resume=True)
    assert (tmp_path / "config.yaml").read_bytes() == content


def test_a_folder_with_a_result_is_finished(tmp_path: Path) -> None:
    begun(tmp_path).result.touch()
    assert begun(tmp_path, resume=True).finished


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    with_checkpoint(tmp_path)
    loaded = RunFolder(tmp_path, CONFIG, resume=True).load_checkpoint()
    assert loaded is not None
    tensors, iteration = loaded.tensors, loaded.iteration
    assert (iteration, loaded.update) == (2, 0)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_run_goes_on_with_the_files_that_it_was_begun_with(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with folder.logging(0):
        folder.save_checkpoint(2, TENSORS, {"made_with": {"bank": {"seed": 0}}})
    again = RunFolder(tmp_path, CONFIG, resume=True)
    assert again.load_checkpoint({"bank": {"seed": 0}}) is not None
    message = rf"resume: {tmp_path} was begun with another bank .* \(seed: 0 there, 1 now\); put"
    with pytest.raises(ValueError, match=message):
        again.load_checkpoint({"bank": {"seed": 1}})


def test_without_a_checkpoint_the_log_starts_again(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with folder.logging(0):
        folder.log(0, {"loss": 1.0})
    begun(tmp_path, resume=True)
    assert (tmp_path / "log.jsonl").read_bytes() == b""


@pytest.mark.parametrize("rest", [b"", b'{"iteration": 5, "lo'])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path, after: int, rest: bytes) -> None:
    known = with_checkpoint(tmp_path, after=after)
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(rest)
    begun(tmp_path, resume=True)
    assert (tmp_path / "log.jsonl").read_bytes() == known


def test_a_log_shorter_than_the_checkpoint_knows_is_an_error(tmp_path: Path) -> None:
    known = with_checkpoint(tmp_path)
    (tmp_path / "log.jsonl").write_bytes(known[:-3])
    with pytest.raises(FileError, match=rf"log.jsonl: .* {len(known)} bytes .* {len(known) - 3}"):
        begun(tmp_path, resume=True)
    assert (tmp_path / "log.jsonl").read_bytes() == known[:-3]


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 a pickle"])
def test_a_damaged_checkpoint_is_an_error_and_stays(tmp_path: Path, content: bytes) -> None:
    with_checkpoint(tmp_path, after=1)
    log = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=f"{tmp_path}/checkpoint.safetensors: expected"):
        begun(tmp_path, resume=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == content
    assert (tmp_path / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("record", [{}, {"iteration": 1}, {"iteration": "1", "log_bytes": 0}])
def test_a_checkpoint_without_its_counters_is_an_error(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    begun(tmp_path)
    write_tensors(tmp_path / "checkpoint.safetensors", run.KIND, TENSORS, record)
    with pytest.raises(FileError, match=r"damaged or edited: no (log_bytes|iteration)"):
        begun(tmp_path, resume=True)


def test_the_log_has_a_json_object_a_line(tmp_path: Path) -> None:
    numbers = {"loss": 0.1, "cmi": 1e-300}
    folder = begun(tmp_path)
    with folder.logging(0):
        for iteration in (9, 19):
            folder.log(iteration, numbers)
            written = (tmp_path / "log.jsonl").read_text()
            assert json.loads(written.splitlines()[-1]) == {"iteration": iteration, **numbers}
    assert read_log(tmp_path / "log.jsonl") == [{"iteration": i, **numbers} for i in (9, 19)]


def test_reading_a_log_leaves_out_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"iteration": 0}\n{"itera')
    assert read_log(path) == [{"iteration": 0}]
    path.write_text('{"itera')
    assert read_log(path) == []


@pytest.mark.parametrize("content", [b"{\n{}\n", b"[1]\n", b"3\n", b"\xff\n"])
def test_a_damaged_log_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"{path}: expected a JSON object in each line"):
        read_log(path)


def test_tensorboard_shows_every_iteration_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    with_checkpoint(tmp_path, after=3)
    folder = begun(tmp_path, resume=True)
    with folder.logging(2):
        for iteration in (2, 3):
            folder.log(iteration, {"loss": 0.125})
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(0, 0.5), (1, 0.5), (2, 0.125), (3, 0.125)]


def test_versions_are_those_that_a_result_depends_on() -> None:
    assert versions()["torch"] == torch.__version__
    assert set(versions()) == {"cmikernels", "torch", "python"}
