# Sourced by run_8p.sh and run_local.sh, which say in start_rank what one rank runs.

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

# Sends signal $1 to the processes behind it. One that is stopped gets it only when it goes on.
signal_ranks() {
    kill "-$1" "${@:2}" 2>/dev/null || true
    kill -CONT "${@:2}" 2>/dev/null || true
}

# Starts ranks 0 to $1 - 1 at once and waits for all of them; returns the status of the first that failed, if
# one did. The others have a second to end by themselves; then they get SIGTERM, again after 2 s, which ends
# them at once, and SIGKILL after 10 s. SIGTERM, SIGHUP and Ctrl-C go on to all ranks as SIGTERM: together
# they stop after a step and save.
run_ranks() {
    local rank status=0 ended=0 signalled=0 pids=()
    for ((rank = 0; rank < $1; rank++)); do
        start_rank "$rank" &
        pids+=($!)
    done
    trap 'signalled=1; signal_ranks TERM "${pids[@]}"' TERM INT HUP
    while ((ended < $1 && status == 0)); do
        wait -n || status=$?
        if ((signalled)); then      # it was the signal that ended wait
            signalled=0 status=0
        else
            ended=$((ended + 1))
        fi
    done
    trap - TERM INT HUP
    if ((status)); then
        {
            sleep 1
            signal_ranks TERM "${pids[@]}"
            sleep 2
            signal_ranks TERM "${pids[@]}"
            sleep 8
            signal_ranks KILL "${pids[@]}"
        } >/dev/null 2>&1 &
        wait "${pids[@]}" || true
        kill "$!" 2>/dev/null || true
    fi
    return "$status"
}
