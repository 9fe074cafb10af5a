# Sourced by other scripts. Sets $here (the project's folder), $venv and the interpreter $python: $PYTHON,
# else on an Ascend host one that has the NPU's adapter, else .venv's, else one that has the packages, else
# that of a new .venv. TENSORFLOW, 1.15 or 2, is the version to use. Standard output is the training script's,
# so messages go to standard error.

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$here/.venv
not_installed="Installing failed for the reason above: check the network and pip's settings (PIP_INDEX_URL)"
or_set_python='or set PYTHON to an interpreter that has the packages of requirements.txt.'

inform() {
    printf '%s\n' "$*" >&2
}

fail() {
    inform "$@"
    exit 2
}

either_exists() {
    [[ -e $1 || -e ${2:-} ]]
}

# Whether interpreter $1 has what the training imports and $2: cuda, npu for the adapter of an NPU, or nothing
# more. Importing would take seconds. No origin means an empty folder left by pip uninstall.
has_packages() {
    "$1" -c '
import ctypes
import sys
from contextlib import suppress
from importlib.util import find_spec

tensorflow, more, project = sys.argv[1:]
needed = ["tensorflow", "PIL"]
tensorflow_2 = sys.version_info >= (3, 8)
if tensorflow_2:
    from importlib.metadata import version
    if version("keras") >= "3":     # comes with TensorFlow 2.16 and later
        needed.append("tf_keras")
else:       # Python 3.7 has TensorFlow 1.15, or 2.6 for an NPU
    with suppress(ImportError):
        from importlib_metadata import version
        tensorflow_2 = version("tensorflow") >= "2"
if tensorflow == ("1.15" if tensorflow_2 else "2"):
    sys.exit(1)
if not all(getattr(find_spec(name), "origin", None) for name in needed):
    sys.exit(1)
if more == "cuda" and not (find_spec("nvidia") and find_spec("nvidia.cublas")):
    ctypes.CDLL("libcublas.so.12" if tensorflow_2 else "libcudnn.so.7")
if more == "npu":
    sys.path.append(project)
    from sesemi.device import npu
    sys.exit(not npu.find_adapter()[1])
' "${TENSORFLOW:-}" "$2" "$here" >/dev/null 2>&1
}

# Sets $python to an interpreter that has the packages and $1, as in has_packages.
find_ready() {
    for python in ${cuda:+python3} python3.7 python3; do
        if has_packages "$python" "$1"; then return; fi
    done
    return 1
}

# Sets $version and $base to the first of Python versions $1 that can make an environment. pyenv has shims for
# versions that are not selected, and Debian's python3 may lack ensurepip, so each is tried.
find_base() {
    for version in $1; do
        for base in "python$version" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version"*/bin/python; do
            if "$base" -c 'import venv, ensurepip' >/dev/null 2>&1; then return; fi
        done
    done
    return 1
}

# Whether folder $1 was filled completely from requirements file $2 and .venv still works. The stamp holds the
# folder's path, because an environment that was moved or copied points to the old one.
is_finished() {
    [[ -f $1/finished && $(<"$1/finished") == "$1"$'\n'*"$(cat "$2" "$here/requirements.txt")" ]] &&
        has_packages "$venv/bin/python" "${TENSORFLOW:+$cuda}"
}

# Fills folder $1 from requirements file $2 by function $3, unless that is done. The stamp is removed first
# and written last, so an interrupted installation is redone. Interpreter $4 takes the lock, because macOS has
# no flock. The lock ends with the subshell; the training must not hold it.
fill() (
    lock='import fcntl; fcntl.flock(9, fcntl.LOCK_EX'
    exec 9>>"$here/.venv.lock" || exit
    if ! "$4" -c "$lock | fcntl.LOCK_NB)" 2>/dev/null; then
        inform 'Waiting for another start, which is installing.'
        "$4" -c "$lock)" || exit
    fi
    if is_finished "$1" "$2"; then exit; fi
    rm -rf "$1/finished" "$1" && "$3" >&2 &&
        { printf '%s\n' "$1" && cat "$2" "$here/requirements.txt"; } >"$1/finished"
)

# The pip of an early Python 3.7 compiles what has wheels; 24.0 is the last pip for Python 3.7.
make_venv() {
    inform "Making $venv with $base, the first found of Python ${versions// /, }, a download of up to" \
        "$size; TENSORFLOW=1.15 or TENSORFLOW=2 before the command chooses."
    "$base" -m venv "$venv" &&
        "$venv/bin/python" -m pip install 'pip>=20.3,<24.1; python_version == "3.7"' &&
        "$venv/bin/python" -m pip install -r "$requirements"
}

# Makes .venv and sets $python to its interpreter, or $problem. Most adapters of an NPU need Python 3.7's
# TensorFlow 1.15.
set_up() {
    local tf1=3.7 tf2='3.11 3.10 3.9 3.12 3.13' versions version base      # Pythons for TensorFlow 1.15 and 2
    local requirements=$here/requirements.txt size='0.7 GB'
    case $platform in
        'Linux x86_64' | 'Darwin x86_64') ;;
        'Linux aarch64' | 'Darwin arm64') tf1='' ;;
        *) tf1='' tf2='' ;;
    esac
    case ${TENSORFLOW:-$cuda} in
        1.15) versions=$tf1 ;;
        2) versions=$tf2 ;;
        cuda) versions="$tf2 $tf1" ;;
        *) versions=${tf1:+$tf1 }$tf2 ;;
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
    trap 'exit 130' INT     # else Ctrl-C would count as a failure of pip
    fill "$venv" "$requirements" make_venv "$base" || return
    trap - INT
    python=$venv/bin/python
}

[[ ${TENSORFLOW:-2} == @(1.15|2) ]] || fail "TENSORFLOW is '$TENSORFLOW': set it to 1.15 or 2, or unset it."

# $npu is set on an Ascend host, else $cuda if there is an NVIDIA card to use. Only TensorFlow 2 for Linux on
# x86-64 comes with CUDA. Under WSL every maker's card is /dev/dxg; NVIDIA's is known by libcuda.
platform=$(uname -sm) npu='' cuda=''
if either_exists ${SESEMI_NPU_NODES:-/dev/davinci[0-9]*}; then
    npu=npu
elif [[ $platform == 'Linux x86_64' && ${TENSORFLOW:-} != 1.15 && -z ${PYTHON:-} ]] &&
    either_exists ${SESEMI_GPU_NODES:-/dev/nvidia[0-9]* /usr/lib/wsl/lib/libcuda.so.1}; then
    cuda=cuda
fi

if [[ -n ${PYTHON:-} ]]; then
    "$PYTHON" -c '' >/dev/null 2>&1 ||
        fail "PYTHON is '$PYTHON', which can't be run: unset it, $or_set_python"
    python=$PYTHON
elif [[ -n $npu ]] && find_ready npu; then
    :
elif is_finished "$venv" "$here/requirements-gpu.txt" || is_finished "$venv" "$here/requirements.txt"; then
    python=$venv/bin/python
elif ! find_ready "$cuda" && ! set_up && ! find_ready ''; then
    fail "$problem, $or_set_python"
fi
if [[ -n $cuda ]] && ! has_packages "$python" "$cuda"; then
    inform "$python has no CUDA libraries, so the NVIDIA card here stays unused:" \
        'TENSORFLOW=2 bash run_1p.sh installs them, a download of 3.5 GB.'
fi
