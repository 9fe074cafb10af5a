"""What a hostile CIFAR file can say: the reader's answer to its bytes is a sentence, never code that runs, a crash or gigabytes."""
import gzip
import pickle
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest

from sesemi import cifar, pickles
from sesemi.errors import InputError

PIXELS = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
RECONSTRUCT, _, (_, _, U1, _, _) = PIXELS.__reduce__()


class Forged:
    """Pickled as what a call gives, filled with a state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def forged_dtype(name='u1', arguments=(False, True), state=(3, '|', None, None, None, -1, -1, 0)):
    return Forged(np.dtype, (name, *arguments), state)


def forged_array(shape, dtype=U1, data=bytes(12), version=1, fortran=False):
    return Forged(RECONSTRUCT, (np.ndarray, (0,), b'b'), (version, shape, dtype, fortran, data))


def refused(data):
    """What the reader says of a pickle."""
    with pytest.raises(Exception) as error:
        pickles.read_pickle(data)
    assert not isinstance(error.value, (MemoryError, RecursionError))
    return str(error.value)


def test_arrays_come_as_they_were_written():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        written = {b'a': PIXELS, b'b': np.asfortranarray(PIXELS), b'c': np.arange(3, dtype='>i8'), b'd': [np.int64(3), 2 ** 70, True], 'e': ()}
        read = pickles.read_pickle(pickle.dumps(written, protocol))
        for key in b'a', b'b', b'c':
            assert read[key].dtype == written[key].dtype
            np.testing.assert_array_equal(read[key], written[key])
        assert (read[b'd'], read['e']) == ([3, 2 ** 70, True], ())


# Dtypes whose flags or size are not those of their name have numpy take the file's bytes for the addresses of objects.
ODD_VALUES = [
    forged_dtype('O8'), forged_dtype('O8', state=(3, '|', None, None, None, -1, -1, 63)), forged_dtype('V8'), forged_dtype('f4'),
    forged_dtype('S9'), forged_dtype('u1,u1'), forged_dtype(U1), forged_dtype(('u1', (1 << 40,))), forged_dtype(['u1']),
    forged_dtype(state=(3, '|', None, None, None, 1 << 30, -1, 0)), forged_dtype(state=(3, '|', None, None, None, -1, 1 << 30, 0)),
    forged_dtype(state=(3, '|', None, None, None, -1, -1, 1)), forged_dtype(state=(4, '|', None, None, None, -1, -1, 0, {})),
    forged_dtype(state=(3, 'O', None, None, None, -1, -1, 0)), forged_dtype(state=(3, '|', ('u1', (2,)), None, None, -1, -1, 0)),
    forged_dtype(state=(3, '|', None, ('a',), {'a': (U1, 99)}, 1, 1, 0)), forged_dtype(arguments=(True, True)), forged_dtype(arguments=()),
    np.zeros(2), np.array(['a']), np.array([None]), np.zeros(2, 'u1,u1'), np.array(['1970'], 'M8[s]'),
    forged_array((1,), forged_dtype('O8'), bytes(range(8))),
    forged_array((12,), forged_dtype(state=(3, '|', None, None, None, 1 << 30, -1, 0))),
    forged_array((13,)), forged_array((-1, 12)), forged_array((-3, -4)), forged_array((1 << 62, 4)), forged_array((0, 1 << 70)),
    forged_array((2, 3, 2)), forged_array(64 * (1,), data=b'\0'), forged_array([12]), forged_array((12.0,)), forged_array(12),
    forged_array((12,), dtype='u1'), forged_array((12,), dtype=None), forged_array((3,), data=[1, 2, 3]), forged_array((12,), data=None),
    Forged(np.ndarray, ((1 << 40,),)), Forged(np.ndarray, ((2,), U1, b'ab')), Forged(RECONSTRUCT, (np.ndarray,)), Forged(list, ()),
    1.5, {1: 2}, {1, 2}, complex(1)]


@pytest.mark.parametrize('protocol', [2, 4])
def test_odd_values_are_refused(protocol):
    for value in ODD_VALUES:
        refused(pickle.dumps({b'data': value}, protocol))


SIZE = struct.Struct('<Q').pack
ODD_INSTRUCTIONS = [
    b'\x80\x02h\x07.', b'\x80\x02e.', b'\x80\x02(e.', b'\x80\x02.', b'\x80\x02N.', b'\x80\x02]Ns.', b'\x80\x02}b.', b'\x80\x02}}b.',
    b'\x80\x02})R.', b'\x80\x02cnumpy\ndtype\n}b.', b'\x80\x02cnumpy\ndtype\n(U\x02u1I00\nI01\nt\x81.', b'\x80\x02cnumpy\nndarray\n)R.',
    b'(ios\nsystem\n.', b'(cos\nsystem\no.', b'P1\n.', b'\x80\x02\x82\x01.', b'\x80\x02K\x01Q.', b'\x80\x02}0.', b'\x80\x02}2.',
    b'\x80\x02c' + 10 ** 6 * b'x' + b'\ny\n.', b'\x80\x04\x8c\x01a]\x93.', b"S'a\n.", b'I' + 10 ** 5 * b'9' + b'\n.',
    b'\x80\x02G' + bytes(8) + b'.', b'\xff', b'',
    # memo, byte array, bytes, string, number and frame of a size that is only claimed
    b'\x80\x02]r\xff\xff\xff\x07.', b'\x80\x05\x96' + SIZE(1 << 33) + b'.', b'\x80\x04\x8e' + SIZE(1 << 33) + b'.',
    b'\x80\x02T\xff\xff\xff\x7f.', b'\x80\x02T\xff\xff\xff\xff.', b'\x80\x02\x8b\xff\xff\xff\x7f.', b'\x80\x04\x95' + SIZE(1 << 62) + b'.']


def test_odd_instructions_are_refused_and_take_no_memory():
    tracemalloc.start()
    for data in ODD_INSTRUCTIONS:
        refused(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


def test_what_is_nested_deep_is_no_end_of_the_process():
    """Freed it is no matter, hashed as a key it overflowed the stack."""
    assert list(pickles.read_pickle(b'\x80\x02}U\x01a' + 100000 * b']' + 99999 * b'a' + b's.')) == [b'a']
    assert 'wrong place' in refused(b'\x80\x02})' + 100000 * b'\x85' + b'K\x01s.')


def test_a_pickle_has_a_limited_number_of_instructions(monkeypatch):
    monkeypatch.setattr(pickles, 'INSTRUCTIONS', 1000)
    assert 'more than 1000 instructions' in refused(b'\x80\x02' + 10 ** 6 * b']')


@pytest.mark.parametrize('labels', [[0, 1.5], [0, None], [0, b'1'], [True, 0], np.zeros((2, 1), int), [[0, 1]], [0, 10 ** 30], 3])
def test_labels_that_are_no_whole_numbers(labels):
    with pytest.raises(Exception):
        cifar._images_and_labels({b'data': PIXELS, b'labels': labels}, b'labels', 10)


@pytest.mark.parametrize('data', [PIXELS.astype(np.int64), PIXELS.ravel(), PIXELS[:, :300], PIXELS.tolist(), None, bytes(6144)])
def test_pixels_that_are_none(data):
    with pytest.raises(Exception):
        cifar._images_and_labels({b'data': data, b'labels': [0, 1]}, b'labels', 10)


# Archives


def archive(path, *members):
    """members: (name, content, the size that the archive claims)."""
    with tarfile.open(str(path), 'w:gz') as file:
        for name, content, size in members:
            member = tarfile.TarInfo(name)
            member.size = size
            file.addfile(member)
            file.fileobj.write(content)
            file.offset += len(content)
    return str(path)


def refused_archive(path):
    with pytest.raises(InputError) as error:
        cifar.read_archive(str(path))
    assert str(path) in str(error.value)
    return str(error.value)


def test_reading_a_bomb_stops_at_the_official_size(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, 'ARCHIVE_BYTES', 1 << 20)
    with gzip.open(str(tmp_path / 'bomb.tgz'), 'wb') as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    said = refused_archive(tmp_path / 'bomb.tgz')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 'more than 1 MB' in said and peak < 8 << 20


def test_a_file_larger_than_an_official_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, 'FILE_BYTES', 4096)
    batch = pickle.dumps({b'data': bytes(5000)}, 2)
    assert 'larger than' in refused_archive(archive(tmp_path / 'a.tgz', ('test_batch', batch.ljust(5120), 5120)))
    (tmp_path / 'test_batch').write_bytes(batch)
    with pytest.raises(InputError, match='test_batch: .* larger than'):
        cifar.read_batches(str(tmp_path))


def test_members_that_claim_what_is_not_there(tmp_path, monkeypatch):
    """A file that is one hole of 4 GB, and one of a size below zero, which sends tarfile round for ever."""
    def write(name, place, content):
        header = bytearray(tarfile.TarInfo('x/train').tobuf(tarfile.GNU_FORMAT))
        header[place:place + len(content)] = content
        header[156:157] = tarfile.GNUTYPE_SPARSE if name == 'hole.tgz' else tarfile.REGTYPE
        header[148:156] = b'        '
        header[148:156] = b'%06o\0 ' % sum(header)
        with gzip.open(str(tmp_path / name), 'wb') as file:
            file.write(bytes(header) + bytes(1024))
        return str(tmp_path / name)

    monkeypatch.setattr(cifar, 'ARCHIVE_BYTES', 1 << 20)
    monkeypatch.setattr(cifar, 'FILE_BYTES', 1 << 20)
    tracemalloc.start()
    assert cifar.read_archive(write('hole.tgz', 483, b'%011o\0' % (1 << 32))) == {}
    assert 'train' in refused_archive(write('back.tgz', 124, b'\xff' * 10 + b'\xfe\0'))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_an_archive_has_a_limited_number_of_members(tmp_path):
    many = archive(tmp_path / 'many.tgz', *[('%d' % i, b'', 0) for i in range(100)], ('test_batch', bytes(512), 512))
    assert cifar.read_archive(many) == {}
