"""Files of others, opened for reading."""
import os
import stat

import numpy as np

LONGEST = 1 << 26       # bytes of an array whose length is not known
MAGIC = b'\x93NUMPY\x01\x00'      # of the format that numpy writes plain arrays in


def open_regular(path):
    """Open a file to read its bytes. Raises OSError when it is none: opening a FIFO would wait for ever, a device take what it gives."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), 'rb')
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError('not a regular file')
    return file


def read_array(archive, name, dtype, shape):
    """An array of an .npz, an open zipfile.ZipFile, if it is of that dtype and shape; shape None: (n,), whatever n is.

    Raises ValueError when it is another one, what zipfile raises when it is damaged, and takes no more memory than was asked for.
    Not numpy's own reader, which evaluates the array's header and allocates what that claims.
    """
    with archive.open(name + '.npy') as member:
        magic, length = member.read(len(MAGIC)), int.from_bytes(member.read(2), 'little')
        header = member.read(length).strip().decode('latin-1')
        size = np.dtype(dtype).itemsize * int(np.prod(shape)) if shape is not None else LONGEST
        data = member.read(size + 1)
        if shape is None:
            shape, size = (len(data),), min(size, len(data))
        right = "{'descr': %r, 'fortran_order': False, 'shape': %r, }" % (np.lib.format.dtype_to_descr(np.dtype(dtype)), tuple(shape))
        if magic != MAGIC or header != right or len(data) != size:
            raise ValueError('its %s is not the array it should be' % name)
        return np.frombuffer(data, dtype).reshape(shape)
