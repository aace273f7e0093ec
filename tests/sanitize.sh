#!/usr/bin/env bash
# Build the native core with AddressSanitizer and UndefinedBehaviorSanitizer and run the kernel tests
# on it, once for each instruction set. Usage: tests/sanitize.sh path/to/python
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT

"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$target" \
  -C cmake.define.CMIKERNELS_SANITIZE=address,undefined -C build-dir="$target/build" .

# The interpreter is not instrumented, so the runtimes must come first.
runtime=$("${CXX:-g++}" -print-file-name=libasan.so)
export LD_PRELOAD="$runtime $("${CXX:-g++}" -print-file-name=libubsan.so) \
$("${CXX:-g++}" -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$target" CMIKERNELS_REQUIRE_NATIVE=1
for isa in avx512 avx2 baseline; do
  CMIKERNELS_CPU_ISA=$isa "$python" -m pytest -q -m "not slow" -p no:cacheprovider \
    tests/test_value_and_gradient.py tests/test_numerics.py
done
