"""A recovery from its file: whole, in any order, by several processes, after kills."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd import ranks
from cmidd.options.recover import RecoverCMIOptions
from cmidd.recovery import recover as module_of_recover
from cmidd.recovery.batch import Batch
from cmidd.recovery.recover import recover
from cmidd.storage.growing_file import GrowingFile, partial_path
from cmidd.storage.lock import locked
from cmidd.synthetic import SyntheticSet
from tests.support.ranks import on_ranks
from tests.support.recovered import TEACHER, made, recover_options, tiny_recovery
from tests.support.tiny import quiet, tiny_bank, tiny_dataset

CMI = RecoverCMIOptions(cmi_weight=20.0)
EDC: dict[str, Any] = {"recipe": "edc", "start": "real", "patches": 2, "batch_size": 4}


@pytest.mark.parametrize("changes", [{}, EDC], ids=["sre2l", "edc"])
def test_a_set_of_every_class_is_made(
    changes: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    recovery = tiny_recovery(recover_options(teacher, **changes), CMI)
    said: list[str] = []
    folder = recovery.folder(tmp_path / "run")
    path = recover(recovery, folder, "the command", said.append)
    assert path == tmp_path / "run" / "result.safetensors"
    found = SyntheticSet.load(tmp_path / "run")
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    record = found.record
    assert (record["method"], record["ipc"], record["cmi_weight"]) == ("recover", 2, 20.0)
    assert record["network"] == TEACHER
    assert record["config"]["teacher"] == [str(teacher)]
    assert record["command"] == "the command"
    assert said[0] == "2 batches of up to 4 images: 2 classes with 2 of each"
    assert [line.partition(":")[0] for line in said[-2:]] == ["batch 1 of 2", "batch 2 of 2"]
    for line in said[-2:]:
        assert "CMI" in line
    tiny_dataset().check_made_for(record, "the set")
    again = tiny_recovery(recovery.options, CMI)
    assert recover(again, again.folder(tmp_path / "run", resume=True), "", said.append) == path
    assert said[-1] == f"{tmp_path / 'run'} is finished already"


@pytest.mark.parametrize("bn_weight", [0.0, 1.0])
def test_steps_lead_to_images_of_smaller_loss(bn_weight: float, teacher: Path) -> None:
    options = recover_options(
        teacher, iterations=40, lr=0.2, bn_weight=bn_weight, augmentation="none", jitter=0
    )
    batch = tiny_recovery(options).batch(0)
    before = batch.losses(0).total.item()
    for step in range(40):
        batch.step(step)
    after = batch.losses(0).total.item()
    assert after < 0.85 * before


def test_less_cmi_comes_of_its_weight(teacher: Path, tmp_path: Path) -> None:
    found = []
    for cmi in (None, RecoverCMIOptions(cmi_weight=100.0)):
        options = recover_options(teacher, ipc=4, iterations=30, lr=0.1, bn_weight=0.01)
        batch = tiny_recovery(options, cmi).batch(0)
        for step in range(30):
            batch.step(step)
        measured = tiny_recovery(options, RecoverCMIOptions(cmi_weight=1.0)).batch(0)
        measured.images = batch.images
        found.append(measured.losses(0).cmi.item())
    assert found[1] < 0.7 * found[0]


def test_batches_come_to_the_same_in_any_order(teacher: Path, tmp_path: Path) -> None:
    options = recover_options(teacher, **EDC)
    whole = made(tmp_path / "one", tiny_recovery(options, CMI)).read_bytes()
    recovery = tiny_recovery(options, CMI)
    folder = recovery.folder(tmp_path / "two")
    with locked(folder.path / "result.safetensors.0"):  # as if another process made it
        assert recover_in_thread(recovery, folder) is None
    assert partial_path(folder.result).exists()
    again = tiny_recovery(options, CMI)
    assert made(tmp_path / "two", again, resume=True).read_bytes() == whole


def recover_in_thread(recovery: Any, folder: Any) -> Path | None:
    """What a thread finds, which holds no locks of this one."""
    found: list[Path | None] = []
    thread = threading.Thread(
        target=lambda: found.append(recover(recovery, folder, "the command", quiet))
    )
    thread.start()
    thread.join()
    return found[0]


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("at", [5, 7, "writing"])
def test_a_recovery_that_was_cut_goes_on_to_the_same_bits(
    at: int | str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = recover_options(teacher, batch_size=2)  # three batches of five steps
    whole = made(tmp_path / "whole", tiny_recovery(options, CMI)).read_bytes()
    step, put = Batch.step, GrowingFile.put
    steps: list[int] = []

    def noted(batch: Batch, number: int) -> Any:
        if len(steps) == at:
            raise KilledError
        steps.append(batch.item)
        return step(batch, number)

    def cut(file: GrowingFile, item: int, tensors: dict[str, Tensor]) -> None:
        if at == "writing" and item == 1:
            file.write(item, {"pixels": torch.zeros_like(tensors["pixels"])})
            raise KilledError
        put(file, item, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", noted)
        patch.setattr(GrowingFile, "put", cut)
        recovery = tiny_recovery(options, CMI)
        with pytest.raises(KilledError):
            recover(recovery, recovery.folder(tmp_path / "cut"), "the command", quiet)
    assert not (tmp_path / "cut" / "result.safetensors").exists()
    begun = len(steps)
    at = "nowhere"
    monkeypatch.setattr(Batch, "step", noted)
    found = made(tmp_path / "cut", tiny_recovery(options, CMI), resume=True)
    assert found.read_bytes() == whole
    assert steps[begun:] == [1] * 5 + [2] * 5  # the first batch was kept


def test_a_signal_ends_it_between_steps(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = recover_options(teacher, batch_size=2)
    step = Batch.step

    def signalled(batch: Batch, number: int) -> Any:
        if (batch.item, number) == (1, 2):
            signal.raise_signal(signal.SIGINT)
        return step(batch, number)

    monkeypatch.setattr(Batch, "step", signalled)
    recovery = tiny_recovery(options)
    with pytest.raises(KeyboardInterrupt, match="interrupted after 1 of 3 batches"):
        recover(recovery, recovery.folder(tmp_path / "run"), "", quiet)


def share(folder: Path, teacher: Path) -> None:
    """What every rank does."""
    made(folder / "shared", tiny_recovery(recover_options(teacher, **EDC), CMI))


def test_ranks_make_the_set_of_one_process(teacher: Path, tmp_path: Path) -> None:
    options = recover_options(teacher, **EDC)
    whole = made(tmp_path / "one", tiny_recovery(options, CMI)).read_bytes()
    on_ranks(2, share, tmp_path, tmp_path, teacher)
    assert (tmp_path / "shared" / "result.safetensors").read_bytes() == whole
    left = sorted(path.name for path in (tmp_path / "shared").iterdir())
    assert left == ["config.yaml", "result.safetensors", "statistics.safetensors"]


def leave(folder: Path, teacher: Path) -> None:
    """What every rank does while another process makes a batch that only the last one comes to."""
    recovery = tiny_recovery(recover_options(teacher))

    def fill(*_: object) -> list[int]:
        return [1] if ranks.number() else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_of_recover, "fill_together", fill)
        assert recover(recovery, recovery.folder(folder / "left"), "", quiet) is None


def test_ranks_agree_on_whether_batches_are_left(teacher: Path, tmp_path: Path) -> None:
    on_ranks(2, leave, tmp_path, tmp_path, teacher)
    assert not (tmp_path / "left" / "result.safetensors").exists()


@pytest.fixture
def begun(teacher: Path, tmp_path: Path) -> Path:
    """The folder of a recovery."""
    made(tmp_path / "run", tiny_recovery(recover_options(teacher, iterations=1)))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"iterations": 2}, "iterations: 1 there, 2 now"),
        ({"ipc": 3}, "ipc: 2 there, 3 now"),
        ({"order": "image"}, "order: 'class' there, 'image' now"),
    ],
)
def test_another_recovery_does_not_go_on_with_it(
    begun: Path, teacher: Path, changes: dict[str, Any], words: str
) -> None:
    other = tiny_recovery(recover_options(teacher, **{"iterations": 1, **changes}))
    with pytest.raises(ValueError, match=f"resume: {begun} is a run with other settings .*{words}"):
        other.folder(begun, resume=True)
    with pytest.raises(FileExistsError, match="holds a run already; add --resume"):
        other.folder(begun)


def test_another_teacher_does_not_go_on_with_it(begun: Path, teacher: Path, tmp_path: Path) -> None:
    (begun / "result.safetensors").rename(begun / "result.safetensors.partial")
    tiny_bank(tmp_path / "other", tiny_dataset(), network="convnet:width=4,depth=1,norm=batch")
    recovery = tiny_recovery(recover_options(teacher, iterations=1))
    other = tiny_recovery(recover_options(tmp_path / "other", iterations=1))
    changed = replace(recovery, made_with=other.made_with)
    with pytest.raises(ValueError, match=r"is a recovered set with other settings .*made_with: "):
        recover(changed, changed.folder(begun, resume=True), "", quiet)


def test_a_teacher_without_batch_norm_is_refused(tmp_path: Path) -> None:
    tiny_bank(tmp_path / "bank", tiny_dataset())
    with pytest.raises(
        ValueError, match=r"teacher: expected networks with batch norm, .*norm=batch"
    ):
        tiny_recovery(recover_options(tmp_path / "bank"))
    without = tiny_recovery(recover_options(tmp_path / "bank", bn_weight=0.0, class_statistics=0.0))
    assert without.batch(0).step(0).statistics == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"order": "image"}, "order: image gives a batch one image of each class, whose CMI is 0"),
        ({"ipc": 1}, "ipc: 1 gives a batch one image of each class, whose CMI is 0"),
        ({"batch_size": 1}, "batch_size: 1 gives a batch one image of each class"),
    ],
)
def test_cmi_that_would_be_zero_is_refused(
    changes: dict[str, Any], words: str, teacher: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_recovery(recover_options(teacher, **changes), CMI)


def test_what_does_not_fit_is_refused(teacher: Path) -> None:
    with pytest.raises(ValueError, match="patches: expected a number that divides 8 x 8 pixels"):
        tiny_recovery(recover_options(teacher, patches=3))
    with pytest.raises(ValueError, match="dataset: expected images that are not whitened"):
        tiny_recovery(recover_options(teacher), None, tiny_dataset().whitened())
    with pytest.raises(ValueError, match="ipc: class ant of tiny has 6 real images, fewer than 7"):
        tiny_recovery(recover_options(teacher, ipc=7, start="real")).batch(0)
    with pytest.raises(ValueError, match="layer"):
        tiny_recovery(recover_options(teacher), replace(CMI, cmi_layer="nosuch"))


def random_state(count: int) -> Tensor:
    """Of torch's own generator after some draws."""
    torch.manual_seed(count)
    return torch.get_rng_state()


def test_no_draw_moves_the_generator_of_the_process(teacher: Path) -> None:
    before = random_state(3)
    tiny_recovery(recover_options(teacher)).batch(0).step(0)
    assert torch.equal(torch.get_rng_state(), before)
