#!/usr/bin/env bash
# The model zoo's acceptance script for accuracy: a complete training. -h lists the options.
source "$(dirname -- "${BASH_SOURCE[0]}")/train_1p.sh" acc "$@"
