"""CIFAR-10 and CIFAR-100 in their official files, a .tar.gz archive or the pickled batches it holds -> arrays.

A pickle is a program, and these files come from anywhere: Python's own unpickler never sees them. read_pickle knows the few
instructions that write dicts of numbers, texts and arrays of whole numbers, and refuses all others.
"""
import gzip
import io
import os
import pickletools
import tarfile
import zlib

import numpy as np

from sesemi.errors import InputError, reason
from sesemi.files import open_regular

ARCHIVES = {'cifar10': 'cifar-10-python.tar.gz', 'cifar100': 'cifar-100-python.tar.gz'}
FOLDERS = {'cifar10': 'cifar-10-batches-py', 'cifar100': 'cifar-100-python'}
SHA256 = {'cifar10': '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
          'cifar100': '85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7'}
CIFAR10 = ['data_batch_%d' % i for i in range(1, 6)], 'test_batch', 'batches.meta', b'labels', b'label_names'
CIFAR100 = ['train'], 'test', 'meta', b'fine_labels', b'fine_label_names'
FILES = [*CIFAR10[0], *CIFAR10[1:3], *CIFAR100[0], *CIFAR100[1:3]]

# Somewhat more than official files have: 186 MB unpacked in 9 members, of which CIFAR-100's `train` has 155 MB.
ARCHIVE_BYTES, MEMBERS, FILE_BYTES = 200 << 20, 32, 160 << 20
INSTRUCTIONS = 10 ** 6      # of a pickle; `train` has 350,000


def read_archive(path):
    """{file name: content of the pickle} of an archive. Raises InputError when it is not whole or larger than an official one."""
    try:
        with gzip.open(path) as file:   # to its end, where the checksum is: nothing of a damaged archive is used
            whole = file.read(ARCHIVE_BYTES + 1)
        if len(whole) > ARCHIVE_BYTES:
            raise tarfile.TarError('it unpacks to more than %d MB' % (ARCHIVE_BYTES >> 20))
        files = {}
        with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
            for _, member in zip(range(MEMBERS), archive):
                name = os.path.basename(member.name)
                if member.isreg() and not member.issparse() and name in FILES:
                    files[name] = _read_batch(lambda: archive.extractfile(member), '%s in %s' % (name, path))
        return files
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:     # gzip reports a cut-off file as EOFError
        raise InputError('%s: not a whole .tar.gz archive (%s); download it again.' % (path, reason(error))) from None


def read_batches(folder):
    """{file name: content of the pickle} of the files in a folder. Raises InputError naming one that is not whole."""
    files = {}
    for name in FILES:
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            files[name] = _read_batch(lambda: open_regular(path), path)
    return files


def _read_batch(open_batch, what):
    try:
        with open_batch() as file:
            data = file.read(FILE_BYTES + 1)
        if len(data) > FILE_BYTES:
            raise ValueError('it is larger than %d MB' % (FILE_BYTES >> 20))
        return read_pickle(data)
    except Exception as error:      # a damaged pickle raises nearly anything
        raise InputError('%s: not a whole CIFAR batch (%s); download the official files again.' % (what, reason(error))) from None


def kind(files):
    """'cifar10' or 'cifar100', whichever the files, at least one, are."""
    return 'cifar10' if set(files) & {*CIFAR10[0], *CIFAR10[1:3]} else 'cifar100'


def arrays(files, source):
    """(train images, train labels, test images, test labels, class names) of a data set's files.

    Images are uint8 (n, 32, 32, 3), labels int64 (n,). Raises InputError naming `source` when the files are not a whole set.
    """
    train, test, meta, labels_key, names_key = CIFAR10 if kind(files) == 'cifar10' else CIFAR100
    try:
        class_names = [name.decode() for name in files[meta][names_key]]
        parts = [_images_and_labels(files[name], labels_key, len(class_names)) for name in train + [test]]
        return (*map(np.concatenate, zip(*parts[:-1])), *parts[-1], class_names)
    except Exception as error:      # a pickle holds anything
        raise InputError('%s: not a whole set of CIFAR batches (%s); unpack or download it again.'
                         % (source, reason(error))) from None


def _images_and_labels(batch, labels_key, classes):
    rows, labels = batch[b'data'], batch[labels_key]
    if not isinstance(labels, np.ndarray):
        if any(type(label) is not int for label in labels):
            raise ValueError('labels that are no whole numbers')
        labels = np.array(labels, np.int64)
    if rows.dtype != np.uint8 or labels.shape != rows.shape[:1] or not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError('labels do not fit the images')
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int64)


# Pickles --------------------------------------------------------------------------------------------------------------

# What an instruction puts on the stack: what it carries, the bytes that were a Python 2 string, a constant, a new container.
CARRIED = {'INT', 'LONG', 'LONG1', 'LONG4', 'BININT', 'BININT1', 'BININT2', 'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8',
           'SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8', 'BYTEARRAY8'}
PYTHON_2_STRINGS = {'STRING', 'SHORT_BINSTRING', 'BINSTRING'}
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}
CONTAINERS = {'EMPTY_LIST': list, 'EMPTY_DICT': dict}
TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


def read_pickle(data):
    """The dict that `data`, bytes, pickles, its values made of lists, tuples, dicts, whole numbers, texts, bytes and arrays of numbers.

    Raises ValueError when it asks for anything else, and nearly any exception when it is damaged.
    """
    stack, marks, memo = [], [], {}

    def above_mark():
        place = marks.pop()
        items = stack[place:]
        del stack[place:]
        return items

    for count, (instruction, value, _) in enumerate(pickletools.genops(data)):
        name = instruction.name
        if count == INSTRUCTIONS:
            raise ValueError('it has more than %d instructions' % INSTRUCTIONS)
        if name in CARRIED:
            stack.append(value)
        elif name in PYTHON_2_STRINGS:
            stack.append(value.encode('latin-1'))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in CONTAINERS:
            stack.append(CONTAINERS[name]())
        elif name == 'MARK':
            marks.append(len(stack))
        elif name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
            memo[len(memo) if value is None else value] = stack[-1]
        elif name in ('GET', 'BINGET', 'LONG_BINGET'):
            stack.append(memo[value])
        elif name in ('APPEND', 'APPENDS'):
            items = above_mark() if name == 'APPENDS' else [stack.pop()]
            _expect(list, stack[-1]).extend(items)
        elif name in ('SETITEM', 'SETITEMS'):
            items = above_mark() if name == 'SETITEMS' else [stack.pop(-2), stack.pop()]
            _expect(dict, stack[-1]).update(_pairs(items))
        elif name in TUPLES:
            items = [stack.pop() for _ in range(TUPLES[name])]
            stack.append(tuple(items[::-1]))
        elif name in ('TUPLE', 'LIST'):
            stack.append((tuple if name == 'TUPLE' else list)(above_mark()))
        elif name == 'DICT':
            stack.append(dict(_pairs(above_mark())))
        elif name in ('GLOBAL', 'STACK_GLOBAL'):
            wanted = value.replace(' ', '.') if name == 'GLOBAL' else '%s.%s' % (_expect(str, stack.pop(-2)), _expect(str, stack.pop()))
            if wanted.replace('numpy._core', 'numpy.core') not in NAMES:
                raise ValueError('it asks for %.60s' % wanted)
            stack.append(NAMES[wanted.replace('numpy._core', 'numpy.core')])
        elif name == 'REDUCE':
            arguments, make = _expect(tuple, stack.pop()), stack.pop()
            if not callable(make):
                raise ValueError('it calls what is no function')
            stack.append(make(*arguments))
        elif name == 'BUILD':
            state = _expect(tuple, stack.pop())
            _expect((Type, Array), stack[-1]).fill(*state)
        elif name == 'STOP':
            return {key: value.array if isinstance(value, Array) else value for key, value in _expect(dict, stack.pop()).items()}
        elif name not in ('PROTO', 'FRAME'):
            raise ValueError('it asks for the instruction %s' % name)


def _expect(types, value):
    if not isinstance(value, types):
        raise ValueError('it has a %s in a wrong place' % type(value).__name__)
    return value


def _pairs(items):
    """Keys are texts: hashing what may be nested a million deep would be the end of the process."""
    return zip((_expect((bytes, str), key) for key in items[::2]), items[1::2])


def _text(value):
    """A name as Python 2 and Python 3 pickle it."""
    return value.decode('ascii') if isinstance(value, bytes) else value


class Type:
    """A numpy dtype of whole numbers: made by its name, then filled with its byte order and what only other kinds have."""
    NAMES = 'u1', 'u2', 'u4', 'u8', 'i1', 'i2', 'i4', 'i8'

    def __init__(self, name, align, copy):
        self.name, self.dtype = _text(name), None
        if self.name not in self.NAMES or align:
            raise ValueError('it asks for an array of %.20r' % (name,))

    def fill(self, version, order, *rest):
        if version != 3 or _text(order) not in ('<', '>', '|', '=') or rest != (None, None, None, -1, -1, 0):
            raise ValueError('it asks for an odd kind of numbers')
        self.dtype = np.dtype(_text(order) + self.name)


class Array:
    """A numpy array: made empty, then filled."""

    def __init__(self, kind, shape, code):
        self.array = None

    def fill(self, version, shape, kind, fortran, data):
        self.array = _from_buffer(data, kind, shape, 'F' if fortran else 'C').array


def _from_buffer(data, kind, shape, order, *_):
    """The Array that the bytes `data` are."""
    dtype = _expect(Type, kind).dtype
    size = dtype.itemsize
    for side in _expect(tuple, shape)[:2]:
        size *= _expect(int, side)
    if len(shape) > 2 or size != len(_expect((bytes, bytearray), data)):
        raise ValueError('an array of it does not fit its %d bytes' % len(data))
    whole = Array(NDARRAY, (0,), b'b')
    whole.array = np.ndarray(shape, dtype, data, order=order)
    return whole


def _scalar(kind, data):
    return int(_from_buffer(data, kind, (), 'C').array)


def _encode(text, encoding):
    """How Python 3 writes bytes for Python 2."""
    return _expect(str, text).encode('latin-1')


# What a pickle may name, and what is taken for it.
NDARRAY = object()
NAMES = {'numpy.ndarray': NDARRAY, 'numpy.dtype': Type, 'numpy.core.multiarray._reconstruct': Array, 'numpy.core.multiarray.scalar': _scalar,
         'numpy.core.numeric._frombuffer': _from_buffer, '_codecs.encode': _encode}
