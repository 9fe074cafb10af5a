"""Pickles such as CIFAR's: those of all writers are read, and a forged one cannot run code."""
import copyreg
import os
import pickle

import numpy as np
import pytest

from sesemi.data.pickles import read_pickle

PIXELS = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
RECONSTRUCT, _, (_, _, U1, _, _) = PIXELS.__reduce__()
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_arrays_come_as_they_were_written(protocol):
    written = {b'a': PIXELS, b'b': np.asfortranarray(PIXELS), b'c': np.arange(3, dtype='>i8'),
               b'd': [np.int64(3), 2 ** 70, True], 'e': ()}
    read = read_pickle(pickle.dumps(written, protocol))
    for key in b'a', b'b', b'c':
        assert read[key].dtype == written[key].dtype
        np.testing.assert_array_equal(read[key], written[key])
    assert (read[b'd'], read['e']) == ([3, 2 ** 70, True], ())


def test_strings_of_python_2_are_read_as_bytes():
    """batches.meta is in protocol 0."""
    meta = b"(dp1\nS'num_vis'\np2\nI3072\nsS'label_names'\np3\n(lp4\nS'airplane'\np5\naS'automobile'\np6\nas."
    assert read_pickle(meta) == {b'num_vis': 3072, b'label_names': [b'airplane', b'automobile']}


class Forged:
    """Its pickle calls reduced[0] with the arguments reduced[1] and sets the state reduced[2]."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def forged_type(name='u1', order='|', fields=None, size=-1, flags=0):
    return Forged(np.dtype, (name, False, True), (3, order, None, fields and ('a',), fields, size, -1, flags))


def forged_array(shape=(8,), dtype=U1, data=bytes(range(8))):
    return Forged(RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, shape, dtype, False, data))


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_bytes_are_never_read_as_addresses(protocol):
    """Forged flags and sizes are ignored and other types refused, so nothing behind the bytes is read."""
    for dtype in (forged_type(flags=63), forged_type(size=1 << 30), forged_type(fields={'a': (U1, 99)})):
        read = read_pickle(pickle.dumps({b'data': forged_array(dtype=dtype)}, protocol))[b'data']
        assert read.dtype == np.uint8 and read.tolist() == list(range(8))
    for array in (forged_array((1,), forged_type('O8')), forged_array((1,), forged_type('O8', flags=63)),
                  forged_array(dtype=forged_type(order='O,')), forged_array(dtype=forged_type(order='2')),
                  forged_array((1,), forged_type('V8')),
                  forged_array(dtype=forged_type('u1,O')), forged_array(dtype='u1'), forged_array((9,)),
                  forged_array((1 << 62, 4)), forged_array(data=[1] * 8), forged_array(data=None),
                  Forged(np.ndarray, ((2,), U1, b'ab'), (1, (2,), U1, False, None))):
        with pytest.raises(Exception):
            read_pickle(pickle.dumps({b'data': array}, protocol))


def named_call(module, name, argument, protocol):
    """A pickle that calls a function by its name, which pickle.dumps may name otherwise or not find."""
    argument = pickle.dumps(argument, 2)[2:-1]      # without the protocol's mark and the stop
    if protocol == 2:
        return b'\x80\x02c' + module.encode() + b'\n' + name.encode() + b'\n' + argument + b'\x85R.'
    texts = b''.join(b'\x8c' + bytes([len(text)]) + text.encode() for text in (module, name))
    return b'\x80\x04' + texts + b'\x93' + argument + b'\x85R.'


@pytest.mark.parametrize('protocol', [2, 4])
def test_functions_with_other_names_are_refused(protocol):
    assert pickle.loads(named_call('builtins', 'eval', '1 + 1', protocol)) == 2     # it would be called
    for module, name in [
            ('os', 'system'), ('builtins', 'eval'), ('__builtin__', 'eval'), ('numpy', 'load'),
            ('numpy', 'os.system'), ('numpy', 'ndarray.tofile'), ('numpy.core.multiarray', 'fromfile'),
            ('numpy._core.multiarray', 'fromfile'), ('numpy.core.numeric', 'frombuffer'),
            ('numpy.core.multiarray', 'scalar.__globals__.get'), ('_codecs', 'lookup')]:
        with pytest.raises(ValueError, match='it asks for '):
            read_pickle(named_call(module, name, 'a', protocol))


def test_functions_cannot_be_called_without_their_names(tmp_path):
    """They are not found in copyreg's registry, by a persistent id or in a buffer, nor by INST and OBJ."""
    command = ('touch "%s"' % (tmp_path / 'ran')).encode()
    copyreg.add_extension(os.system.__module__, 'system', 0xf0)
    try:
        registered = pickle.dumps(Forged(os.system, (command.decode(),)), 2)
        assert b'system' not in registered
        for data in (registered, b'P1\n.', b'\x80\x02K\x01Q.', b'\x80\x05\x97.',
                     b"(S'%s'\nios\nsystem\n." % command, b"(cos\nsystem\nS'%s'\no." % command):
            with pytest.raises(Exception):
                read_pickle(data)
    finally:
        copyreg.remove_extension(os.system.__module__, 'system', 0xf0)
    assert not (tmp_path / 'ran').exists()
