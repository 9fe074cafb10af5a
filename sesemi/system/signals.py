"""Signals end the program with a message and status 128 + their number.

These are Ctrl-C, SIGTERM, SIGHUP, and SIGUSR1 and SIGXCPU, which announce that a time limit is near. In
training they end the program after the current step. After watch() one thread waits for these signals and all
other threads block them, so each is handled at once, even while a library computes or is imported. Unfinished
files and folders are removed. Without watch(), as in a program that imports this one, signals keep their
handlers. Standard library only, because this module is imported before those that take time.
"""
import contextlib
import os
import shutil
import signal
import sys
import threading
import time

# seconds in which a repeated signal is ignored: timeout(1) sends each signal twice, to its child and to the
# child's group
REPEAT_SECONDS = 0.5

# sent before a time limit: SIGUSR1 by SLURM's --signal=USR1@120, SIGXCPU by the kernel, once a second
NOTICES = signal.SIGUSR1, signal.SIGXCPU
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *NOTICES)

_unfinished = set()     # paths of files and folders that are being written
_handler = None         # called with a signal's number; None: a signal ends the process
_first_received = {}    # when each signal was first passed to _handler, by its number


def watch():
    """From now on a signal ends the process at once, or within handle_with() calls its handler.

    Call this before any other thread is started: such a thread would let a signal end the process without a
    message. Programs that this one starts block the signals too, unless unblock() is called in them. Signals
    that are ignored, as SIGHUP after nohup, stay ignored; but not SIGINT, which shells ignore in what they
    start in the background.
    """
    watched = [number for number in STOP_SIGNALS
               if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    threading.Thread(target=_wait, args=(watched,), daemon=True).start()


def unblock():
    """Let signals end this process as usual: for a forked process, and before becoming another program."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextlib.contextmanager
def handle_with(handler):
    """Within the block a signal calls handler(number) in another thread; its second one ends the process.

    A second one within REPEAT_SECONDS is ignored, and so are all repeats of NOTICES. A signal that came after
    the last step of an earlier block is passed to the handler at once.
    """
    global _handler
    for number in list(_first_received):
        handler(number)
    _handler = handler
    try:
        yield
    finally:
        _handler = None


@contextlib.contextmanager
def remove_if_unfinished(path):
    """Remove the file or folder `path` if an exception or a signal ends the block."""
    _unfinished.add(path)
    try:
        yield
    except BaseException:
        _remove(path)
        raise
    finally:
        _unfinished.discard(path)


def end_process(status, sentence):
    """Remove unfinished files, print a sentence on standard error, and end the process at once."""
    for path in list(_unfinished):
        _remove(path)
    flush = threading.Thread(target=_flush, daemon=True)        # another thread may hold the stream forever
    flush.start()
    flush.join(1)
    with contextlib.suppress(OSError):
        os.write(2, sentence.encode(errors='backslashreplace') + b'\n')
    os._exit(status)


def _flush():
    with contextlib.suppress(OSError, AttributeError):      # it is closed
        sys.stdout.flush()


def _remove(path):
    remove = shutil.rmtree if os.path.isdir(path) else os.remove
    with contextlib.suppress(OSError):
        remove(path)


def _wait(watched):
    while True:
        number, now, handler = signal.sigwait(watched), time.monotonic(), _handler
        first = _first_received.setdefault(number, now)
        if handler and first == now:
            handler(number)
        elif first == now or number not in NOTICES and now - first > REPEAT_SECONDS:
            end_process(128 + number, 'Stopped by %s.' % signal.Signals(number).name)
