"""Threads that call at once, and processes forked after use."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from tests.support.compare import assert_gradient, assert_value, value_and_gradient
from tests.support.oracle import Oracle
from tests.support.tables import FUSED, INTERPRETED, make_features, make_labels

CALLS = [((40, 3, 70), 300), ((2,) * 50, 33), ((500,), 64), ((5, 5, 5), 1025)]
ROUNDS = 40


def test_threads_that_call_at_once_get_their_own_answers(backend: str) -> None:
    if backend in INTERPRETED:
        pytest.skip("Triton's interpreter keeps the program's number in a global of all threads")
    inputs = [
        (make_features(sum(sizes), channels, seed=i), make_labels(sizes, shuffle_seed=i))
        for i, (sizes, channels) in enumerate(CALLS)
    ]
    barrier = threading.Barrier(len(inputs), timeout=240)  # the first round may compile
    answers: list[list[tuple[Tensor, Tensor]]] = [[] for _ in inputs]
    failures: list[BaseException] = []

    def call_again_and_again(mine: int) -> None:
        try:
            for _ in range(ROUNDS):
                barrier.wait()
                answers[mine].append(value_and_gradient(backend, *inputs[mine]))
        except BaseException as failure:
            barrier.abort()
            failures.append(failure)

    threads = [threading.Thread(target=call_again_and_again, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    assert not failures
    for (features, labels), mine in zip(inputs, answers, strict=True):
        oracle = Oracle(features, labels)
        for value, gradient in mine:
            assert_value(value, oracle.value, features.dtype)
            assert torch.equal(value, mine[0][0])
            assert torch.equal(gradient, mine[0][1])
        assert_gradient(mine[0][1], oracle.gradient(), features.dtype)


# The parent uses the op, and so whatever threads it has, then forks; both go on using it.
FORK = """
import os, signal, sys, time, warnings
import torch
from cmikernels import cmi_value_and_grad

warnings.simplefilter("ignore")  # Python 3.12 and later warn of any fork with threads about
torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(0)
features, labels = torch.randn(2000, 512), torch.arange(2000) % 3
call = lambda: cmi_value_and_grad(features, labels, backend=sys.argv[1])
if sys.argv[3] != "unused":
    features.exp()  # torch's own threads
if sys.argv[3] == "used":
    expected = call()

def same(ours, theirs):  # without torch's threads, which need not survive a fork
    return all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(ours, theirs))

if sys.argv[3] != "used":
    child = os.fork()
    if child == 0:
        value, gradient = call()
        os._exit(0 if value.item() > 0 and gradient.numpy().any() else 3)
    expected = call()
else:
    child = os.fork()
    if child == 0:
        os._exit(0 if all(same(call(), expected) for _ in range(5)) else 3)
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.01)
else:
    os.kill(child, signal.SIGKILL)
    sys.exit("the child hangs")
assert os.waitstatus_to_exitcode(status) == 0, f"the child: {os.waitstatus_to_exitcode(status)}"
assert same(call(), expected), "the parent, afterwards"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("before", ["used", "unused", "torch alone used"])
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("fused", [name for name in FUSED if name == "cpu"])
def test_a_forked_process_computes(fused: str, threads: int, before: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", FORK, fused, str(threads), before],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
