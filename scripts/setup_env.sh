# Sourced by run_1p.sh and run_tests.sh. Sets $here (the project's folder), $venv and the interpreter $python:
# $PYTHON, else .venv's, else one that has the packages, else a new .venv's. TENSORFLOW, 1.15 or 2, chooses.
# Standard output is the training script's, so all that is said here goes to stderr.

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$here/.venv
not_installed="Installing failed for the reason above: check the network and pip's settings (PIP_INDEX_URL)"
or_set_python='or set PYTHON to an interpreter that has the packages of requirements.txt.'

say() {
    printf '%s\n' "$*" >&2
}

fail() {
    say "$@"
    exit 2
}

is_there() {
    [[ -e $1 || -e ${2:-} ]]
}

# Whether interpreter $1 has what the training imports and, if $2 is set, CUDA. An import would take seconds.
# A package without an origin is an empty folder that pip uninstall left.
has_packages() {
    "$1" -c '
import ctypes
import sys
from importlib.util import find_spec

tensorflow, cuda = sys.argv[1:]
needed = ["tensorflow", "PIL"]
new = sys.version_info >= (3, 8)    # 3.7 has TensorFlow 1.15
if new:
    from importlib.metadata import version
    if version("keras") >= "3":     # as with TensorFlow 2.16 and later
        needed.append("tf_keras")
if tensorflow == ("1.15" if new else "2"):
    sys.exit(1)
if not all(getattr(find_spec(name), "origin", None) for name in needed):
    sys.exit(1)
if cuda and not (find_spec("nvidia") and find_spec("nvidia.cublas")):
    ctypes.CDLL("libcublas.so.12" if new else "libcudnn.so.7")
' "${TENSORFLOW:-}" "$2" >/dev/null 2>&1
}

# Sets $python to an interpreter that has the packages and, if $1 is set, CUDA.
find_ready() {
    for python in ${cuda:+python3} python3.7 python3; do
        if has_packages "$python" "$1"; then return; fi
    done
    return 1
}

# Sets $version and $base to the first of Pythons $1 that can make an environment: pyenv's shims are there for
# versions that are not chosen, too, and Debian's python3 may lack ensurepip.
find_base() {
    for version in $1; do
        for base in "python$version" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version"*/bin/python; do
            if "$base" -c 'import venv, ensurepip' >/dev/null 2>&1; then return; fi
        done
    done
    return 1
}

# Whether folder $1 was filled from requirements file $2 to the end and .venv still works. The stamp names the
# folder, because an environment that was moved or copied points to the old one.
is_finished() {
    [[ -f $1/finished && $(<"$1/finished") == "$1"$'\n'*"$(cat "$2" "$here/requirements.txt")" ]] &&
        has_packages "$venv/bin/python" "${TENSORFLOW:+$cuda}"
}

# Fills folder $1 from requirements file $2 by function $3, unless that is done. The stamp goes first and is
# made last, so what is cut off is redone. Interpreter $4 takes the lock, for macOS has no flock; it ends with
# the subshell, for the training must not keep it.
fill() (
    lock='import fcntl; fcntl.flock(9, fcntl.LOCK_EX'
    exec 9>>"$here/.venv.lock" || exit
    if ! "$4" -c "$lock | fcntl.LOCK_NB)" 2>/dev/null; then
        say 'Waiting for another start, which is installing.'
        "$4" -c "$lock)" || exit
    fi
    if is_finished "$1" "$2"; then exit; fi
    rm -rf "$1/finished" "$1" && "$3" >&2 &&
        { printf '%s\n' "$1" && cat "$2" "$here/requirements.txt"; } >"$1/finished"
)

# The pip of an early 3.7 would compile what has wheels; 24.0 is the last one for 3.7.
make_venv() {
    say "Making $venv with $base, the first found of Python ${versions// /, }, a download of up to $size;" \
        'TENSORFLOW=1.15 or TENSORFLOW=2 before the command chooses.'
    "$base" -m venv "$venv" &&
        "$venv/bin/python" -m pip install 'pip>=20.3,<24.1; python_version == "3.7"' &&
        "$venv/bin/python" -m pip install -r "$requirements"
}

# Makes .venv and sets $python to its interpreter, or $problem. An NPU needs the TensorFlow of Python 3.7.
set_up() {
    local old=3.7 new='3.11 3.10 3.9 3.12 3.13' versions version base
    local requirements=$here/requirements.txt size='0.7 GB'
    case $platform in
        'Linux x86_64' | 'Darwin x86_64') ;;
        'Linux aarch64' | 'Darwin arm64') old='' ;;
        *) old='' new='' ;;
    esac
    case ${TENSORFLOW:-$cuda} in
        1.15) versions=$old ;;
        2) versions=$new ;;
        cuda) versions="$new $old" ;;
        *) versions=${old:+$old }$new ;;
    esac
    [[ -n $versions ]] ||
        fail "No TensorFlow${TENSORFLOW:+ $TENSORFLOW} is published for $platform:" \
            'set PYTHON to an interpreter that has one.'
    problem="No Python to set up with was found: install one of Python ${versions// /, } with its venv module"
    find_base "$versions" || return
    if [[ -n $cuda && $version != 3.7 ]]; then
        requirements=$here/requirements-gpu.txt size='3.5 GB with CUDA for the NVIDIA card here'
    fi
    problem=$not_installed
    trap 'exit 130' INT     # pip answers Ctrl-C as a failure
    fill "$venv" "$requirements" make_venv "$base" || return
    trap - INT
    python=$venv/bin/python
}

[[ ${TENSORFLOW:-2} == @(1.15|2) ]] || fail "TENSORFLOW is '$TENSORFLOW': set it to 1.15 or 2, or unset it."

# $cuda is set for an NVIDIA card. Only TensorFlow 2 for Linux on x86-64 comes with CUDA, and an Ascend host
# keeps to its NPU. Under WSL every card is /dev/dxg; libcuda is NVIDIA's.
platform=$(uname -sm) cuda=''
if [[ $platform == 'Linux x86_64' && ${TENSORFLOW:-} != 1.15 && -z ${PYTHON:-} ]] &&
    ! is_there ${SESEMI_NPU_NODES:-/dev/davinci[0-9]*} &&
    is_there ${SESEMI_GPU_NODES:-/dev/nvidia[0-9]* /usr/lib/wsl/lib/libcuda.so.1}; then
    cuda=cuda
fi

if [[ -n ${PYTHON:-} ]]; then
    "$PYTHON" -c '' >/dev/null 2>&1 ||
        fail "PYTHON is '$PYTHON', which can't be run: unset it, $or_set_python"
    python=$PYTHON
elif is_finished "$venv" "$here/requirements-gpu.txt" || is_finished "$venv" "$here/requirements.txt"; then
    python=$venv/bin/python
elif ! find_ready "$cuda" && ! set_up && ! find_ready ''; then
    fail "$problem, $or_set_python"
fi
if [[ -n $cuda ]] && ! has_packages "$python" "$cuda"; then
    say "$python has no CUDA libraries, so the NVIDIA card here stays unused:" \
        'TENSORFLOW=2 bash run_1p.sh installs them, a download of 3.5 GB.'
fi
