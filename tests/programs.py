"""Starts the project's programs as a user does, none for longer than a limit, and copies the project to try it in."""
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

from conftest import PROJECT

STAND_INS = PROJECT / 'tests/stand_ins'
TINY = 'tests/tiny_trunk.py'        # train_evaluate_sesemi.py with a trunk of one convolution
LIMIT = 300                         # seconds
OF_A_JOB = ('RANK_ID', 'RANK_SIZE', 'JOB_ID', 'ASCEND_DEVICE_ID', 'TF_CONFIG', 'PYTHONPATH', 'PYTHONUNBUFFERED')

SMALL_NIN = '''
from networks.layers import Layers, chain

def trunk(dropout=0.0, seed=0):
    make = Layers(slope=0.0, use_bias=True, seed=seed)
    return chain(make.conv_norm(4, 3), make.dropout(dropout))
'''


class Result(NamedTuple):
    """How a process ended."""
    status: int
    out: str
    err: str

    def sentence(self):
        """What a failed run says last, below what TensorFlow itself may say at its import."""
        assert 'Traceback' not in self.err
        return self.err.splitlines()[-1]


def start(*command, cwd=None, limit=LIMIT, **environment):
    """Start a command, or a program of the project if it is a .py file, outside of any job, nohup included; it and what it starts are
    killed after `limit` s.

    run_1p.sh uses the tests' interpreter.
    """
    words = list(map(str, command))
    if words[0].endswith('.py'):
        words = [sys.executable, '-u', str(PROJECT / words[0]), *words[1:]]
    inherited = {name: value for name, value in os.environ.items() if name not in OF_A_JOB}
    process = subprocess.Popen(
        words, cwd=cwd and str(cwd), start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding='utf-8', errors='surrogateescape', preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL), env={
            **inherited, 'PYTHON': sys.executable, **environment})

    def kill():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    timer = threading.Timer(limit, kill)
    timer.daemon = True
    timer.start()
    return process


def result(process):
    """The Result of a process that was started; waits for its end and for that of all that have its output."""
    out, err = process.communicate()
    return Result(process.returncode, out, err)


def run(*command, **options):
    """The Result of a command, started as by `start`."""
    return result(start(*command, **options))


def read_until(process, text):
    """What a process prints up to `text`. Fails when it ends before, or is killed for its limit."""
    seen = ''
    while text not in seen:
        character = process.stdout.read(1)
        assert character, '%r never came: %s' % (text, seen)
        seen += character
    return seen


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
