#!/usr/bin/env bash
# The CUDA kernels on the host under the thread sanitizer, every case; then the op's tests against kernels compiled
# with the address and undefined-behaviour sanitizers (tools/sanitizers.sh). The first finding stops the run.
#
#   VENV  the virtual environment (.venv)        arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
ROI_PLUGINS_ALL_CASES=1 "${VENV:-.venv}/bin/python" -m pytest -x -r fE tests/ops/test_cuda_races.py
. tools/sanitizers.sh
sanitized python -m pytest -n 2 -x -r fE tests/ops --ignore tests/ops/test_cuda_races.py "$@"
