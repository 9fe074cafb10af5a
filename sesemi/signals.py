"""What Ctrl-C, SIGTERM and SIGHUP do: they end the program in words, with status 128 and their number; in training, after the step.

Python's handlers run between two instructions of the main thread, so not while a library computes or is imported, and what they
raise can be swallowed there. A thread at the other end of Python's wake-up descriptor sees every signal at once: it ends the
process when the main thread has not done so by itself. Standard library only: it is imported before all that takes time.
"""
import contextlib
import os
import select
import signal
import threading
import time

GRACE = 2       # seconds that the main thread has to end, which removes temporary files and tells other ranks
ECHO = 0.5      # seconds within which a signal of a kind is the same one: timeout(1) sends each to its child and to the child's group


class Stopped(KeyboardInterrupt):
    """A signal arrived outside of training."""

    def __init__(self, number):
        super().__init__('Stopped by %s.' % signal.Signals(number).name)
        self.number = number


def numbers():
    """The signals that end a run: SIGHUP is one unless it is ignored, as after nohup."""
    return [signal.SIGINT, signal.SIGTERM] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)


def say(sentence, said=[]):
    """Say on standard error, once in a process, what ended it. Not by Python's stream, which another thread may hold."""
    if not said:
        said.append(sentence)
        with contextlib.suppress(OSError):
            os.write(2, sentence.encode() + b'\n')


def last_words(interrupt):
    """(exit status, sentence) for a KeyboardInterrupt that came to the top. The sentence is said, and what comes now ends at once."""
    raise_stopped(False)
    stopped = interrupt if isinstance(interrupt, Stopped) else Stopped(signal.SIGINT)
    say(str(stopped))
    return 128 + stopped.number, str(stopped)


def end(number):
    """End the process for a signal, wherever its other threads are."""
    say(str(Stopped(number)))
    os._exit(128 + number)


class _Watch(threading.Thread):
    """Ends the process for a signal, or hands it to `take`, as long as that is there. raising: the main thread gets Stopped, once."""

    def __init__(self):
        super().__init__(daemon=True)
        self.raising, self.raised, self.take, self.numbers = False, False, None, numbers()
        self.reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in self.numbers:
            signal.signal(number, self.handle)

    def handle(self, number, _):
        if self.raising and not self.raised and not self.take:
            self.raised = True
            raise Stopped(number)

    def run(self):
        while True:
            number = os.read(self.reader, 1)[0]
            if self.take and number in self.numbers:
                self.take(number)
            elif number in self.numbers:
                if self.raising or self.raised:
                    select.select([self.reader], [], [], GRACE)     # a second signal is the end of patience
                end(number)


_watch = None


def watch():
    """From here on a signal ends the process, as soon as it comes."""
    global _watch
    _watch = _Watch()
    _watch.start()


def raise_stopped(raising=True):
    """From here on the main thread gets Stopped first, or no longer. Without watch() signals do what they did."""
    if _watch:
        _watch.raising = raising


@contextlib.contextmanager
def taken_by(take):
    """Within the block a signal is handed to take(number), in another thread; a second one of the same, ECHO later, ends the process.

    Without watch() that happens in the main thread.
    """
    seen = {}

    def received(number, _=None):
        now = time.monotonic()
        if now - seen.setdefault(number, now) > ECHO:
            end(number)
        if seen[number] == now:
            take(number)

    before = {} if _watch else {number: signal.signal(number, received) for number in numbers()}
    if _watch:
        _watch.take = received
    try:
        yield
    finally:
        if _watch:
            _watch.take = None
        for number, handler in before.items():
            signal.signal(number, handler)
