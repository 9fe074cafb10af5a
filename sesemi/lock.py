"""One process at a time in a result folder. Standard library only."""
import contextlib
import errno
import fcntl
import os
import socket
import sys

from sesemi.errors import InputError, reason


def lock(folder, create=True):
    """Take the folder's lock: an open file that holds it until it is closed or the process ends, however that ends.

    It is not inherited by processes that this one starts. Where the file system has no locks, that is said. Without `create`, None
    when no run ever took it. Raises InputError naming the process that has it.
    """
    path = os.path.join(folder, '.lock')
    while True:
        try:
            file = open(path, 'r+', encoding='utf-8', errors='replace', opener=lambda name, flags: os.open(
                name, flags | os.O_NONBLOCK | (os.O_CREAT if create else 0), 0o666))
        except OSError as error:
            if error.errno == errno.ENOENT and not create:
                return None
            raise InputError('--result %s: cannot be written (%s); give another --result.' % (folder, reason(error))) from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                print('%s: its file system has no locks (%s); start no second run there.' % (folder, error.strerror), file=sys.stderr)
                return file
            raise InputError('--result %s: a run is going on there, process %s; wait for its end or give another --result.'
                             % (folder, file.read(100).strip() or 'number unknown')) from None
        if is_held(file):
            with contextlib.suppress(OSError):      # a full disk
                file.truncate(0)
                file.write('%d on %s\n' % (os.getpid(), socket.gethostname()))
                file.flush()
            return file
        file.close()        # of a folder that was emptied in between


def is_held(file):
    """Whether what lock() gave is still the folder's lock: in a folder that was removed or emptied another process may have its own."""
    try:
        return os.path.samestat(os.stat(file.name), os.fstat(file.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:         # of a file system that does not answer, which is no other process
        return True


def release(file):
    """Give back what lock() gave, and leave no trace of it; whoever has opened it meanwhile finds that it is not there any more."""
    with contextlib.suppress(OSError):
        if is_held(file):
            os.remove(file.name)
    file.close()
