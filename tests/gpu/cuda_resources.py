"""Registers, stack, barriers and shared memory of every CUDA kernel in the built extension.

python -m tests.gpu.cuda_resources
python -m tests.gpu.cuda_resources --extension path/to/_native.so --json out/cuda_resources.json

Needs neither nvcc nor a GPU: NVIDIA's cuobjdump, which Triton brings along, reads the machine code
that is in the extension, so that what is looked at is what was built. A spilled register shows as
stack, that of a called function as stack of the kernel.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.harness.tables import table
from cmikernels.native import native
from tests.gpu.triton_resources import conclude

# The plan has 512 threads on a multiprocessor, in up to 16 blocks. They share its 65536 registers
# and its barriers; shared memory is all dynamic.
REGISTERS = 65536 // 512
# Teams of several warps have a barrier each, which is named at run time, so a block has all 16.
# Such blocks have at least 128 threads. The others have the one of the block.
BARRIERS, TEAM_BARRIERS = 1, 16
_TEAMS_OF_WARPS = ", 4>"  # Team::warps, at the end of a kernel's name
_KEPT_SHARED = 1024  # bytes of a block that the system keeps from Hopper on, which cuobjdump counts

# How the names of kernels have types of features.
FEATURE_CODES = {
    "Float32": "f",
    "Float64": "d",
    "Bfloat16": "NS0_8Bfloat16E",
    "Float16": "NS0_7Float16E",
}


class Variant(NamedTuple):
    """What one compiled kernel takes."""

    target: int
    features: str
    kernel: str
    registers: int  # a thread's
    stack_bytes: int  # a thread's, with those of the functions it calls
    barriers: int  # a block's
    shared_bytes: int  # a block's, before what a launch adds


def built_for() -> str:
    """The architectures, as CMake names them, of the installed extension; none without CUDA."""
    info = getattr(native, "cuda_info", None)
    return info()["architectures"] if info else ""


def variants_of(extension: Path) -> list[Variant]:
    """All kernels in a file."""
    usage = cuobjdump(["--dump-resource-usage"], extension)
    return list(read_report(usage, cuobjdump(["--dump-elf"], extension)))


def cuobjdump(options: list[str], extension: Path) -> str:
    """What NVIDIA's tool prints of a file."""
    import triton

    command = [triton.knobs.nvidia.cuobjdump.path, *options, str(extension)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {finished.stderr}")
    return finished.stdout


def read_report(usage: str, elf: str) -> Iterator[Variant]:
    """Take apart what cuobjdump prints of resources, and of sections, for the barriers."""
    pattern = r"Function (_ZN4cmik3gpu\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    found = [
        (target, *kernel)
        for target, text in _by_target(usage)
        for kernel in re.findall(pattern, text)
    ]
    if not found:
        raise RuntimeError(f"cuobjdump: expected resources of kernels, got {usage!r}")
    barriers = _barriers(elf)
    if not barriers:  # most kernels have one; other versions of ptxas may note it elsewhere
        raise RuntimeError("cuobjdump: expected the attribute EIATTR_NUM_BARRIERS, got none")
    for target, symbol, *numbers in found:
        registers, stack, shared, local = map(int, numbers)
        kernel, features = _kernel_name(symbol)
        shared -= _KEPT_SHARED if target >= 90 else 0
        used = barriers.get((target, symbol), 0)
        yield Variant(target, features, kernel, registers, stack + local, used, shared)


def _by_target(usage: str) -> Iterator[tuple[int, str]]:
    """Each compute capability, and what is printed of the code for it."""
    parts = re.split(r"^arch = sm_(\d+)\w*$", usage, flags=re.MULTILINE)
    return zip(map(int, parts[1::2]), parts[2::2], strict=True)


def _barriers(elf: str) -> dict[tuple[int, str], int]:
    """Those of each kernel that has any, out of its section: an attribute, two lines on its value.

    ::

        .nv.info._ZN4cmik3gpu11wide_kernelIfEEvNS_4TaskE
            Attribute:  EIATTR_NUM_BARRIERS
            Format:     EIFMT_BVAL
            Value:      0x1
    """
    found: dict[tuple[int, str], int] = {}
    target, section = 0, ""
    lines = iter(elf.splitlines())
    for line in lines:
        if named := re.match(r"arch = sm_(\d+)", line):
            target = int(named[1])
        elif line.startswith("."):
            section = line.strip()
        elif line.endswith("EIATTR_NUM_BARRIERS"):
            next(lines)
            symbol = section.removeprefix(".nv.info.")
            found[target, symbol] = int(next(lines).split()[-1], 16)
    return found


def _kernel_name(symbol: str) -> tuple[str, str]:
    """The form and team of a kernel are numbers in its name.

    `_ZN4cmik3gpu12class_kernelIfLNS_4FormE2ELNS_4TeamE4EEEvNS_4TaskE` becomes `class_kernel<2, 4>`
    and Float32.
    """
    named = re.match(r"_ZN4cmik3gpu(\d+)", symbol)
    assert named is not None
    end = named.end() + int(named[1])
    kernel, arguments = symbol[named.end() : end], symbol[end:]
    features = [name for name, code in FEATURE_CODES.items() if arguments.startswith("I" + code)]
    if not features:
        raise RuntimeError(f"cuobjdump: expected a kernel of a type of features, got {symbol!r}")
    constants = re.findall(r"L(?:b|NS_\d+[A-Za-z]+E)(\d+)E", arguments)
    return kernel + (f"<{', '.join(constants)}>" if constants else ""), features[0]


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
            max(member.shared_bytes for member in members.values()),
        ]
        rows.append([kernel, features, *map(str, registers + most)])
    names = [f"sm_{target}" for target in targets]
    return table(["kernel", "features", *names, "barriers", "stack", "shared"], rows)


def faults(variants: Iterable[Variant]) -> list[str]:
    """Name what must not be: stack, spills among it, or more than a block may have."""
    return [
        str(variant)
        for variant in variants
        if variant.stack_bytes > 0
        or variant.shared_bytes != 0
        or variant.registers > REGISTERS
        or variant.barriers > barriers_of(variant.kernel)
    ]


def barriers_of(kernel: str) -> int:
    """How many a block of this kernel may have."""
    return TEAM_BARRIERS if kernel.endswith(_TEAMS_OF_WARPS) else BARRIERS


def parse_arguments(tool: str, description: str) -> argparse.Namespace:
    """Which extension to look at, and where to write what is found."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.gpu.{tool}", description=description.split("\n\n")[0]
    )
    parser.add_argument("--extension", type=Path, help="a built one (default: the installed one)")
    parser.add_argument("--json", type=Path, help="write everything found there")
    arguments = parser.parse_args()
    if arguments.extension is None:
        if not built_for():
            parser.error("the installed extension has no CUDA kernels; see cmikernels' README")
        arguments.extension = Path(native.__file__)
    return arguments


def main() -> None:
    """Print the table; fail if a kernel spills or asks for too much."""
    arguments = parse_arguments("cuda_resources", __doc__)
    variants = variants_of(arguments.extension)
    conclude(variants, summary(variants), faults(variants), arguments.json)


if __name__ == "__main__":
    main()
