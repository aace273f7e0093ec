from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cmidd.datasets import Dataset, load_dataset
from cmidd.report.accuracy import accuracy_table, read_evaluation
from cmidd.report.page import digits
from cmidd.report.pictures import CLASS_COLORS, Curve, curves, line_style, running_mean, strip
from cmidd.seeds import generator
from cmidd.storage.run_folder import KIND as CHECKPOINT
from cmidd.storage.tensor_file import FileError, write_tensors
from tests.support.report_files import (
    Results,
    make_bank,
    make_dataset,
    make_evaluation,
    make_run,
    report,
    taught,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", dataset)


def table_of(folder: Path, *files: Results) -> str:
    """The accuracy table of evaluations, one a file."""
    paths = [folder / f"{number}.json" for number in range(len(files))]
    for path, results in zip(paths, files, strict=True):
        make_evaluation(path, "digits", results)
    return accuracy_table([read_evaluation(path) for path in paths])


def test_accuracies_are_per_cent_with_spread_and_number(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"a": {"convnet": (0.5, 0.52), "mlp": (0.4,)}})
    assert "<td>51.0 ± 1.0 <small>n = 2</small></td>" in table
    assert "<td>40.0 <small>n = 1</small></td>" in table  # one network has no spread


def test_distilled_sets_come_before_real_images(tmp_path: Path) -> None:
    names = ["all real images", "random real images, 2 per class", "b", "a"]
    table = table_of(tmp_path, {name: {"convnet": (0.5,)} for name in names})
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["b", "a", names[1], names[0]]


def test_sets_of_equally_many_images_stand_together(tmp_path: Path) -> None:
    names = ["all real images", "random real images, 2 per class", "many", "few"]
    sizes = dict.fromkeys(names[1:3], 20) | {"few": 10, "all real images": 5}
    path = tmp_path / "sized.json"
    make_evaluation(path, "digits", {name: {"convnet": (0.5,)} for name in names}, sizes)
    table = accuracy_table([read_evaluation(path)])
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["few", "many", names[1], names[0]]


def test_recipes_that_differ_say_whose_they_are(tmp_path: Path) -> None:
    results: Results = {name: {"convnet": (0.5,), "mlp": (0.4,)} for name in "abc"}
    assert re.findall("Recipe.*?: ", table_of(tmp_path, results)) == ["Recipe: "]
    path = make_evaluation(tmp_path / "differ.json", "digits", results)
    record = json.loads(path.read_text())
    for evaluation in record["results"][1]["evaluations"]:
        evaluation["recipe"]["lr"] = 0.013703810051083565
    path.write_text(json.dumps(record))
    table = accuracy_table([read_evaluation(path)])
    assert re.findall("(Recipe.*?): .*?lr ([0-9.]+)", table) == [
        ("Recipe of a, c", "0.01"), ("Recipe of b", "0.0137"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("results", "sizes", "best"),
    [
        ({"a": (0.5, 0.5), "b": (0.6, 0.6), "all real images": (0.9, 0.9)}, {}, ["60.0"]),
        # Deviations of 3 and of 4 make 5 together, and the means are 4.9 and 5.1 apart.
        ({"a": (0.47, 0.53), "b": (0.509, 0.589)}, {}, []),
        ({"a": (0.47, 0.53), "b": (0.511, 0.591)}, {}, ["55.1"]),
        # The second is far, the third not, for it has a large deviation.
        ({"a": (0.6, 0.6), "b": (0.5, 0.5), "c": (0.2, 0.7)}, {}, []),
        ({"a": (0.5, 0.5), "b": (0.5, 0.5)}, {}, []),
        ({"a": (0.5,), "b": (0.6, 0.6)}, {}, []),
        ({"a": (0.5, 0.5), "b": (0.6,)}, {}, []),
        # Of one size each.
        ({"a": (0.5, 0.5), "b": (0.6, 0.6)}, {"b": 60}, []),
        (
            {"a": (0.1, 0.1), "b": (0.2, 0.2), "c": (0.6, 0.6), "d": (0.7, 0.7)},
            {"c": 60, "d": 60},
            ["20.0", "70.0"],
        ),
    ],
)
def test_the_best_of_a_size_is_marked_where_it_is_better_beyond_the_deviation(
    results: dict[str, tuple[float, ...]], sizes: dict[str, int], best: list[str], tmp_path: Path
) -> None:
    of_convnet = {name: {"convnet": accuracies} for name, accuracies in results.items()}
    path = make_evaluation(tmp_path / "e.json", "digits", of_convnet, sizes)
    table = accuracy_table([read_evaluation(path)])
    assert re.findall(r'<td class="best">([\d.]+) .*?best', table) == best
    assert ("Marked as best" in table) == (sizes != {"b": 60})  # where there is one to compare with


def test_sets_are_compared_where_networks_learned_labels_or_logits_alike(tmp_path: Path) -> None:
    results: Results = {name: {"mlp": (0.1 * k, 0.1 * k)} for k, name in enumerate("abcd", 1)}
    path = make_evaluation(tmp_path / "e.json", "digits", results)
    record = json.loads(path.read_text())
    a, b, c, d = record["results"]
    record["results"] = [
        a,
        taught(b, "soft labels"),
        taught(c, "soft labels"),
        taught(d, "x", "mse"),
    ]
    path.write_text(json.dumps(record))
    table = accuracy_table([read_evaluation(path)])
    assert re.findall(r'<td class="best">([\d.]+) ', table) == ["30.0"]
    assert "b, soft labels 6.00kB and 40.0kB; c, soft labels 6.00kB and 40.0kB; d, x" in table
    assert "Bytes of" not in table_of(tmp_path, results)


def test_each_network_has_its_own_best(tmp_path: Path) -> None:
    results: Results = {
        "a": {"convnet": (0.5, 0.5), "mlp": (0.4, 0.4)},
        "b": {"convnet": (0.6, 0.6), "mlp": (0.3, 0.3)},
    }
    best = re.findall(r'<td class="best">([\d.]+) ', table_of(tmp_path, results))
    assert best == ["40.0", "60.0"]


def test_a_single_distilled_set_is_not_called_the_best(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"a": {"mlp": (0.5, 0.5)}, "all real images": {"mlp": (0.9, 0.9)}})
    assert "best" not in table


def test_a_set_in_two_files_has_one_row(tmp_path: Path) -> None:
    table = table_of(
        tmp_path, {"a": {"convnet": (0.5,)}}, {"a": {"convnet": (0.5,), "mlp": (0.4,)}}
    )
    assert re.findall(r"<td>([\d.]+) <small>", table) == ["50.0", "40.0"]
    assert table.count('<th scope="row">a</th>') == 1


def test_files_that_disagree_about_a_set_have_a_row_each(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"a": {"mlp": (0.3,)}}, {"a": {"mlp": (0.4,)}})
    assert table.count('<th scope="row">a</th>') == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pixel_of_the_grid_is_a_square_of_its_colour(channels: int) -> None:
    pixels = torch.rand(2, channels, 8, 8, generator=generator("strip"))
    found = re.search(r"base64,([^\"]+)", strip(pixels, 3, "two images"))
    assert found is not None
    array = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))  # (H, W, RGBA)
    side = array.shape[0]
    step = (array.shape[1] - side) // 2  # from one of three places to the next
    expected = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for number in range(2):
        image = array[:, number * step : number * step + side, :3]
        squares = image.reshape(8, side // 8, 8, side // 8, 3)
        assert (squares == expected[number][:, None, :, None]).all()
    assert (array[:, 2 * step :, 3] == 0).all()  # the third place is empty


@pytest.mark.parametrize("values", [[0.5], [-0.5], [0.5, 0.7]])
def test_a_curve_is_seen_even_of_one_value(values: list[float]) -> None:
    picture = curves([Curve(1, [9] * len(values), values)], "title", "words")
    found = re.search(r"src=\"data:image/png;base64,([^\"]+)", picture)
    assert found is not None
    array = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))  # (H, W, RGBA)
    red, green, blue = (int(line_style(1)[0][at : at + 2], 16) for at in (1, 3, 5))
    assert (array == (red, green, blue, 255)).all(axis=2).sum() > 100


def test_runs_beyond_the_colours_differ_in_dashes() -> None:
    styles = [line_style(number) for number in range(18)]
    assert len(set(styles)) == len(styles)


def test_class_colours_are_all_different() -> None:
    assert len(set(CLASS_COLORS)) == len(CLASS_COLORS)


def test_the_running_mean_keeps_constants_and_length_and_smooths() -> None:
    assert running_mean([2.0] * 100) == pytest.approx([2.0] * 100)
    assert running_mean([1.0, 5.0]) == pytest.approx([1.0, 5.0])
    jagged = running_mean([0.0, 1.0] * 300)
    assert len(jagged) == 600
    assert np.ptp(jagged) < 0.2


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.013703810051083565, "0.0137"), (5e-4, "0.0005"), (18000.0, "18000.0"), (20000, "20000"),
     ("none", "none"), (None, "None"), (True, "True")],
)  # fmt: skip
def test_numbers_have_three_digits_behind_the_point(value: object, shown: str) -> None:
    assert str(digits(value)) == shown


def test_no_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs: expected at least one"):
        report(tmp_path)


def test_a_folder_that_is_no_run_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"runs: .*nothing is not the folder of a run"):
        report(tmp_path, tmp_path / "nothing")


@pytest.mark.parametrize("content", ["[1, 2", "7", "method: dm", "\x00"])
def test_a_broken_configuration_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(FileError, match=r"config\.yaml: expected the configuration of a run"):
        report(tmp_path, tmp_path)


def test_a_run_before_its_first_checkpoint_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    young = make_run(tmp_path / "young", dataset, finished=False)
    (young / "checkpoint.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"young has no result\.safetensors and no check"):
        report(tmp_path, young)


def test_a_checkpoint_of_other_images_is_an_error_that_names_it(
    dataset: Dataset, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "run", dataset, finished=False, class_names=["a", "b"])
    with pytest.raises(FileError, match=r"checkpoint\.safetensors: expected images \(1, 8, 8\)"):
        report(tmp_path, other)


def test_a_checkpoint_without_its_iteration_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    broken = make_run(tmp_path / "run", dataset, finished=False)
    write_tensors(broken / "checkpoint.safetensors", CHECKPOINT, {"images": torch.zeros(1)}, {})
    with pytest.raises(FileError, match=r"checkpoint\.safetensors: expected its iteration"):
        report(tmp_path, broken)


@pytest.mark.parametrize(
    ("weight", "numbers", "needed"),
    [
        (100.0, {"loss": 2.0}, "iteration, loss, cmi in each line"),
        (0.0, {"cmi": 2.0}, "iteration, loss in each line"),
        (0.0, {"loss": "2"}, "iteration, loss in each line, and numbers alone"),
    ],
)
def test_a_log_without_its_numbers_is_an_error(
    weight: float, numbers: dict[str, Any], needed: str, dataset: Dataset, tmp_path: Path
) -> None:
    broken = make_run(tmp_path / "run", dataset, weight=weight)
    (broken / "log.jsonl").write_text(json.dumps({"iteration": 1, **numbers}) + "\n")
    with pytest.raises(FileError, match=rf"log\.jsonl: expected {needed}"):
        report(tmp_path, broken)


def test_a_result_without_images_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    empty = make_run(tmp_path / "run", dataset, ipc=0)
    with pytest.raises(FileError, match=r"result\.safetensors: expected images, got none"):
        report(tmp_path, empty)


def test_runs_of_two_datasets_are_an_error(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", dataset, record={"dataset": "elsewhere"})
    with pytest.raises(ValueError, match=r"runs: expected dataset arrays:.* got elsewhere in"):
        report(tmp_path, run, other)


def test_a_bank_of_another_dataset_is_an_error_that_names_it(run: Path, tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "other.bank", load_dataset("digits"))
    with pytest.raises(ValueError, match=r"other\.bank: expected dataset arrays"):
        report(tmp_path, run, bank=bank)


def test_a_missing_evaluation_is_an_error_that_names_it(run: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", run):
        message = rf"evaluations: expected a file that cmidd evaluate wrote, found none at {path}"
        with pytest.raises(FileNotFoundError, match=message):
            report(tmp_path, run, evaluations=[path])


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"results": [{"set": "a"}]}', "\x00"])
def test_a_broken_evaluation_is_an_error_that_names_it(
    content: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(FileError, match=r"e\.json: expected the JSON that cmidd evaluate writes"):
        report(tmp_path, run, evaluations=[tmp_path / "e.json"])


def test_an_evaluation_on_another_dataset_is_an_error(run: Path, tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path / "e.json", "svhn", {"a": {"mlp": (0.5,)}})
    with pytest.raises(ValueError, match=r"evaluations: expected arrays:.*, got svhn in"):
        report(tmp_path, run, evaluations=[evaluation])
