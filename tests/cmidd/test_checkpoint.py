"""Where a checkpoint's tensors go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd import checkpoint
from cmidd.methods import Method
from cmidd.storage.run_folder import KIND, RunFolder
from cmidd.storage.tensor_file import FileError, read_tensors, write_tensors
from tests.support.tiny import CONFIG, NETWORK


class Pull(Method):
    """Pulls images to the number of the iteration."""

    network_spec = NETWORK

    def __init__(self, *_: Any) -> None:
        """Need nothing."""

    def loss_and_gradient(self, images: Tensor, draws: tuple[int, int]) -> tuple[Tensor, Tensor]:
        away = images.detach() - draws[0]
        return away.square().sum() / 2, away


def test_a_state_of_one_number_goes_where_its_tensor_is(tmp_path: Path) -> None:
    """As on a GPU, for which torch's device without memory stands here."""

    def leaves_on(device: str) -> dict[str, Tensor]:
        return {"images": torch.zeros(3, 1, 8, 8, device=device, requires_grad=True),
                "rate": torch.ones((), device=device, requires_grad=True)}  # fmt: skip

    folder, leaves = RunFolder(tmp_path, CONFIG, resume=False), leaves_on("cpu")
    optimizer = torch.optim.SGD(leaves.values(), 0.1, momentum=0.5)
    torch.stack([leaf.sum() for leaf in leaves.values()]).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    folder.load_checkpoint()
    with folder.logging(0):
        checkpoint.save(folder, checkpoint.Place(1), leaves, optimizer, Pull(), {})
    there = leaves_on("meta")
    optimizer = torch.optim.SGD(there.values(), 0.1, momentum=0.5)
    checkpoint.restore(RunFolder(tmp_path, CONFIG, resume=True), there, optimizer, Pull(), {})
    momenta = [optimizer.state[leaf]["momentum_buffer"] for leaf in there.values()]
    assert [momentum.device.type for momentum in momenta] == ["meta", "meta"]


def a_folder(path: Path, method: Method) -> None:
    """Of a run that has taken a step of AdamW."""
    folder = RunFolder(path, CONFIG, resume=False)
    images = torch.zeros(3, 1, 8, 8, requires_grad=True)
    images.grad = torch.ones_like(images)
    made = torch.optim.AdamW([images])
    made.step()
    folder.load_checkpoint()
    with folder.logging(0):
        checkpoint.save(folder, checkpoint.Place(1), {"images": images}, made, method, {})


def restored(path: Path, method: Method) -> dict[str, Any]:
    """The optimizer's state of the images."""
    images = torch.zeros(3, 1, 8, 8, requires_grad=True)
    made = torch.optim.AdamW([images])
    folder = RunFolder(path, CONFIG, resume=True)
    checkpoint.restore(folder, {"images": images}, made, method, {})
    return dict(made.state[images])


class Counting(Pull):
    """Keeps a number by the name of the images."""

    count = 0

    def state(self) -> dict[str, Tensor]:
        return {"images": torch.tensor(self.count)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.count = int(state["images"])


def test_a_methods_state_by_the_name_of_a_parameter_is_not_the_optimizers(tmp_path: Path) -> None:
    method = Counting()
    method.count = 7
    a_folder(tmp_path, method)
    method = Counting()
    state = restored(tmp_path, method)
    assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert method.count == 7


AVERAGE, SQUARES = "exp_avg of images", "exp_avg_sq of images"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({AVERAGE: torch.zeros(3)}, r"exp_avg of images of \(3, 1, 8, 8\), got \(3,\)"),
        ({"step of images": torch.zeros(2)}, r"step of images of \(\), got \(2,\)"),
        ({SQUARES: None}, "exp_avg, exp_avg_sq, step of images, got exp_avg, step"),
        (
            {"foo of images": torch.zeros(3, 1, 8, 8)},
            "step of images, got exp_avg, exp_avg_sq, foo,",
        ),
        ({"state of images": None}, "state of images"),
    ],
)
def test_a_damaged_state_is_an_error_of_the_file(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    a_folder(tmp_path, Counting())
    path = tmp_path / "checkpoint.safetensors"
    tensors, record = read_tensors(path, KIND)
    given = {**tensors, **changes}
    kept = {name: tensor for name, tensor in given.items() if tensor is not None}
    write_tensors(path, KIND, kept, record)
    with pytest.raises(FileError, match=f"{tmp_path}: expected a checkpoint with .*{message}"):
        restored(tmp_path, Counting())
