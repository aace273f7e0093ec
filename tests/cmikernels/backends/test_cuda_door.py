"""The door to the CUDA kernels, on emulated GPUs: their workspace and their errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, fused_cmi
from cmikernels.backends import cuda
from tests.support.compare import value_and_gradient
from tests.support.emulated_gpu import CHIPS, Case, emulated, every_case, results_on
from tests.support.tables import make_features, make_labels

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


class Workspaces:
    """Stands for the kernels' module; notes the workspaces that calls ask for, and follows each
    with bytes that nobody may touch."""

    GUARD_BYTES = 4096

    def __init__(self, before_each: Callable[[], None] = lambda: None) -> None:
        self.before_each = before_each
        self.given: list[tuple[int, Tensor]] = []

    def cuda_cmi(self, call: dict[str, float], _: object) -> None:
        """Call the kernels with this allocator in place of the backend's."""
        emulated.cuda_cmi(call, self.allocate)

    def allocate(self, size: int) -> Tensor:
        """Give memory full of NaN."""
        self.before_each()
        memory = torch.full((size + self.GUARD_BYTES,), 0xFF, dtype=torch.uint8)
        self.given.append((size, memory))
        return memory


def workspace_asked_for(z: Tensor) -> int:
    """Bytes of the workspace of the value and gradient of equal classes."""
    workspaces = Workspaces()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_core", lambda: workspaces)
        value_and_gradient("cuda", z)
    return workspaces.given[0][0]


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


def test_a_workspace_that_is_too_small_is_refused(
    emulate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    emulate("one processor")
    # The chip changes under the call's feet: more processors have more slots.
    workspaces = Workspaces(before_each=lambda: emulate("tiny"))
    monkeypatch.setattr(cuda, "_core", lambda: workspaces)
    wide = torch.zeros(1, 1, 20_000).expand(1, 1100, 20_000)
    with pytest.raises(RuntimeError, match="the workspace is smaller than cmik_cuda_workspace"):
        fused_cmi(wide, backend="cuda")


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
