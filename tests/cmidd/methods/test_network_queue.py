from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.plain.inputs import random_dataset
from cmidd.datasets import Dataset
from cmidd.methods.network_queue import NetworkQueue
from cmidd.networks import build_network
from cmidd.options.idm import IDMOptions

SPEC = "convnet:depth=1,width=4"
OPTIONS = IDMOptions(
    SPEC, factor=2, batch_real=6, accuracy_weight=1.0, queue_size=5, push_interval=3, steps_net=4,
    batch_net=6, lr_net=0.2,
)  # fmt: skip
DATASET = random_dataset((9, 5, 4), 8)
SEEN = OPTIONS.steps_net * OPTIONS.batch_net


def queue_of(**changes: Any) -> NetworkQueue:
    network = build_network(SPEC, 3, 8, 3)
    images, options = DATASET.train.images, replace(OPTIONS, **changes)
    return NetworkQueue(network, DATASET, images, options, 0, "float32")


def advance(queue: NetworkQueue, iterations: range) -> Counter[int]:
    """Train as iterations do; how often each network did."""
    trained: Counter[int] = Counter()
    for iteration in iterations:
        queue.begin(iteration)
        _, rows = queue.draw(iteration)
        queue.train(rows)
        trained.update(rows)
    return trained


def test_there_are_three_networks_and_one_more_every_so_often_until_the_oldest_go() -> None:
    queue = queue_of()
    found = [list(queue.numbers(iteration)) for iteration in range(10)]
    assert found[:3] == [[0, 1, 2, 3]] * 3
    assert found[3:6] == [[0, 1, 2, 3, 4]] * 3
    assert found[6:9] == [[1, 2, 3, 4, 5]] * 3
    assert found[9] == [2, 3, 4, 5, 6]
    assert list(queue_of(queue_size=2).numbers(0)) == [2, 3]


def test_every_network_that_is_there_is_drawn_and_two_different_ones_train() -> None:
    queue = queue_of(push_interval=1000)
    drawn = [queue.draw(iteration) for iteration in range(100)]
    assert set(Counter(matched for matched, _ in drawn)) == {0, 1, 2, 3}
    assert {len(rows) for _, rows in drawn} == {2}
    counts = Counter(number for _, rows in drawn for number in rows)
    assert counts.keys() == {0, 1, 2, 3}
    assert min(counts.values()) > 30
    assert len({tuple(rows.keys()) for _, rows in drawn}) > 6
    assert len(queue_of(networks_trained=9).draw(0)[1]) == 4


def test_every_step_has_its_images_and_none_comes_again_before_all_have() -> None:
    _, drawn = queue_of().draw(4)
    (one, other) = drawn.values()
    assert len(one) == len(other) == SEEN
    assert sorted(one[:18].tolist()) == sorted(other[:18].tolist()) == list(range(18))
    assert not torch.equal(one, other)
    assert not torch.equal(one[:6], one[18:])


def test_accuracy_is_over_all_images_a_network_trained_on() -> None:
    queue = queue_of(push_interval=1000, lr_net=0.05)
    number = 1
    assert queue.accuracy(number) == 0
    for times in range(1, 31):
        queue.begin(times - 1)
        rows = torch.arange(18).repeat(2)[:SEEN]
        queue.train({number: rows})
        seen, right = queue.trained[number].meter.tolist()
        assert seen == times * SEEN
        assert queue.accuracy(number) == pytest.approx(right / seen)
    assert queue.accuracy(number) > 0.6  # it has learned them
    assert queue.accuracy(0) == 0


def test_networks_train_each_on_its_own_with_a_momentum_that_lasts() -> None:
    queue = queue_of(push_interval=1000)
    trained = advance(queue, range(4))
    assert trained.keys() == queue.trained.keys()
    network = build_network(SPEC, 3, 8, 3)
    for number in trained:
        alone = queue_of(push_interval=1000)
        network.load_state_dict(alone.weights(number))
        sgd = torch.optim.SGD(network.parameters(), 0.2, 0.9, weight_decay=5e-4)
        for iteration in range(4):
            rows = alone.draw(iteration)[1].get(number, torch.empty(0, dtype=torch.int64))
            for batch in torch.split(rows, 6) if len(rows) else ():
                logits = network(DATASET.to_input(DATASET.train.images[batch]))
                labels = DATASET.train.labels[batch]
                sgd.zero_grad()
                loss = torch.nn.functional.cross_entropy(logits, labels)
                loss.backward()  # type: ignore[no-untyped-call]
                sgd.step()
        for name, expected in network.state_dict().items():
            torch.testing.assert_close(queue.weights(number)[name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_of_real_images_a_rank_takes_its_share_of_one_batch_at_a_time(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_input, sizes = Dataset.to_input, []

    def counted(self: Dataset, images: Tensor, dtype: torch.dtype) -> Tensor:
        sizes.append(len(images))
        return to_input(self, images, dtype)

    monkeypatch.setattr(Dataset, "to_input", counted)
    monkeypatch.setattr("cmidd.ranks.count", lambda: count)
    monkeypatch.setattr("cmidd.ranks.number", lambda: 0)
    monkeypatch.setattr("cmidd.ranks.add_up", lambda *_: None)
    queue = queue_of()
    queue.train({0: torch.arange(18).repeat(2)[:SEEN]})
    assert sizes == [OPTIONS.batch_net // count] * OPTIONS.steps_net


@pytest.mark.parametrize(("shared", "sums"), [(True, 1 + OPTIONS.steps_net), (False, 0)])
def test_ranks_add_up_what_they_share_alone(
    shared: bool, sums: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr("cmidd.ranks.count", lambda: 2)
    monkeypatch.setattr("cmidd.ranks.number", lambda: 0)
    monkeypatch.setattr("cmidd.ranks.add_up", lambda *given: calls.append(given))
    monkeypatch.setattr("cmidd.methods.network_queue.ranks_share_steps", lambda *_: shared)
    queue = queue_of()
    queue.train({0: torch.arange(18).repeat(2)[:SEEN]})
    assert len(calls) == sums
    assert queue.trained[0].meter[0] == SEEN


def test_a_network_that_has_gone_is_forgotten() -> None:
    queue = queue_of(queue_size=2, push_interval=1)
    advance(queue, range(6))
    assert set(queue.trained) <= set(queue.numbers(5))
    assert queue.trained


def test_a_network_that_has_not_trained_comes_from_its_seed() -> None:
    one, other = queue_of(), queue_of()
    for number in (0, 7):
        assert all(map(torch.equal, one.weights(number).values(), other.weights(number).values()))
    assert not torch.equal(one.weights(0)["head.weight"], one.weights(1)["head.weight"])


@pytest.mark.parametrize(("iterations", "networks"), [(0, 0), (1, 2), (2, 4), (5, 5), (50, 5)])
def test_what_a_state_weighs_at_most_is_known_beforehand(iterations: int, networks: int) -> None:
    queue = queue_of()
    advance(queue, range(iterations))
    weights = sum(tensor.nbytes for tensor in queue.weights(0).values())
    most = queue.state_bytes(iterations)
    assert most == networks * 2 * weights
    there = sum(tensor.nbytes for tensor in queue.state().values())
    assert there <= most + 100 + 24 * networks
    if iterations == 1:
        assert there > most
