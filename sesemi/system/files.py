"""Opening, locking and writing files. A file is written completely or not at all."""
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

from sesemi.errors import InputError, describe_error, escape_controls
from sesemi.system import signals

# errors by which a file system says that it cannot flush a file
NO_FSYNC = errno.EINVAL, errno.ENOSYS, errno.ENOTSUP
WAIT_SECONDS = 1800     # how long processes of one run wait for each other
# name of a file that is being written: the random part keeps two processes from writing the same file
PARTIAL_NAME = '%s.%s.part'

_failed = set()         # paths of which try_to_write has spoken


def open_regular(path):
    """Open a regular file to read its bytes.

    Raises OSError for anything else: opening a FIFO could block forever, and a device could have no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError('not a regular file')
    return os.fdopen(descriptor, 'rb')


@contextlib.contextmanager
def hold_lock(path, seconds=WAIT_SECONDS):
    """Let one process at a time run the block, by a lock on the file `path`, which is removed afterwards.

    Makes the file's folder if needed. A process runs the block without the lock if the file system has no
    locks or after waiting for `seconds`: then the work is done twice.
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
    """Take the lock if it is free; returns whether it was. Raises OSError if the file system has no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False


def check_writable(path, name):
    """Raise InputError, with `name` for the file, if it cannot be written to `path`."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.exists(path) and not os.path.isfile(path) or not os.access(folder, os.W_OK):
        raise InputError('%s: cannot be written there; give a file in a folder that is there.' % name)


def write_atomic(path, data):
    """Write bytes to a temporary file, flush it to the disk, and rename it to `path`.

    Raises InputError naming the path if the disk is full or the folder cannot be written; an earlier file at
    `path` is kept.
    """
    temporary = PARTIAL_NAME % (path, secrets.token_hex(4))
    try:
        with signals.remove_if_unfinished(temporary):
            with open(temporary, 'xb') as file:
                file.write(data)
                flush_to_disk(file)
            os.replace(temporary, path)
    except OSError as error:
        raise InputError('%s: cannot be written (%s); make room or write to another place. What was saved '
                         'before is whole.'
                         % (path, error.strerror)) from None


def flush_to_disk(file):
    """Flush an open file to the disk. A file system that has no such operation is accepted."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def try_to_write(write, path, *args):
    """Call write(path, *args) for a file that a run does not need; returns whether that succeeded.

    The first time it fails for a path, standard error says so.
    """
    try:
        write(path, *args)
        return True
    except Exception as error:      # a plotting library may raise anything
        if path not in _failed:
            _failed.add(path)
            sentence = error if isinstance(error, InputError) else InputError(
                '%s: cannot be made (%s: %s).' % (path, type(error).__name__, describe_error(error)))
            print('%s The run goes on; each epoch and the end try again.' % sentence, file=sys.stderr)
        return False


def write_json(path, content):
    """Write a JSON file with write_atomic."""
    write_atomic(path, (json.dumps(content, indent=1) + '\n').encode())


def write_table(path, rows):
    """Write dicts as the lines of a CSV file with write_atomic; the columns are all their keys."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator='\n')
    table.writeheader()
    table.writerows({key: escape_controls(value) if isinstance(value, str) else value
                     for key, value in row.items()} for row in rows)
    # file names may hold bytes that are not UTF-8
    write_atomic(path, text.getvalue().encode(errors='backslashreplace'))
