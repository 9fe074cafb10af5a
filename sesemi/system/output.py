"""Keeps a run of days going when standard output or standard error is closed or full."""
import os
import sys

STDOUT_FAILED = 'Standard output cannot be written (%s); the run goes on, and log.csv is its record.'


def tolerate_write_errors():
    """Let a program write to sys.stdout and sys.stderr when they are closed or full, and any character."""
    for descriptor, name in (2, 'stderr'), (1, 'stdout'):
        stream = getattr(sys, name)
        if stream is None:      # closed: without this the next file opened would become standard output
            nothing = os.open(os.devnull, os.O_WRONLY)
            if nothing != descriptor:
                os.dup2(nothing, descriptor)
                os.close(nothing)
            stream = open(descriptor, 'w', closefd=False)
            if name == 'stdout':
                print(STDOUT_FAILED % 'closed', file=sys.stderr)
        stream.reconfigure(errors='backslashreplace')
        setattr(sys, name, TolerantStream(stream, STDOUT_FAILED if name == 'stdout' else None))


class TolerantStream:
    """A text stream that discards all further text once a write fails.

    message: printed on standard error when that happens, with the reason for its %s; None for no message.
    """

    def __init__(self, stream, message):
        self.stream, self.message = stream, message

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self._try(self.stream.write, text)

    def flush(self):
        self._try(self.stream.flush)

    def _try(self, act, *args):
        try:
            return act(*args)
        except OSError as error:
            self._discard_output(error)
            return act(*args)

    def _discard_output(self, error):
        """Point the stream at the null device, so that flushing its buffer at exit does not fail either."""
        with open(os.devnull, 'w') as nothing:
            os.dup2(nothing.fileno(), self.stream.fileno())
        if self.message:
            print(self.message % (error.strerror or error), file=sys.stderr)
