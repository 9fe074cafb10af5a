"""One process at a time in a result folder. Standard library only."""
import contextlib
import errno
import fcntl
import os
import socket
import sys

from sesemi.errors import InputError, describe_error


def lock(folder):
    """Take the folder's lock: an open file that holds it until it is closed or the process ends, however that
    ends.

    The file, .lock, stays in the folder; the lock is not inherited by processes that this one starts. Where
    the file system has no locks, that is said. Raises InputError naming the process that has it.
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
    """Whether what lock() gave is still the folder's lock: in a folder that was removed or emptied another
    process may have its own.
    """
    try:
        return os.path.samestat(os.stat(file.name), os.fstat(file.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:         # of a file system that does not answer, which is no other process
        return True
