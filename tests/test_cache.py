"""The start-up cache returns what computing returns, notices changes and damage, and can be left out."""
import json
import os
import re
import resource
import sys
import tempfile
import time

import numpy as np
import pytest
from conftest import PROJECT, write_classes, write_image
from programs import result, start

import utils
from sesemi.data import cache
from sesemi.data.batches import NormalizedImages, TwoBranchBatches
from sesemi.errors import InputError


@pytest.fixture
def files(tmp_path):
    """Paths of 150 images, more than two blocks, and their pixels."""
    images = write_classes(tmp_path / 'data', {'cat': 100, 'dog': 50}, size=16)
    return [str(path) for path in sorted((tmp_path / 'data').glob('*/*.png'))], images


@pytest.fixture
def store(tmp_path):
    return cache.Cache(str(tmp_path / 'cache'))


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(*_):
        raise AssertionError('decoded again')
    return lambda: [monkeypatch.setattr(cache, name, refuse) for name in ('decode_blocks', 'decode_images')]


def entries(store):
    return sorted(os.listdir(store.folder))


def test_images_are_decoded_once(files, store, no_decoding):
    paths, images = files
    np.testing.assert_array_equal(store.decode_images(paths, 16), images)
    no_decoding()
    again = store.decode_images(paths, 16)
    np.testing.assert_array_equal(again, images)
    assert isinstance(again, np.ndarray) and again.dtype == np.uint8 and again.flags.writeable
    with pytest.raises(AssertionError, match='decoded again'):
        store.decode_images(paths, 8)
    with pytest.raises(AssertionError, match='decoded again'):
        store.decode_images(paths, 16, 'pad')
    with pytest.raises(AssertionError, match='decoded again'):
        store.decode_images(paths[:-1], 16)


def test_a_changed_file_of_the_same_size_and_time_is_noticed(files, store, tmp_path):
    path = tmp_path / 'image.bmp'
    write_image(path, np.full((16, 16, 3), 1))
    before = path.stat()
    assert store.decode_images([str(path)], 16).max() == 1
    write_image(path, np.full((16, 16, 3), 2))
    os.utime(str(path), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert store.decode_images([str(path)], 16).max() == 2


def cut_to(store, length):
    """Cut the only entry to `length` bytes, or by -length bytes if that is negative."""
    name, = entries(store)
    path = os.path.join(store.folder, name)
    with open(path, 'r+b') as file:
        file.truncate(length if length >= 0 else os.path.getsize(path) + length)


@pytest.mark.parametrize('length', [0, 16 * 16 * 3, -1])
def test_an_entry_that_was_cut_off_is_made_anew(files, store, no_decoding, length):
    paths, images = files
    store.decode_images(paths, 16)
    cut_to(store, length)
    np.testing.assert_array_equal(store.decode_images(paths, 16), images)
    assert len(entries(store)) == 1
    no_decoding()
    np.testing.assert_array_equal(store.decode_images(paths, 16), images)


@pytest.mark.parametrize('length', [0, 1, 30, 200, -100, -1])
def test_whitening_that_was_cut_off_is_fitted_anew(store, length, capsys):
    fitted = store.get_whitener(utils.ChannelStandardizer, 'checksum', standardizer)
    cut_to(store, length)
    calls = []
    for _ in range(2):
        again = store.get_whitener(utils.ChannelStandardizer, 'checksum',
                               lambda: calls.append(1) or standardizer())
        np.testing.assert_array_equal(again, fitted)
    assert len(calls) == 1 and capsys.readouterr().err == ''


DECODE = ('import sys; from sesemi.data.cache import Cache; '
          'Cache(sys.argv[1], 1e-9).decode_images(sys.argv[2:], 16)')


def test_processes_that_make_an_entry_at_once_leave_one(files, store, no_decoding):
    paths, images = files
    started = [start(sys.executable, '-c', DECODE, store.folder, *paths, cwd=PROJECT) for _ in range(3)]
    assert [result(process)[:2] for process in started] == [(0, '')] * 3
    name, = entries(store)
    assert name.startswith('images-')
    no_decoding()
    np.testing.assert_array_equal(store.decode_images(paths, 16), images)


def test_an_unreadable_image_leaves_no_entry_and_is_named(files, store):
    paths, _ = files
    with open(paths[120], 'wb') as file:
        file.write(b'no image')
    with pytest.raises(InputError, match=re.escape(paths[120])):
        store.decode_images(paths, 16)
    assert entries(store) == []
    os.remove(paths[120])
    with pytest.raises(InputError, match=re.escape(paths[120])):
        store.decode_images(paths, 16)


def test_without_a_writable_cache_images_and_whitening_are_computed(files, tmp_path, capsys):
    paths, images = files
    (tmp_path / 'file').write_text('')
    store = cache.Cache(str(tmp_path / 'file'))
    np.testing.assert_array_equal(store.decode_images(paths, 16), images)
    assert store.get_whitener(utils.ChannelStandardizer, 'checksum', standardizer).mean[0] == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith(str(tmp_path / 'file')) and 'goes on without' in line for line in said)


def test_a_full_disk_is_reported_once_and_leaves_no_part_of_an_entry(files, store, capsys):
    paths, images = files
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (images.size // 2, limits[1]))        # bytes of a file
    try:
        np.testing.assert_array_equal(store.decode_images(paths, 16), images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(store) == []
    assert capsys.readouterr().err == (
        '%s: the images cannot be kept there ([Errno 27] File too large); the run goes on without.\n'
        % store.folder)


def test_the_oldest_entries_are_removed_when_there_is_no_room(files, store, monkeypatch):
    paths, _ = files
    monkeypatch.setattr(cache, 'MAX_BYTES', 100 * 16 * 16 * 3)
    store.decode_images(paths[:40], 16)
    first, = entries(store)
    os.utime(os.path.join(store.folder, first), (1, 1))
    store.decode_images(paths[:50], 16)
    second, = set(entries(store)) - {first}
    os.utime(os.path.join(store.folder, second), (2, 2))
    store.decode_images(paths[:40], 16)         # used again, so now the younger one
    store.decode_images(paths[:30], 16)
    assert first in entries(store) and second not in entries(store) and len(entries(store)) == 2
    store.decode_images(paths, 16)              # larger than the limit, but in use
    assert len(entries(store)) == 1


def test_images_beyond_the_limit_are_read_as_they_are_drawn(files, tmp_path):
    paths, images = files
    stored = cache.Cache(str(tmp_path / 'cache'), memory_limit=1e-9).decode_images(paths, 16)
    assert isinstance(stored, cache.StoredImages) and stored.shape == images.shape and len(stored) == 150
    np.testing.assert_array_equal(stored, images)
    np.testing.assert_array_equal(stored[7], images[7])
    chosen = np.array([[149, 0], [7, 7]])
    np.testing.assert_array_equal(stored[chosen], images[chosen])
    np.testing.assert_array_equal(stored[40:][10:30][chosen % 20], images[50:70][chosen % 20])
    odd = np.arange(150) % 2 == 1
    np.testing.assert_array_equal(stored[odd][3:], images[odd][3:])
    np.testing.assert_array_equal(stored[odd][chosen % 75], images[odd][chosen % 75])
    np.testing.assert_array_equal(stored[10:][:-10][-1], images[-11])
    for beyond in 150, [0, 150]:
        with pytest.raises(IndexError):
            stored[beyond]
    assert len(stored[150:]) == 0 and np.asarray(stored[150:]).shape == (0, 16, 16, 3)
    labels = np.eye(2, dtype=np.float32)[np.arange(150) % 2]
    whitener = utils.zca_whitener(map(utils.global_contrast_normalize, utils.chunks(stored)))
    drawn, whole = (TwoBranchBatches(pool, labels, pool, batch_size=4) for pool in (
        NormalizedImages(stored, whitener), np.asarray(NormalizedImages(images, whitener))))
    for name, array in drawn[40][0].items():
        np.testing.assert_allclose(array, whole[40][0][name], rtol=1e-4, atol=1e-4)
        assert array.dtype == np.float32


def standardizer():
    return utils.ChannelStandardizer(np.ones(3, np.float32), np.arange(3, dtype=np.float32))


def test_whitening_is_fitted_once_for_the_same_images(store):
    def refuse():
        raise AssertionError('fitted again')
    fitted = store.get_whitener(utils.ChannelStandardizer, 'checksum', standardizer)
    again = store.get_whitener(utils.ChannelStandardizer, 'checksum', refuse)
    assert isinstance(again, utils.ChannelStandardizer)
    for ours, theirs in zip(fitted, again):
        np.testing.assert_array_equal(ours, theirs)
    for kind, checksum in ((utils.ChannelStandardizer, 'another'), (utils.Whitener, 'checksum')):
        with pytest.raises(AssertionError, match='fitted again'):
            store.get_whitener(kind, checksum, refuse)


def test_a_file_being_written_stays_and_one_of_a_killed_process_goes(files, store, monkeypatch):
    paths, _ = files
    monkeypatch.setattr(cache, 'MAX_BYTES', 0)
    os.makedirs(store.folder)
    for name, age in ('fresh.part', 60), ('stale.part', 90000):
        with open(os.path.join(store.folder, name), 'wb') as file:
            file.write(bytes(1000))
        os.utime(os.path.join(store.folder, name), (time.time() - age,) * 2)
    store.decode_images(paths, 16)
    assert [name for name in entries(store) if name.endswith('.part')] == ['fresh.part']
    assert len(entries(store)) == 2


@pytest.mark.parametrize('folder', [None, 'unwritable'])
def test_without_a_cache_many_images_go_to_a_temporary_file(files, tmp_path, monkeypatch, folder):
    paths, images = files
    (tmp_path / 'unwritable').write_text('')
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    store = cache.Cache(folder and str(tmp_path / folder), memory_limit=1e-9)
    stored = store.decode_images(paths, 16)
    assert isinstance(stored, cache.StoredImages)
    np.testing.assert_array_equal(stored, images)
    assert os.listdir(str(tmp_path / 'temporary')) == []        # the file has no name
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'nowhere'))
    with pytest.raises(utils.InputError, match='nowhere: .*TMPDIR.*--memory-limit'):
        store.decode_images(paths, 16)
    monkeypatch.setattr(tempfile, 'tempdir', None)
    # no folder can be written, as if all disks were full
    monkeypatch.setattr(tempfile, '_candidate_tempdir_list', lambda: [])
    with pytest.raises(utils.InputError, match='no room .*TMPDIR'):
        store.decode_images(paths, 16)


def test_a_cache_that_can_only_be_read_is_used(files, store, no_decoding, monkeypatch):
    store.decode_images(files[0], 16)

    def refuse(*_, **__):
        raise PermissionError
    monkeypatch.setattr(os, 'utime', refuse)
    no_decoding()
    np.testing.assert_array_equal(store.decode_images(files[0], 16), files[1])


@pytest.mark.parametrize('mask, mode', [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_an_entry_is_decided_by_the_umask(files, store, mask, mode):
    before = os.umask(mask)
    try:
        store.decode_images(files[0][:1], 16)
        store.get_whitener(utils.ChannelStandardizer, 'checksum', standardizer)
    finally:
        os.umask(before)
    modes = [os.stat(os.path.join(store.folder, name)).st_mode & 0o777 for name in entries(store)]
    assert modes == [mode, mode]


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    for name in 'SESEMI_CACHE', 'XDG_CACHE_HOME', 'HOME':
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('pwd.getpwuid', {}.__getitem__)
    assert cache.default_folder() is None


def test_a_run_is_the_same_with_a_cache_and_nearly_with_less_memory(train, tmp_path, monkeypatch):
    monkeypatch.setenv('SESEMI_CACHE', str(tmp_path))
    write_classes(tmp_path / 'data/train', {'cat': 20, 'dog': 20}, size=16)
    write_classes(tmp_path / 'data/test', {'cat': 4, 'dog': 4}, size=16)
    write_classes(tmp_path / 'data', {'unlabeled': 10}, size=16)

    def losses(name, *flags):
        done = train('--data', 'folder', '--dataset', tmp_path / 'data', '--network', 'nin',
                     '--image-size', '16', '--batch-size', '4', '--epochs', '1', '--labels', '10',
                     '--method', 'ssl', '--quiet', '--result', tmp_path / name, *flags)
        assert done.status == 0, done.err
        result = json.loads((tmp_path / name / 'result.json').read_text())
        return float(re.search(r'loss ([\d.]+)', done.out).group(1)), result['data_checksum']
    without = losses('without', '--no-cache')
    assert not (tmp_path / 'sesemi').exists()
    assert losses('cold') == without
    kept = sorted(path.name.split('-')[0] for path in (tmp_path / 'sesemi').iterdir())
    assert kept == ['images', 'whitening']
    assert losses('warm') == without
    assert losses('less', '--memory-limit=0.000001') == (pytest.approx(without[0], rel=1e-3), without[1])


def test_processes_share_the_default_limit_but_not_a_given_one():
    assert 4 * cache.Cache(None, processes=4).memory_limit == cache.Cache(None).memory_limit
    assert cache.Cache(None, 2, processes=4).memory_limit == 2e9
