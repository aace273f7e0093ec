"""The CUDA kernels on emulated GPUs: every way of the plan is right, whatever order threads run in.

Small GPUs make small calls take the ways that large ones take on real ones. A barrier that a kernel
lacks shows as other bits under another schedule of its threads (csrc/cuda/emulated/emulator.hpp).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, class_centroids, cmi_value_and_grad, fused_cmi
from cmikernels.backends import cuda, operations
from tests.support.compare import assert_gradient, assert_value, value_and_gradient
from tests.support.oracle import Oracle, torch_gradient
from tests.support.tables import DTYPES, GPU, HALF, make_features, make_labels, make_probabilities

if GPU:
    pytest.skip("backend='cuda' is the GPU here", allow_module_level=True)
emulated = pytest.importorskip("cmikernels._emulated")
native = pytest.importorskip("cmikernels._native")

TINY = {
    "capability": 90,
    "processors": 4,
    "largest_cluster": 16,
    "clusters_of_16": 1,
    "block_bytes": 24 << 10,
    "processor_bytes": 32 << 10,
    "cache_bytes": 256 << 10,
}
ROOMY = TINY | {"block_bytes": 227 << 10, "processor_bytes": 228 << 10, "cache_bytes": 50 << 20}
CHIPS = {
    "tiny": TINY,
    "roomy": ROOMY,
    "one processor": TINY | {"processors": 1},
    "pairs": TINY | {"largest_cluster": 2},
    "no cache": TINY | {"cache_bytes": 1 << 10},
    "Ampere": ROOMY | {"capability": 80, "largest_cluster": 1},
}


class Case(NamedTuple):
    """A call of equal classes on a chip."""

    chip: str
    classes: int
    rows: int  # of each
    channels: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """Give the form used in the names of tests."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.chip}-{self.classes}x{self.rows}x{self.channels}-{dtype}"

    @property
    def plan(self) -> dict[str, Any]:
        """How it is computed."""
        return dict(
            native.cuda_plan(
                rows=self.classes * self.rows,
                classes=self.classes,
                largest=self.rows,
                channels=self.channels,
                element_bytes=self.dtype.itemsize,
                ragged=False,
                aligned=self.channels * self.dtype.itemsize % 16 == 0,
                given=False,
                weighted=False,
                **CHIPS[self.chip],
            )
        )

    @property
    def unequal(self) -> tuple[int, ...]:
        """Sizes of classes of which the largest is as the case has it, and some are special."""
        sizes = (self.rows, 1, 0, max(self.rows - 1, 1), self.rows // 2) * self.classes
        return sizes[: max(self.classes, 2)]


def ways_of(case: Case, plan: dict[str, Any]) -> set[tuple[Any, ...]]:
    """What is special about how the case is computed: which paths its threads take together."""
    kind, clustered, staged = plan["kind"], plan["cluster"] > 1, plan["stages"] > 0
    team = "warps" if plan["lanes"] > 32 else "lanes"
    ways: set[tuple[Any, ...]] = {
        ("dtype", kind, case.dtype),
        ("lanes", kind, plan["lanes"]),
        ("cluster", kind, plan["cluster"], staged),
        ("form", kind, plan["form"], staged, clustered),
    }
    if kind != "classes":
        return ways | {("slots", kind, plan["slots"] > case.classes)}
    turns = plan["share_rows"] * plan["lanes"] > plan["threads"]
    without_rows = plan["share_rows"] * (plan["cluster"] - 1) >= case.rows
    return ways | {
        ("stages", plan["stages"], clustered),
        ("copied in bulk", staged, case.dtype, clustered),
        ("several rows a team", turns, team, clustered),
        ("blocks without rows", clustered and without_rows),
    }


def work(case: Case, plan: dict[str, Any]) -> int:
    """Threads that are emulated, once for each class or slot and once for each row."""
    blocks = plan["slots"] or case.classes * plan["cluster"]
    return int(blocks * plan["threads"] + case.classes * case.rows * plan["lanes"])


def find_cases() -> tuple[list[Case], set[tuple[Any, ...]]]:
    """Of small calls the least laborious that between them take all the ways there are.

    They follow the plan, so that they need not be looked for again when it is tuned.
    """
    candidates = []
    for sizes in itertools.product(
        CHIPS, (2, 3, 5, 9, 20), (3, 7, 20, 50, 100, 1000),
        (1, 8, 30, 64, 130, 200, 256, 600, 1024, 2048, 9000), DTYPES,
    ):  # fmt: skip
        case = Case(*sizes)
        if case.classes * case.rows * case.channels <= 150_000:
            plan = case.plan
            candidates.append((work(case, plan), case, ways_of(case, plan)))
    cases: list[Case] = []
    taken: set[tuple[Any, ...]] = set()
    for _, case, ways in sorted(candidates, key=lambda each: each[0]):
        if not ways <= taken:
            taken |= ways
            cases.append(case)
    return cases, taken


CASES, WAYS_TAKEN = find_cases()
every_case = pytest.mark.parametrize("case", CASES, ids=str)

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


@pytest.fixture
def emulate() -> Iterator[Callable[..., None]]:
    """Choose the chip by name and the schedule by its seed, for one test."""
    yield lambda chip="tiny", seed=0: emulated.emulate(seed=seed, **CHIPS[chip])
    emulated.emulate()


def test_every_way_is_taken() -> None:
    def taken(name: str) -> set[tuple[Any, ...]]:
        return {way[1:] for way in WAYS_TAKEN if way[0] == name}

    both = (False, True)
    kinds = ("classes", "slots", "wide")
    assert taken("dtype") == set(itertools.product(kinds, DTYPES))
    assert {case.plan["kind"] for case in WAYS} == set(kinds)
    assert {cluster for _, cluster, _ in taken("cluster")} == {1, 2, 4, 8, 16}
    assert {stages for stages, _ in taken("stages")} == {0, 1, 2, 4}
    assert taken("copied in bulk") >= set(itertools.product((True,), DTYPES, both))
    assert taken("slots") >= {("slots", True), ("wide", True)}
    assert taken("several rows a team") == set(itertools.product(both, ("lanes", "warps"), both))
    forms = {(kind, form) for kind, form, *_ in taken("form") if kind != "wide"}
    assert forms == set(itertools.product(kinds[:2], ("full", "packed", "any")))
    assert {lanes for kind, lanes in taken("lanes") if kind == "classes"} >= {1, 2, 4, 8, 32, 64}


def test_the_chip_of_other_tests_is_a_tiny_one() -> None:
    emulated.emulate()
    case = Case("tiny", 3, 100, 256)
    z = make_features((case.classes, case.rows), case.channels)
    assert workspace_asked_for(z) == case.plan["workspace_bytes"]


def check(case: Case, z: Tensor, labels: Tensor, grouped: bool = False, **options: Any) -> None:
    """Value and gradient are the oracle's."""
    grad_value = options.pop("grad_value", None)
    classes = options.get("num_classes", int(labels.max()) + 1)
    features = z.view(classes, -1, z.shape[1]) if grouped else z
    if grouped:
        value, gradient = value_and_gradient("cuda", features, None, grad_value, **options)
    else:
        value, gradient = value_and_gradient("cuda", features, labels, grad_value, **options)
    oracle = Oracle(z, labels, **options)
    assert_value(value, oracle.value, z.dtype)
    plain = grad_value is None and "centroids" not in options and z.dtype not in HALF
    by_torch = torch_gradient(z, labels) if plain and "reduction" not in options else None
    expected = oracle.gradient(grad_value)
    assert_gradient(gradient.reshape(z.shape), expected, z.dtype, by_torch)


def misaligned(z: Tensor) -> Tensor:
    """The same numbers, one element beyond a multiple of 16 bytes."""
    moved = torch.cat([z.new_zeros(1), z.flatten()])[1:].view(z.shape)
    assert moved.data_ptr() % 16
    return moved


def with_gaps(z: Tensor) -> Tensor:
    """The same numbers, 16 bytes between rows."""
    gap = z.new_zeros(z.shape[0], 16 // z.itemsize)
    return torch.cat([z, gap], 1)[:, : z.shape[1]]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda z: z,
    "transposed": lambda z: z.t().contiguous().t(),
    "misaligned": misaligned,
    "with gaps": with_gaps,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@every_case
def test_equal_classes(
    emulate: Callable[..., None], case: Case, layout: Callable[[Tensor], Tensor]
) -> None:
    classes, rows, channels = case.classes, case.rows, case.channels
    emulate(case.chip)
    z = layout(make_features(classes * rows, channels, dtype=case.dtype))
    check(case, z, make_labels([rows] * classes), grouped=z.is_contiguous())


@pytest.mark.parametrize("layout", ["contiguous", "with gaps"])
@pytest.mark.parametrize("shuffle_seed", [None, 1], ids=["sorted", "shuffled"])
@every_case
def test_unequal_classes(
    emulate: Callable[..., None], case: Case, shuffle_seed: int | None, layout: str
) -> None:
    emulate(case.chip)
    z = LAYOUTS[layout](make_features(sum(case.unequal), case.channels, dtype=case.dtype))
    labels = make_labels(case.unequal, shuffle_seed)
    check(case, z, labels, num_classes=len(case.unequal))


@every_case
def test_a_value_for_each_class(emulate: Callable[..., None], case: Case) -> None:
    emulate(case.chip)
    z = make_features(sum(case.unequal), case.channels, dtype=case.dtype)
    grad_value = torch.linspace(-1, 2, len(case.unequal))
    options: dict[str, Any] = {"num_classes": len(case.unequal), "reduction": "class"}
    check(case, z, make_labels(case.unequal, 2), grad_value=grad_value, weight=1.5, **options)


@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "unequal"])
@every_case
def test_a_weight_for_each_row(emulate: Callable[..., None], case: Case, ragged: bool) -> None:
    classes, rows, channels = case.classes, case.rows, case.channels
    emulate(case.chip)
    sizes = case.unequal if ragged else (rows,) * classes
    z = make_features(sum(sizes), channels, dtype=case.dtype)
    grad_value = make_features(1, sum(sizes), seed=3)[0]
    if not ragged:
        grad_value = grad_value.view(classes, rows)
    labels = make_labels(sizes, 4 if ragged else None)
    options: dict[str, Any] = {"reduction": "none", "temperature": 0.8}
    if ragged:
        options["num_classes"] = len(sizes)
    check(case, z, labels, grouped=not ragged, grad_value=grad_value, **options)


@every_case
def test_given_centroids(emulate: Callable[..., None], case: Case) -> None:
    emulate(case.chip)
    z = make_features(sum(case.unequal), case.channels, dtype=case.dtype)
    centroids = make_probabilities((len(case.unequal), case.channels))
    options: dict[str, Any] = {"num_classes": len(case.unequal), "centroids": centroids}
    if case.dtype == torch.float64:
        options["centroids"] = centroids.double()
    check(case, z, make_labels(case.unequal, 5), **options)


@every_case
def test_centroids(emulate: Callable[..., None], case: Case) -> None:
    emulate(case.chip)
    classes = len(case.unequal)
    z = make_features(sum(case.unequal), case.channels, dtype=case.dtype)
    labels = make_labels(case.unequal, 6)
    ours = class_centroids(z, labels, num_classes=classes, backend="cuda")
    expected = Oracle(z, labels, num_classes=classes).log_q.exp()
    tolerance = 1e-12 if case.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(ours.double(), expected, rtol=10 * tolerance, atol=tolerance)


def results_on(z: Tensor, classes: ClassIndex, row_weights: Tensor) -> list[Tensor]:
    """What goes through every kernel: value and gradient, and those with weights of rows."""
    by_class = cmi_value_and_grad(z, classes, reduction="class", backend="cuda")
    by_row = value_and_gradient("cuda", z, classes, row_weights, reduction="none")
    return [*by_class, *by_row]


@every_case
def test_the_schedule_of_threads_changes_no_bit(emulate: Callable[..., None], case: Case) -> None:
    z = make_features(sum(case.unequal), case.channels, dtype=case.dtype)
    classes = ClassIndex(make_labels(case.unequal, 7), len(case.unequal))
    row_weights = make_features(1, len(z), seed=3)[0]
    emulate(case.chip, 0)
    expected = results_on(z, classes, row_weights)
    for seed in range(1, 8):
        emulate(case.chip, seed)
        results = results_on(z, classes, row_weights)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), seed


# One case for each kind, and several for classes.
WAYS = [
    Case("roomy", 6, 5, 600),
    Case("tiny", 5, 5, 200),
    Case("tiny", 3, 100, 256),
    Case("Ampere", 3, 60, 1024),
    Case("tiny", 3, 40, 2048, torch.bfloat16),
]
every_way = pytest.mark.parametrize("case", WAYS, ids=str)


@pytest.mark.parametrize("weighted", [False, True], ids=["one weight", "a weight for each row"])
@every_way
def test_a_class_of_one_row_is_exactly_zero(
    emulate: Callable[..., None], case: Case, weighted: bool
) -> None:
    emulate(case.chip)
    rows, channels = case.rows, case.channels
    labels = make_labels((rows, 1, rows))
    z = make_features(len(labels), channels, 10.0, case.dtype)
    options = {"reduction": "none" if weighted else "class"}
    grad_value = make_features(1, len(labels), seed=3)[0] if weighted else None
    value, gradient = value_and_gradient("cuda", z, labels, grad_value, **options)
    assert value[rows if weighted else 1] == 0
    assert not gradient[rows].any()
    assert gradient[0].any()


@every_way
def test_an_empty_class_is_zero_and_disturbs_no_other(
    emulate: Callable[..., None], case: Case
) -> None:
    emulate(case.chip)
    rows, channels = case.rows, case.channels
    z = make_features(2 * rows, channels, dtype=case.dtype)
    full = ClassIndex(make_labels((rows, rows)))
    gappy = ClassIndex(make_labels((0, rows, 0, 0, rows, 0)), 6)
    expected, expected_gradient = value_and_gradient("cuda", z, full, reduction="class")
    value, gradient = value_and_gradient("cuda", z, gappy, reduction="class")
    assert value[[0, 2, 3, 5]].tolist() == [0] * 4
    assert not class_centroids(z, gappy, backend="cuda")[[0, 2, 3, 5]].any()
    # Not to the bit: the plan need not be the same.
    torch.testing.assert_close(value[[1, 4]], expected, rtol=1e-6, atol=0)
    assert_gradient(gradient, expected_gradient.double(), case.dtype)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "-inf row"])
@pytest.mark.parametrize("shuffle_seed", [None, 8], ids=["sorted", "shuffled"])
@every_way
def test_a_bad_row_makes_its_class_nan_and_no_other(
    emulate: Callable[..., None], case: Case, shuffle_seed: int | None, bad: float
) -> None:
    emulate(case.chip)
    classes, rows, channels = case.classes, case.rows, case.channels
    labels = make_labels([rows] * classes, shuffle_seed)
    z = make_features(len(labels), channels, dtype=case.dtype)
    last = int((labels == 1).nonzero()[-1])
    z[last, slice(None) if bad == -math.inf else channels // 2] = bad
    value, gradient = value_and_gradient("cuda", z, labels, reduction="class")
    assert value.isnan().tolist() == [y == 1 for y in range(classes)]
    assert gradient[labels == 1].isnan().all()
    assert gradient[labels != 1].isfinite().all()


@every_way
def test_a_bad_row_against_given_centroids_is_nan_alone(
    emulate: Callable[..., None], case: Case
) -> None:
    emulate(case.chip)
    classes, rows, channels = case.classes, case.rows, case.channels
    z = make_features(classes * rows, channels, dtype=case.dtype)
    z[3, channels - 1] = math.nan
    options: dict[str, Any] = {"centroids": make_probabilities((classes, channels))}
    labels = make_labels([rows] * classes)
    value, gradient = value_and_gradient("cuda", z, labels, reduction="none", **options)
    assert value.isnan().nonzero().tolist() == [[3]]
    assert gradient.isnan().all(1).nonzero().tolist() == [[3]]
    assert gradient[torch.arange(len(z)) != 3].isfinite().all()


@every_way
def test_an_incoming_gradient_of_one_leaves_the_gradient_alone(
    emulate: Callable[..., None], case: Case
) -> None:
    from cmikernels.problem import Problem

    emulate(case.chip)
    classes, rows, channels = case.classes, case.rows, case.channels
    z = make_features((classes, rows), channels, dtype=case.dtype)
    problem = Problem(None, classes * rows, classes, None, 1.0, 1.0, "class")
    incoming = torch.ones(classes)
    incoming[1] = 2.0
    marked = torch.full_like(z, 7.0)
    assert operations.scale(cuda, marked, z, problem, incoming) is marked
    assert (marked[[0, 2]] == 7).all(), "it was made anew"
    assert torch.equal(marked[1], operations.backward(cuda, z, problem, incoming)[1])


# The door: workspace and errors.


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
        emulated.emulate(capability=75, largest_cluster=1)
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


@pytest.mark.parametrize(
    ("setting", "emulating"), [("1", True), ("yes", True), ("0", False), ("", False)]
)
def test_the_environment_asks_for_emulation(
    monkeypatch: pytest.MonkeyPatch, setting: str, emulating: bool
) -> None:
    monkeypatch.setenv("CMIKERNELS_EMULATE_CUDA", setting)
    assert cuda._emulating.__wrapped__() is emulating


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the kernels were not emulated but built, and torch and the GPU were such."""

    def pretend(
        *,
        native: str | None = "the native core",
        kernels: bool = True,
        runtime: int = 13_000,
        driver: int = 13_010,
        gpu: bool = True,
        hip: str | None = None,
        capabilities: tuple[tuple[int, int], ...] = ((9, 0),),
        architectures: str = "80-real 90",
    ) -> None:
        info = {"driver": driver, "runtime": runtime, "architectures": architectures}
        core = SimpleNamespace(cuda_info=lambda: info) if kernels else None
        monkeypatch.setattr(cuda, "_emulating", lambda: False)
        monkeypatch.setattr(cuda, "_gpu_obstacle", cuda._gpu_obstacle.__wrapped__)
        monkeypatch.setattr(cuda, "_core", lambda: core)
        monkeypatch.setattr(cuda, "native", native)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])

    return pretend


def test_nothing_stands_in_the_way_of_a_gpu(installation: Callable[..., None]) -> None:
    installation()
    assert cuda.obstacle("cuda") is None


@pytest.mark.parametrize(
    ("differences", "text"),
    [
        ({"native": None, "kernels": False}, "the native extension is not built ("),
        (
            {"kernels": False},
            "the native extension was built without CUDA kernels, because nvcc of CUDA 12.8",
        ),
        ({"hip": "6.0"}, "it computes on NVIDIA GPUs only"),
        ({"gpu": False}, "torch sees no GPU"),
        (
            {"driver": 12_080},
            "the kernels need a driver that knows CUDA 13.0, this one knows 12.8; update it",
        ),
        (
            {"runtime": 12_080, "driver": 12_020},
            "the kernels need a driver that knows CUDA 12.4, this one knows 12.2; update it",
        ),
        (
            {"architectures": "90", "capabilities": ((8, 0),)},
            "the kernels were built for 90, this GPU has compute capability 8.0; build them for it "
            "with CUDAARCHS=80",
        ),
        (
            {"capabilities": ((7, 0), (7, 5))},
            "compute capability 8.0 (Ampere) or newer is needed, this GPU has 7.5",
        ),
    ],
    ids=[
        "no native core",
        "no kernels",
        "AMD",
        "no GPU",
        "old driver",
        "driver of 12.2",
        "no code for it",
        "old GPU",
    ],
)
def test_what_stands_in_the_way_is_said(
    installation: Callable[..., None], differences: dict[str, Any], text: str
) -> None:
    installation(**differences)
    found = cuda.obstacle("cuda")
    assert found is not None
    assert found.startswith(text)


def test_a_forked_process_is_told_what_torch_says(
    installation: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    installation()
    monkeypatch.setattr(torch.cuda, "get_device_capability", refuse)
    assert cuda.obstacle("cuda") == "Cannot re-initialize CUDA in forked subprocess"


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("80-real", 80, True),
        ("80-real", 86, True),
        ("80-real", 90, False),
        ("86-real", 80, False),
        ("80-real 90", 110, True),
        ("90-virtual", 90, True),
        ("90-virtual", 80, False),
        ("120", 90, False),
        ("native", 90, True),
    ],
)
def test_code_serves_its_own_family_and_ptx_all_that_are_newer(
    architectures: str, capability: int, runs: bool
) -> None:
    assert cuda._has_code(architectures, capability) is runs


def test_one_gpu_of_several_is_enough(installation: Callable[..., None]) -> None:
    installation(capabilities=((7, 5), (9, 0)))
    assert cuda.obstacle("cuda") is None


def test_a_newer_minor_version_than_the_drivers_will_do(
    installation: Callable[..., None],
) -> None:
    installation(runtime=13_010, driver=13_000)
    assert cuda.obstacle("cuda") is None


def test_other_devices_are_refused(installation: Callable[..., None]) -> None:
    installation()
    assert cuda.obstacle("mps") == "it computes on NVIDIA GPUs only"
    on_cpu = "it computes on GPUs (and for tests on the CPU, under CMIKERNELS_EMULATE_CUDA=1)"
    assert cuda.obstacle("cpu") == on_cpu


def test_emulation_needs_a_build_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_core", lambda: None)
    expected = "the native extension was built without the emulated kernels"
    assert cuda.obstacle("cpu") == expected
