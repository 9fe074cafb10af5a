# Sourced by run_1p.sh and run_tests.sh. Sets $here (the project's folder), $venv and $python: the
# interpreter to run with. What it has to say goes to stderr, because standard output is the training script's.
# TENSORFLOW, 1.15 or 2, says which one that is to have.

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$here/.venv
download='3.5 GB'     # of requirements-gpu.txt

fail() {
    printf '%s\n' "$1" >&2
    exit 2
}

is_there() {
    local node
    for node in $1; do
        if [[ -e $node ]]; then return; fi
    done
    return 1
}

# Sets $npu and $gpu if there is such a device to train on, and $cuda if .venv can have a TensorFlow that uses the GPU.
# An Ascend host keeps to its NPU. Under WSL every maker's card is /dev/dxg, but the driver's library is there with
# NVIDIA's alone. Of the published TensorFlows only the one for Linux on x86-64 has CUDA in it.
find_devices() {
    platform=$(uname -sm) npu='' gpu='' cuda=''
    if is_there "${SESEMI_NPU_NODES:-/dev/davinci[0-9]*}"; then
        npu=1
    elif is_there "${SESEMI_GPU_NODES:-/dev/nvidia[0-9]* /usr/lib/wsl/lib/libcuda.so.1}"; then
        gpu=1
        if [[ $platform == 'Linux x86_64' && ${TENSORFLOW:-} != 1.15 ]]; then cuda=1; fi
    fi
}

# Whether interpreter $1 has what the training imports, and if $2 is set the CUDA libraries that its TensorFlow loads.
# It only looks for the packages: importing TensorFlow takes seconds. A package without an origin is just a folder of
# that name, such as an uninstallation leaves.
has_packages() {
    "$1" -c '
import sys
from importlib.util import find_spec

needed = ["tensorflow", "numpy", "PIL"]
new = sys.version_info >= (3, 8)
if new:  # On 3.7, without importlib.metadata, TensorFlow is 1.15 and has its own Keras.
    from importlib.metadata import PackageNotFoundError, version

    def release(package):
        try:
            return [int(number) for number in version(package).split(".")[:2]]
        except PackageNotFoundError:
            return [0, 0]

    # From 2.16 on TensorFlow comes with Keras 3. Keras is asked too, because TensorFlow has several package names.
    if release("tensorflow") >= [2, 16] or release("keras") >= [3, 0]:
        needed.append("tf_keras")
tensorflow, cuda = sys.argv[1:]
if tensorflow == ("1.15" if new else "2") or not all(getattr(find_spec(name), "origin", None) for name in needed):
    sys.exit(1)
if cuda:
    import ctypes
    import glob
    library = "libcublas.so.12" if new else "libcudnn.so.7"
    folders = getattr(find_spec("nvidia"), "submodule_search_locations", None) or []
    if not any(glob.glob(glob.escape(folder) + "/*/lib/" + library) for folder in folders):
        ctypes.CDLL(library)
' "${TENSORFLOW:-}" "$2" >/dev/null 2>&1
}

# Sets $python to an interpreter that has the packages, and CUDA if $1 is set.
find_ready() {
    local order='python3.7 python3'
    if [[ -n $1 ]]; then order='python3 python3.7'; fi
    for python in $order; do
        if has_packages "$python" "$1"; then return; fi
    done
    return 1
}

# Sets $versions to the Pythons to make .venv from, best first: 3.7 gets TensorFlow 1.15, which the NPU needs, the others
# get TensorFlow 2, best proven first.
find_versions() {
    local old=3.7 new='3.11 3.10 3.9 3.12 3.13'
    case $platform in
        'Linux x86_64') ;;
        'Darwin x86_64') new=${new% 3.13} ;;            # the last TensorFlow there is 2.16
        'Linux aarch64' | 'Darwin arm64') old='' ;;     # TensorFlow 1.15 was published for x86-64 alone
        *) fail "No TensorFlow is published for this machine ($platform): set PYTHON to an interpreter that has the packages of requirements.txt." ;;
    esac
    case ${TENSORFLOW:-$cuda} in
        1.15) versions=$old ;;
        2) versions=$new ;;
        1) versions="$new $old" ;;
        *) versions="${old:+$old }$new" ;;
    esac
    [[ -n $versions ]] ||
        fail "TensorFlow 1.15 was published for x86-64 alone, and this is $platform: unset TENSORFLOW, or set PYTHON to an interpreter that has it."
}

# The first of the Python versions $1 that can make .venv, and its interpreter. Each is tried by running it: a pyenv
# shim is there for versions that are not chosen, too, and Debian has a python3 that can make no environment.
find_base() {
    local version candidate
    for version in $1; do
        for candidate in "python$version" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version"*/bin/python; do
            if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
                printf '%s\n' "$version $candidate"
                return
            fi
        done
    done
    return 1
}

# What folder $1, filled from requirements file $2, is stamped with: its place, because an environment that was
# moved or copied still points to the old one, its TensorFlow, and the requirements, because they change.
stamp() {
    printf '%s\n' "$1" "$tensorflow"
    cat "$2" "$here/requirements.txt"
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

# Whether .venv is there and of the TensorFlow asked for. Sets $tensorflow to what it has.
has_venv() {
    local file
    for tensorflow in ${TENSORFLOW:-2 1.15}; do
        for file in requirements-gpu.txt requirements.txt; do
            if ! finished "$venv" "$here/$file"; then continue; fi
            if [[ -z $cuda ]] || has_packages "$venv/bin/python" "$cuda"; then return; fi
            [[ -z ${TENSORFLOW:-} ]] || return 1
            printf '%s\n' "$venv has no CUDA libraries, so the NVIDIA card here stays unused: start with TENSORFLOW=2 bash run_1p.sh to make it anew with them, a download of $download." >&2
            return
        done
    done
    return 1
}

# Why .venv is made as it is, and how to have the other TensorFlow.
explain() {
    if [[ $requirements == *-gpu.txt ]]; then
        printf '%s\n' "an NVIDIA card is here, so it gets TensorFlow 2 and its CUDA libraries, a download of $download (for TensorFlow 1.15, which needs CUDA 10.0 on the system, start with TENSORFLOW=1.15 bash run_1p.sh)."
    elif [[ -n $gpu && $tensorflow == 1.15 ]]; then
        printf '%s\n' "it gets TensorFlow 1.15, which needs CUDA 10.0 on the system to use the NVIDIA card here; TensorFlow 2 with CUDA needs Python 3.9 to 3.13."
    elif [[ -n $gpu ]]; then
        printf '%s\n' "it gets TensorFlow 2 for the CPU, because none with CUDA is published for $platform; to use the NVIDIA card here set PYTHON to an interpreter that has one."
    elif [[ -n $npu && $tensorflow == 2 ]]; then
        printf '%s\n' "it gets TensorFlow 2 for the CPU; to use the Ascend NPU here install TensorFlow 1.15 and its Ascend adapter as Ascend's documents say and set PYTHON to the interpreter that has them."
    elif [[ $tensorflow == 1.15 && -z ${TENSORFLOW:-}$npu ]] && find_base "${versions#3.7 }" >/dev/null; then
        printf '%s\n' "it gets TensorFlow 1.15; TensorFlow 2 is 1.5 to 2 times faster on a CPU, to have that start with TENSORFLOW=2 bash run_1p.sh."
    else
        printf '%s\n' "of the Pythons that can get TensorFlow here (${versions// /, }, in this order) it is the first found."
    fi
}

make_venv() {
    printf '%s\n' "Making $venv with $base: $(explain)"
    # The pip of an early 3.7 (19.2 in 3.7.5) does not know today's wheels and would compile packages; 24.0 is the
    # last one for 3.7.
    "$base" -m venv "$venv" &&
        "$venv/bin/python" -m pip install 'pip>=20.3,<24.1; python_version == "3.7"' &&
        "$venv/bin/python" -m pip install -r "$requirements"
}

# Makes .venv with the best Python there is; status 1 if there is none.
set_up() {
    local version
    find_versions
    read -r version base < <(find_base "$versions") || return
    tensorflow=2 requirements=$here/requirements.txt
    if [[ $version == 3.7 ]]; then
        tensorflow=1.15
    elif [[ -n $cuda ]]; then
        requirements=$here/requirements-gpu.txt
    fi
    fill "$venv" "$requirements" make_venv "$base" || exit
    python=$venv/bin/python
}

case ${TENSORFLOW:-} in
    '' | 1.15 | 2) ;;
    *) fail "TENSORFLOW is '$TENSORFLOW': set it to 1.15 or 2, or unset it." ;;
esac
find_devices
if [[ -n ${PYTHON:-} ]]; then
    "$PYTHON" -c '' >/dev/null 2>&1 ||
        fail "PYTHON is '$PYTHON', which can't be run: set it to an interpreter that has the packages of requirements.txt, or unset it."
    python=$PYTHON
elif has_venv; then
    python=$venv/bin/python
elif ! find_ready "$cuda" && ! set_up && ! find_ready ''; then
    fail "No Python to set up with was found: install one of Python ${versions// /, } with its venv module (on Debian: apt-get install python3-venv), or set PYTHON to an interpreter that has the packages of requirements.txt."
fi
