"""Pickles of whole numbers, read without running what they ask for.

A pickle is a program that calls functions by their names, and those of CIFAR come from anywhere. Here
Python's unpickler finds six names only. Classes of this file stand for numpy's, which would believe a forged
pickle's flags and take its bytes for the addresses of objects.
"""
import io
import pickle

import numpy as np

INTEGER_TYPES = 'u1', 'u2', 'u4', 'u8', 'i1', 'i2', 'i4', 'i8'
BYTE_ORDERS = '<', '>', '|', '='


def read_pickle(data):
    """The dict that is pickled in `data`, bytes: lists, numbers, texts and arrays of whole numbers, by name.

    A str of Python 2 comes as bytes. Raises ValueError when the pickle asks for anything else, and nearly any
    exception when it is damaged.
    """
    content = Unpickler(io.BytesIO(data), encoding='bytes').load()
    return {key: value.array if isinstance(value, PickledArray) else value for key, value in content.items()}


class Unpickler(pickle.Unpickler):
    """Python's, but it finds no names except those in NAMES."""

    def find_class(self, module, name):
        wanted = '%s.%s' % (module.replace('numpy._core', 'numpy.core'), name)      # numpy 2 renamed it
        if wanted not in ALLOWED_NAMES:
            raise ValueError('it asks for %.60s' % wanted)
        return ALLOWED_NAMES[wanted]


class PickledDtype:
    """Stands for numpy.dtype: of whole numbers, made by its name, then given its byte order."""

    def __init__(self, name, *_):
        self.name, self.dtype = _decode_text(name), None

    def __setstate__(self, state):
        order = _decode_text(state[1])         # the rest of it is for other kinds of values
        if self.name not in INTEGER_TYPES or order not in BYTE_ORDERS:
            raise ValueError('it asks for an array of %.20r' % (self.name,))
        self.dtype = np.dtype(order + self.name)


class PickledArray:
    """Stands for numpy.ndarray: made empty, then filled."""

    def __init__(self, *_):
        self.array = None

    def __setstate__(self, state):
        _, shape, kind, is_fortran, data = state
        self.array = np.frombuffer(data, kind.dtype).reshape(shape, order='F' if is_fortran else 'C')


def _make_array(data, kind, shape, order, *_):
    """How arrays are pickled since protocol 5."""
    array = PickledArray()
    array.array = np.frombuffer(data, kind.dtype).reshape(shape, order=order)
    return array


def _make_number(kind, data):
    """How numpy's scalars are pickled."""
    return int(np.frombuffer(data, kind.dtype)[0])


def _decode_text(value):
    """A name, which is bytes if Python 2 pickled it."""
    return value.decode() if isinstance(value, bytes) else value


# Python 3 writes bytes for Python 2 as a call of _codecs.encode, which compresses, too; str.encode does not.
ALLOWED_NAMES = {
    'numpy.ndarray': PickledArray, 'numpy.dtype': PickledDtype,
    'numpy.core.multiarray._reconstruct': PickledArray,
    'numpy.core.multiarray.scalar': _make_number, 'numpy.core.numeric._frombuffer': _make_array,
    '_codecs.encode': str.encode}
