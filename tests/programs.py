"""Starts the project's programs as a user does, with a time limit, and copies the project."""
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
# variables that a platform may set for its jobs, and that the programs would read
JOB_VARIABLES = ('RANK_ID', 'RANK_SIZE', 'CM_WORKER_SIZE', 'JOB_ID', 'ASCEND_DEVICE_ID', 'TF_CONFIG',
                 'PYTHONPATH', 'PYTHONUNBUFFERED')
# prefixes of the variables that Python and TensorFlow read at their start
START_PREFIXES = ('PYTHON', 'TF_', 'CUDA_')
TEXT = {'encoding': 'utf-8', 'errors': 'surrogateescape'}


class Result(NamedTuple):
    """How a process ended."""
    status: int
    out: str
    err: str

    def sentence(self):
        """The last line of standard error. TensorFlow may have written others above it."""
        assert 'Traceback' not in self.err
        return self.err.splitlines()[-1]


@functools.lru_cache(maxsize=None)      # one per test process; it ends with that
def fork_server():
    """(the process of tests/fork_server.py, a multiprocessing.Connection to it)."""
    ours, its = multiprocessing.Pipe()
    with its:
        command = [sys.executable, '-u', str(PROJECT / 'tests/fork_server.py')]
        server = popen(command, own_environment(), stdin=its.fileno())
    try:
        ours.recv()     # when it is ready
    except EOFError:
        raise RuntimeError(server.stderr.read()) from None
    return server, ours


class ForkedProgram:
    """A program that the fork server starts, with the methods of subprocess.Popen that tests use."""

    def __init__(self, command, environment, folder, limit):
        _, server = fork_server()
        self.returncode = None
        self.connection, its = multiprocessing.Pipe()
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        server.send((command, environment, folder, limit))
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
            with contextlib.suppress(ProcessLookupError):       # it has just ended
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


def own_environment():
    """The environment of the tests without JOB_VARIABLES."""
    environment = {name: value for name, value in os.environ.items() if name not in JOB_VARIABLES}
    return {**environment, 'PYTHON': sys.executable}


def popen(command, environment, **options):
    """Start a process in its own session, with pipes. It gets SIGHUP even if the tests run under nohup."""
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        **TEXT, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL), **options)


def start(*command, cwd=None, limit=LIMIT, **environment):
    """Start a command, or a program of the project if the first word ends in .py.

    `environment` is added to own_environment(). The process and what it starts are killed after `limit`
    seconds.

    A program is forked by fork_server.py, which saves the import of TensorFlow. It gets an interpreter of its
    own if a name in `environment` has a prefix in START_PREFIXES, or from start(sys.executable, PROJECT /
    program).
    """
    command = list(map(str, command))
    is_program = command[0].endswith('.py')
    forked = is_program and not any(name.startswith(START_PREFIXES) for name in environment)
    environment = {**own_environment(), **environment}
    if is_program:
        command[0] = str(PROJECT / command[0])
    if forked:
        return ForkedProgram(command, environment, str(cwd or os.getcwd()), limit)
    if is_program:
        command = [sys.executable, '-u', *command]
    process = popen(command, environment, cwd=cwd and str(cwd), stdin=subprocess.DEVNULL)

    def kill():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    timer = threading.Timer(limit, kill)
    timer.daemon = True
    timer.start()
    return process


def result(process):
    """The Result of a started process. Waits until it and all that hold its output have ended."""
    out, err = process.communicate()
    return Result(process.returncode, out, err)


def run(*command, **options):
    """Start a command as `start` does and return its Result."""
    return result(start(*command, **options))


def saved_weights(result):
    """The arrays of the model in a run's folder, by name."""
    found = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(str(result / 'sesemi.h5'), 'r') as file:
        file['model_weights'].visititems(collect)
    return found


def same_weights(result, other):
    ours, theirs = saved_weights(result), saved_weights(other)
    return list(ours) == list(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def read_until(process, text):
    """What a process prints up to `text`. Fails if it ends before, as it does at its time limit."""
    seen = ''
    while text not in seen:
        character = process.stdout.read(1)
        assert character, '%r never came: %s' % (text, seen)
        seen += character
    return seen


def copy_project(folder):
    """Copy the whole program into a folder, with one convolution as its network nin."""
    for pattern in ('*.py', '*.sh', 'requirements.txt', 'networks/*.py', 'sesemi/**/*.py', 'sesemi/**/*.html',
                    'scripts/*', 'test*/*.sh'):
        for path in PROJECT.glob(pattern):
            (folder / path.relative_to(PROJECT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(path), str(folder / path.relative_to(PROJECT)))
    shutil.copy(str(PROJECT / 'tests/one_convolution.py'), str(folder / 'networks/nin.py'))
    return folder


def write_run_1p(folder, script):
    """Write a run_1p.sh that sets $result to the value of --result and runs `script`."""
    (folder / 'run_1p.sh').write_text(
        'set -eu\nargs=("$@")\nfor ((i = 0; i < $#; i++)); do\n'
        '    case ${args[i]} in --result) result=${args[i + 1]} ;; --result=*) result=${args[i]#*=} ;; esac\n'
        'done\n' + script)
