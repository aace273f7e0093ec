"""What CMake makes of the CUDA compiler it finds, or does not: configured only, not compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pybind11 = pytest.importorskip("pybind11")
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
NVCC = shutil.which("nvcc")
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(CMAKE is None, reason="needs cmake")


def configure(
    folder: Path, *options: str, nvcc: Path | str | None
) -> subprocess.CompletedProcess[str]:
    """Configure a build with this nvcc."""
    assert CMAKE is not None
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CUDA")}
    return subprocess.run(
        [
            CMAKE, "-S", str(ROOT), "-B", str(folder / "build"), "-G", "Unix Makefiles",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}",
            *options,
        ],
        capture_output=True, text=True, check=False, env=environment | {"CUDACXX": str(nvcc)},
    )  # fmt: skip


@pytest.fixture
def broken_nvcc(tmp_path: Path) -> Path:
    """A compiler that cannot be used."""
    return script(tmp_path, "exit 1")


def script(folder: Path, text: str) -> Path:
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_without_nvcc_one_line_says_so_and_the_build_goes_on(
    tmp_path: Path, broken_nvcc: Path
) -> None:
    finished = configure(tmp_path, nvcc=broken_nvcc)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("no GPU kernels of C++: no nvcc that works was found") == 1


def test_who_insists_on_cuda_gets_an_error_without_it(tmp_path: Path, broken_nvcc: Path) -> None:
    finished = configure(tmp_path, "-DCMIKERNELS_CUDA=ON", nvcc=broken_nvcc)
    assert finished.returncode != 0
    assert "CMIKERNELS_CUDA=ON, but no nvcc" in finished.stderr


def test_cuda_can_be_left_out(tmp_path: Path) -> None:
    finished = configure(tmp_path, "-DCMIKERNELS_CUDA=OFF", nvcc=NVCC)
    assert finished.returncode == 0, finished.stderr
    assert "no GPU kernels of C++: CMIKERNELS_CUDA=OFF" in finished.stdout


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_an_nvcc_too_old_for_the_architectures_is_not_used(tmp_path: Path) -> None:
    old = script(
        tmp_path,
        f'case "$*" in *--version*) echo "release 12.4, V12.4.99";; *) exec "{NVCC}" "$@";; esac',
    )
    finished = configure(tmp_path, nvcc=old)
    assert finished.returncode == 0, finished.stderr
    assert "no GPU kernels of C++: nvcc 12.4 is older than 12.8" in finished.stdout


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_without_asking_every_supported_architecture_is_built(tmp_path: Path) -> None:
    finished = configure(tmp_path, nvcc=NVCC)
    assert finished.returncode == 0, finished.stderr
    assert "GPU kernels for 80-real 90 100-real 120" in finished.stdout


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_the_architectures_asked_for_are_built(tmp_path: Path) -> None:
    finished = configure(tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=80;90-real", nvcc=NVCC)
    assert finished.returncode == 0, finished.stderr
    assert "GPU kernels for 80 90-real" in finished.stdout
