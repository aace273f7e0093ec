"""Registers, stack, barriers and shared memory of every CUDA kernel, as ptxas reports them.

python -m bench.cuda_resources
python -m bench.cuda_resources --targets 90 --json out/cuda_resources.json

Needs nvcc but no GPU. Types of features, targets and flags are read from CMakeLists.txt, so that
what is looked at is what is built. A spilled register shows as stack.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench.records import table
from bench.resources import conclude

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc" / "cuda" / "kernels.cu"

# The plan has 512 threads on a multiprocessor, in up to 16 blocks. They share its 65536 registers
# and, from Hopper on, its barriers (24 of them on an RTX 50); shared memory is all dynamic.
REGISTERS, BARRIERS = 65536 // 512, 1


class Build(NamedTuple):
    """What CMakeLists.txt says about the kernels."""

    features: tuple[str, ...]
    targets: tuple[int, ...]  # compute capabilities
    flags: tuple[str, ...]


class Variant(NamedTuple):
    """What one compiled kernel takes."""

    target: int
    features: str
    kernel: str
    registers: int  # a thread's
    stack_bytes: int  # a thread's, with those of the functions it calls
    spill_bytes: int  # written and read, likewise
    barriers: int  # a block's
    shared_bytes: int  # a block's, before what a launch adds


def read_build(cmake: str) -> Build:
    """Types of features, targets and flags out of the CMake file's text."""
    features = _only(r"set\(feature_types ([^)]*)\)", cmake).split()
    architectures = _only(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]*)\)", cmake).split()
    standard = _only(r"set\(CMAKE_CUDA_STANDARD (\d+)\)", cmake)
    options = _only(r"\$<\$<COMPILE_LANGUAGE:CUDA>:([^>]*)>", cmake).split()
    targets = tuple(int(each.partition("-")[0]) for each in architectures)
    # -O3 -DNDEBUG is what CMake's build type Release stands for, of host code alone.
    return Build(tuple(features), targets, (f"-std=c++{standard}", "-O3", "-DNDEBUG", *options))


def _only(pattern: str, text: str) -> str:
    """Give the group of the pattern, which must be there once."""
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise RuntimeError(f"CMakeLists.txt: expected {pattern!r} once, got {len(found)} times")
    return str(found[0])


def compile_one(nvcc: str, features: str, target: int, flags: Sequence[str]) -> list[Variant]:
    """Compile the kernels of one type of features for one target."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc,
            *flags,
            "-Xptxas=-v",
            f"-I{ROOT / 'csrc' / 'include'}",
            f"-DCMIK_FEATURES={features}",
            f"-gencode=arch=compute_{target},code=sm_{target}",
            "-cubin",
            f"-o={folder}/kernels.cubin",
            str(SOURCE),
        ]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{finished.stdout}{finished.stderr}")
    return list(read_report(finished.stdout + finished.stderr, features))


def read_report(report: str, features: str) -> Iterator[Variant]:
    """Take apart what `ptxas -v` prints: each kernel, then the functions that it calls."""
    _, *kernels = report.split("Compiling entry function '")
    if not kernels:
        raise RuntimeError(f"ptxas: expected a report on kernels, got {report!r}")
    for text in kernels:
        symbol, target = _numbers(r"^(\w+)' for 'sm_(\d+)", text)[0]
        used = _numbers(r"Used (\d+) registers, used (\d+) barriers(?:, (\d+) bytes smem)?", text)
        of_functions = _numbers(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
        )
        registers, barriers, shared = used[0]
        yield Variant(
            int(target),
            features,
            _kernel_name(symbol),
            int(registers),
            sum(int(stack) for stack, _, _ in of_functions),
            sum(int(stores) + int(loads) for _, stores, loads in of_functions),
            int(barriers),
            int(shared or 0),
        )


def _numbers(pattern: str, text: str) -> list[tuple[str, ...]]:
    """Give the groups of every place where the pattern is found, of which there must be one."""
    found = re.findall(pattern, text)
    if not found:
        raise RuntimeError(f"ptxas: expected {pattern!r}, got {text!r}")
    return found


def _kernel_name(symbol: str) -> str:
    """`class_kernel<2>` of `_ZN4cmik3gpu12class_kernelIfLNS_4FormE2EEEvNS_4TaskE`."""
    length = re.match(r"_ZN4cmik3gpu(\d+)", symbol)
    if length is None:
        raise RuntimeError(f"ptxas: expected a kernel of cmik::gpu, got {symbol!r}")
    end = length.end() + int(length[1])
    constants = re.findall(r"L(?:b|NS_\d+[A-Za-z]+E)(\d+)E", symbol[end:])
    return symbol[length.end() : end] + (f"<{', '.join(constants)}>" if constants else "")


def compile_all(build: Build) -> list[Variant]:
    """Compile every type of features for every target, as many at a time as there are cores."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc is not on PATH")
    jobs = [(f, target) for target in build.targets for f in build.features]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(lambda job: compile_one(nvcc, job[0], job[1], build.flags), jobs)
        return [variant for each in compiled for variant in each]


def summary(variants: Iterable[Variant]) -> str:
    """Registers of each kernel by type of features and target, and the most of all else."""
    variants = list(variants)
    targets = sorted({variant.target for variant in variants})
    groups: dict[tuple[str, str], dict[int, Variant]] = {}
    for variant in variants:
        groups.setdefault((variant.kernel, variant.features), {})[variant.target] = variant
    rows = []
    for (kernel, features), members in sorted(groups.items()):
        registers = [members[target].registers for target in targets]
        most = [
            max(member.barriers for member in members.values()),
            max(member.stack_bytes for member in members.values()),
            max(member.spill_bytes for member in members.values()),
            max(member.shared_bytes for member in members.values()),
        ]
        rows.append([kernel, features, *map(str, registers + most)])
    names = [f"sm_{target}" for target in targets]
    return table(["kernel", "features", *names, "barriers", "stack", "spills", "shared"], rows)


def faults(variants: Iterable[Variant]) -> list[str]:
    """Name what must not be: stack, spills, or more than a block may have."""
    return [
        str(variant)
        for variant in variants
        if variant.stack_bytes > 0
        or variant.spill_bytes > 0
        or variant.shared_bytes > 0
        or variant.registers > REGISTERS
        or variant.barriers > BARRIERS
    ]


def main() -> None:
    """Print the table; fail if a kernel spills or asks for too much."""
    build = read_build((ROOT / "CMakeLists.txt").read_text())
    parser = argparse.ArgumentParser(
        prog="python -m bench.cuda_resources", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--targets",
        type=int,
        nargs="+",
        default=build.targets,
        help="compute capabilities (%(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write every variant there")
    arguments = parser.parse_args()
    variants = compile_all(build._replace(targets=tuple(arguments.targets)))
    conclude(variants, summary(variants), faults(variants), arguments.json)


if __name__ == "__main__":
    main()
