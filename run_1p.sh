#!/usr/bin/env bash
# Trains and evaluates on one device. All flags go to train_evaluate_sesemi.py:
#     bash run_1p.sh --data digits --network nin --labels 100
# The first start installs what is needed into .venv, unless a Python that has it is there; PYTHON=... names
# one. TENSORFLOW=1.15 or TENSORFLOW=2 says which to have.
set -eu
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup_env.sh"

# A quiet log of the Ascend tools, and one device with a job of its own. What the platform has set stays as it
# is.
export ASCEND_GLOBAL_LOG_LEVEL="${ASCEND_GLOBAL_LOG_LEVEL:-3}"
export ASCEND_SLOG_PRINT_TO_STDOUT="${ASCEND_SLOG_PRINT_TO_STDOUT:-0}"
export ASCEND_DEVICE_ID="${ASCEND_DEVICE_ID:-0}"
export RANK_ID="${RANK_ID:-0}"
export RANK_SIZE="${RANK_SIZE:-1}"
export JOB_ID="${JOB_ID:-10087}"

# exec, so that signals reach Python itself; -u, so that a log file shows each line at once.
exec "$python" -u "$here/train_evaluate_sesemi.py" "$@"
