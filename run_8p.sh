#!/usr/bin/env bash
# Trains on the eight cards of an Ascend host, one process on each. RANK_TABLE_FILE is the path of the rank
# table. All flags go to each process:
#     RANK_TABLE_FILE=/path/to/rank_table.json bash run_8p.sh --data cifar10 --network convnet --labels 1000
# RANK_SIZE=4 uses the first four cards.
set -eu
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/start_ranks.sh"

if [[ ! -f ${RANK_TABLE_FILE:-} ]]; then
    printf '%s%s\n' "RANK_TABLE_FILE is '${RANK_TABLE_FILE:-}', which is no file: " \
        "set it to the rank table of this host's cards." >&2
    exit 2
fi
# The adapter refuses a rank table beside these.
unset CM_CHIEF_IP CM_WORKER_SIZE
export RANK_TABLE_FILE RANK_SIZE=${RANK_SIZE:-8} JOB_ID=${JOB_ID:-10087}

start_rank() {
    export RANK_ID=$1 ASCEND_DEVICE_ID=$1
    exec bash "$here/run_1p.sh" "${flags[@]}"
}

flags=("$@")
run_ranks "$RANK_SIZE"
