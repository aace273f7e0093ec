from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from cmidd import score as score_module
from cmidd.pretrained.bank import Bank
from cmidd.score import Score, score
from cmikernels import ncmi
from tests.support.tiny import tiny_bank, tiny_dataset

DATASET = tiny_dataset()
# Neither sorted nor equally many of each class.
ROWS = torch.tensor([17, 0, 1, 6, 2, 12, 7, 3, 13])
IMAGES, LABELS = DATASET.to_input(DATASET.train.images[ROWS]), DATASET.train.labels[ROWS]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return tiny_bank(tmp_path_factory.mktemp("score") / "bank", DATASET)


def cmi_of_rows(z: Tensor) -> Tensor:
    """KL of each row's probabilities from the mean of its class, (N,), by the book."""
    p = z.double().softmax(1)
    centroids = torch.stack([p[c == LABELS].mean(0) for c in range(3)])
    return (p * (p / centroids[LABELS]).log()).sum(1)


@pytest.mark.parametrize("layer", ["features", "logits"])
def test_a_score_is_the_mean_divergence_from_the_class_by_network_and_class(
    bank: Bank, layer: str
) -> None:
    found = score(bank, IMAGES, LABELS, layer)
    rows = torch.stack(
        [cmi_of_rows(net.embed(IMAGES) if layer == "features" else net(IMAGES)) for net in bank]
    )
    of_classes = torch.stack([rows[:, c == LABELS].mean(1) for c in range(3)], 1)
    assert found.of_network == pytest.approx(rows.mean(1).tolist(), rel=1e-4)
    for ours, expected in zip(found.of_classes, of_classes.tolist(), strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)
    assert found.of_class == pytest.approx(of_classes.mean(0).tolist(), rel=1e-4)
    spread = of_classes.std(0, correction=0).tolist()
    assert found.std_of_class == pytest.approx(spread, rel=1e-3, abs=1e-9)
    features = [net.embed(IMAGES) if layer == "features" else net(IMAGES) for net in bank]
    assert found.ncmi == pytest.approx([float(ncmi(z, LABELS)) for z in features], rel=1e-4)


def test_batches_do_not_change_a_score(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(bank, IMAGES, LABELS)
    monkeypatch.setattr(score_module, "BATCH", 2)
    assert score(bank, IMAGES, LABELS).of_network == pytest.approx(whole.of_network, rel=1e-5)


def test_one_image_of_each_class_scores_nothing(bank: Bank) -> None:
    images = IMAGES[[0, 1, 3]]
    assert score(bank, images, LABELS[[0, 1, 3]]).mean == pytest.approx(0.0, abs=1e-9)


FOUND = Score((0.1, 0.3), ((0.2, 0.5), (0.3, 0.5)), (0.01, 0.03))


def test_mean_and_deviation_are_over_networks() -> None:
    found = Score((1.0, 3.0), ((5.0, 2.0), (7.0, 2.0)), (0.1, 0.2))
    assert (found.mean, found.std) == (2.0, 1.0)
    assert (found.of_class, found.std_of_class) == ((6.0, 2.0), (1.0, 0.0))


def test_the_table_has_a_line_for_all_and_for_each_class() -> None:
    assert FOUND.table(["a", "longer"]).splitlines() == [
        "  all     2.0000e-01 +- 1.0e-01 nats",
        "  NCMI    2.0000e-02 +- 1.0e-02",
        "  a       2.5000e-01 +- 5.0e-02",
        "  longer  5.0000e-01 +- 0.0e+00",
    ]


def test_the_record_has_all_of_the_table_and_what_each_network_finds() -> None:
    record = json.loads(json.dumps(FOUND.as_record()))
    assert record["networks"] == [
        {"cmi": 0.1, "ncmi": 0.01, "of_classes": [0.2, 0.5]},
        {"cmi": 0.3, "ncmi": 0.03, "of_classes": [0.3, 0.5]},
    ]
    assert record["cmi"] == pytest.approx({"mean": 0.2, "std": 0.1})
    assert record["ncmi"] == pytest.approx({"mean": 0.02, "std": 0.01})
    assert record["of_classes"][0] == pytest.approx({"mean": 0.25, "std": 0.05})
    assert record["of_classes"][1] == {"mean": 0.5, "std": 0.0}
