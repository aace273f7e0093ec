"""Class-positive InfoNCE, which is added to a method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmidd.options.fields import Options, option


@dataclass(frozen=True)
class InfoNCEOptions(Options):
    """Class-positive InfoNCE.

    Args:
        mim_weight: its weight; with 0 there is none
        mim_layers: features (the embedding), logits, or names of layers, whose maps are averaged
            over positions; the losses of several add up
        mim_temperature: what cosines are divided by
        mim_batch_real: real images per class and update that images are compared with
        mim_on: all images, or batch, the first one that a method which draws batches takes
        mim_bank: file of trained networks to compare in, made by cmidd pretrain; default: the
            method's network, with fresh weights in every update
    """

    mim_weight: float = option(0.0, least=0)
    mim_layers: tuple[str, ...] = ("features",)
    mim_temperature: float = option(0.1, above=0)
    mim_batch_real: int = option(16, least=1)
    mim_on: str = option("all", choices=("all", "batch"))
    mim_bank: Path | None = option(None, names="bank")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mim_weight and any(
            getattr(self, name) != field.default
            for name, field in self.__dataclass_fields__.items()
        ):
            raise ValueError(
                "mim_weight: expected more than 0, as other options of InfoNCE are given"
            )

    def check(self) -> None:
        """Raise unless layers are named, each once."""
        layers = self.mim_layers
        if isinstance(layers, str):
            raise TypeError(f"mim_layers: expected a tuple of names, got the text {layers!r}")
        if not layers:
            raise ValueError("mim_layers: expected at least one, got none")
        if twice := [layer for layer in layers if layers.count(layer) > 1]:
            raise ValueError(f"mim_layers: expected each layer once, got {twice[0]} several times")
