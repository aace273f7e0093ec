"""Folders for the Hugging Face hub, read back by its own library, without a network."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cmidd.datasets import Dataset
from cmidd.exchange.dataset_card import Rounding, dataset_card
from cmidd.exchange.hub_folder import export_hub
from cmidd.first_images import first_images
from cmidd.synthetic import SyntheticSet
from cmidd.view import View
from tests.support.tiny import tiny_dataset

datasets = pytest.importorskip("datasets")

DATASET = tiny_dataset()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def a_set(dataset: Dataset = DATASET, **record: Any) -> SyntheticSet:
    return SyntheticSet.of(dataset, *first_images(dataset, 2, "noise", 0), record)


def soft(made: SyntheticSet) -> SyntheticSet:
    labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    return replace(made, soft_labels=labels)


def arrays(loaded: Any) -> torch.Tensor:
    """The pictures of a table, (N, channels, H, W) uint8."""
    pictures = [np.atleast_3d(np.array(image)) for image in loaded["image"]]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_library_loads_pictures_and_classes(tmp_path: Path, channels: int) -> None:
    made = a_set(tiny_dataset(channels=channels))
    export_hub(made, tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert list(loaded) == ["train"]
    table = loaded["train"]
    assert torch.equal(arrays(table), (made.pixels() * 255).round().byte())
    assert table["label"][:] == made.labels.tolist()
    assert isinstance(table.features["image"], datasets.Image)
    assert table.features["label"].names == ["ant", "bee", "cat"]
    assert set(table.column_names) == {"image", "label"}


def test_soft_labels_are_lists_of_probabilities(tmp_path: Path) -> None:
    made = soft(a_set())
    export_hub(made, tmp_path / "out")
    table = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert torch.equal(torch.tensor(table["soft_label"][:]), made.targets)
    assert table.features["soft_label"].feature.dtype == "float32"


def test_the_set_itself_loses_nothing(tmp_path: Path) -> None:
    made = soft(a_set(DATASET.whitened(), learned_lr=0.02))
    export_hub(made, tmp_path / "out")
    found = SyntheticSet.load(tmp_path / "out")
    assert torch.equal(found.images, made.images)
    assert torch.equal(found.targets, made.targets)
    assert found.whitening is not None
    assert made.whitening is not None
    assert torch.equal(found.whitening.matrix, made.whitening.matrix)
    assert {**made.record, "kind": "synthetic set"}.items() <= found.record.items()


def test_pictures_are_those_that_networks_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = {"twice": lambda images, labels: (images.repeat(2, 1, 1, 1), labels.repeat(2))}
    monkeypatch.setattr("cmidd.view.VIEWS", twice)
    made = a_set(view=View("twice").as_record())
    export_hub(made, tmp_path / "out")
    table = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert len(table) == 2 * len(made.labels)
    assert torch.equal(arrays(table), (made.pixels() * 255).round().byte())


def test_class_names_that_are_alike_are_numbered(tmp_path: Path) -> None:
    made = a_set()
    export_hub(replace(made, record={**made.record, "class_names": ["a", "a", "b"]}), tmp_path)
    table = datasets.load_dataset(str(tmp_path), split="train")
    assert table.features["label"].names == ["0 a", "1 a", "2 b"]


# --- the card


def card_of(made: SyntheticSet, evaluation: Any = None) -> tuple[dict[str, Any], str]:
    """Its header, and what is below."""
    text = dataset_card(made, "out", Rounding(0.001, 0.25), evaluation)
    _, header, rest = text.split("---\n", 2)
    return yaml.safe_load(header), rest


@pytest.mark.parametrize(
    ("white", "with_soft", "channels"),
    [(False, False, 1), (False, True, 3), (True, False, 3), (True, True, 1)],
)
def test_the_example_of_the_card_runs_and_takes_the_images_as_networks_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, white: bool, with_soft: bool, channels: int
) -> None:
    dataset = tiny_dataset(channels=channels)
    dataset = dataset.whitened() if white else dataset
    made = SyntheticSet.of(dataset, *first_images(dataset, 2, "real", 0), {"learned_lr": 0.05})
    made = soft(made) if with_soft else made
    export_hub(made, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(example, names)
    torch.testing.assert_close(names["images"], made.images, atol=1e-4, rtol=1e-4)
    assert torch.equal(names["targets"], made.targets)
    assert names["optimizer"].param_groups[0]["lr"] == 0.05
    if not with_soft:
        assert (names["model"](made.images).argmax(1) == made.labels).all()


def test_the_header_says_what_the_hub_asks_for_but_no_licence() -> None:
    header, _ = card_of(a_set(method="dm", ipc=2))
    assert header["pretty_name"] == "tiny distilled by DM, 2 images per class"
    assert header["task_categories"] == ["image-classification"]
    assert header["size_categories"] == ["n<1K"]
    assert "license" not in header
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/train.parquet"}]


def test_the_card_says_how_the_set_was_made() -> None:
    made = a_set(
        method="mtt", ipc=2, command="cmidd distill mtt --ipc 2", cmi_weight=5.0, learned_lr=0.02,
        network="convnet", config={"iterations": 7, "bank": None, "odd": "a|b\nc"},
        versions={"torch": "2.13"},
    )  # fmt: skip
    _, text = card_of(made)
    assert text.startswith("\n# tiny distilled by MTT with CMI, 2 images per class\n")
    for weight, terms in ((5.0, "CMI and InfoNCE"), (0.0, "InfoNCE")):
        with_infonce = a_set(method="mtt", ipc=2, cmi_weight=weight, mim_weight=1.0)
        title = f"\n# tiny distilled by MTT with {terms}, 2 images per class\n"
        assert card_of(with_infonce)[1].startswith(title)
    assert "\n    cmidd distill mtt --ipc 2\n" in text
    for row in ("| iterations | 7 |", "| network | convnet |", "| version of torch | 2.13 |",
                "| step size that was learned | 0.02 |", "| odd | a\\|b c |"):  # fmt: skip
        assert f"\n{row}\n" in text
    assert "| bank |" not in text
    assert "differs from the distilled images by 0.001 on average and by 0.25 at most" in text
    assert "No licence is given yet" in text
    assert "the regulariser that it was distilled with: X. Zhong" in text
    assert "arxiv.org/abs/2412.09945" in text
    assert "not evaluated" in text


def test_the_card_of_a_converted_set_says_that_another_tool_made_it() -> None:
    about = {"format": "res", "file": "res_DM|x.pt", "space": "normalised"}
    header, text = card_of(a_set(converted=about, ipc=2, config={"size": None}))
    assert header["pretty_name"] == "tiny distilled by another tool, 2 images per class"
    assert "Another tool distilled the set and wrote it as res_DM\\|x.pt" in text
    assert "cmidd converted it" in text
    for row in ("| converted: format | res |", "| converted: space | normalised |"):
        assert f"\n{row}\n" in text
    assert "Ask the authors of the tool, and of the file, which one they give." in text
    assert "Please cite the tool that distilled the set, and its method." in text
    for ours in ("regulariser", "distilled by the program", "arxiv"):
        assert ours not in text


def test_the_card_says_where_a_file_on_the_hub_is_got_if_the_example_needs_it() -> None:
    got = 'hf_hub_download(name, "result.safetensors", repo_type="dataset")'
    assert got in card_of(a_set(DATASET.whitened()))[1]
    assert got not in card_of(a_set())[1]


def test_settings_of_cmi_are_of_sets_that_were_distilled_with_it() -> None:
    config = {"cmi_every": 3, "iterations": 7}
    for weight, shown in ((0.0, False), (5.0, True)):
        _, text = card_of(a_set(config=config, cmi_weight=weight))
        assert ("| cmi_every | 3 |" in text) == shown
        assert "| iterations | 7 |" in text


def test_the_card_of_a_set_that_says_little_is_a_card() -> None:
    header, text = card_of(a_set())
    assert header["pretty_name"] == "tiny distilled"
    assert "without the regulariser" in text
    assert "It was not recorded." in text


def test_the_card_has_the_accuracies_of_an_evaluation() -> None:
    found = {"network": "convnet", "accuracies": [0.5, 0.52], "mean": 0.51, "std": 0.01,
             "recipe": {"epochs": 3, "augmentation": "none"}}  # fmt: skip
    _, text = card_of(a_set(held_out=0.2), {"held_out": None, "evaluations": [found]})
    assert "\n| convnet | 51.0 ± 1.0 | 2 | epochs 3, augmentation none |\n" in text
    assert "real test images" in text
    _, text = card_of(a_set(), {"held_out": 0.2, "evaluations": [found]})
    assert "real training images (20%) that were held out" in text


def test_names_with_markup_stay_in_their_place() -> None:
    made = a_set()
    hostile = replace(made, record={**made.record, "dataset": "a\n---\n# b: [", "ipc": 1})
    header, text = card_of(hostile)
    assert header["pretty_name"] == "a --- # b: [ distilled, 1 image per class"
    assert "\n# b" not in text


# --- what is refused


def test_without_the_library_it_is_an_error_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'hub: needs .* pip install "cmikernels\[hub\]"'):
        export_hub(a_set(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(FileExistsError, match=r"^hub: .* is not empty"):
        export_hub(a_set(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
