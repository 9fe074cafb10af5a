"""Pickles such as CIFAR's: those of all writers are read, and nothing that a forged one asks for is done."""
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


def test_the_names_of_classes_come_as_python_2_wrote_them():
    """batches.meta is in protocol 0."""
    meta = b"(dp1\nS'num_vis'\np2\nI3072\nsS'label_names'\np3\n(lp4\nS'airplane'\np5\naS'automobile'\np6\nas."
    assert read_pickle(meta) == {b'num_vis': 3072, b'label_names': [b'airplane', b'automobile']}


class Forged:
    """Pickled as the result of a call, filled with a state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def forged_type(name='u1', order='|', fields=None, size=-1, flags=0):
    return Forged(np.dtype, (name, False, True), (3, order, None, fields and ('a',), fields, size, -1, flags))


def forged_array(shape=(8,), dtype=U1, data=bytes(range(8))):
    return Forged(RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, shape, dtype, False, data))


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_bytes_are_never_taken_for_addresses(protocol):
    """And nothing behind them is read: forged flags and sizes are passed over, other kinds are refused."""
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


def test_objects_cannot_be_found_but_by_name(tmp_path):
    """Not in copyreg's registry, by a persistent id or in a buffer. INST and OBJ have the names of GLOBAL."""
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
