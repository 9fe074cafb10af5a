# Sourced by run_8p.sh and run_local.sh, which say in start_rank what one rank runs.

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)

# Starts ranks 0 to $1 - 1 at once and waits for all of them; its status is that of a rank that failed, if one did, and then it
# ends the others, which may not have met yet. SIGTERM goes on to rank 0, which saves and tells the others.
run_ranks() {
    local rank status=0 ended pids=()
    for ((rank = 0; rank < $1; rank++)); do
        start_rank "$rank" &
        pids+=($!)
    done
    trap 'kill -TERM "${pids[0]}" 2>/dev/null || true' TERM
    trap '' INT         # Ctrl-C reaches the ranks by itself
    for ((ended = 0; ended < $1; )); do
        wait -n && ended=$((ended + 1)) && continue
        status=$?
        # A trapped signal ends wait, too: with 128 and its number, while all are still there.
        if ((status > 128)) && kill -0 "${pids[@]}" 2>/dev/null; then status=0; continue; fi
        break
    done
    if ((status)); then
        kill -TERM "${pids[@]}" 2>/dev/null || true
    fi
    wait
    return "$status"
}
