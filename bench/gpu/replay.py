"""The race without Python: every contender's calls captured in a CUDA graph, and the graphs timed.

A call from Python and its launches cost tens of microseconds, which is all there is to see of a
small problem and still a tenth of a large one. Replayed, a call takes what the device takes. Each
graph holds many calls, which go round all inputs, so that nothing is found in the L2 cache because
the call before left it there.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping

import torch
from tqdm import tqdm

from bench.harness.race import Contender, Timing, race

GRAPH_SECONDS = 3e-3  # of work in a graph at least: its own launch, some 10 us, must not count
MOST_CALLS = 512
LAUNCH = "one launch"


def launch_floor(device: torch.device | str) -> Contender:
    """Give what launching alone costs: a kernel that writes four bytes."""
    single = torch.empty(1, device=device)
    return Contender(lambda _: single.fill_(1.0))


def replay_race(
    contenders: Mapping[str, Contender],
    called: Mapping[str, Timing],
    inputs: int,
    budget: float,
) -> dict[str, Timing]:
    """Race the graphs of these contenders; `called` are their times from Python.

    One that cannot be captured, because it waits for the device, is left out and reported. Not for
    contenders whose `prepare` computes something: that is captured with the call.
    """
    graphs: dict[str, Contender] = {}
    calls: dict[str, int] = {}
    for name, contender in contenders.items():
        wanted = max(inputs, math.ceil(GRAPH_SECONDS / called[name].median))
        calls[name] = min(wanted, max(inputs, MOST_CALLS))
        try:
            graphs[name] = _replayed(contender, calls[name])
        except RuntimeError as error:
            tqdm.write(f"{name} not replayed: {str(error).splitlines()[0]}")
    times = race(graphs, budget=budget, device="cuda")
    return {name: time / calls[name] for name, time in times.items()}


def _replayed(contender: Contender, calls: int) -> Contender:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is set up once for each stream, before the capture
        contender.run(contender.prepare())
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()  # a tensor freed by chance while capturing would end the capture
    try:
        # The outer block gives the old stream back where a failing capture does not.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, stream=stream):
            for _ in range(calls):
                contender.run(contender.prepare())
    finally:
        gc.enable()
    return Contender(lambda _: graph.replay())
