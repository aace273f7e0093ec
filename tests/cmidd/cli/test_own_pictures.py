"""A folder of somebody's own pictures goes from the bank to the report with every method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmidd.cli import main
from cmidd.methods import METHODS
from cmidd.storage.run_folder import read_log
from cmidd.synthetic import SyntheticSet

WIDE, HIGH = 48, 40
CLASSES = {"across": (1, 0), "down": (0, 1), "slanting": (1, 1)}
PER_CLASS = 14
SIZE, IPC = 16, 2
DATA = ["--dataset=folder:pictures", f"--size={SIZE}", "--device=cpu"]
NETWORK = "--network=convnet:width=8,depth=2"
BANK, EXPERTS = "runs/bank.safetensors", "runs/experts.safetensors"
# Of each method, what makes a run of it short.
SMALL: dict[str, list[str]] = {
    "dm": [NETWORK, "--batch_real=8"],
    "dc": [NETWORK, "--init=real", "--batch_real=8", "--outer_steps=2", "--inner_epochs=1"],
    "dsa": [NETWORK, "--batch_real=8", "--outer_steps=2", "--inner_epochs=1"],
    "mtt": [f"--experts={EXPERTS}", "--student_steps=2", "--expert_epochs=1",
            "--max_start_epoch=2", "--lr_images=1"],
    "idc": [NETWORK, "--batch_real=8", "--inner_steps=2", "--images_net=32"],
    "idm": [NETWORK, "--batch_real=8", "--queue_size=4", "--steps_net=2", "--batch_net=16"],
    "ncfm": ["--batch_real=8", f"--matching_bank={BANK}", "--frequencies=64", "--lr_images=0.01"],
    "iid": [NETWORK, "--batch_real=8", f"--centre_bank={BANK}"],
}  # fmt: skip


def draw_pictures(folder: Path) -> None:
    """Stripes of a direction for each class, of any place and colour, with noise."""
    from PIL import Image

    draws = np.random.default_rng(0)
    rows, columns = np.mgrid[:HIGH, :WIDE]
    for part, count in (("train", PER_CLASS), ("test", PER_CLASS)):
        for name, (down, right) in CLASSES.items():
            place = folder / part / name
            place.mkdir(parents=True)
            for k in range(count):
                wave = np.sin((down * rows + right * columns) / 3 + draws.uniform(0, 6))
                colour = draws.uniform(40, 100, 3)
                pixels = 128 + wave[..., None] * colour + draws.normal(0, 10, (HIGH, WIDE, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(place / f"{k}.png")


@pytest.fixture(scope="module", autouse=True)
def folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of these tests, with pictures, a bank and experts of them."""
    place = tmp_path_factory.mktemp("own")
    draw_pictures(place / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(["pretrain", *DATA, NETWORK, "--networks=2", "--epochs=4"])
        main(["experts", *DATA, NETWORK, "--experts=2", "--epochs=3", "--lr=0.05"])
        yield place


@pytest.mark.parametrize("method", METHODS)
def test_pictures_go_through_every_command_with_every_method(method: str) -> None:
    assert method in SMALL, f"{method}: say in SMALL what makes a run of it short"
    run = Path("runs") / method
    words = [f"--ipc={IPC}", "--iterations=3", "--report_every=1", "--cmi_weight=1"]
    main(["distill", method, *DATA, *SMALL[method], *words, f"--bank={BANK}", f"--out={run}"])
    check_set(SyntheticSet.load(run), method)
    log = read_log(run / "log.jsonl")
    assert [line["iteration"] for line in log] == [0, 1, 2]
    assert all(line["cmi"] > 0 for line in log)

    evaluation, score = run / "evaluation.json", run / "score.json"
    main(["evaluate", str(run), "--epochs=60", "--batch_size=12", "--lr=0.05", "--repeats=1",
          "--device=cpu", f"--out={evaluation}"])  # fmt: skip
    record = json.loads(evaluation.read_text())
    assert record["dataset"] == "folder:pictures"
    (result,) = record["results"]
    assert result["evaluations"][0]["mean"] > 0.6, "of three classes, which stripes tell apart"

    main(["score", str(run), f"--bank={BANK}", "--device=cpu", f"--out={score}"])
    (scores,) = json.loads(score.read_text())["scores"]
    assert [of_class["mean"] > 0 for of_class in scores["of_classes"]] == [True] * len(CLASSES)

    main(["report", str(run), f"--evaluations={evaluation}", f"--bank={BANK}", "--device=cpu",
          f"--out={run / 'report.html'}"])  # fmt: skip
    page = (run / "report.html").read_text()
    for text in (f"folder:pictures distilled by {method.upper()}", str(run), *CLASSES):
        assert text in page


def check_set(made: SyntheticSet, method: str) -> None:
    """Squares of the asked size, which decode to whole ones, class by class."""
    config: dict[str, Any] = made.record["config"]
    per_image = (config.get("factor") or 1) ** 2
    seen = made.seen()
    assert made.record["method"] == method
    assert made.images.shape == (len(CLASSES) * IPC, 3, SIZE, SIZE)
    assert seen.images.shape == (len(CLASSES) * IPC * per_image, 3, SIZE, SIZE)
    assert seen.labels.tolist() == [c for c in range(3) for _ in range(IPC * per_image)]
    assert seen.images.isfinite().all()
    assert tuple(made.record["class_names"]) == tuple(CLASSES)
