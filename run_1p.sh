#!/usr/bin/env bash
# Trains and evaluates on one device. All flags go to train_evaluate_sesemi.py:
#     bash run_1p.sh --data digits --network nin --labels 100
# The first start installs the packages into .venv, unless a Python on this machine has them. PYTHON=... names
# the interpreter to use; TENSORFLOW=1.15 or TENSORFLOW=2 chooses the version of TensorFlow.
set -eu
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup_env.sh"

# Defaults for Ascend hosts: a quiet log, and one job on one device. What the platform has set is kept.
export ASCEND_GLOBAL_LOG_LEVEL="${ASCEND_GLOBAL_LOG_LEVEL:-3}"
export ASCEND_SLOG_PRINT_TO_STDOUT="${ASCEND_SLOG_PRINT_TO_STDOUT:-0}"
export ASCEND_DEVICE_ID="${ASCEND_DEVICE_ID:-0}"
export RANK_ID="${RANK_ID:-0}"
export RANK_SIZE="${RANK_SIZE:-1}"
export JOB_ID="${JOB_ID:-10087}"
# The adapter refuses RANK_SIZE beside CM_WORKER_SIZE.
if [[ ${CM_WORKER_SIZE:-} && $RANK_SIZE == 1 ]]; then unset RANK_SIZE; fi

# With exec, signals reach Python itself; with -u, a log file gets each line at once.
exec "$python" -u "$here/train_evaluate_sesemi.py" "$@"
