"""The door to the CUDA kernels, on emulated GPUs: their workspace and their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, fused_cmi
from cmikernels.backends import cuda
from tests.support.compare import value_and_gradient
from tests.support.emulated_gpu import CHIPS, Case, emulated, every_case, results_on
from tests.support.tables import make_features, make_labels, make_probabilities

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


class Workspaces:
    """Stands for the kernels' module; gives calls exactly the workspace that they need, full of NaN
    and followed by bytes that nobody may touch."""

    GUARD_BYTES = 4096

    def __init__(self) -> None:
        self.given: list[tuple[int, Tensor]] = []

    def cuda_cmi(self, problem: dict[str, float], besides: dict[str, int]) -> int:
        """Call the kernels with such a workspace in place of the backend's."""
        size = emulated.cuda_cmi(problem, besides | {"workspace_bytes": 0})
        memory = torch.full((size + self.GUARD_BYTES,), 0xFF, dtype=torch.uint8)
        self.given.append((size, memory))
        mine = {"workspace": memory.data_ptr(), "workspace_bytes": size}
        return int(emulated.cuda_cmi(problem, besides | mine))


def workspace_asked_for(z: Tensor, *rest: Any, **options: Any) -> int:
    """Bytes of the workspace of a call's value and gradient."""
    workspaces = Workspaces()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_core", lambda: workspaces)
        value_and_gradient("cuda", z, *rest, **options)
    return workspaces.given[-1][0]


def test_the_chip_of_other_tests_is_a_tiny_one() -> None:
    emulated.emulate()
    case = Case("tiny", 3, 100, 256)
    z = make_features((case.classes, case.rows), case.channels)
    assert workspace_asked_for(z) == case.plan["workspace_bytes"]


@every_case
def test_the_workspace_is_the_plans(emulate: Callable[..., None], case: Case) -> None:
    classes, rows, channels = case.classes, case.rows, case.channels
    emulate(case.chip)
    z = make_features((classes, rows), channels, dtype=case.dtype)
    assert workspace_asked_for(z) == case.plan["workspace_bytes"]


@every_case
def test_nothing_is_written_beyond_the_workspace(
    emulate: Callable[..., None], monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    emulate(case.chip)
    z = make_features(sum(case.unequal), case.channels, dtype=case.dtype)
    classes = ClassIndex(make_labels(case.unequal, 9), len(case.unequal))
    workspaces = Workspaces()
    monkeypatch.setattr(cuda, "_core", lambda: workspaces)
    results_on(z, classes, make_features(1, len(z), seed=3)[0])
    assert workspaces.given
    for size, memory in workspaces.given:
        assert (memory[size:] == 0xFF).all()


def test_a_call_that_needs_more_workspace_than_usual_is_given_it(
    emulate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("tiny", 3, 100, 256)
    emulate(case.chip)
    z = make_features((case.classes, case.rows), case.channels)
    expected = fused_cmi(z, backend="cuda")
    given: list[int] = []

    def give(features: Tensor, size: int) -> Tensor:
        given.append(size)
        return features.new_empty(size, dtype=torch.uint8)

    monkeypatch.setattr(cuda, "_workspace", give)
    monkeypatch.setattr(cuda, "_USUAL_WORKSPACE", 256)
    assert torch.equal(fused_cmi(z, backend="cuda"), expected)
    assert given == [256, case.plan["workspace_bytes"]]


# Between them they differ in all that plans follow from.
CALLS: dict[str, dict[str, Any]] = {
    "equal classes": {"rows": (3, 96)},
    "fewer channels": {"rows": (3, 96), "channels": 240},
    "no packs": {"rows": (3, 96), "skip": 1},
    "half precision": {"rows": (3, 96), "dtype": torch.bfloat16},
    "weights of rows": {"rows": (3, 96), "reduction": "none"},
    "labels": {"sizes": (96, 96, 96)},
    "given centroids": {"sizes": (96, 96, 96), "given": True},
    "fewer rows": {"sizes": (96, 96, 20)},
    "another class": {"sizes": (96, 96, 48, 48)},
    "small labels": {"sizes": (64,) * 6, "channels": 64},
    "a larger class": {"sizes": (104, 56, 56, 56, 56, 56), "channels": 64},
}


def results_of(
    rows: tuple[int, ...] = (),
    channels: int = 256,
    *,
    sizes: tuple[int, ...] = (),
    skip: int = 0,
    dtype: torch.dtype = torch.float32,
    given: bool = False,
    reduction: str = "mean",
) -> list[Any]:
    """Workspace, value and gradient of one of `CALLS`."""
    z = make_features(rows or (sum(sizes),), channels + skip, dtype=dtype)[..., skip:]
    classes = ClassIndex(make_labels(sizes)) if sizes else None
    incoming = make_features(1, z.shape[:-1].numel(), seed=3)[0] if reduction == "none" else None
    options: dict[str, Any] = {"reduction": reduction}
    if given:
        options["centroids"] = make_probabilities((len(sizes), channels))
    if incoming is not None:
        incoming = incoming.view(z.shape[:-1])
    size = workspace_asked_for(z, classes, incoming, **options)
    return [size, *value_and_gradient("cuda", z, classes, incoming, **options)]


def test_a_plan_serves_no_call_that_needs_another(emulate: Callable[..., None]) -> None:
    alone = {}
    for name, call in CALLS.items():
        emulate("tiny")  # which forgets all plans
        alone[name] = results_of(**call)
    for name in reversed(CALLS):
        size, value, gradient = results_of(**CALLS[name])
        assert size == alone[name][0], name
        assert torch.equal(value, alone[name][1]), name
        assert torch.equal(gradient, alone[name][2]), name


def test_a_gpu_that_is_too_old_is_refused() -> None:
    try:
        emulated.emulate(chip=CHIPS["Ampere"]._replace(capability=75)._asdict())
        with pytest.raises(RuntimeError, match=r"compute capability 8\.0 \(Ampere\) or newer"):
            fused_cmi(make_features((2, 3), 4), backend="cuda")
    finally:
        emulated.emulate()


def test_a_grid_that_no_launch_can_take_is_refused(emulate: Callable[..., None]) -> None:
    emulate()
    # One row that stands for two thousand million: nothing reads or writes so many.
    huge = torch.zeros(1, 1, 32).expand(2**31, 1, 32)
    with pytest.raises(RuntimeError, match="more classes or rows than one launch can take"):
        fused_cmi(huge, backend="cuda")
