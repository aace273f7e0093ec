"""Compiled code calls CMIRegularizer outside of its graphs, and says nothing about it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, CMIRegularizer
from tests.support.compare import relative_error
from tests.support.small_network import CHANNELS, RAGGED, WEIGHT, make_images, make_network
from tests.support.tables import make_probabilities

NETWORKS = [make_network(seed) for seed in range(12)]  # more than a compiler would compile for
CENTROIDS = make_probabilities((5, CHANNELS)).double()


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What torch logs as a warning or worse; its loggers do not hand on to the root's."""
    handler = _Records()
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith("torch") and isinstance(logger, logging.Logger)
    ]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.messages
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.parametrize("centroids", [None, CENTROIDS], ids=["own centroids", "given centroids"])
@pytest.mark.parametrize("classes", [RAGGED, ClassIndex(RAGGED)], ids=["labels", "index"])
@pytest.mark.parametrize("chunk_size", [None, 4, 50])
def test_a_compiled_regularizer_is_silent_and_right(
    chunk_size: int | None,
    classes: Tensor | ClassIndex,
    centroids: Tensor | None,
    logged: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = {"chunk_size": chunk_size, "centroids": centroids}
    plain = CMIRegularizer(NETWORKS, WEIGHT, **options)  # type: ignore[arg-type]
    images = make_images(len(RAGGED))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(
            CMIRegularizer(NETWORKS, WEIGHT, **options),  # type: ignore[arg-type]
            backend="aot_eager",
        )
        for _ in range(12):
            ours = compiled(images, classes)
            theirs = plain(images, classes)
            assert torch.equal(ours, theirs)
            (gradient,), (expected,) = (torch.autograd.grad(x, images) for x in (ours, theirs))
            assert relative_error(gradient, expected) <= 1e-12
    assert logged == []
    assert capfd.readouterr() == ("", "")
