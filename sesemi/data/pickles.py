"""Reads pickles of numbers, texts and integer arrays without running code from the file.

A pickle can call any function by its name, and CIFAR files come from anywhere. This unpickler finds only the
six names of ALLOWED_NAMES. Classes in this file replace numpy's, because a forged pickle could make numpy's
take bytes of the file for addresses of objects.
"""
import io
import pickle

import numpy as np

INTEGER_TYPES = 'u1', 'u2', 'u4', 'u8', 'i1', 'i2', 'i4', 'i8'
BYTE_ORDERS = '<', '>', '|', '='


def read_pickle(data):
    """Unpickle `data`, bytes, to a dict of lists, numbers, texts and integer arrays.

    A str of Python 2 becomes bytes. Raises ValueError if the pickle asks for anything else, and nearly any
    exception if it is damaged.
    """
    content = Unpickler(io.BytesIO(data), encoding='bytes').load()
    return {key: value.array if isinstance(value, PickledArray) else value for key, value in content.items()}


class Unpickler(pickle.Unpickler):
    """Python's unpickler, limited to the names in ALLOWED_NAMES."""

    def find_class(self, module, name):
        wanted = '%s.%s' % (module.replace('numpy._core', 'numpy.core'), name)      # numpy 2 renamed it
        if wanted not in ALLOWED_NAMES:
            raise ValueError('it asks for %.60s' % wanted)
        return ALLOWED_NAMES[wanted]


class PickledDtype:
    """Replaces numpy.dtype: made from an integer type's name, then given its byte order."""

    def __init__(self, name, *_):
        self.name, self.dtype = _decode_text(name), None

    def __setstate__(self, state):
        order = _decode_text(state[1])         # the rest of the state is for other types
        if self.name not in INTEGER_TYPES or order not in BYTE_ORDERS:
            raise ValueError('it asks for an array of %.20r' % (self.name,))
        self.dtype = np.dtype(order + self.name)


class PickledArray:
    """Replaces numpy.ndarray: made empty, then filled."""

    def __init__(self, *_):
        self.array = None

    def __setstate__(self, state):
        _, shape, pickled_dtype, is_fortran, data = state
        self.array = np.frombuffer(data, pickled_dtype.dtype).reshape(shape, order='F' if is_fortran else 'C')


def _make_array(data, pickled_dtype, shape, order, *_):
    """Make an array as pickles of protocol 5 describe it."""
    array = PickledArray()
    array.array = np.frombuffer(data, pickled_dtype.dtype).reshape(shape, order=order)
    return array


def _make_number(pickled_dtype, data):
    """Make a number from a pickled numpy scalar."""
    return int(np.frombuffer(data, pickled_dtype.dtype)[0])


def _decode_text(value):
    """Decode a name that is bytes because Python 2 pickled it."""
    return value.decode() if isinstance(value, bytes) else value


# Python 3 pickles bytes for Python 2 as a call of _codecs.encode. That function can also compress, so
# str.encode, which cannot, replaces it.
ALLOWED_NAMES = {
    'numpy.ndarray': PickledArray, 'numpy.dtype': PickledDtype,
    'numpy.core.multiarray._reconstruct': PickledArray,
    'numpy.core.multiarray.scalar': _make_number, 'numpy.core.numeric._frombuffer': _make_array,
    '_codecs.encode': str.encode}
