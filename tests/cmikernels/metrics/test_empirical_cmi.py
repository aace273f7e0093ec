"""A data set batch by batch is the data set at once."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cmikernels import ClassIndex, EmpiricalCMI, class_centroids, fused_cmi, ncmi
from cmikernels.metric_base import MetricBase
from tests.cmikernels.metrics.conftest import without_torchmetrics
from tests.support.ranks import on_ranks


def rows(
    n: int, classes: int, channels: int, spread: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Features whose classes have centres of their own, and labels, in float64."""
    drawing = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=drawing)
    centres = torch.randn(classes, channels, generator=drawing, dtype=torch.float64)
    noise = torch.randn(n, channels, generator=drawing, dtype=torch.float64)
    return centres[labels] + spread * noise, labels


def after(metric: Any, features: Tensor, labels: Tensor, sizes: list[int]) -> Any:
    for z, y in zip(torch.split(features, sizes), torch.split(labels, sizes), strict=True):
        metric.update(z, y)
    return metric


@settings(deadline=None)
@given(
    data=st.data(),
    spread=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_parts_in_any_order_are_one_batch(data: Any, spread: float, dtype: torch.dtype) -> None:
    cuts = data.draw(st.lists(st.integers(0, 60), max_size=8).map(sorted))
    sizes = [b - a for a, b in itertools.pairwise([0, *cuts, 60])]
    features, labels = rows(60, 4, 33, spread, seed=data.draw(st.integers(0, 99)))
    features = features.to(dtype)
    order = data.draw(st.permutations(range(len(sizes))))
    parts = list(zip(torch.split(features, sizes), torch.split(labels, sizes), strict=True))
    one, other = EmpiricalCMI(4, 33), EmpiricalCMI(4, 33)
    for k, part in enumerate(order):
        (other if k % 2 else one).update(*parts[part])
    one.merge_state(other)
    expected = fused_cmi(features.double(), labels, num_classes=4)
    # Small values: log P itself is rounded to 2e-16, of which a KL of 5e-7 keeps 1e-13 and less.
    torch.testing.assert_close(one.compute(), expected, rtol=1e-12, atol=1e-19)
    means = class_centroids(features.double(), labels, num_classes=4)
    torch.testing.assert_close(one.centroids(), means, rtol=1e-12, atol=1e-300)
    assert one.counts().tolist() == torch.bincount(labels, minlength=4).tolist()


@pytest.mark.parametrize("size", [1, 64, 333, 5000, 20_000])
@pytest.mark.parametrize("uneven", [False, True])
def test_float32_keeps_a_cmi_of_1e_7(size: int, uneven: bool) -> None:
    features, labels = rows(20_000, 5, 64, 4.5e-4)
    if uneven:  # a batch has one or two rows of a class
        labels[torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < 0.99] = 0
        features -= features - rows(20_000, 1, 64, 4.5e-4)[0]
    sizes = [min(size, 20_000 - start) for start in range(0, 20_000, size)]
    if size == 1:
        features, labels, sizes = features[:1000], labels[:1000], sizes[:1000]
    single = features.float()
    found = after(EmpiricalCMI(5, 64), single, labels, sizes).compute()
    expected = fused_cmi(single.double(), labels, num_classes=5)
    assert 5e-8 < expected < 2e-7
    assert abs(found / expected - 1) < 1e-6


def test_the_protocol_of_torchmetrics(empirical_cmi: Any) -> None:
    features, labels = rows(90, 3, 16, 1.0)
    first, second = (features[:50], labels[:50]), (features[50:], labels[50:])
    metric = empirical_cmi(3, 16)
    of_batch = metric(*first)  # forward: the batch's own value, which is taken in as well
    torch.testing.assert_close(of_batch, fused_cmi(*first, num_classes=3))
    torch.testing.assert_close(metric(*second), fused_cmi(*second, num_classes=3))
    whole = fused_cmi(features, labels)
    torch.testing.assert_close(metric.compute(), whole)

    other = empirical_cmi(3, 16)
    other.update(*second)
    state = copy.deepcopy(other.metric_state)
    of_first = empirical_cmi(3, 16)
    of_first.update(*first)
    of_first.merge_state(state)
    torch.testing.assert_close(of_first.compute(), whole)

    saved = nn.ModuleDict({"cmi": metric}).state_dict()
    assert list(saved) == ["cmi.statistics"]
    loaded = nn.ModuleDict({"cmi": empirical_cmi(3, 16)})
    loaded.load_state_dict(saved)
    cmi: Any = loaded["cmi"]
    assert torch.equal(cmi.statistics, metric.statistics)

    metric.reset()
    metric.update(*first)
    torch.testing.assert_close(metric.compute(), of_batch)


def test_torchmetrics_is_what_it_is_built_on() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    assert issubclass(EmpiricalCMI, torchmetrics.Metric)
    alone = without_torchmetrics().EmpiricalCMI
    assert issubclass(alone, MetricBase)
    collection = torchmetrics.MetricCollection(
        {"cmi": EmpiricalCMI(3, 16), "ncmi": EmpiricalCMI(3, 16, normalize="all")}
    )
    features, labels = rows(40, 3, 16, 1.0)
    collection.update(features, labels)
    found = collection.compute()
    torch.testing.assert_close(found["cmi"], fused_cmi(features, labels))
    torch.testing.assert_close(found["ncmi"], ncmi(features, labels))


def test_classes_one_by_one(empirical_cmi: Any) -> None:
    features, labels = rows(50, 3, 8, 1.0)
    metric = after(empirical_cmi(5, 8, reduction="class"), features, labels, [20, 30])
    expected = fused_cmi(features, labels, num_classes=5, reduction="class")
    torch.testing.assert_close(metric.compute(), expected)
    assert metric.compute()[3:].tolist() == [0, 0]
    assert metric.centroids()[3:].count_nonzero() == 0


@pytest.mark.parametrize("pairs", ["all", "different"])
def test_ncmi_of_batches(pairs: str, empirical_cmi: Any) -> None:
    features, labels = rows(70, 4, 12, 1.0)
    metric = after(empirical_cmi(4, 12, normalize=pairs), features, labels, [1, 40, 29])
    expected = ncmi(features, ClassIndex(labels), pairs=pairs)
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-12, atol=0)


def test_nothing_and_one_class_are_0(empirical_cmi: Any) -> None:
    features, labels = rows(10, 1, 4, 1.0)
    for normalize in (None, "all", "different"):
        metric = empirical_cmi(2, 4, normalize=normalize)
        metric.update(features[:0], labels[:0])
        assert metric.compute() == 0
        metric.update(features, labels)
        assert (metric.compute() > 0) == (normalize is None)


@pytest.mark.parametrize(
    "scale", [1e-30, 1e4, 1e38], ids=["equal rows", "far apart", "as far as float32 goes"]
)
def test_finite_features_give_finite_numbers(scale: float, empirical_cmi: Any) -> None:
    features, labels = rows(64, 3, 8, 1.0)
    metric = empirical_cmi(3, 8, normalize="all")
    far = (features * scale / 10).float()
    after(metric, far, labels, [3] * 21 + [1])
    assert metric.statistics.isfinite().all()
    assert metric.compute().isfinite()
    expected = fused_cmi(far.double(), labels)
    plain = after(empirical_cmi(3, 8), far, labels, [3] * 21 + [1])
    torch.testing.assert_close(plain.compute(), expected, rtol=1e-9, atol=1e-30)


def test_errors_name_the_argument() -> None:
    features, labels = rows(10, 2, 4, 1.0)
    metric = EmpiricalCMI(2, 4)
    for call, words in (
        (lambda: EmpiricalCMI(0, 4), "num_classes"),
        (lambda: EmpiricalCMI(2, 0), "num_channels"),
        (lambda: EmpiricalCMI(2, 4, reduction="sum"), "reduction: expected mean or class"),
        (lambda: EmpiricalCMI(2, 4, normalize="each"), "normalize: expected all or different"),
        (lambda: EmpiricalCMI(2, 4, normalize="all", reduction="class"), "reduction"),
        (lambda: EmpiricalCMI(2, 4, temperature=0.0), "temperature"),
        (lambda: metric.update(features[:, :3], labels), "features: expected 4 channels"),
        (lambda: metric.update(features, labels + 1), r"classes: labels must lie in \[0, num_c"),
        (lambda: metric.update(features, labels[:3]), "classes: expected one label for each"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert metric.counts().sum() == 0


def _in_a_process(alone: bool) -> None:
    rank = dist.get_rank()
    features, labels = rows(90, 3, 16, 1.0)
    metric = (without_torchmetrics().EmpiricalCMI if alone else EmpiricalCMI)(3, 16)
    if rank == 0:  # the other one has seen nothing
        metric.update(features[:40], labels[:40])
    torch.testing.assert_close(
        metric.compute(), fused_cmi(features[:40], labels[:40], num_classes=3)
    )
    mine = slice(40, 60) if rank else slice(60, 90)
    metric.update(features[mine], labels[mine])
    torch.testing.assert_close(metric.compute(), fused_cmi(features, labels), rtol=1e-12, atol=0)
    assert metric.counts().sum() == (20 if rank else 70)  # its own again


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_two_processes_give_the_value_of_all_rows(alone: bool, tmp_path: Path) -> None:
    if not alone:
        pytest.importorskip("torchmetrics")
    on_ranks(2, _in_a_process, tmp_path, alone)


def test_a_merge_after_a_value_changes_it(empirical_cmi: Any) -> None:
    features, labels = rows(90, 3, 16, 1.0)
    one, other, merged_into = (empirical_cmi(3, 16) for _ in range(3))
    one.update(features[:50], labels[:50])
    other.update(features[50:], labels[50:])
    before = one.compute()
    saved = one.state_dict()
    one.merge_state(other)
    whole = fused_cmi(features, labels)
    torch.testing.assert_close(one.compute(), whole)
    one.load_state_dict(saved)
    assert one.compute() == before
    merged_into.merge_state(one.metric_state)  # and is not warned that it has seen nothing
    assert merged_into.compute() == before


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 4},
        {"temperature": 2.0},
        {"num_channels": 8},
        {"num_channels": 8, "normalize": "all"},  # as many numbers
    ],
    ids=str,
)
def test_only_what_was_measured_alike_is_merged(options: Any, empirical_cmi: Any) -> None:
    metric = empirical_cmi(3, 16)
    other = empirical_cmi(**{"num_classes": 3, "num_channels": 16, **options})
    for incoming in (other, other.metric_state):
        with pytest.raises(ValueError, match="incoming_state: expected a metric of as many"):
            metric.merge_state(incoming)
    with pytest.raises(TypeError, match="incoming_state: expected an EmpiricalCMI"):
        metric.merge_state({})


def test_metrics_of_two_temperatures_stay_apart_in_a_collection() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    features, labels = rows(40, 3, 16, 1.0)
    taus = {"warm": 4.0, "cold": 1.0}
    found = torchmetrics.MetricCollection(
        {name: EmpiricalCMI(3, 16, temperature=tau) for name, tau in taus.items()}
    )
    found.update(features[:0], labels[:0])  # after which torchmetrics groups what is alike
    found.update(features, labels)
    for name, value in found.compute().items():
        torch.testing.assert_close(value, fused_cmi(features, labels, temperature=taus[name]))


@pytest.mark.parametrize(
    "cast",
    [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.float()],
    ids=["half", "to bfloat16", "float"],
)
def test_a_cast_of_the_model_around_it_leaves_float64(cast: Any, empirical_cmi: Any) -> None:
    features, labels = rows(90, 3, 16, 1.0)
    metric = empirical_cmi(3, 16)
    cast(nn.ModuleDict({"cmi": metric, "layer": nn.Linear(2, 2)}))
    after(metric, features, labels, [40, 50])
    copied = pickle.loads(pickle.dumps(copy.deepcopy(metric.metric_state)))
    assert copied["statistics"].dtype == torch.float64
    torch.testing.assert_close(metric.compute(), fused_cmi(features, labels), rtol=1e-12, atol=0)
    copied_metric = copy.deepcopy(metric)
    copied_metric.reset()
    assert copied_metric.counts().sum() == 0
    assert metric.counts().sum() == 90


def test_a_batch_that_is_refused_leaves_what_was_seen(empirical_cmi: Any) -> None:
    features, labels = rows(20, 2, 4, 1.0)
    metric = empirical_cmi(2, 4)
    metric.update(features, labels)
    for call in (metric, metric.update):
        with pytest.raises(ValueError, match="classes: labels must lie"):
            call(features, labels + 1)
        with pytest.raises(ValueError, match="num_classes"):
            call(features, ClassIndex(labels, 3))
        with pytest.raises(TypeError, match="classes: expected a tensor of labels"):
            call(features, None)
    assert metric.counts().sum() == 20


def test_state_of_inference_mode_loads_outside_of_it(empirical_cmi: Any) -> None:
    features, labels = rows(20, 2, 4, 1.0)
    metric = empirical_cmi(2, 4)
    with torch.inference_mode():
        metric(features, labels)
        state = {name: tensor.clone() for name, tensor in metric.state_dict().items()}
    metric.load_state_dict(state)
    torch.testing.assert_close(metric.compute(), fused_cmi(features, labels))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_probabilities_that_are_next_to_nothing(backend: str) -> None:
    metric = EmpiricalCMI(1, 2, backend=backend)
    far = torch.tensor([[0.0, -2000.0]], dtype=torch.float64).expand(1000, 2)
    for z in (far, torch.tensor([[0.0, -740.0]], dtype=torch.float64)):
        metric.update(z, torch.zeros(len(z), dtype=torch.int64))
    assert metric.compute() >= 0
    assert metric.compute() < 1e-300
    huge = torch.tensor([[0.0, -1.5e308]] * 3 + [[1.0, 0.0]], dtype=torch.float64)
    apart = EmpiricalCMI(3, 2, normalize="all", backend=backend)
    apart.update(huge, torch.tensor([0, 0, 1, 2]))
    assert apart.statistics.isfinite().all()
    assert apart.compute().isfinite()
