"""The regulariser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmidd.options.fields import Options, option
from cmidd.options.recipe import PRECISIONS

CHUNK = 50
"""Images that go through a network at once on a CPU, where nothing else is asked for."""


@dataclass(frozen=True)
class CMIOptions(Options):
    """The regulariser.

    Args:
        bank: file of trained networks, made by cmidd pretrain; without one there is no CMI
        cmi_weight: its weight; default the published one for method, dataset and ipc
        cmi_layer: features (the embedding), logits, or the name of a layer
        cmi_centroids: compare images with the mean of their own class, or with that of real data
        cmi_on: all images, or batch, the first one that a method which draws batches takes
        cmi_networks: networks a step averages over
        cmi_every: apply it in every k-th iteration only (another algorithm than the published one)
        cmi_chunk: images that go through a network at once; memory grows with it, not with ipc.
            Default: 50 on a CPU, 512 of 32 x 32 pixels on a GPU
        cmi_precision: of the bank's networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on
            a GPU that has it, else float32
    """

    bank: Path | None = option(None, names="bank")
    cmi_weight: float | None = None
    cmi_layer: str = "features"
    cmi_centroids: str = option("own", choices=("own", "real"))
    cmi_on: str = option("all", choices=("all", "batch"))
    cmi_networks: int = option(1, least=1)
    cmi_every: int = option(1, least=1)
    cmi_chunk: int | None = option(None, least=1)
    cmi_precision: str | None = option(None, choices=PRECISIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {
            name
            for name, field in self.__dataclass_fields__.items()
            if getattr(self, name) != field.default
        }
        if self.cmi_chunk == CHUNK:  # as the configuration of a run without a bank has it
            given.discard("cmi_chunk")
        if self.bank is None and given:
            raise ValueError("bank: expected the file of a bank, as other options of CMI are given")
