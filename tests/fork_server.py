"""Starts programs for tests/programs.py by forking this process, which has already imported TensorFlow.

Requests come on standard input, one end of a multiprocessing.Pipe(). A request is a program's command line,
environment, working folder and limit in seconds. Three descriptors follow it: a Pipe() on which the program's
process id is sent when it starts and its wait status when it has ended, its standard output, and its standard
error. The server's own standard output and error must be pipes, because the programs use its stream objects.
"""
import contextlib
import gc
import os
import runpy
import signal
import sys
import threading
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[0] = PROJECT
import h5py  # noqa: E402, F401
import matplotlib.backends.backend_agg  # noqa: E402, F401
import matplotlib.figure  # noqa: E402, F401
import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402, F401
import scipy.io  # noqa: E402, F401
import sklearn.datasets  # noqa: E402, F401

import sesemi.device.runtime  # noqa: E402, F401   TensorFlow as the programs import it

with contextlib.suppress(ImportError):      # TensorFlow 1.15 imports it for the first layer
    import tensorflow.contrib  # noqa: F401


def serve():
    """Answer requests until the other end is closed. Returns a command line, in its program's process."""
    requests = Connection(os.dup(0))
    requests.send('ready')
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)       # the watching processes leave no zombies
    while True:
        try:
            command, environment, folder, limit = requests.recv()
        except EOFError:
            sys.exit()
        descriptors = [recv_handle(requests) for _ in range(3)]
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            program = os.fork()
            if program:
                watch(program, limit, *descriptors)
            set_up(environment, folder, *descriptors)
            return command
        for descriptor in descriptors:
            os.close(descriptor)


def watch(program, limit, connection, *output):
    """Wait for the program, send its wait status, and end this process, which does nothing else.

    Kills the program and what it started after `limit` seconds, or when the tests have ended.
    """
    for descriptor in output:       # else their readers would wait for this process too
        os.close(descriptor)
    connection, ended = Connection(connection), threading.Event()

    def kill():
        connection.poll(limit)      # nothing is ever sent: it returns early when the other end is closed
        if not ended.is_set():
            os.killpg(program, signal.SIGKILL)
    threading.Thread(target=kill, daemon=True).start()
    _, status = os.waitpid(program, 0)
    ended.set()
    try:
        connection.send(status)
    finally:
        os._exit(0)


def set_up(environment, folder, connection, *output):
    """Give this process what a started one has: session, environment, folder, seed, descriptors 0 to 2."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    np.random.seed()
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, own in enumerate((null, *output)):
        os.dup2(own, descriptor)
        os.close(own)
    with Connection(connection) as connection:
        connection.send(os.getpid())


if __name__ == '__main__':
    for name in [name for name in sys.modules if name.partition('.')[0] == 'sesemi']:
        del sys.modules[name]       # each program imports its own
    gc.freeze()
    sys.argv = serve()
    sys.path[0] = os.path.dirname(sys.argv[0])
    # The last statement, so that the interpreter ends as it does after a program.
    runpy.run_path(sys.argv[0], run_name='__main__')
