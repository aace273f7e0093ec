"""Bytes that change after they were written are noticed where they are used."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cmidd.first_images import first_images
from cmidd.label_file import SoftLabels
from cmidd.networks import build_network, freeze, initialize
from cmidd.options.relabel import RelabelOptions
from cmidd.pretrained.bank import Bank
from cmidd.pretrained.experts import Experts
from cmidd.relabelling import Relabelling, relabel
from cmidd.seeds import generator
from cmidd.storage.tensor_file import FileError, read_tensors, write_tensors
from cmidd.synthetic import SyntheticSet
from tests.support.tiny import CPU, NETWORK, quiet, tiny_bank, tiny_dataset, tiny_experts, tiny_run

DATASET = tiny_dataset()


def read_experts(path: Path) -> None:
    experts = Experts.load(path)
    for k in range(len(experts)):
        for epoch in range(experts.record["epochs"] + 1):
            experts.parameters(k, epoch)


def run_in(path: Path) -> None:
    tiny_run(path.parent / "run")
    (path.parent / "run" / "result.safetensors").rename(path)


def label(path: Path) -> None:
    network = build_network(NETWORK, *DATASET.shape[:2], 3)
    initialize(network, generator("teacher"))
    made = SyntheticSet.of(DATASET, *first_images(DATASET, 2, "real", 0))
    options = RelabelOptions(epochs=2, batch_size=4)
    relabel(path, Relabelling(made, DATASET, [freeze(network)], options, CPU), say=quiet)


def read_labels(path: Path) -> None:
    labels = SoftLabels.load(path)
    for epoch in range(labels.draws["epochs"]):
        labels.of_epoch(epoch)


FILES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "set": (run_in, SyntheticSet.load),
    "bank": (lambda path: tiny_bank(path, DATASET), lambda path: Bank.load(path, CPU)[:]),
    "labels": (label, read_labels),
    "experts": (lambda path: tiny_experts(path, DATASET), read_experts),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_bit_of_a_tensor_is_noticed(tmp_path: Path, kind: str) -> None:
    make, read = FILES[kind]
    path = tmp_path / "file"
    make(path)
    read(path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    draws = random.Random(kind)
    for name, entry in header.items():
        if name in ("__metadata__", "accuracy", "trained") or name.startswith("crc32"):
            continue
        first, last = entry["data_offsets"]
        damaged = bytearray(whole)
        damaged[8 + length + draws.randrange(first, last)] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(
            FileError, match=rf"{path}: .*expected the checksum \d+, got \d+; the file is damaged"
        ):
            read(path)
    path.write_bytes(whole)
    read(path)


def test_a_changed_record_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, "thing", {"a": torch.zeros(3)}, {"mean": [0.25]})
    path.write_bytes(path.read_bytes().replace(b"[0.25]", b"[0.75]"))
    with pytest.raises(FileError, match=rf"{path}: its record: expected the checksum"):
        read_tensors(path, "thing")


def test_files_from_before_checksums_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    record = {"kind": "thing", "format": 1, "mean": [0.25]}
    save_file({"a": torch.ones(3)}, tmp_path / "file", {"cmidd": json.dumps(record)})
    tensors, found = read_tensors(tmp_path / "file", "thing")
    assert found == record
    assert torch.equal(tensors["a"], torch.ones(3))
