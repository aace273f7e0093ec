"""One shape, dtype and set of modes measured: a row for each contender and mode.

A row holds the time of a call from Python and what follows from it; on a GPU the same again with
`replay_` before the name, for the call replayed from a CUDA graph. Ours are in the race once more
for every further spread of the features, because a small KL takes a longer form of the value. Rows
of the CUDA C++ backend hold its plan besides (`plan_kind`, ...), and what `model.py` expects of the
replayed call (`predicted_seconds`), given the copy and the launch of the same race.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from tqdm import tqdm

from bench.gpu.chips import chip_here
from bench.gpu.model import form_of, machine_here, plan_of, plan_row, predict
from bench.gpu.replay import LAUNCH, launch_floor, replay_race
from bench.harness.memory import extra_bytes, gpu_peak_extra_bytes
from bench.harness.processes import apart
from bench.harness.providers import PROVIDERS, contend, make_losses
from bench.harness.race import (
    COPY,
    EXP,
    FRESH_COPY,
    FRESH_EXP,
    Timing,
    floors,
    four_digits,
    race,
    random_features,
)
from bench.harness.records import Row
from bench.harness.shapes import Shape
from cmikernels.backends import choose_backend

PASSES = {"value": 1, "value+gradient": 2}  # over the features, of a mode; a copy has two


def measure(
    shape: Shape,
    dtype: str,
    modes: Iterable[str],
    providers: list[str],
    device: str,
    budget: float,
    memory: bool,
    spreads: Sequence[float] = (),
) -> list[Row]:
    """Race the providers in each mode, and measure the peak memory of value+gradient.

    Features are standard normal, and those of ours also of the further `spreads`.
    """
    torch_dtype: torch.dtype = getattr(torch, dtype)
    inputs = {each: random_features(shape, torch_dtype, device, each) for each in (1.0, *spreads)}
    normal = inputs[1.0]
    on_gpu, size = normal[0].device.type == "cuda", normal[0].nbytes
    losses = make_losses(providers, normal[0], None, tqdm.write)
    entries = {
        _entry(name, spread): (name, spread)
        for spread in inputs
        for name in losses
        if spread == 1 or PROVIDERS[name].ours
    }
    rows = []
    for mode in modes:
        contenders = {
            entry: contend(losses[name], mode, inputs[spread])
            for entry, (name, spread) in entries.items()
        }
        contenders |= floors(normal)
        if on_gpu:
            contenders[LAUNCH] = launch_floor(device)
        times = race(contenders, budget=budget, device=device)
        replays = replay_race(contenders, times, len(normal), budget) if on_gpu else {}
        by_cuda = [name for name in losses if on_gpu and _served_by_cuda(name)]
        for entry, time in times.items():
            name, spread = entries.get(entry, (entry, 1.0))
            row: Row = {"shape": str(shape), **shape._asdict(), "dtype": dtype, "mode": mode}
            row |= {"contender": name, "spread": spread}
            row |= time.figures() | relations(name, times, size, mode, spread)
            if entry in replays:
                replayed = replays[entry].figures() | relations(name, replays, size, mode, spread)
                row |= {f"replay_{key}": value for key, value in replayed.items()}
            if name in by_cuda:
                chip = chip_here(normal[0].device.index or 0)
                row |= plan_row(plan_of(shape, torch_dtype, chip), chip)
                row |= prediction(shape, torch_dtype, mode, replays, device, spread)
            if on_gpu:
                row["one_tile"] = shape.fits_a_tile
            if memory and entry in losses and mode == "value+gradient":
                row["peak_extra_bytes"] = (
                    gpu_peak_extra_bytes(contenders[entry])
                    if on_gpu
                    else apart(_peak_extra_bytes, name, shape, dtype)
                )
            rows.append(row)
    return rows


def _entry(name: str, spread: float) -> str:
    """What a contender is called in the race: by its name alone with standard normal features."""
    return name if spread == 1 else f"{name}, spread {spread:g}"


def _peak_extra_bytes(provider: str, shape: Shape, dtype: str) -> int:
    """What value and gradient take beyond the features, on the CPU in a fresh process."""
    loss = PROVIDERS[provider].make()
    features = torch.randn(shape).to(getattr(torch, dtype)).requires_grad_()

    def call() -> None:
        loss(features, None).backward()  # type: ignore[no-untyped-call]

    def first() -> None:
        call()
        features.grad = None

    return extra_bytes(first, call)


def _served_by_cuda(provider: str) -> bool:
    """Whether its calls on a GPU go to the CUDA C++ backend."""
    found = PROVIDERS[provider]
    return found.ours and choose_backend(found.backend, "cuda").NAME == "cuda"


def prediction(
    shape: Shape,
    dtype: torch.dtype,
    mode: str,
    replays: Mapping[str, Timing],
    device: str,
    spread: float = 1.0,
) -> Row:
    """What the replayed call should take on this machine; nothing where that cannot be said."""
    if dtype.itemsize > 4 or not {COPY, LAUNCH} <= replays.keys():
        return {}
    launch, copy = replays[LAUNCH].median, replays[COPY].median
    # The copy's launch is no part of its rate; but of a small copy little is left without.
    rate = 2 * shape.elements * dtype.itemsize / max(copy - launch, copy / 2)
    machine = machine_here(rate, launch, torch.device(device).index or 0)
    found = predict(shape, dtype, mode, machine, form_of(shape, spread))
    return {"predicted_seconds": four_digits(found.seconds), "predicted_limit": found.limit}


def relations(
    name: str, times: Mapping[str, Timing], feature_bytes: int, mode: str, spread: float = 1.0
) -> dict[str, float]:
    """Its time against the others' in the same race, whose features are standard normal."""
    seconds = {other: time.median for other, time in times.items()}
    mine = seconds[_entry(name, spread)]
    found = {"over_exp": mine / seconds[FRESH_EXP], "over_exp_out": mine / seconds[EXP]}
    if spread != 1:
        found["over_normal"] = mine / seconds[name]
    for other in times:
        if other in PROVIDERS and other != "cmikernels":
            found[f"speedup_over_{other}"] = seconds[other] / mine
    moved = 2 if name in (COPY, FRESH_COPY) else PASSES[mode] if name in PROVIDERS else None
    if moved is not None:
        found["gb_per_s"] = moved * feature_bytes / mine / 1e9
        found["of_copy"] = moved / 2 * seconds[COPY] / mine
    return {key: four_digits(value) for key, value in found.items()}
