"""Ctrl-C, SIGTERM and SIGHUP end the program with a message and status 128 + their number.

In training they end it after the current step. After watch() one thread waits for these signals and all other
threads block them, so each is handled at once, even while a library computes or is imported. Unfinished files
and folders are removed. Without watch(), as in a program that imports this one, signals keep their handlers.
Standard library only, because this module is imported before those that take time.
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

_unfinished = set()     # paths of files and folders that are being written
_handler = None         # called with a signal's number; None: a signal ends the process
_first_received = {}    # when each signal was first passed to _handler, by its number


def list_stop_signals():
    """The signals that end a run: SIGINT, SIGTERM, and SIGHUP unless it is ignored, as after nohup."""
    return [signal.SIGINT,
            signal.SIGTERM] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)


def watch():
    """From now on a signal ends the process at once, or within handle_with() calls its handler.

    Call this before any other thread is started: such a thread would let a signal end the process without a
    message. Programs that this one starts block the signals too, unless unblock() is called in them.
    """
    watched = list_stop_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    threading.Thread(target=_wait, args=(watched,), daemon=True).start()


def unblock():
    """Let signals end this process as usual: for a forked process, and before becoming another program."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@contextlib.contextmanager
def handle_with(handler):
    """Within the block a signal calls handler(number) in another thread; its second one ends the process.

    A second one within REPEAT_SECONDS is ignored.
    """
    global _handler
    _first_received.clear()
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
        if not handler or now - _first_received.get(number, now) > REPEAT_SECONDS:
            end_process(128 + number, 'Stopped by %s.' % signal.Signals(number).name)
        if _first_received.setdefault(number, now) == now:
            handler(number)
