"""What Ctrl-C, SIGTERM and SIGHUP do: they end the program in words, with status 128 and their number; in
training, after the step.

After watch() one thread waits for them and all others have them blocked, so each is heard at once, also while
a library computes or is imported. Files and folders that are being written are removed. Without watch(), as
in a program that imports this one, signals do what they did. Standard library only: it is imported before all
that takes time.
"""
import contextlib
import os
import shutil
import signal
import sys
import threading
import time

# seconds within which a signal of a kind is the same one: timeout(1) sends each to its child and to the
# child's group
REPEAT_SECONDS = 0.5

_unfinished = set()     # paths of what is being written
_handler = None            # a function of a signal's number, or None: the process ends
_first_received = {}             # when the first signal of a kind was taken


def list_stop_signals():
    """The signals that end a run: SIGHUP is one unless it is ignored, as after nohup."""
    return [signal.SIGINT,
            signal.SIGTERM] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)


def watch():
    """From here on a signal ends the process at once, or goes to `taken_by`.

    To be called before any other thread is started, which would let a signal end the process without words.
    Programs that this one starts have the signals blocked, too, unless unblock() is called in them.
    """
    heard = list_stop_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    threading.Thread(target=_wait, args=(heard,), daemon=True).start()


def unblock():
    """Let signals end this process as they end any other: before it becomes another program, and in one
    forked from it.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@contextlib.contextmanager
def handle_with(take):
    """Within the block take(number) gets a signal, in another thread; a second one of the same, ECHO later,
    ends the process.
    """
    global _handler
    _first_received.clear()
    _handler = take
    try:
        yield
    finally:
        _handler = None


@contextlib.contextmanager
def remove_if_unfinished(path):
    """Remove the file or folder `path` if the block does not end well, also if a signal ends the process
    within it.
    """
    _unfinished.add(path)
    try:
        yield
    except BaseException:
        _remove(path)
        raise
    finally:
        _unfinished.discard(path)


def end_process(status, sentence):
    """End the process, whatever its other threads do, with a sentence on standard error."""
    for path in list(_unfinished):
        _remove(path)
    flush = threading.Thread(target=_flush, daemon=True)        # another thread may hold the stream for ever
    flush.start()
    flush.join(1)
    with contextlib.suppress(OSError):
        os.write(2, sentence.encode(errors='backslashreplace') + b'\n')
    os._exit(status)


def _flush():
    with contextlib.suppress(OSError, AttributeError):      # nobody reads it, or it was closed from the start
        sys.stdout.flush()


def _remove(path):
    remove = shutil.rmtree if os.path.isdir(path) else os.remove
    with contextlib.suppress(OSError):
        remove(path)


def _wait(heard):
    while True:
        number, now, take = signal.sigwait(heard), time.monotonic(), _handler
        if not take or now - _first_received.get(number, now) > REPEAT_SECONDS:
            end_process(128 + number, 'Stopped by %s.' % signal.Signals(number).name)
        if _first_received.setdefault(number, now) == now:
            take(number)
