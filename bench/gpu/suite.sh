#!/usr/bin/env bash
# Everything there is to check and measure on an NVIDIA GPU, without a network.
#
#   bench/gpu/suite.sh [--part build|tests|sanitize|bench|profile|all] [--dry-run] [--out DIR]
#                      [--minutes M]
#
# A part stops after --minutes (9) and is gone on with by the same command: steps that finished on the
# same sources and GPU are skipped, the benchmark also keeps every shape that finished.
# --dry-run goes the same ways without a GPU: Triton's interpreter and, where they were built (see the
# Makefile), emulated CUDA kernels on the CPU, tiny shapes, and the commands of compute-sanitizer and
# ncu printed instead of run. PYTHON names the interpreter to use.
#
# Results in DIR (out/gpu, or out/gpu-dry): steps.csv, suite.log (follow a long step there),
# sanitize.log, counters-*.csv and the benchmarks' gpu-*.json, which bench.render shows once they are
# copied to bench/results.
# Exit status: 0 all done, 1 something failed, 3 cut, run again.
set -euo pipefail
cd "$(dirname "$0")/../.."

part=all dry_run='' out='' minutes=9
while (($#)); do
  case $1 in
    --part) part=$2 && shift ;;
    --dry-run) dry_run=1 ;;
    --out) out=$2 && shift ;;
    --minutes) minutes=$2 && shift ;;
    --help | -h) sed -n '2,/^set/{/^set/d;s/^# \?//;p}' "$0" && exit ;;
    *) echo "unknown argument: $1; see --help" >&2 && exit 2 ;;
  esac
  shift
done
case $part in
  build | tests | sanitize | bench | profile | all) ;;
  *) echo "--part: expected build, tests, sanitize, bench, profile or all, got $part" >&2 && exit 2 ;;
esac
python=${PYTHON:-python3}
device=cuda out=${out:-out/gpu${dry_run:+-dry}}
if [[ $dry_run ]]; then
  device=cpu
  export TRITON_INTERPRET=1 CMIKERNELS_EMULATE_CUDA=1
  export PYTHONWARNINGS=ignore # numpy's, about what kernels mask
fi
export PYTHONUNBUFFERED=1 TQDM_MININTERVAL=10
mkdir -p "$out"
failed=0 cut=0

# One number for the sources under some paths.
sources() {
  find "$@" -type f -regex '.*\.\(py\|cpp\|hpp\|h\|inl\|cu\|cuh\|txt\|toml\)' -print0 | LC_ALL=C sort -z |
    xargs -0 sha256sum | sha256sum | cut -c1-12
}

# step NAME COMMAND...: run it unless it finished before; one line of steps.csv is its memory.
step() {
  local name=$1 status=0 verdict seconds left line=''
  shift
  if grep -qsF "$name,$key,ok," "$out/steps.csv"; then
    echo "-- $name: done before"
    return
  fi
  left=$((deadline - SECONDS))
  if ((left <= 0)); then
    cut=1
    echo "-- $name: no time left"
    return
  fi
  echo "-- $name"
  seconds=$SECONDS
  { echo "\$ $*" && timeout --kill-after=20 "$left" "$@"; } 2>&1 | tee -a "$out/suite.log" >"$scratch/log" ||
    status=${PIPESTATUS[0]}
  case $status in
    0) verdict=ok ;;
    5 | 77) verdict=skipped ;; # pytest found no test; our own sign
    124 | 137) verdict=cut cut=1 ;;
    *) verdict=failed failed=1 ;;
  esac
  line=$(tr '\r' '\n' <"$scratch/log" | grep -v '^ *$' | tail -1) || true
  [[ $verdict == failed ]] && tail -40 "$scratch/log"
  echo "   $verdict: $line"
  { grep -sv "^$name," "$out/steps.csv" || true; } >"$scratch/steps"
  echo "$name,$key,$verdict,$((SECONDS - seconds)),$(tr , ' ' <<<"$line" | cut -c1-100)" >>"$scratch/steps"
  cp "$scratch/steps" "$out/steps.csv"
}

# start PART PATH...: its time begins; its steps are done anew when these sources change.
start() {
  echo "== $1"
  shift
  deadline=$((SECONDS + minutes * 60))
  key=$(sources cmikernels csrc CMakeLists.txt "$@")-$gpu
}

# The install is editable: Python run in this folder imports the package from this folder, where a
# plain install's compiled part is not. It is no step, because it goes with the machine, not with DIR.
# CUDA kernels are compiled for the GPU at hand alone, which takes a fraction of the time.
build_part() {
  local install=(-m pip install --quiet --disable-pip-version-check --no-index
    --no-build-isolation --no-deps)
  if [[ $dry_run ]]; then
    gpu=dry
    echo "would run: $python ${install[*]} -C cmake.define.CMAKE_CUDA_ARCHITECTURES=90-real -e ."
  else
    local missing=''
    command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null || missing+=' nvidia-smi-with-a-GPU'
    "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || missing+=' torch-with-CUDA'
    for module in triton scikit_build_core pybind11 pytest hypothesis tqdm matplotlib; do
      "$python" -c "import $module" 2>/dev/null || missing+=" $module"
    done
    if [[ $missing ]]; then
      echo "this machine lacks:$missing (for $python)" >&2
      exit 1
    fi
    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr -c 'A-Za-z0-9\n' '-')
    command -v nvcc >/dev/null || PATH+=:/usr/local/cuda/bin
    local architecture built began=$SECONDS
    architecture=$("$python" -c 'import torch
print("%d%d-real" % torch.cuda.get_device_capability())')
    built="$(sources cmikernels csrc CMakeLists.txt pyproject.toml) $architecture"
    built+=" $(command -v nvcc || echo no nvcc)"
    if [[ $(cat build/gpu_suite.built 2>/dev/null) != "$built" ]] || ! installed 2>/dev/null; then
      "$python" "${install[@]}" -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=$architecture" -e . 2>&1 |
        tee -a "$out/suite.log"
      mkdir -p build && echo "$built" >build/gpu_suite.built
      echo "== built for $architecture in $((SECONDS - began)) s"
    else
      echo "== built before for $architecture"
    fi
  fi
  installed
  "$python" -c 'import cmikernels
for name, status in cmikernels.available_backends().items():
    print(f"   {name}:", "" if status.available else "not here:", status.detail)'
  read -r -a backends < <("$python" -c "from bench.harness.providers import gpu_backends
print(*sorted(gpu_backends('$device')))") # cuda first
  if ((${#backends[@]} == 0)); then
    echo "no GPU backend can run here" >&2
    exit 1
  fi
  if [[ ! $dry_run && " ${backends[*]} " == *" cuda "* ]]; then
    "$python" -c 'from bench.gpu.chips import chip_here
print("  ", chip_here())' # with the clusters that are resident at once
  fi
}

installed() { "$python" -c 'import cmikernels._native'; }

# What pytest's -k selects: tests of this backend, whose name is in their own or their file's; with
# the first one also those that are for GPUs and for no backend.
tests_of() {
  local other these=$1
  [[ $1 == "${backends[0]}" ]] && these="($1 or cuda or gpu)"
  for other in "${backends[@]}"; do
    [[ $other == "$1" ]] || these+=" and not $other"
  done
  echo "$these"
}

tests_part() {
  start tests tests
  local backend file these
  local of_ci=" tests/gpu/test_cuda_resources.py tests/gpu/test_triton_resources.py " # need no GPU
  for backend in "${backends[@]}"; do
    these=$(tests_of "$backend")
    if [[ $dry_run ]]; then
      step "tests/$backend" "$python" -m pytest -q -k "$these and equals and not float64" \
        tests/cmikernels/contract/test_value_and_gradient.py
    else
      local alone=(tests/gpu/test_gpu_*.py tests/cmikernels/contract/test_large.py) together=()
      for file in tests/cmikernels/*/test_*.py tests/gpu/test_*.py; do
        [[ " ${alone[*]} $of_ci" == *" $file "* ]] || together+=("$file")
      done
      if "$python" -c 'import xdist' 2>/dev/null; then # most of the time goes into compiling kernels
        step "tests/$backend/contract" "$python" -m pytest -q -k "$these" -n 8 "${together[@]}"
      else
        alone=("${together[@]}" "${alone[@]}")
      fi
      for file in "${alone[@]}"; do # a file is what a cut run loses
        step "tests/$backend/$(basename "$file" .py)" "$python" -m pytest -q -k "$these" "$file"
      done
    fi
  done
  if [[ $dry_run ]]; then
    step tests/collected "$python" -m pytest -q --collect-only tests/gpu/test_gpu_*.py
  fi
}

sanitize_part() {
  start sanitize tests/gpu
  local backend tool
  for backend in "${backends[@]}"; do
    # First without a tool: a wrong result is no business of theirs, and Triton compiles only once.
    step "sanitize/$backend/plain" "$python" -m tests.gpu.sanitize_case --backend "$backend" \
      --device "$device" ${dry_run:+--quick}
    for tool in memcheck racecheck initcheck synccheck; do
      step "sanitize/$backend/$tool" "$python" -m tests.gpu.sanitize "$tool" --backend "$backend" \
        --log "$out/sanitize.log" ${dry_run:+--dry-run}
    done
  done
}

bench_part() {
  start bench python/cmidd bench/{harness,kernels,gpu,loops,plain,block.py,regularizer.py}
  local common=(--json-only --out "$out" --device "$device") backend method
  local kernels=("$python" -m bench.kernels --name gpu-kernels --resume "$key" --budget 1 "${common[@]}")
  local theirs=(published compile)
  if [[ $dry_run ]]; then
    step bench/kernels "${kernels[@]}" --shapes 3x4x64 2x20x1000 --dtypes float32 --budget 0.1 \
      --no-memory --providers published "${backends[@]}"
    step bench/accuracy "$python" -m bench.kernels.accuracy --name gpu-accuracy "${common[@]}" \
      --shape 2x3x64 --draws 1 --providers published "${backends[@]}"
  else
    step bench/large "${kernels[@]}" --shapes large small --providers "${theirs[@]}" "${backends[@]}"
    step bench/headline "${kernels[@]}" --shapes headline --dtypes float32 \
      --providers "${theirs[@]}" compile-max-autotune "${backends[@]}"
    step bench/headline-bfloat16 "${kernels[@]}" --shapes headline --dtypes bfloat16 \
      --providers "${theirs[@]}" "${backends[@]}"
    step bench/float16 "${kernels[@]}" --shapes 10000x10x1024 --dtypes float16 \
      --providers "${theirs[@]}" "${backends[@]}"
    step bench/accuracy "$python" -m bench.kernels.accuracy --name gpu-accuracy "${common[@]}" \
      --providers published "${backends[@]}"
  fi
  for backend in "${backends[@]}"; do
    step "bench/overhead-$backend" env CMIKERNELS_BACKEND="$backend" "$python" -m bench.kernels.overhead \
      --name "gpu-overhead-$backend" "${common[@]}" ${dry_run:+--quick --budget 0.1}
  done
  for method in dm dc dsa mtt; do
    [[ $dry_run && $method == dsa ]] && continue # goes the same ways as dc
    step "bench/loops-$method" "$python" -m bench.loops --method "$method" --resume "$key" \
      --name "gpu-loops-$method" "${common[@]}" ${dry_run:+--quick --memory default}
  done
  step bench/block "$python" -m bench.block --name gpu-block "${common[@]}" ${dry_run:+--quick}
  step bench/regularizer "$python" -m bench.regularizer --name gpu-regularizer "${common[@]}" \
    ${dry_run:+--quick}
  if [[ $dry_run && -f $out/gpu-kernels.json ]]; then # what becomes of the files later
    mkdir -p "$scratch/results"
    cp "$out"/gpu-*.json "$scratch/results"
    step bench/render "$python" -m bench.render --results "$scratch/results" --pages "$scratch/pages"
  fi
}

profile_part() {
  start profile bench/gpu/counters.py
  local backend shape spread shapes=(10x10x512 10000x10x1024 2000x50x1024 200x500x1024 10x10000x1024 1000x50x2048)
  [[ $dry_run ]] && shapes=(2x3x64)
  for spread in 1 0.1 0.01; do
    for backend in "${backends[@]}"; do
      for shape in "${shapes[@]}"; do
        step "profile/$backend/$shape/spread$spread" "$python" -m bench.gpu.counters \
          --backend "$backend" --shape "$shape" --spread "$spread" --out "$out" ${dry_run:+--dry-run}
      done
    done
  done
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
build_part
for each in tests sanitize bench profile; do
  [[ $part == all || $part == "$each" ]] && "${each}_part"
done

printf '\n== results in %s\n' "$out"
[[ -f $out/gpu-kernels.json ]] && "$python" -m bench.gpu.report "$out/gpu-kernels.json"
compgen -G "$out/counters-*.csv" >/dev/null && "$python" -m bench.gpu.counters --show --out "$out"
if [[ -f $out/steps.csv ]]; then
  printf '\n%-9s %6s  %s\n' status seconds step
  awk -F, '{ printf "%-9s %6d  %s: %s\n", $3, $4, $1, $5 }' "$out/steps.csv"
fi
((failed)) && exit 1
((cut)) && exit 3
exit 0
