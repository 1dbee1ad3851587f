#!/usr/bin/env bash
# All that a machine with a card is asked, step by step (docs/gpu.md): does the op build there, answer right, stay in
# its memory, and how fast is it. A step that fails does not stop the next.
#
#   tools/gpu.sh OUT [STEP ...]    each step leaves OUT/STEP.log, and a line in OUT/summary.txt
#
#   PYTHON  an interpreter with torch, torchvision, pytest and hypothesis (python3); nvcc has to be there too
set -uo pipefail

ALL=(about build smoke graphs test memcheck racecheck synccheck initcheck benchmark ncu train scaling)
[ $# -gt 0 ] || { echo "usage: tools/gpu.sh OUT [STEP ...]    steps: ${ALL[*]}" >&2; exit 2; }
OUT=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
shift
STEPS=("${@:-${ALL[@]}}")
cd "$(dirname "$0")/.."
PY=${PYTHON:-python3}
LIMIT=480  # seconds of a step
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

has() { "$PY" -c "import $1" 2>/dev/null; }
# needs TOOL...: names what is not there, as `missing`.
needs() {
  local tool
  for tool; do
    case $tool in
      python:*) has "${tool#python:}" || { missing="Python module ${tool#python:} cannot be imported"; return 1; } ;;
      *) type -P "$tool" >/dev/null || { missing="$tool is not on the path"; return 1; } ;;
    esac
  done
}

about() {
  nvidia-smi
  nvcc --version
  lscpu
  "$PY" -c '
import sys, torch, torchvision
print("python", sys.version, "torch", torch.__version__, "torchvision", torchvision.__version__)
for i in range(torch.cuda.device_count()): print(torch.cuda.get_device_properties(i))'
  git log -1 --format='commit %H' 2>/dev/null || true
}
build() { ROI_PLUGINS_CUDA=1 "$PY" setup.py build_ext --inplace; }  # for the cards that are here
smoke() { "$PY" tests/ops/kernel_check.py --device cuda; }
graphs() { "$PY" -m pytest -q -p no:cacheprovider tests/ops/test_cuda_graphs.py; }
# The other tests of the op and of what calls it, on the card alone. The emulation on the host needs none.
test() {
  local workers=()
  if has xdist; then workers=(-n 6 --dist loadfile); fi
  "$PY" -m pytest -q -p no:cacheprovider "${workers[@]}" -k 'cuda and not reference' --maxfail 40 \
    --ignore tests/ops/test_cuda_on_host.py --ignore tests/ops/test_cuda_races.py \
    --ignore tests/ops/test_cuda_graphs.py tests/ops tests/benchmark tests/extractors/test_random_sampling.py
}
# Without torch's pool of memory, in which the neighbour of a tensor is another tensor, and no overrun shows.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
    "$PY" tests/ops/kernel_check.py --device cuda --every 7
}
memcheck() { sanitize memcheck; }
racecheck() { sanitize racecheck; }
synccheck() { sanitize synccheck; }
initcheck() { sanitize initcheck; }
benchmark() { "$PY" tools/benchmark.py --device cuda --quick --out "$OUT/benchmark"; }
ncu() {
  command ncu --set full --kernel-name regex:work_kernel -f -o "$OUT/kernels" \
    "$PY" -m roi_plugins.benchmark.profile
}
train() { "$PY" tools/benchmark.py --device cuda --cases detectron2-train-step --out "$OUT/train"; }
scaling() {
  local threads
  for threads in 1 2 4 8 16; do
    [ "$threads" -le "$(nproc)" ] || break
    OMP_NUM_THREADS=$threads "$PY" tools/benchmark.py --device cpu --threads "$threads" --quick \
      --cases 'align-avg-*' --out "$OUT/scaling-$threads" || return
  done
}

declare -A NEEDS=(
  [build]='nvcc python:setuptools' [graphs]='python:pytest' [test]='python:pytest python:hypothesis'
  [memcheck]=compute-sanitizer [racecheck]=compute-sanitizer [synccheck]=compute-sanitizer
  [initcheck]=compute-sanitizer [ncu]=ncu [train]='python:detectron2.modeling'
)

# Why nothing can be asked here; empty where there is a card.
no_card=$("$PY" -c '
try:
    import torch
    if not torch.cuda.is_available(): print("torch", torch.__version__, "sees no CUDA GPU")
except (ImportError, OSError) as error:
    print(f"torch cannot be imported ({error})")' 2>&1) || no_card="$PY does not run"

declare -A COUNT=([ok]=0 [failed]=0 [left out]=0)
say() { printf '%-10s %-9s %4d s  %s\n' "$@" | tee -a "$OUT/summary.txt"; }
for step in "${STEPS[@]}"; do
  if [[ " ${ALL[*]} " != *" $step "* ]]; then
    say "$step" failed 0 "there is no such step; the steps are: ${ALL[*]}"
    ((++COUNT[failed]))
    continue
  fi
  missing=
  needs ${NEEDS[$step]:-}
  reason=$no_card${no_card:+${missing:+; }}$missing
  if [ -n "$reason" ]; then
    say "$step" 'left out' 0 "$reason" | tee -a "$OUT/$step.log"
    ((++COUNT[left out]))
    continue
  fi
  start=$SECONDS
  (
    export -f "$step" sanitize has
    export OUT PY
    exec timeout "$LIMIT" bash -c "$step"
  ) >>"$OUT/$step.log" 2>&1
  code=$?
  verdict=ok
  if [ "$code" != 0 ]; then verdict=failed; fi
  if [ "$code" = 124 ]; then echo "stopped after $LIMIT s" >>"$OUT/$step.log"; fi
  ((++COUNT[$verdict]))
  say "$step" "$verdict" $((SECONDS - start)) "$(tail -n 1 "$OUT/$step.log" | cut -c 1-120)"
done
echo "${COUNT[ok]} ok, ${COUNT[failed]} failed, ${COUNT[left out]} left out; the logs are in $OUT" |
  tee -a "$OUT/summary.txt"
[ $((COUNT[failed] + COUNT[left out])) = 0 ]
