"""Work done ahead of its use, in threads or in processes, and how far it has come. Standard library only."""
import collections
import ctypes
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from sesemi.system import signals


def prefetch(make, keys, pool=None, ahead=4):
    """Yield make(key) for each key in order, made ahead by `pool`, which is shut down at the end. By default
    by two threads: numpy's generators and copies release the interpreter.
    """
    keys, pending = iter(keys), collections.deque()
    with pool or ThreadPoolExecutor(2) as pool:
        try:
            while True:
                pending.extend(pool.submit(make, key) for _, key in zip(range(ahead - len(pending)), keys))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:        # whoever stops taking them, as after Ctrl-C, does not wait for those not begun
            for future in pending:
                future.cancel()


def make_process_pool(count):
    """A pool of so many processes, or of one thread where they cannot be had: TensorFlow's threads would not
    survive a fork.
    """
    if count > 1 and 'tensorflow' not in sys.modules and sys.platform.startswith('linux'):
        try:
            return ProcessPoolExecutor(count, multiprocessing.get_context('fork'), _end_with_parent,
                                       (os.getpid(),))
        except (ImportError, NotImplementedError, OSError):     # a system without semaphores
            pass
    return ThreadPoolExecutor(1)


def _end_with_parent(parent):
    """Ctrl-C is the parent's business; and when it is killed this process, which would wait for work for
    ever, ends too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signals.unblock()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)      # PR_SET_PDEATHSIG
    if os.getppid() != parent:      # it was gone before
        os._exit(1)


def show_progress(steps, total, title):
    """Pass `steps` on, drawing a bar on standard error when that is a terminal."""
    draw = sys.stderr.isatty()
    for done, step in enumerate(steps, 1):
        if draw:
            sys.stderr.write('\r%s [%-30s]%s'
                             % (title, '=' * (30 * done // total), '\n' if done == total else ''))
            sys.stderr.flush()
        yield step
