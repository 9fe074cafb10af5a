#!/usr/bin/env bash
# The model zoo looks here for this script and its output.
source "$(dirname -- "${BASH_SOURCE[0]}")/../tests/train_full_1p.sh"
