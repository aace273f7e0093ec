#!/usr/bin/env bash
# Build the native core with AddressSanitizer and UndefinedBehaviorSanitizer and run the kernel tests
# on it, once for each instruction set, and those of the GPU kernels on an emulated GPU.
# Usage: tests/sanitize.sh path/to/python
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT

# An environment that sees the packages of the first, but its own build of this one.
"$python" -m venv --without-pip "$target/venv"
site=$("$target/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/outer.pth"
ln -s "$PWD/bench" "$site/bench" # whose table of chips the emulated GPU is described by
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$site" \
  -C cmake.define.CMIKERNELS_SANITIZE=address,undefined -C cmake.define.CMIKERNELS_CUDA=OFF \
  -C cmake.define.CMIKERNELS_EMULATE_CUDA=ON -C build-dir="$target/build" .

# The interpreter is not instrumented, so the runtimes must come first.
compiler=${CXX:-g++}
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) \
$("$compiler" -print-file-name=libubsan.so) $("$compiler" -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0 CMIKERNELS_REQUIRE_NATIVE=1
for isa in avx512 avx2 baseline; do
  CMIKERNELS_CPU_ISA=$isa "$target/venv/bin/python" "$(dirname "$python")/pytest" -q \
    -m "not slow" -k "not reference and not triton and not cuda" -p no:cacheprovider \
    tests/cmikernels/contract/test_{value_and_gradient,numerics,strides,class_index}.py
  CMIKERNELS_CPU_ISA=$isa "$target/venv/bin/python" "$(dirname "$python")/pytest" -q \
    -k "any_size or last or finite" -p no:cacheprovider \
    tests/cmikernels/norm/test_norm_act_pool.py
done
"$target/venv/bin/python" "$(dirname "$python")/pytest" -q -p no:cacheprovider \
  -k "unequal_classes or weight_for_each_row or given" tests/cmikernels/backends/test_cuda_kernels.py
