#!/usr/bin/env bash
# Random calls of the op, forward and backward, against the reference, on kernels compiled with the address and
# undefined-behaviour sanitizers (tools/sanitizers.sh). A call that fails is named by the line that repeats it.
#
#   VENV  the virtual environment (.venv)        arguments go to tests/ops/fuzzing.py (--help lists them)
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/sanitizers.sh
sanitized python tests/ops/fuzzing.py "$@"
