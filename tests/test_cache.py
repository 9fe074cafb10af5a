"""The cache of start-up: that it gives what computing gives, notices changes and damage, keeps its size, and is never needed."""
import json
import os
import re
import tempfile
import time
import zlib

import numpy as np
import pytest
from conftest import write_classes, write_image

import utils
from sesemi import cache
from sesemi.batches import NormalizedImages, TwoBranchBatches
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


def test_a_changed_file_is_noticed_though_its_size_and_time_are_as_before(files, store, tmp_path):
    path = tmp_path / 'image.bmp'
    write_image(path, np.full((16, 16, 3), 1))
    before = path.stat()
    assert store.decode_images([str(path)], 16).max() == 1
    write_image(path, np.full((16, 16, 3), 2))
    os.utime(str(path), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert store.decode_images([str(path)], 16).max() == 2


@pytest.mark.parametrize('damage', [lambda data: data[:-1], lambda data: data + b'0', lambda data: data[:99] + b'!' + data[100:],
                                    lambda data: b''])
def test_a_damaged_entry_is_made_anew(files, store, no_decoding, damage):
    paths, images = files
    store.decode_images(paths, 16)
    name, = entries(store)
    path = os.path.join(store.folder, name)
    with open(path, 'rb') as file:
        data = file.read()
    with open(path, 'wb') as file:
        file.write(damage(data))
    np.testing.assert_array_equal(store.decode_images(paths, 16), images)
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


def test_a_cache_that_cannot_be_written_is_done_without(files, tmp_path, capsys):
    paths, images = files
    (tmp_path / 'file').write_text('')
    store = cache.Cache(str(tmp_path / 'file'))
    np.testing.assert_array_equal(store.decode_images(paths, 16), images)
    assert store.whitener(utils.ChannelStandardizer, 'checksum', (16, 16, 3), standardizer).mean[0] == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.startswith(str(tmp_path / 'file')) and 'goes on without' in line for line in said)


def test_the_oldest_entries_go_when_there_is_no_room(files, store, monkeypatch):
    paths, _ = files
    monkeypatch.setattr(cache, 'LIMIT', 100 * 16 * 16 * 3)
    store.decode_images(paths[:40], 16)
    first, = entries(store)
    os.utime(os.path.join(store.folder, first), (1, 1))
    store.decode_images(paths[:50], 16)
    second, = set(entries(store)) - {first}
    os.utime(os.path.join(store.folder, second), (2, 2))
    store.decode_images(paths[:40], 16)         # used again: the younger one now
    store.decode_images(paths[:30], 16)
    assert first in entries(store) and second not in entries(store) and len(entries(store)) == 2
    store.decode_images(paths, 16)              # alone larger than the limit: it is in use
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
    fitted = store.whitener(utils.ChannelStandardizer, 'checksum', (16, 16, 3), standardizer)
    again = store.whitener(utils.ChannelStandardizer, 'checksum', (16, 16, 3), refuse)
    assert isinstance(again, utils.ChannelStandardizer)
    for ours, theirs in zip(fitted, again):
        np.testing.assert_array_equal(ours, theirs)
    for kind, checksum in ((utils.ChannelStandardizer, 'another'), (utils.Whitener, 'checksum')):
        with pytest.raises(AssertionError, match='fitted again'):
            store.whitener(kind, checksum, (16, 16, 3), refuse)


@pytest.mark.parametrize('content', [
    b'', bytes(23), bytes(25), bytes(24), np.full(6, np.nan, '<f4').tobytes(), np.full(6, np.inf, '<f4').tobytes()])
def test_whitening_of_odd_content_is_fitted_anew(store, content):
    fitted = store.whitener(utils.ChannelStandardizer, 'checksum', (16, 16, 3), standardizer)
    name, = entries(store)
    os.remove(os.path.join(store.folder, name))
    crc = zlib.crc32(content) if any(content) else 1        # those of the right checksum hold odd numbers
    with open(os.path.join(store.folder, '%s-%08x' % (name.rsplit('-', 1)[0], crc)), 'wb') as file:
        file.write(content)
    for ours, theirs in zip(fitted, store.whitener(utils.ChannelStandardizer, 'checksum', (16, 16, 3), standardizer)):
        np.testing.assert_array_equal(ours, theirs)


def test_an_entry_that_is_no_file_is_not_waited_for(files, store):
    paths, images = files
    store.decode_images(paths, 16)
    store.whitener(utils.ChannelStandardizer, 'checksum', (16, 16, 3), standardizer)
    for name in entries(store):
        os.remove(os.path.join(store.folder, name))
        os.mkfifo(os.path.join(store.folder, name))
    np.testing.assert_array_equal(store.decode_images(paths, 16), images)
    assert store.whitener(utils.ChannelStandardizer, 'checksum', (16, 16, 3), standardizer).deviation[2] == 2


def test_what_another_process_writes_stays_and_what_a_killed_one_left_goes(files, store, monkeypatch):
    paths, _ = files
    monkeypatch.setattr(cache, 'LIMIT', 0)
    os.makedirs(store.folder)
    for name, age in ('fresh.part', 60), ('stale.part', 90000):
        with open(os.path.join(store.folder, name), 'wb') as file:
            file.write(bytes(1000))
        os.utime(os.path.join(store.folder, name), (time.time() - age,) * 2)
    store.decode_images(paths, 16)
    assert [name for name in entries(store) if name.endswith('.part')] == ['fresh.part'] and len(entries(store)) == 2


@pytest.mark.parametrize('index', [
    150, -151, [0, 150], [-151], 2 ** 40, 1.0, [], None, True, np.ones(149, bool), np.ones((150, 1), bool), 'a', (0, 1.5), Ellipsis,
    slice(0.5)])
def test_an_index_that_stored_images_do_not_know_raises(files, tmp_path, index):
    stored = cache.Cache(str(tmp_path / 'cache'), memory_limit=1e-9).decode_images(files[0], 16)
    with pytest.raises((IndexError, TypeError)):
        stored[index]
    with pytest.raises(IndexError):
        stored[40:90][50]


@pytest.mark.parametrize('index', [
    -1, [-150, 149], slice(None, None, -7), slice(20, -20, 3), np.arange(150) % 7 == 3, np.zeros(150, bool), np.zeros((2, 0), int)])
def test_an_index_that_they_know_gives_what_numpy_gives(files, tmp_path, index):
    stored = cache.Cache(str(tmp_path / 'cache'), memory_limit=1e-9).decode_images(files[0], 16)
    np.testing.assert_array_equal(stored[index], files[1][index])
    np.testing.assert_array_equal(stored[10:][:-10][-1], files[1][-11])


@pytest.mark.parametrize('folder', [None, 'unwritable'])
def test_beyond_the_limit_without_a_cache_images_lie_in_a_temporary_file(files, tmp_path, monkeypatch, folder):
    paths, images = files
    (tmp_path / 'unwritable').write_text('')
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    store = cache.Cache(folder and str(tmp_path / folder), memory_limit=1e-9)
    stored = store.decode_images(paths, 16)
    assert isinstance(stored, cache.StoredImages)
    np.testing.assert_array_equal(stored, images)
    assert os.listdir(str(tmp_path / 'temporary')) == []        # it goes with the process
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'nowhere'))
    with pytest.raises(utils.InputError, match='nowhere: .*TMPDIR.*--memory-limit'):
        store.decode_images(paths, 16)
    monkeypatch.setattr(tempfile, 'tempdir', None)
    monkeypatch.setattr(tempfile, '_candidate_tempdir_list', lambda: [])        # as on a machine whose disks are full
    with pytest.raises(utils.InputError, match='no room .*TMPDIR'):
        store.decode_images(paths, 16)


def test_a_cache_that_can_only_be_read_is_used(files, store, no_decoding, monkeypatch):
    store.decode_images(files[0], 16)

    def refuse(*_, **__):
        raise PermissionError
    monkeypatch.setattr(os, 'utime', refuse)
    no_decoding()
    np.testing.assert_array_equal(store.decode_images(files[0], 16), files[1])


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    for name in 'SESEMI_CACHE', 'XDG_CACHE_HOME', 'HOME':
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('pwd.getpwuid', {}.__getitem__)
    assert cache.default_folder() is None


def test_a_run_is_the_same_from_the_cache_and_to_rounding_with_less_memory(train, tmp_path, monkeypatch):
    monkeypatch.setenv('SESEMI_CACHE', str(tmp_path))
    write_classes(tmp_path / 'data/train', {'cat': 20, 'dog': 20}, size=16)
    write_classes(tmp_path / 'data/test', {'cat': 4, 'dog': 4}, size=16)
    write_classes(tmp_path / 'data', {'unlabeled': 10}, size=16)

    def losses(name, *flags):
        done = train('--data', 'folder', '--dataset', tmp_path / 'data', '--network', 'nin', '--image-size', '16', '--batch-size', '4',
                     '--epochs', '1', '--labels', '10', '--method', 'ssl', '--quiet', '--result', tmp_path / name, *flags)
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


def test_the_processes_of_a_host_share_the_default_limit_and_each_has_a_given_one():
    assert 4 * cache.Cache(None, processes=4).memory_limit == cache.Cache(None).memory_limit
    assert cache.Cache(None, 2, processes=4).memory_limit == 2e9
