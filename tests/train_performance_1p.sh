#!/usr/bin/env bash
# The model zoo's acceptance script for speed: the first epochs of a training. -h lists the options.
source "$(dirname -- "${BASH_SOURCE[0]}")/train_1p.sh" perf --epochs=3 "$@"
