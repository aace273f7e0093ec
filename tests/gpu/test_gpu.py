"""What only a GPU can show: graphs, streams, waits, launches, memory, and sizes beyond 32 bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from cmikernels import ClassIndex, class_centroids, cmi_value_and_grad, fused_cmi
from cmikernels.backends import choose_backend
from tests.support.compare import assert_gradient, assert_value
from tests.support.oracle import Oracle
from tests.support.tables import (
    BACKENDS,
    DEVICE_OF,
    DTYPES,
    FUSED,
    GPU,
    HALF,
    REDUCTIONS,
    make_features,
    make_labels,
    make_probabilities,
)

if not GPU:
    pytest.skip("needs a GPU that torch.cuda can use", allow_module_level=True)

# Classes, rows of each, channels: what fits a program, what does not, and what needs several.
SHAPES = {
    "small classes": (10, 10, 512),
    "larger classes": (10, 50, 512),
    "few large classes": (3, 3000, 512),
    "wide rows": (4, 5, 20_000),
}
HOW = ["grouped", "index"]


@pytest.fixture(params=[name for name in FUSED if DEVICE_OF[name] == "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Of the fused backends those on the GPU."""
    name: str = request.param
    return name


@pytest.fixture(params=SHAPES)
def call(request: pytest.FixtureRequest, how: str) -> tuple[Tensor, ClassIndex | None]:
    """Features on the GPU, a leaf, and their classes: of equal sizes, or ragged and shuffled."""
    return make_call(SHAPES[request.param], how)


def make_call(
    shape: tuple[int, int, int], how: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ClassIndex | None]:
    classes, rows, channels = shape
    if how == "grouped":
        return make_features((classes, rows), channels, dtype=dtype).cuda().requires_grad_(), None
    labels = make_labels([rows - y % 3 for y in range(classes)], shuffle_seed=0)
    z = make_features(len(labels), channels, dtype=dtype).cuda().requires_grad_()
    return z, ClassIndex(labels.cuda(), classes)


def value_and_gradient(
    backend: str,
    z: Tensor,
    classes: ClassIndex | None,
    grad_value: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Through autograd, all of it on the GPU; no graph is kept."""
    value = fused_cmi(z, classes, backend=backend, **options)
    (gradient,) = torch.autograd.grad(value, z, grad_value)
    return value.detach(), gradient


def needs_memory(needed: int) -> None:
    """Skip where the GPU has less to give."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory, has {free / 2**30:.0f}")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("how", HOW)
def test_a_captured_graph_replays_the_eager_bits(
    backend: str, call: tuple[Tensor, ClassIndex | None], reduction: str
) -> None:
    z, classes = call
    options: dict[str, Any] = {"reduction": reduction, "weight": 3.0}
    size = () if reduction == "mean" else z.shape[:-1]
    grad_value = torch.ones(size, device="cuda")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            value_and_gradient(backend, z, classes, grad_value, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_gradient(backend, z, classes, grad_value, **options)
    for seed, incoming in ((1, 1.0), (2, 2.5), (3, 1.0)):
        fresh = make_features(z.shape[:-1], z.shape[-1], seed=seed)
        with torch.no_grad():
            z.copy_(fresh)
        grad_value.fill_(incoming)
        graph.replay()
        eager = value_and_gradient(
            backend, fresh.cuda().requires_grad_(), classes, grad_value, **options
        )
        assert torch.equal(captured[0], eager[0])
        assert torch.equal(captured[1], eager[1])


A_SECOND = 2_000_000_000  # in cycles


def warm_stream(backend: str, z: Tensor, classes: ClassIndex | None) -> torch.cuda.Stream:
    """A stream with the call's kernels loaded and memory for its results in the allocator."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        value_and_gradient(backend, z, classes)
    torch.cuda.synchronize()
    return stream


@pytest.mark.parametrize("how", HOW)
def test_a_call_comes_after_what_its_stream_has_queued(
    backend: str, call: tuple[Tensor, ClassIndex | None]
) -> None:
    z, classes = call
    stream = warm_stream(backend, z, classes)
    late = torch.zeros_like(z).requires_grad_()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(A_SECOND)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            late.copy_(z)
        value, gradient = value_and_gradient(backend, late, classes)
        done = stream.record_event()
    assert not done.query(), "the call took as long as the sleep: nothing is shown of its order"
    torch.cuda.synchronize()
    expected = value_and_gradient(backend, z, classes)
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1])


@pytest.mark.parametrize("how", HOW)
def test_a_call_on_a_side_stream_does_not_wait_for_the_default_stream(
    backend: str, call: tuple[Tensor, ClassIndex | None]
) -> None:
    z, classes = call
    stream = warm_stream(backend, z, classes)
    torch.cuda._sleep(A_SECOND)  # type: ignore[no-untyped-call]
    blocked = torch.cuda.current_stream().record_event()
    with torch.cuda.stream(stream):
        value_and_gradient(backend, z, classes)
    stream.synchronize()
    assert not blocked.query()


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[], None]]:
    """A function from whose call on torch refuses to wait for the GPU."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("incoming", [1.0, -2.5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("how", HOW)
def test_nothing_waits_for_the_gpu(
    backend: str,
    call: tuple[Tensor, ClassIndex | None],
    reduction: str,
    incoming: float,
    waiting_is_an_error: Callable[[], None],
) -> None:
    z, classes = call
    value = fused_cmi(z, classes, reduction=reduction, backend=backend)
    grad_value = torch.full_like(value, incoming)
    waiting_is_an_error()
    value_and_gradient(backend, z, classes, grad_value, reduction=reduction)
    fused_cmi(z.detach(), classes, reduction=reduction, backend=backend)
    cmi_value_and_grad(z, classes, reduction=reduction, backend=backend)
    class_centroids(z.detach(), classes, backend=backend)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("how", HOW)
def test_given_centroids_do_not_wait_for_the_gpu_either(
    backend: str,
    call: tuple[Tensor, ClassIndex | None],
    waiting_is_an_error: Callable[[], None],
) -> None:
    z, classes = call
    centroids = class_centroids(z.detach(), classes, backend=backend)
    waiting_is_an_error()
    value_and_gradient(backend, z, classes, centroids=centroids)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_waiting_for_the_gpu_would_be_noticed(waiting_is_an_error: Callable[[], None]) -> None:
    """What the tests above rely on."""
    number = torch.ones((), device="cuda")
    waiting_is_an_error()
    with pytest.raises(RuntimeError, match="synchronizing"):
        number.item()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("current", "other"), [(0, 1), (1, 0)])
def test_another_gpu_than_the_current_one(
    backend: str, call: tuple[Tensor, ClassIndex | None], current: int, other: int
) -> None:
    z, classes = call
    expected = value_and_gradient(backend, z, classes)
    there = z.detach().to(f"cuda:{other}").requires_grad_()
    classes_there = None if classes is None else classes.to(there.device)
    with torch.cuda.device(current):
        value, gradient = value_and_gradient(backend, there, classes_there)
        assert torch.cuda.current_device() == current
    assert value.device == gradient.device == there.device
    torch.testing.assert_close(value.to(z.device), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.to(z.device), expected[1])


def kernels_of(call: Callable[[], object], trace: Path) -> list[str]:
    """Names of the kernels that a call launches; copies and fills by the driver are none."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "kernel"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shape", [(10, 10, 512), (100, 10, 512), (10, 50, 512)], ids=str)
def test_forward_and_backward_of_a_small_call_are_three_launches(
    backend: str, shape: tuple[int, int, int], how: str, tmp_path: Path
) -> None:
    z, classes = make_call(shape, how)

    def step() -> None:
        z.grad = None
        torch.autograd.backward(fused_cmi(z, classes, backend=backend))

    step()
    kernels_of(step, tmp_path / "first.json")  # a profiler just started may see nothing
    kernels = kernels_of(step, tmp_path / "second.json")
    if not kernels:
        pytest.skip("the profiler sees no kernels on this machine")
    # torch itself fills the gradient that the loss starts with, by a kernel of that name.
    ours = [name for name in kernels if "FillFunctor" not in name]
    assert 1 <= len(ours) <= 3, ours


def by_formula(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean and its gradient in float64, for more rows and classes than the oracle's loop is for."""
    log_p = features.detach().double().log_softmax(1)
    p = log_p.exp()
    sums = p.new_zeros(classes, p.shape[1]).index_add(0, labels, p)
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    d = log_p - (sums / counts[:, None]).log()[labels]
    kl = (p * d).sum(1, keepdim=True)
    return kl.mean(), p * (d - kl) / len(features)


CROWDS: dict[str, tuple[Sequence[int], int]] = {
    "classes beyond a 16-bit grid axis": ([y % 4 for y in range(70_000)], 16),
    "one large among 70,000 tiny": ([100_000] + [1 + y % 3 for y in range(70_000)], 16),
    "two million rows in a class": ([2_000_000], 16),
    "rows wider than any tile": ((3, 1, 0, 5), 100_000),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CROWDS)
def test_crowds(backend: str, name: str, dtype: torch.dtype) -> None:
    sizes, channels = CROWDS[name]
    labels = make_labels(sizes, shuffle_seed=0).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    z = torch.randn(len(labels), channels, generator=generator, device="cuda").to(dtype)
    z.requires_grad_()
    value, gradient = value_and_gradient(backend, z, ClassIndex(labels, len(sizes)))
    expected = by_formula(z, labels, len(sizes))
    assert_value(value, expected[0], dtype)
    assert_gradient(gradient, expected[1], dtype)


# Classes, how often a block of rows stands in each, its rows, channels.
ENORMOUS = {
    "small classes": (2**21 + 64, 1, 16, 64),
    "larger classes": (2**14 + 32, 1, 64, 2048),
    "few large classes": (8, 8193, 64, 512),
    "wide rows": (16, 340, 4, 100_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ENORMOUS)
def test_more_than_2_to_the_31_elements_in_every_shape(backend: str, name: str, how: str) -> None:
    """Every class is one block of rows repeated, so that the block's own answer is expected."""
    classes, repeats, rows, channels = ENORMOUS[name]
    elements = classes * repeats * rows * channels
    assert elements > 2**31
    needs_memory(2 * 2 * elements + 2**31)
    block = make_features(rows, channels, dtype=torch.bfloat16)
    shape = (classes, repeats * rows, channels)
    z = block.cuda().repeat(repeats, 1).expand(shape).contiguous()
    index = None
    if how == "index":
        index = ClassIndex(torch.arange(classes, device="cuda").repeat_interleave(repeats * rows))
        z = z.view(-1, channels)
    value, gradient = cmi_value_and_grad(z, index, reduction="class", backend=backend)
    oracle = Oracle(block, torch.zeros(rows, dtype=torch.int64))
    answers = gradient.view(classes, repeats, rows, channels)
    for y in (0, classes // 2, classes - 1):
        assert_value(value[y], oracle.value.cuda(), torch.bfloat16)
        for repeat in (0, repeats - 1):
            expected = (oracle.gradient() / repeats).cuda()
            assert_gradient(answers[y, repeat], expected, torch.bfloat16)
    assert (value == value[0]).all()
    for y in range(0, classes, max(1, classes // 256)):
        assert torch.equal(answers[y], answers[:1, :1].expand_as(answers[y : y + 1])[0])


FAR = 2**31 + 16
STRIDES = {
    "rows far apart": ((4, 64), (FAR, 1)),
    "columns far apart": ((4, 2), (1, FAR)),
    "first and last column far apart": ((4, 8), (1, FAR // 6)),
}


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("name", STRIDES)
def test_strides_beyond_32_bits(backend: str, name: str, shuffled: bool) -> None:
    shape, strides = STRIDES[name]
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    assert last > 2**31
    needs_memory(2 * last + 2**30)
    rows = make_features(*shape, dtype=torch.bfloat16)
    z = torch.empty(last + 1, dtype=torch.bfloat16, device="cuda").as_strided(shape, strides)
    z.copy_(rows)
    labels = torch.tensor([0, 1, 0, 1] if shuffled else [0, 0, 1, 1])
    value, gradient = value_and_gradient(
        backend, z.detach().requires_grad_(), ClassIndex(labels.cuda())
    )
    oracle = Oracle(rows, labels)
    assert_value(value.cpu(), oracle.value, rows.dtype)
    assert_gradient(gradient.cpu(), oracle.gradient(), rows.dtype)


CLASSES, ROWS_PER_CLASS, CHANNELS = 200, 50, 1024
CALLS: dict[str, Callable[[str, Tensor, Tensor], object]] = {
    "value": lambda backend, z, _: fused_cmi(z.detach(), backend=backend),
    "value and gradient": lambda backend, z, _: cmi_value_and_grad(z, backend=backend),
    "labels": lambda backend, z, labels: cmi_value_and_grad(
        z.flatten(0, 1), labels, backend=backend
    ),
    "autograd": lambda backend, z, _: value_and_gradient(
        backend, z, None, torch.full((), 2.0, device="cuda"), weight=3.0
    ),
    "row weights": lambda backend, z, _: value_and_gradient(
        backend, z, None, torch.rand(z.shape[:-1], device="cuda"), reduction="none"
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_extra_memory_is_the_gradient_and_little_more(backend: str, name: str) -> None:
    z = torch.randn(CLASSES, ROWS_PER_CLASS, CHANNELS, device="cuda").requires_grad_()
    labels = torch.arange(CLASSES, device="cuda").repeat(ROWS_PER_CLASS)
    CALLS[name](backend, z, labels)  # whatever is loaded at first use
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = CALLS[name](backend, z, labels)
    extra = torch.cuda.max_memory_allocated() - before
    assert kept is not None
    rows = CLASSES * ROWS_PER_CLASS
    gradient = 0 if name == "value" else 4 * rows * CHANNELS
    # Class sums and row statistics, twice over, and what an allocator rounds up to.
    beside = 2 * 4 * (CLASSES * CHANNELS + 4 * rows) + 4 * 2**20
    assert gradient <= extra <= gradient + beside


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("how", HOW)
def test_compiled_by_inductor_equals_eager(backend: str, how: str, mode: str) -> None:
    z, classes = make_call(SHAPES["small classes"], how)

    def loss(x: Tensor) -> Tensor:
        return 2 * fused_cmi(x * 3, classes, backend=backend) + x.square().mean()

    fast = torch.compile(loss, fullgraph=True, mode=mode)
    for seed in range(4):  # with CUDA graphs: run, recorded, replayed
        x = make_features(z.shape[:-1], z.shape[-1], seed=seed).cuda().requires_grad_()
        eager = loss(x)
        (expected,) = torch.autograd.grad(eager, x)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        value = fast(x)
        (gradient,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(value, eager)
        torch.testing.assert_close(gradient, expected)


def train(backend: str, dtype: torch.dtype, scaler: torch.amp.GradScaler) -> list[float]:
    """The loss at each step of a small network under autocast."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 128)).cuda()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    images, labels = make_features(60, 32).cuda(), make_labels((20, 13, 27), shuffle_seed=0).cuda()
    losses = []
    for _ in range(30):
        with torch.autocast("cuda", dtype=dtype):
            features = network(images)
            loss = fused_cmi(features, labels, weight=10.0, backend=backend)
        assert features.dtype == dtype
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def test_a_bfloat16_network_trains_under_autocast(backend: str) -> None:
    losses = train(backend, torch.bfloat16, torch.amp.GradScaler("cuda", enabled=False))
    assert 0 < losses[-1] < losses[0] / 2


def test_a_float16_network_trains_with_a_grad_scaler(backend: str) -> None:
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12)
    losses = train(backend, torch.float16, scaler)
    assert 0 < losses[-1] < losses[0] / 2
    assert scaler.get_scale() == 2.0**12, "a step was skipped for an Inf that need not be"


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("how", HOW)
def test_the_reference_serves_the_gpu_too(
    how: str, dtype: torch.dtype, call: tuple[Tensor, ClassIndex | None]
) -> None:
    z, classes = call
    z = z.detach().to(dtype).requires_grad_()
    value, gradient = value_and_gradient("reference", z, classes)
    there = None if classes is None else classes.to("cpu")
    expected = value_and_gradient("reference", z.detach().cpu().requires_grad_(), there)
    torch.testing.assert_close(value.cpu(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.cpu(), expected[1])


def test_the_first_backend_of_the_gpu_serves_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMIKERNELS_BACKEND", raising=False)
    fastest = next(name for name in BACKENDS if DEVICE_OF[name] == "cuda")
    assert fastest == choose_backend(None, "cuda").NAME
    features = make_features((3, 4), 5).cuda()
    assert torch.equal(fused_cmi(features), fused_cmi(features, backend=fastest))


def test_the_environment_overrides_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMIKERNELS_BACKEND", "reference")
    assert choose_backend(None, "cuda").NAME == "reference"
    features = make_features((3, 4), 5).cuda()
    assert torch.equal(fused_cmi(features), fused_cmi(features, backend="reference"))


def test_a_backend_of_the_gpu_refuses_tensors_elsewhere(backend: str) -> None:
    with pytest.raises(ValueError, match=f"backend: '{backend}' cannot run on .* device cpu"):
        fused_cmi(make_features((3, 4), 5), backend=backend)


def test_the_cpu_backend_refuses_tensors_on_the_gpu() -> None:
    with pytest.raises(ValueError, match=r"backend: 'cpu' cannot run on .* device cuda"):
        fused_cmi(make_features((3, 4), 5).cuda(), backend="cpu")


@pytest.mark.parametrize("function", [fused_cmi, cmi_value_and_grad, class_centroids])
def test_classes_on_another_device_are_refused(function: Callable[..., Any]) -> None:
    features, labels = make_features(4, 5).cuda(), torch.tensor([0, 1, 1, 0])
    for classes in (labels, ClassIndex(labels)):
        with pytest.raises(ValueError, match=r"classes: .*features' device cuda:0, got cpu"):
            function(features, classes)


@pytest.mark.parametrize("function", [fused_cmi, cmi_value_and_grad])
def test_centroids_on_another_device_are_refused(function: Callable[..., Any]) -> None:
    centroids = make_probabilities((3, 5))
    with pytest.raises(ValueError, match=r"centroids: .*features' device cuda:0, got cpu"):
        function(make_features((3, 4), 5).cuda(), centroids=centroids)
