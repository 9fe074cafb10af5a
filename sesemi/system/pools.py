"""Work done in advance by threads or processes, and a progress bar. Standard library only."""
import collections
import ctypes
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from sesemi.system import signals


def prefetch(make, keys, pool=None, ahead=4):
    """Yield make(key) for each key in order; `pool` computes up to `ahead` of them in advance.

    pool: is shut down at the end; by default two threads, because numpy's random generators and copies
    release the interpreter lock.
    """
    keys, pending = iter(keys), collections.deque()
    with pool or ThreadPoolExecutor(2) as pool:
        try:
            while True:
                pending.extend(pool.submit(make, key) for _, key in zip(range(ahead - len(pending)), keys))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:        # a caller that stops early, as after Ctrl-C, does not wait for those not begun
            for future in pending:
                future.cancel()


def make_process_pool(count):
    """A pool of `count` processes, or of one thread where forking is impossible.

    Does not fork once TensorFlow is imported: its threads would not survive that.
    """
    if count > 1 and 'tensorflow' not in sys.modules and sys.platform.startswith('linux'):
        try:
            return ProcessPoolExecutor(count, multiprocessing.get_context('fork'), _end_with_parent,
                                       (os.getpid(),))
        except (ImportError, NotImplementedError, OSError):     # a system without semaphores
            pass
    return ThreadPoolExecutor(1)


def _end_with_parent(parent):
    """Leave Ctrl-C to the parent, and end this process, which would wait forever, if the parent dies."""
    for number in signals.STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signals.unblock()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)      # PR_SET_PDEATHSIG
    if os.getppid() != parent:      # the parent died before the line above
        os._exit(1)


def show_progress(steps, total, title):
    """Yield each of `steps` and draw a progress bar on standard error if that is a terminal."""
    draw = sys.stderr.isatty()
    for done, step in enumerate(steps, 1):
        if draw:
            sys.stderr.write('\r%s [%-30s]%s'
                             % (title, '=' * (30 * done // total), '\n' if done == total else ''))
            sys.stderr.flush()
        yield step
