"""Starts the project's programs as a user does, none beyond a limit, and copies the project to try it in."""
import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import reduction
from typing import NamedTuple

import h5py
import numpy as np
from conftest import PROJECT

STAND_INS = PROJECT / 'tests/stand_ins'
TINY = 'tests/tiny_trunk.py'        # train_evaluate_sesemi.py with a trunk of one convolution
LIMIT = 300                         # seconds
OF_A_JOB = ('RANK_ID', 'RANK_SIZE', 'JOB_ID', 'ASCEND_DEVICE_ID', 'TF_CONFIG', 'PYTHONPATH',
            'PYTHONUNBUFFERED')
# how variables begin that Python and TensorFlow read at their start
READ_AT_START = ('PYTHON', 'TF_', 'CUDA_')
TEXT = {'encoding': 'utf-8', 'errors': 'surrogateescape'}


class Result(NamedTuple):
    """How a process ended."""
    status: int
    out: str
    err: str

    def sentence(self):
        """What a failed run says last, below what TensorFlow itself may say at its import."""
        assert 'Traceback' not in self.err
        return self.err.splitlines()[-1]


@functools.lru_cache(maxsize=None)      # one for each process that runs tests; it ends with that process
def fork_server():
    """(its process, a multiprocessing.Connection to it): tests/fork_server.py."""
    ours, its = multiprocessing.Pipe()
    with its:
        words = [sys.executable, '-u', str(PROJECT / 'tests/fork_server.py')]
        server = popen(words, inherited(), stdin=its.fileno())
    try:
        ours.recv()     # when it is ready
    except EOFError:
        raise RuntimeError(server.stderr.read()) from None
    return server, ours


class ForkedProgram:
    """What tests use of subprocess.Popen, of a program that the fork server starts."""

    def __init__(self, words, environment, folder, limit):
        _, server = fork_server()
        self.returncode = None
        self.connection, its = multiprocessing.Pipe()
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        server.send((words, environment, folder, limit))
        for descriptor in its.fileno(), its_out, its_err:
            reduction.send_handle(server, descriptor, None)
        its.close()
        os.close(its_out)
        os.close(its_err)
        self.stdout, self.stderr = (open(descriptor, **TEXT) for descriptor in (out, err))
        self.pid = self.connection.recv()

    def wait(self, timeout=None):
        if self.returncode is None:
            if not self.connection.poll(timeout):
                raise subprocess.TimeoutExpired('process %d' % self.pid, timeout)
            status = self.connection.recv()
            self.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return self.returncode

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self):
        with self.stdout, self.stderr, ThreadPoolExecutor(1) as pool:
            err = pool.submit(self.stderr.read)
            out = self.stdout.read()
            self.wait()
            return out, err.result()

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):       # it has ended since
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


def inherited():
    """The environment of the tests, outside of any job."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_JOB}
    return {**environment, 'PYTHON': sys.executable}


def popen(words, environment, **options):
    """A process in a session of its own, with pipes, that does not ignore SIGHUP, as it would under nohup."""
    return subprocess.Popen(
        words, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        **TEXT, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL), **options)


def start(*command, cwd=None, limit=LIMIT, **environment):
    """Start a command, or a program of the project if it is a .py file, outside of any job, nohup included.

    It and what it starts are killed after `limit` seconds. run_1p.sh uses the tests' interpreter.

    A program is forked from a process that has imported TensorFlow, which spares it seconds: fork_server.py.
    An interpreter of its own is started for it when a variable of `environment` begins as READ_AT_START has
    it, and by start(sys.executable, PROJECT / program).
    """
    words = list(map(str, command))
    forked = words[0].endswith('.py') and not any(name.startswith(READ_AT_START) for name in environment)
    if words[0].endswith('.py'):
        words[0] = str(PROJECT / words[0])
    environment = {**inherited(), **environment}
    if forked:
        return ForkedProgram(words, environment, str(cwd or os.getcwd()), limit)
    if words[0].endswith('.py'):
        words = [sys.executable, '-u', *words]
    process = popen(words, environment, cwd=cwd and str(cwd), stdin=subprocess.DEVNULL)

    def kill():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    timer = threading.Timer(limit, kill)
    timer.daemon = True
    timer.start()
    return process


def result(process):
    """The Result of a process that was started; waits for its end and that of all that have its output."""
    out, err = process.communicate()
    return Result(process.returncode, out, err)


def run(*command, **options):
    """The Result of a command, started as by `start`."""
    return result(start(*command, **options))


def saved_weights(result):
    """The arrays of the model that a run left in the folder `result`, by name."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(str(result / 'sesemi.h5'), 'r') as file:
        file['model_weights'].visititems(keep)
    return found


def same_weights(result, other):
    ours, theirs = saved_weights(result), saved_weights(other)
    return list(ours) == list(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)


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
    for pattern in ('*.py', '*.sh', 'requirements.txt', 'networks/*.py', 'sesemi/**/*.py', 'sesemi/**/*.html',
                    'scripts/*', 'tests/*.sh'):
        for path in PROJECT.glob(pattern):
            (folder / path.relative_to(PROJECT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(path), str(folder / path.relative_to(PROJECT)))
    shutil.copy(str(PROJECT / 'tests/one_convolution.py'), str(folder / 'networks/nin.py'))
    return folder


def write_run_1p(folder, script):
    """A run_1p.sh that is `script`, with $result set to the value of --result."""
    (folder / 'run_1p.sh').write_text(
        'set -eu\nargs=("$@")\nfor ((i = 0; i < $#; i++)); do\n'
        '    case ${args[i]} in --result) result=${args[i + 1]} ;; --result=*) result=${args[i]#*=} ;; esac\n'
        'done\n' + script)
