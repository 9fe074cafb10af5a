"""Copies of the project to try it in: with a network that is small enough for tests, or without TensorFlow altogether."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
STAND_INS = PROJECT / 'tests/stand_ins'

SMALL_NIN = '''
from networks.layers import Layers, chain

def trunk(dropout=0.0, seed=0):
    make = Layers(slope=0.0, use_bias=True, seed=seed)
    return chain(make.conv_norm(4, 3), make.dropout(dropout))
'''


def copy_project(folder):
    """The whole program, whose network nin is one convolution."""
    for pattern in '*.py', '*.sh', 'requirements.txt', 'networks/*.py', 'sesemi/**/*.py', 'sesemi/**/*.html', 'scripts/*', 'tests/*.sh':
        for path in PROJECT.glob(pattern):
            (folder / path.relative_to(PROJECT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(path), str(folder / path.relative_to(PROJECT)))
    (folder / 'networks/nin.py').write_text(SMALL_NIN)
    return folder


def write_run_1p(folder, script):
    """A run_1p.sh that is `script`, with $result set to the value of --result."""
    (folder / 'run_1p.sh').write_text(
        'set -eu\nargs=("$@")\nfor ((i = 0; i < $#; i++)); do\n'
        '    case ${args[i]} in --result) result=${args[i + 1]} ;; --result=*) result=${args[i]#*=} ;; esac\ndone\n' + script)


def start(*command, cwd, **environment):
    """Start a command with the tests' interpreter as the one that run_1p.sh uses, outside of any job."""
    inherited = {name: value for name, value in os.environ.items() if name not in (
        'RANK_ID', 'RANK_SIZE', 'JOB_ID', 'ASCEND_DEVICE_ID', 'PYTHONPATH', 'PYTHONUNBUFFERED')}
    return subprocess.Popen(
        list(map(str, command)), cwd=str(cwd), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True, env={**inherited, 'PYTHON': sys.executable, **environment})


def run(*command, **options):
    """(exit status, standard output, standard error) of a command, started as by `start`."""
    return result(start(*command, **options))


def result(process):
    """The same of a process that was started."""
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()      # which matters only if it hangs
    return process.returncode, out, err
