"""Where a checkpoint's tensors go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd import checkpoint
from cmidd.methods import Method
from cmidd.storage.run_folder import RunFolder
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
