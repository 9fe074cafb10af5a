#!/usr/bin/env bash
# Runs the tests with the interpreter that run_1p.sh trains with, up to four files at once. All arguments
# go to pytest; paths are relative to this folder:
#     bash run_tests.sh -k digits
#     bash run_tests.sh tests/test_run_1p.py
set -eu
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup_env.sh"

requirements=$here/tests/requirements.txt
pytest=$venv/pytest

# pytest has a folder of its own, so that a failed or interrupted installation cannot damage the training's
# packages.
make_pytest() {
    "$python" -m pip install --target "$pytest" -r "$requirements"
}

if [[ $python == "$venv/bin/python" ]]; then
    fill "$pytest" "$requirements" make_pytest "$python" || fail "$not_installed."
    export PYTHONPATH="$pytest${PYTHONPATH:+:$PYTHONPATH}"
elif ! "$python" -c 'import pytest, xdist' >/dev/null 2>&1; then
    install="$python -m pip install -r $requirements"
    fail "$python has no pytest with pytest-xdist, which the tests need: run $install"
fi

# A relative PYTHON is relative to the caller's folder.
if [[ $python == [!/]*/* ]]; then python=$PWD/$python; fi
cd "$here"
exec "$python" -m pytest --rootdir=. -o testpaths=tests --numprocesses=auto --maxprocesses=4 \
    --dist=loadfile --durations=10 "$@"
