"""Files: those of others opened for reading, those of a run written whole or not at all."""
import contextlib
import csv
import errno
import fcntl
import io
import json
import os
import secrets
import stat
import sys
import time

from sesemi.errors import InputError, escape_controls
from sesemi.system import signals

WAIT_SECONDS = 1800      # that processes of one run wait for each other
# what is being written, with a number of its own, so that no two processes write one file
PARTIAL_NAME = '%s.%s.part'


def open_regular(path):
    """Open a file to read its bytes. Raises OSError when it is none: opening a FIFO would wait for ever, a
    device take what it gives.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError('not a regular file')
    return os.fdopen(descriptor, 'rb')


@contextlib.contextmanager
def hold_lock(path, seconds=WAIT_SECONDS):
    """The block that one process at a time is in, by a lock on the file `path`, which goes with it; its
    folder is made if it is not there.

    Where the file system has no locks, or after so many seconds of waiting, the process enters all the same:
    it does the work once more.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = stack.enter_context(open(path, 'a'))
            is_locked = _try_lock(file)
            if not is_locked:
                print('%s: waiting for another process, which is at work on it.' % path, file=sys.stderr)
            while not is_locked and seconds > 0:
                time.sleep(1)
                seconds, is_locked = seconds - 1, _try_lock(file)
            if is_locked:
                stack.callback(_remove, path)
        yield


def _remove(path):
    with contextlib.suppress(OSError):
        os.remove(path)


def _try_lock(file):
    """Whether the lock could be taken. Raises OSError where there are no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False


def check_writable(path, name):
    """Raises InputError, calling it `name`, when a file could not be written to `path`."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.exists(path) and not os.path.isfile(path) or not os.access(folder, os.W_OK):
        raise InputError('%s: cannot be written there; give a file in a folder that is there.' % name)


def write_atomic(path, data):
    """Write bytes to `path`, whole or not at all: beside it, flushed to the disk, then renamed.

    Raises InputError naming the path when the disk is full or the folder cannot be written; what was there
    before stays.
    """
    beside = PARTIAL_NAME % (path, secrets.token_hex(4))
    try:
        with signals.remove_if_unfinished(beside):
            with open(beside, 'xb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
    except OSError as error:
        raise InputError('%s: cannot be written (%s); make room or write to another place. What was saved '
                         'before is whole.'
                         % (path, error.strerror)) from None


def write_json(path, content):
    """Write a JSON file, whole or not at all."""
    write_atomic(path, (json.dumps(content, indent=1) + '\n').encode())


def write_table(path, rows):
    """Write dicts as a CSV file, a line for each, whole or not at all; its columns are all their keys."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator='\n')
    table.writeheader()
    table.writerows({key: escape_controls(value) if isinstance(value, str) else value
                     for key, value in row.items()} for row in rows)
    # file names may hold bytes that are no text
    write_atomic(path, text.getvalue().encode(errors='backslashreplace'))
