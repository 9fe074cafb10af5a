# Sourced by run_1p.sh and run_tests.sh. Sets $here (the project's folder), $venv and $python: the
# interpreter to run with. What it has to say goes to stderr, because standard output is the training script's.

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$here/.venv

fail() {
    printf '%s\n' "$1" >&2
    exit 2
}

# Whether interpreter $1 has what the training imports. It only looks for the packages: importing TensorFlow
# takes seconds. A package without an origin is just a folder of that name, such as an uninstallation leaves.
has_packages() {
    "$1" -c '
import sys
from importlib.util import find_spec

needed = ["tensorflow", "numpy", "PIL"]
if sys.version_info >= (3, 8):  # On 3.7, without importlib.metadata, TensorFlow is 1.15 and has its own Keras.
    from importlib.metadata import PackageNotFoundError, version

    def release(package):
        try:
            return [int(number) for number in version(package).split(".")[:2]]
        except PackageNotFoundError:
            return [0, 0]

    # From 2.16 on TensorFlow comes with Keras 3. Keras is asked too, because TensorFlow has several package names.
    if release("tensorflow") >= [2, 16] or release("keras") >= [3, 0]:
        needed.append("tf_keras")
sys.exit(not all(getattr(find_spec(name), "origin", None) for name in needed))
' >/dev/null 2>&1
}

# The interpreter to make .venv from. Python 3.7 is first because it gets TensorFlow 1.15, then come those with
# TensorFlow 2, best proven first. Each is tried by running it: a pyenv shim is there for versions that are not
# chosen, too, and Debian has a python3 that can make no environment.
find_base() {
    local version candidate
    for version in 3.7 3.11 3.10 3.9 3.12 3.13; do
        # TensorFlow 1.15 was published for x86-64 alone.
        [[ $version != 3.7 || $(uname -m) == x86_64 ]] || continue
        for candidate in "python$version" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version"*/bin/python; do
            if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
                printf '%s\n' "$candidate"
                return
            fi
        done
    done
    fail "No Python to set up with was found: install Python 3.7 or 3.9 to 3.13 with its venv module (on Debian: apt-get install python3-venv), or set PYTHON to an interpreter that has the packages of requirements.txt."
}

# What folder $1, filled from requirements file $2, is stamped with: its place, because an environment that was
# moved or copied still points to the old one, and the requirements, because they change.
stamp() {
    printf '%s\n' "$1"
    cat "$2"
}

# Whether $1 was filled from $2 to the end and still works. It does not if the Python that .venv was made from
# has vanished, or was replaced by another version, which does not see the installed packages.
finished() {
    [[ -f $1/finished && $(<"$1/finished") == "$(stamp "$1" "$2")" ]] &&
        "$venv/bin/python" -c 'import pip' >/dev/null 2>&1
}

# Waits until no other start is installing. The lock belongs to file descriptor 9, so to the shell that calls this
# and to what it starts, and goes with them. Interpreter $1 takes it, because not every system has a flock command.
lock() {
    { exec 9>>"$here/.venv.lock"; } 2>/dev/null && "$1" -c '
import fcntl
import sys

try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Waiting for another start, which is installing.", file=sys.stderr, flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
'
}

# Fills folder $1 from requirements file $2 by calling function $3, unless that is done already; interpreter $4
# takes the lock. The old stamp goes first and the new one comes last: an attempt that was cut off anywhere is
# redone, not believed. It is a subshell because the training must not keep the lock.
fill() (
    lock "$4" ||
        fail "Can't lock $here/.venv.lock to install: make the folder writable, or set PYTHON to an interpreter that has the packages of $2."
    if finished "$1" "$2"; then exit; fi
    { rm -rf "$1/finished" "$1" && "$3" >&2 && stamp "$1" "$2" >"$1/finished"; } ||
        fail "Installing the packages of $2 failed for the reason above: check the network and pip's settings (such as PIP_INDEX_URL) and start again, or set PYTHON to an interpreter that has them."
)

make_venv() {
    printf '%s\n' "Making $venv with $base: no Python here has TensorFlow yet, and of those that can get it (3.7, 3.11, 3.10, 3.9, 3.12, 3.13, in this order) it is the first found."
    # The pip of an early 3.7 (19.2 in 3.7.5) does not know today's wheels and would compile packages; 24.0 is the
    # last one for 3.7.
    "$base" -m venv "$venv" &&
        "$venv/bin/python" -m pip install 'pip>=20.3,<24.1; python_version == "3.7"' &&
        "$venv/bin/python" -m pip install -r "$here/requirements.txt"
}

if [[ -n ${PYTHON:-} ]]; then
    "$PYTHON" -c '' >/dev/null 2>&1 ||
        fail "PYTHON is '$PYTHON', which can't be run: set it to an interpreter that has the packages of requirements.txt, or unset it."
    python=$PYTHON
elif finished "$venv" "$here/requirements.txt"; then
    python=$venv/bin/python
elif has_packages python3.7; then
    python=python3.7
elif has_packages python3; then
    python=python3
else
    base=$(find_base) || exit
    fill "$venv" "$here/requirements.txt" make_venv "$base" || exit
    python=$venv/bin/python
fi
