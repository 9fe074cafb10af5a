"""Pickles of numbers, read without running them.

A pickle is a program, and those of CIFAR come from anywhere: Python's own unpickler never sees them. read_pickle knows the few
instructions that write dicts of numbers, texts and arrays of whole numbers, and refuses all others.
"""
import pickletools

import numpy as np

INSTRUCTIONS = 10 ** 6      # of a pickle; CIFAR-100's `train` has 350,000

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
