"""A lock, so that only one process at a time uses a result folder. Standard library only."""
import contextlib
import errno
import fcntl
import os
import socket
import sys

from sesemi.errors import InputError, describe_error


def lock(folder):
    """Lock the folder; returns an open file. Closing it, or the end of the process, releases the lock.

    The file .lock stays in the folder. Processes that this one starts do not inherit the lock. If the file
    system has no locks, that is said on standard error. Raises InputError naming the process that has the
    lock.
    """
    try:
        file = open(os.path.join(folder, '.lock'), 'a+', encoding='utf-8', errors='replace')
    except OSError as error:
        raise InputError('--result %s: cannot be written (%s); give another --result.'
                         % (folder, describe_error(error))) from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            print('%s: its file system has no locks (%s); start no second run there.'
                  % (folder, error.strerror), file=sys.stderr)
            return file
        file.seek(0)
        raise InputError('--result %s: a run is going on there, process %s; wait for its end or give another '
                         '--result.' % (folder, file.read(100).strip() or 'number unknown')) from None
    with contextlib.suppress(OSError):      # a full disk
        file.truncate(0)
        file.write('%d on %s\n' % (os.getpid(), socket.gethostname()))
        file.flush()
    return file


def is_held(file):
    """Whether `file`, as lock returned it, is still the folder's lock file.

    If the folder was removed or emptied, another process may have made and locked a new one.
    """
    try:
        return os.path.samestat(os.stat(file.name), os.fstat(file.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:         # the file system does not answer, which does not mean that the lock is lost
        return True
