#!/usr/bin/env bash
# The op's tests against kernels compiled with the address and undefined-behaviour sanitizers
# (tools/sanitizers.sh). The first finding stops the run.
#
#   VENV  the virtual environment (.venv)        arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/sanitizers.sh
sanitized python -m pytest -n 2 -x -r fE tests/ops "$@"
