"""Files of others, opened for reading."""
import os
import stat


def open_regular(path):
    """Open a file to read its bytes. Raises OSError when it is none: opening a FIFO would wait for ever, a device take what it gives."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), 'rb')
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError('not a regular file')
    return file
