# Sourced by run_8p.sh and run_local.sh, which define start_rank, to run one rank.

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

# Sends signal $1 to the processes $2, $3, ..., and SIGCONT, because a stopped one gets it only on continuing.
signal_ranks() {
    kill "-$1" "${@:2}" 2>/dev/null || true
    kill -CONT "${@:2}" 2>/dev/null || true
}

# Starts ranks 0 to $1 - 1 at once, waits for all and returns the status of the first that failed, else 0. If
# one fails, the others have a second to end by themselves, then get SIGTERM; 2 s later a second SIGTERM,
# which ends them at once; and 8 s later SIGKILL. SIGTERM, SIGHUP and Ctrl-C go to all ranks as SIGTERM,
# SIGUSR1 and SIGXCPU as they are: the ranks stop together after a step and save.
run_ranks() {
    local rank status=0 ended=0 signalled=0 pids=()
    for ((rank = 0; rank < $1; rank++)); do
        start_rank "$rank" &
        pids+=($!)
    done
    trap 'signalled=1; signal_ranks TERM "${pids[@]}"' TERM INT HUP
    trap 'signalled=1; signal_ranks USR1 "${pids[@]}"' USR1
    trap 'signalled=1; signal_ranks XCPU "${pids[@]}"' XCPU
    while ((ended < $1 && status == 0)); do
        wait -n || status=$?
        if ((signalled)); then      # the signal ended wait, not a rank
            signalled=0 status=0
        else
            ended=$((ended + 1))
        fi
    done
    trap - TERM INT HUP
    trap '' USR1 XCPU       # their repeats must not end the wait for the other ranks
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
