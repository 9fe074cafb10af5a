#!/usr/bin/env bash
# Tries distributed training: several processes on this machine average their gradients. The first argument is
# their number; all flags go to each process:
#     bash run_local.sh 2 --data digits --network nin --labels 100
set -eu
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/start_ranks.sh"
source "$here/scripts/setup_env.sh"

count=${1:-}
[[ $count =~ ^[1-9][0-9]?$ ]] ||
    fail "Give the number of processes first: bash run_local.sh 2 --data digits --network nin --labels 100"
shift

workers=$("$python" -c '
import socket
import sys

sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for free in sockets:
    free.bind(("127.0.0.1", 0))
print(",".join("127.0.0.1:%d" % free.getsockname()[1] for free in sockets))
' "$count")

start_rank() {
    exec bash "$here/run_1p.sh" "${flags[@]}" --workers "$workers" --rank "$1"
}

flags=("$@")
run_ranks "$count"
