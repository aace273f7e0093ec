"""Fixtures and hypothesis profiles shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.tables import BACKENDS, DEVICE_OF, INTERPRETED

_ANY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", _ANY, max_examples=100, derandomize=True)
settings.register_profile("quick", _ANY, max_examples=10, derandomize=True)
settings.register_profile("thorough", _ANY, max_examples=2000)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
settings.load_profile(PROFILE)
EXAMPLES, FINITE_INPUTS = {"quick": (10, 40), "thorough": (2000, 100_000)}.get(PROFILE, (100, 400))


def examples(backend: str, most: int = EXAMPLES) -> settings:
    """Settings of a hypothesis test: fewer examples of a backend that takes long for each.

    An interpreted one takes long for every call; a compiled one for the first of its kind, and of a
    hundred calls that hypothesis makes up hardly two are of a kind.
    """
    if backend in INTERPRETED and PROFILE == "thorough":
        most //= 100
    elif backend in INTERPRETED or (DEVICE_OF[backend] == "cuda" and PROFILE == "default"):
        most //= 5
    return settings(max_examples=most)


# How many finite inputs test_finite.py has put through each backend, for the summary.
INPUTS_CHECKED: pytest.StashKey[dict[str, int]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[INPUTS_CHECKED] = {}
    if "triton" in INTERPRETED and "triton" in BACKENDS:
        round_to_bfloat16_as_gpus_do()
        patch_the_language_once_a_launch()
        # As pyproject.toml has it for the interpreter's own lines: numpy warns in its place here.
        config.addinivalue_line("filterwarnings", "ignore:overflow encountered in reduce")


def round_to_bfloat16_as_gpus_do() -> None:
    """Repair Triton's interpreter, which cuts off where every GPU rounds to nearest."""
    import triton.language as tl
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def cast_or_round(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
            return cast(self, source, to)
        rounded = torch.from_numpy(source.data).to(torch.bfloat16)
        return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), to.scalar)

    interpreter.InterpreterBuilder.cast_impl = cast_or_round


def patch_the_language_once_a_launch() -> None:
    """Save Triton's interpreter work that it repeats: 40 % of what the tests of kernels took.

    It replaces the language's functions by its own when a kernel is launched, and once more, though
    they are replaced already, whenever the kernel calls a function.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):  # another version, which patches in another way
        return
    patch = interpreter._patch_lang

    def patch_what_is_not(function: Any) -> Any:
        modules = [each for each in function.__globals__.values() if each is tl or each is tl.core]
        if modules and not any(tl.core.is_builtin(module.load) for module in modules):
            return interpreter._LangPatchScope()  # of no changes
        return patch(function)

    interpreter._patch_lang = patch_what_is_not


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for backend, count in config.stash[INPUTS_CHECKED].items():
        terminalreporter.write_line(f"{backend}: no NaN or Inf in {count} finite inputs")


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every backend that can run here, in turn."""
    name: str = request.param
    return name


@pytest.fixture
def nan_filled_empty() -> Iterator[None]:
    """torch.empty and its kin give NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """The number of torch threads as it was, after a test that sets it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
