import os
import sys

import numpy as np
import pytest
from conftest import PROJECT, NoDoubles, write_classes, write_image
from PIL import Image
from programs import result, start
from scipy import ndimage

import utils
from sesemi.errors import InputError
from sesemi.images.decoding import PIXEL_BYTES, decode_image
from sesemi.system import machine


def test_no_doubles_notices_promotion():
    images = np.ones((2, 3), np.float32).view(NoDoubles)
    with pytest.raises(AssertionError):
        images + np.ones(3)
    with pytest.raises(AssertionError):
        images += np.ones(3)


# Reading


def test_decode_images_keeps_the_order_over_many_files(tmp_path):
    for i in range(150):
        write_image(tmp_path / '{}.png'.format(i), np.full((4, 4, 3), i))
    order = np.random.RandomState(0).permutation(150)
    images = utils.decode_images([str(tmp_path / '{}.png'.format(i)) for i in order], 4)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.tile(order[:, None, None, None], (1, 4, 4, 3)))


@pytest.mark.parametrize('bad, count, named', [
    (1, '', 1), (2, '2 images cannot be read;', 2), (70, '70 images cannot be read;', 10),
    (150, '100 images or more cannot be read;', 10)])
def test_unreadable_files_are_counted_and_ten_of_them_named(tmp_path, monkeypatch, bad, count, named):
    paths, tried = [str(tmp_path / '{:04d}.png'.format(i)) for i in range(2000)], []

    def decode(path, *args):
        tried.append(path)
        return decode_image(path, *args) if os.path.exists(path) else np.zeros((4, 4, 3))
    monkeypatch.setattr(utils, 'decode_image', decode)
    monkeypatch.setattr(machine, 'count_cores', lambda: 1)
    broken = paths[1:3 * bad:3]
    for path in broken:
        open(path, 'w').close()
    with pytest.raises(InputError) as error:
        utils.decode_images(paths, 4)
    said = str(error.value)
    assert said.startswith(count) and said.count('(it is empty)') == said.count('.png') == named
    assert all(path in said for path in broken[:10]) and 'replace or remove the file' in said
    assert ('and %d more' % (min(bad, 100) - 10) in said) == (bad > 10)
    assert len(tried) == 2000 if bad < 100 else len(tried) < 2000


def test_the_first_frame_of_an_animation_is_read_and_reported_once(tmp_path, capsys):
    frames = [Image.new('RGB', (32, 32), colour) for colour in ('red', 'blue')]
    paths = [str(tmp_path / name) for name in ('a.gif', 'b.tif', 'c.webp', 'd.png', 'still.gif')]
    for path in paths[:4]:
        frames[0].save(path, save_all=True, append_images=frames[1:],
                       **{'lossless': True} if path.endswith('webp') else {})
    frames[0].save(paths[4])
    assert (utils.decode_images(paths) == (255, 0, 0)).all()
    assert capsys.readouterr().out == (
        '4 files have several frames; only the first is read: %s and 1 more.\n' % ', '.join(paths[:3]))
    utils.decode_images(paths[4:])
    assert capsys.readouterr().out == ''


def test_parallel_decoders_stay_within_the_memory(tmp_path):
    path = tmp_path / 'a.png'
    Image.new('L', (6000, 3000)).save(str(path))
    for memory in None, machine.count_cores() * PIXEL_BYTES * 6000 * 3000:
        assert not utils.decode_images([str(path)], 16, memory=memory).any()
    with pytest.raises(InputError, match=r'6000 x 3000 pixels, and there is memory for 17 million'):
        utils.decode_images([str(path)], 16, memory=machine.count_cores() * PIXEL_BYTES * (6000 * 3000 - 1))


PROCESSES = """
import multiprocessing, sys, time
import utils
from sesemi.system import machine
utils.MANY_FILES = 1
blocks = utils.decode_blocks(sys.argv[2:] * int(sys.argv[1]), 4)
first = next(blocks)
print(len(multiprocessing.active_children()), first.mean(axis=(1, 2, 3)).astype(int).tolist(), flush=True)
print(sum(map(len, blocks)))
"""


def start_processes(times, paths):
    return start(sys.executable, '-c', PROCESSES, times, *paths, cwd=PROJECT)


def test_many_small_files_are_decoded_in_a_process_for_each_core(tmp_path):
    paths = [tmp_path / '{}.png'.format(i) for i in (3, 1, 2)]
    for path in paths:
        write_image(path, np.full((4, 4, 3), int(path.stem)))
    _, out, err = result(start_processes(100, paths))
    assert (out, err) == ('{} {}\n236\n'.format(machine.count_cores(), ([3, 1, 2] * 22)[:64]), '')
    paths[1].write_bytes(b'')
    _, _, err = result(start_processes(1, paths))
    assert 'InputError: {}: cannot be read as an image'.format(paths[1]) in err


def test_decoding_processes_end_with_a_parent_that_is_killed(tmp_path):
    write_image(tmp_path / 'a.png', np.zeros((4, 4, 3)))
    process = start_processes(10 ** 5, [tmp_path / 'a.png'] * 50)
    assert process.stdout.readline().startswith(str(machine.count_cores()))
    process.kill()
    assert process.communicate() == ('', '')     # returns when no process holds the pipes


def test_load_image_folder(tmp_path):
    images = write_classes(tmp_path, {'dog': 2, 'Zebra': 1, 'cat': 11, '__background__': 1}, size=8)
    (tmp_path / 'dog/000.png').rename(tmp_path / 'dog/b.PNG')
    for stray in ('cat/.DS_Store', 'cat/Thumbs.db', 'cat/._000.png', 'cat/notes.txt', 'list.csv',
                  '.git/a.png', '__MACOSX/a.png', 'unlabeled/a.png', 'cat/__pycache__/a.png',
                  'cat/.more/a.png'):
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).write_bytes(b'no image')
    loaded, labels, class_names = utils.load_image_folder(str(tmp_path), 8)
    assert class_names == ['Zebra', '__background__', 'cat', 'dog']
    assert loaded.dtype == np.uint8 and labels.dtype == np.int64
    np.testing.assert_array_equal(labels, [0, 1] + 11 * [2] + 2 * [3])
    np.testing.assert_array_equal(loaded, images[[*range(13), 14, 13]])


# Normalising


def photos(n, size=8, seed=0):
    """Smooth images of varied brightness and contrast: uint8 (n, size, size, 3)."""
    rng = np.random.RandomState(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((n, size, size, 3)), (0, 1, 1, .5))
    images = 128 + 200 * rng.rand(n, 1, 1, 1) * smooth + rng.randint(-60, 60, (n, 1, 1, 1))
    return np.clip(images, 0, 255).astype(np.uint8)


def contrast_normalised(images):
    flat = images.reshape(len(images), -1).astype(np.float64)
    centred = flat - flat.mean(1, keepdims=True)
    return 55 * centred / np.linalg.norm(centred, axis=1, keepdims=True)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize('size', [8, 32])
def test_contrast_normalisation(dtype, size):
    images = photos(50, size).astype(dtype)
    before = images.copy()
    normalised = utils.global_contrast_normalize(images)
    np.testing.assert_array_equal(images, before)
    assert normalised.dtype == np.float32 and normalised.shape == images.shape
    np.testing.assert_allclose(normalised.reshape(50, -1), contrast_normalised(images), rtol=0, atol=1e-3)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32, np.float64])
def test_contrast_normalisation_leaves_constant_images_at_zero(dtype):
    values = np.arange(256) if dtype == np.uint8 else np.linspace(0, 255, 1001)
    images = np.tile(values.astype(dtype)[:, None, None, None], (1, 32, 32, 3))
    assert not utils.global_contrast_normalize(images).any()


def test_contrast_normalisation_of_the_faintest_image():
    images = np.full((1, 32, 32, 3), 200, np.uint8)
    images[0, 0, 0, 0] += 1
    np.testing.assert_allclose(utils.global_contrast_normalize(images).reshape(1, -1),
                               contrast_normalised(images), rtol=0, atol=1e-3)


def zca(flat):
    """(mean, matrix) in float64, by singular values."""
    mean = flat.mean(0)
    covariance = (flat - mean).T @ (flat - mean) / (len(flat) - 1) + .1 * np.eye(flat.shape[1])
    u, s, _ = np.linalg.svd(covariance)
    return mean, u @ np.diag((s + 1e-10) ** -.5) @ u.T


@pytest.mark.parametrize('n', [40, 300])       # fewer images than values, and more
def test_whitening(n):
    images = contrast_normalised(photos(n)).reshape(n, 8, 8, 3).astype(np.float32)
    before = images.copy()
    whitener = utils.zca_whitener(images)
    white = whitener(images)
    np.testing.assert_array_equal(images, before)
    assert {whitener.mean.dtype, whitener.matrix.dtype, white.dtype} == {np.dtype(np.float32)}
    assert white.shape == images.shape
    mean, matrix = zca(contrast_normalised(photos(n)))
    np.testing.assert_allclose(whitener.mean, mean, rtol=0, atol=1e-3)
    np.testing.assert_allclose(whitener.matrix, matrix, rtol=0, atol=1e-3)
    others = contrast_normalised(photos(20, seed=1))
    white = whitener(others.reshape(20, 8, 8, 3).astype(np.float32))
    np.testing.assert_allclose(white.reshape(20, -1), (others - mean) @ matrix, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('size', [1, 70])
def test_whitening_fitted_in_parts(size):
    images = utils.global_contrast_normalize(photos(300))
    whole, parts = utils.zca_whitener(images), utils.zca_whitener(utils.chunks(images, size))
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=0, atol=1e-5)
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=0, atol=1e-4)


def test_whitening_applies_in_float32():
    images = utils.global_contrast_normalize(photos(30))
    whitener = utils.zca_whitener(images)
    np.testing.assert_array_equal(whitener(images.view(NoDoubles)), whitener(images))


def test_channel_standardisation():
    images = utils.global_contrast_normalize(photos(300))
    standardiser = utils.fit_channel_standardizer(utils.chunks(images, 70))
    standard = standardiser(images)
    assert standard.dtype == np.float32
    channels = images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(standard.reshape(-1, 3), (channels - channels.mean(0)) / channels.std(0),
                               rtol=0, atol=1e-4)
    np.testing.assert_array_equal(standardiser(images.view(NoDoubles)), standard)


# Choosing the labeled subset


@pytest.mark.parametrize('seed', [1, 7])
def test_labeled_subset(seed):
    labels = np.random.RandomState(0).choice([0, 1, 3], 300)
    chosen = utils.stratified_sample(labels, 5, seed)
    assert chosen.dtype == np.int64
    rng = np.random.RandomState(seed)
    expected = []
    for label in 0, 1, 3:
        members = [i for i in range(300) if labels[i] == label]
        rng.shuffle(members)
        expected += members[:5]
    assert chosen.tolist() == expected
    if seed == 1:
        np.testing.assert_array_equal(chosen, utils.stratified_sample(labels, 5))


def test_labeled_subset_of_a_class_that_is_too_small():
    labels = np.array([0] * 9 + [1] * 4)
    assert sorted(utils.stratified_sample(labels, 4)[4:]) == [9, 10, 11, 12]
    with pytest.raises(InputError, match='class cat has 4 training images, fewer than the 5 '):
        utils.stratified_sample(labels, 5, class_names=['dog', 'cat'])


def test_hold_out_is_stratified_and_fixed():
    labels = np.repeat([0, 1, 2], [60, 13, 1])
    held = utils.hold_out(labels, 1 / 6)
    assert held.dtype == bool
    assert np.bincount(labels[held]).tolist() == [10, 2, 1]
    np.testing.assert_array_equal(held, utils.hold_out(labels, 1 / 6))
    assert not held[:10].all()
