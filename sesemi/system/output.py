"""Standard output and error that may be closed or full: a run of days does not end for a line that nobody
reads.
"""
import os
import sys

STDOUT_FAILED = 'Standard output cannot be written (%s); the run goes on, and log.csv is its record.'


def tolerate_write_errors():
    """Let sys.stdout and sys.stderr take everything, also when they were closed from the start, and text that
    they cannot encode.
    """
    for descriptor, name in (2, 'stderr'), (1, 'stdout'):
        stream = getattr(sys, name)
        if stream is None:      # closed: the next file to be opened would become standard output
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
    """A text stream that, once it cannot be written, takes everything and keeps nothing. sentence: said then
    on standard error, if it is not None."""

    def __init__(self, stream, sentence):
        self.stream, self.sentence = stream, sentence

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
        """What is still buffered goes the same way, also when Python flushes its streams at its end."""
        with open(os.devnull, 'w') as nothing:
            os.dup2(nothing.fileno(), self.stream.fileno())
        if self.sentence:
            print(self.sentence % (error.strerror or error), file=sys.stderr)
