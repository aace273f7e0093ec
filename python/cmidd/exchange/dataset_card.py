"""The card of a distilled set on the Hugging Face hub: what it is, how it is used, how it was made.

It begins with a header of YAML, which the hub and `datasets` read.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cmidd.synthetic import SyntheticSet

TABLE = "data/train.parquet"
"""Where the images are, in the folder of the card."""

_PAPER = (
    "X. Zhong, B. Chen, H. Fang, X. Gu, S.-T. Xia and E.-H. Yang, *Going Beyond Feature "
    "Similarity: Effective Dataset Distillation based on Class-aware Conditional Mutual "
    "Information*, ICLR 2025, [arXiv 2412.09945](https://arxiv.org/abs/2412.09945)"
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


_WHITENED = (
    "# Of a set on the hub, hf_hub_download of huggingface_hub gives the place of this file:",
    '# hf_hub_download(name, "result.safetensors", repo_type="dataset")',
    'exact = load_file(f"{name}/result.safetensors")',
    'white = (images.flatten(1) - exact["whitening_mean"]) @ exact["whitening_matrix"]',
    "images = white.view_as(images)",
)


class Rounding(NamedTuple):
    """How far the pictures are from the exact images, in what networks take."""

    mean: float
    most: float


def dataset_card(
    synthetic_set: SyntheticSet,
    name: str,
    rounding: Rounding,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """README.md of the folder.

    Args:
        synthetic_set: as it was distilled.
        name: of the folder.
        rounding: of its pictures.
        evaluation: of the set: `evaluations` and `held_out` as in the file of an evaluation.
    """
    record, seen = synthetic_set.record, synthetic_set.seen()
    channels, height, width = seen.record["shape"]
    colours = "grey" if channels == 1 else "colour"
    count, classes = len(seen.labels), record["num_classes"]
    source = _plain(record["dataset"])
    parts = [
        _header(record, count),
        f"# {_title(record)}",
        f"{count:,} synthetic {colours} images of {height} x {width} in {classes} classes. They "
        f"were distilled from the training images of {source}, and networks are trained on them "
        "in the place of those.",
        "## Load and train",
        _example(seen, name),
        _columns(seen),
        _exactness(seen, rounding),
        "## How it was made",
        *_making(record),
        "## Accuracy",
        *_accuracy(evaluation or {}),
        "## Licence",
        _licence(record),
        "## Citation",
        _citation(record),
    ]
    return "\n\n".join(parts) + "\n"


def _header(record: Mapping[str, Any], count: int) -> str:
    import yaml

    size = next((name for most, name in _SIZES if count < most), "n>1M")
    header = {
        "pretty_name": _title(record),
        "task_categories": ["image-classification"],
        "size_categories": [size],
        "tags": ["dataset-distillation", "synthetic"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": TABLE}]}],
    }
    written = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n# license: none is given yet\n{written}---"


def _title(record: Mapping[str, Any]) -> str:
    made = f"distilled by {str(record['method']).upper()}" if "method" in record else "distilled"
    if _origin(record):
        made += " by another tool"
    terms = {"CMI": record.get("cmi_weight"), "InfoNCE": record.get("mim_weight")}
    if added := [name for name, weight in terms.items() if weight]:
        made += f" with {' and '.join(added)}"
    ipc = record.get("ipc")
    images = "" if ipc is None else f", {ipc} {'image' if ipc == 1 else 'images'} per class"
    return f"{_plain(record['dataset'])} {made}{images}"


def _origin(record: Mapping[str, Any]) -> dict[str, Any]:
    """Where a set of another tool came from; nothing of one of ours."""
    found = record.get("converted")
    return found if isinstance(found, dict) else {}


def _example(seen: SyntheticSet, name: str) -> str:
    shape, classes = seen.record["shape"], seen.record["num_classes"]
    channels, height, width = shape
    target = "label" if seen.soft_labels is None else "soft_label"
    is_white = seen.whitening is not None
    lines = [
        "import numpy as np",
        "import torch",
        "from datasets import load_dataset",
        *(["from safetensors.torch import load_file"] if is_white else []),
        "",
        f'name = {json.dumps(name)}  # this folder; on the hub with its owner: "you/name"',
        'data = load_dataset(name, split="train")',
        'pixels = torch.tensor(np.stack([np.array(image) for image in data["image"]])) / 255',
        f"images = pixels.view(-1, {height}, {width}, {channels}).permute(0, 3, 1, 2)",
        f"mean, std = torch.tensor({seen.record['mean']}), torch.tensor({seen.record['std']})",
        "images = (images - mean[:, None, None]) / std[:, None, None]",
        *(_WHITENED if is_white else []),
        f'targets = torch.tensor(data["{target}"][:])',
        f"linear = torch.nn.Linear({math.prod(shape)}, {classes})",
        "model = torch.nn.Sequential(torch.nn.Flatten(), linear)  # or yours",
        f"optimizer = torch.optim.SGD(model.parameters(), {seen.learned_lr or 0.01}, momentum=0.9)",
        "for _ in range(300):",
        "    optimizer.zero_grad()",
        "    torch.nn.functional.cross_entropy(model(images), targets).backward()",
        "    optimizer.step()",
    ]
    whitened = " and whitened by the same matrix" if is_white else ""
    return (
        "\n".join(["```python", *lines, "```"])
        + f"\n\nReal images have to be normalised by the same numbers{whitened}, too."
    )


def _columns(seen: SyntheticSet) -> str:
    rows = [("image", "PNG", "the image that networks see, as pixels"),
            ("label", "ClassLabel", "its class")]  # fmt: skip
    if seen.soft_labels is not None:
        rows.append(("soft_label", "list of float32", "probabilities of the classes, learned"))
    return _table(("column", "type", "holds"), rows)


def _exactness(seen: SyntheticSet, rounding: Rounding) -> str:
    also = ", the whitening" if seen.whitening is not None else ""
    return (
        "The pictures are rounded to 8 bits and cut off at black and white. What the lines above "
        f"make of them differs from the distilled images by {rounding.mean:.2g} on average and by "
        f"{rounding.most:.2g} at most. `result.safetensors` holds the exact float32 `images` as "
        f"networks take them, `labels`{also} and a record of how they were made; "
        '`cmidd.SyntheticSet.load("result.safetensors")` reads it with all checks.'
    )


def _making(record: Mapping[str, Any]) -> list[str]:
    parts, origin = [], _origin(record)
    if origin:
        parts.append(
            f"Another tool distilled the set and wrote it as {_plain(origin.get('file'))}, in the "
            f"format that `cmidd convert` calls {_plain(origin.get('format'))}. cmidd converted "
            "it. What the tool was told is not known here."
        )
    if record.get("command"):
        parts.append(textwrap.indent(str(record["command"]), "    "))
    config = dict(record.get("config") or {})
    facts = {
        **{f"converted: {name}": origin[name] for name in origin},
        "network": record.get("network"),
        "step size that was learned": record.get("learned_lr"),
        "ZCA whitening, eps": record.get("zca"),
        **{name: config[name] for name in config if record.get("cmi_weight") or "cmi" not in name},
        **{f"version of {name}": text for name, text in (record.get("versions") or {}).items()},
    }
    rows = [(name, value) for name, value in facts.items() if value is not None]
    return [*parts, _table(("setting", "value"), rows) if rows else "It was not recorded."]


def _accuracy(evaluation: Mapping[str, Any]) -> list[str]:
    accuracies = evaluation.get("evaluations")
    if not accuracies:
        return ["It was not evaluated when this card was written."]
    judges = "test images"
    if evaluation.get("held_out") is not None:
        judges = f"training images ({evaluation['held_out']:.0%}) that were held out"
    rows = []
    for found in accuracies:
        spread = f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}"
        recipe = ", ".join(f"{name} {value}" for name, value in found["recipe"].items())
        rows.append((found["network"], spread, len(found["accuracies"]), recipe))
    return [
        f"Accuracy in % on the real {judges} of networks that were trained on the exact images "
        "from fresh weights, mean and standard deviation over networks:",
        _table(("network", "accuracy", "networks", "how they were trained"), rows),
    ]


def _licence(record: Mapping[str, Any]) -> str:
    parts = ["No licence is given yet."]
    if _origin(record):
        parts.append("Ask the authors of the tool, and of the file, which one they give.")
    parts.append(
        "Whoever publishes this set adds one here, and as `license:` in the header of this file. "
        f"The licence of {_plain(record['dataset'])} may restrict the choice."
    )
    return " ".join(parts)


def _citation(record: Mapping[str, Any]) -> str:
    if _origin(record):
        return (
            "Please cite the tool that distilled the set, and its method. This card does not know "
            "them: whoever publishes the set names them here."
        )
    if record.get("cmi_weight"):
        return f"Please cite the method, and the regulariser that it was distilled with: {_PAPER}."
    return (
        "Please cite the method. It was distilled by the program cmikernels, without the "
        f"regulariser that this is about: {_PAPER}."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(content: object) -> str:
    """Text that stays in its line and its cell."""
    return " ".join(str(content).split()).replace("|", "\\|")
