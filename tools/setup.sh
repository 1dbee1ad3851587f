#!/usr/bin/env bash
# Everything that `make demo` and `make test` need, into a virtual environment of the checkout's own.
# A step runs again only when what it depends on has changed; its output is in build/setup/.
#
#   PYTHON  the interpreter (python3)        VENV  the virtual environment (.venv)
#   ROI_PLUGINS_WHEELS  where the compiled MMCV is kept, for every checkout (~/.cache/roi_plugins/wheels)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
PY=$VENV/bin/python
STAMPS=$VENV/.setup
LOGS=build/setup
WHEELS=${ROI_PLUGINS_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/roi_plugins/wheels}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# step NAME WHAT HINT KEY COMMAND...: runs COMMAND unless it succeeded before with the same KEY.
step() {
  local name=$1 what=$2 hint=$3 key=$4
  shift 4
  if [ "$(cat "$STAMPS/$name" 2>/dev/null)" = "$key" ]; then return; fi
  echo "set-up: $what (log: $LOGS/$name.log)"
  mkdir -p "$LOGS"
  if ! "$@" >"$LOGS/$name.log" 2>&1; then
    tail -n 20 "$LOGS/$name.log" >&2
    echo >&2
    echo "set-up failed: $what." >&2
    echo "What to do: $hint" >&2
    echo "The whole log is in $LOGS/$name.log; repeat the command to go on from here." >&2
    exit 1
  fi
  grep '^ *roi_plugins: ' "$LOGS/$name.log" || true
  mkdir -p "$STAMPS"
  echo "$key" >"$STAMPS/$name"
}

digest() { cat "$@" | sha256sum | cut -d ' ' -f 1; }

make_venv() {
  rm -rf "$VENV"
  "$PYTHON" -m venv "$VENV"
}

install_requirements() {
  # --no-deps: requirements.txt is the whole closure, and holds the headless build of OpenCV, which needs
  # no system libraries, where MMEngine's own list asks for the other.
  grep -v -e '^mmcv==' -e '^sal-detectron2==' requirements.txt >"$LOGS/requirements.txt"
  "$PY" -m pip install --no-deps -r "$LOGS/requirements.txt"
}

install_mmcv() {
  local version wheels
  version=$(sed -n 's/^mmcv==//p' requirements.txt)
  # Named by all that the build depends on: a wheel for another torch or Python loads, then crashes.
  wheels=$WHEELS/$("$PY" -c 'import platform, sys, torch
print(f"torch{torch.__version__.split(chr(43))[0]}-cp{sys.version_info[0]}{sys.version_info[1]}", end="")
print(f"-{platform.machine()}" + ("-cuda" if torch.cuda.is_available() else ""))')
  if ! ls "$wheels"/mmcv-"$version"-*.whl >/dev/null 2>&1; then
    local building
    mkdir -p "$wheels"
    building=$(mktemp -d "$wheels/building.XXXXXX")
    PATH="$PWD/$VENV/bin:$PATH" MMCV_WITH_OPS=1 "$PY" -m pip wheel --no-cache-dir \
      --no-build-isolation --no-deps -w "$building" "mmcv==$version"
    mv "$building"/*.whl "$wheels/"
    rmdir "$building"
  fi
  "$PY" -m pip install --no-deps --force-reinstall "$wheels"/mmcv-"$version"-*.whl
  "$PY" -c 'import mmcv.ops'
}

install_detectron2() {
  # The wheel is tagged for Python 3.10, and its Python code runs on later ones. Its compiled part does
  # not load there, which costs rotated boxes and deformable convolutions.
  "$PY" -m pip install --no-deps --only-binary=:all: --python-version 3.10 --implementation cp --abi none \
    --upgrade --target "$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    "$(grep '^sal-detectron2==' requirements.txt)"
  "$PY" -c 'import detectron2.modeling'
}

install_package() {
  # The CUDA kernels take minutes to compile, and are of no use without a card.
  local cuda
  cuda=$("$PY" -c 'import torch; print("" if torch.cuda.is_available() else 0)')
  # -v: or pip keeps to itself what the build says.
  PATH="$PWD/$VENV/bin:$PATH" ROI_PLUGINS_CUDA=${ROI_PLUGINS_CUDA-$cuda} "$PY" -m pip install -v \
    --no-build-isolation --no-deps -e .
  "$PY" -c 'import roi_plugins.integrations.detectron2
import roi_plugins.integrations.mmdet
from roi_plugins.ops import extension_is_loaded
assert extension_is_loaded(), "the compiled op was built but does not load"'
}

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  echo "set-up failed: $PYTHON is not Python 3.10 or newer." >&2
  echo "What to do: apt-get install python3 python3-venv python3-dev, or name another: make PYTHON=..." >&2
  exit 1
fi
if ! command -v "${CXX:-c++}" >/dev/null; then
  echo "set-up failed: there is no C++ compiler (${CXX:-c++})." >&2
  echo "What to do: apt-get install g++" >&2
  exit 1
fi

network='see whether the package index can be reached, and that about 8 GB are free on the disk.'
headers='apt-get install g++ python3-dev; 4 GB of memory are needed.'
cards=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | tr '\n' ' ' || true)
sources=$(digest setup.py setup.cfg pyproject.toml $(find roi_plugins/ops/csrc -type f | sort))

step venv 'making a virtual environment' 'apt-get install python3-venv' \
  "$("$PYTHON" -c 'import sys; print(sys.version)')" make_venv
step requirements 'installing the pinned requirements, about 5 GB, two to three minutes' "$network" \
  "$(digest requirements.txt)" install_requirements
step mmcv "compiling MMCV's operators, about 11 minutes on two cores (kept for other checkouts)" \
  "$headers" "$(digest requirements.txt)" install_mmcv
step detectron2 'installing Detectron2' "$network" "$(digest requirements.txt)" install_detectron2
step package 'compiling the RoI op and installing the package, one to three minutes' "$headers" \
  "$sources-$(digest requirements.txt)-$cards${ROI_PLUGINS_CUDA-}" install_package
