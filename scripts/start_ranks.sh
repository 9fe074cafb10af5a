# Sourced by run_8p.sh and run_local.sh, which say in start_rank what one rank runs.

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

# Starts ranks 0 to $1 - 1 at once and waits for all of them; its status is that of a rank that failed, if one did, and then it
# ends the others, which may not have met yet. SIGTERM and Ctrl-C, which the shell has its background processes ignore until
# they handle it themselves, go on to rank 0 as SIGTERM: it saves and tells the others.
run_ranks() {
    local rank status=0 ended=0 signalled=0 pids=()
    for ((rank = 0; rank < $1; rank++)); do
        start_rank "$rank" &
        pids+=($!)
    done
    trap 'signalled=1; kill -TERM "${pids[0]}" 2>/dev/null || true' TERM INT
    while ((ended < $1 && status == 0)); do
        wait -n || status=$?
        if ((signalled)); then      # it was the signal that ended wait
            signalled=0 status=0
        else
            ended=$((ended + 1))
        fi
    done
    trap - TERM INT
    if ((status)); then
        kill -TERM "${pids[@]}" 2>/dev/null || true
        kill -CONT "${pids[@]}" 2>/dev/null || true     # one that is stopped gets it only then
    fi
    wait
    return "$status"
}
