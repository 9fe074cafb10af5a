import hashlib
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import PROJECT, write_classes, write_image
from PIL import Image
from scipy import ndimage

import utils        # and not its names: test_views would be taken for a test


class NoDoubles(np.ndarray):
    """An array that refuses every computation in which a float64 array takes part or comes out."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [x.view(np.ndarray) if isinstance(x, NoDoubles) else x for x in inputs]
        options['out'] = tuple(x.view(np.ndarray) for x in options.get('out') or ()) or None
        result = getattr(ufunc, method)(*plain, **options)
        assert all(np.asarray(x).dtype != np.float64 for x in plain + [result] if np.ndim(x))
        return result.view(NoDoubles) if isinstance(result, np.ndarray) else result


def test_no_doubles_notices_promotion():
    images = np.ones((2, 3), np.float32).view(NoDoubles)
    with pytest.raises(AssertionError):
        images + np.ones(3)
    with pytest.raises(AssertionError):
        images += np.ones(3)


# Reading


QUARTERS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255), 'grey': (96, 96, 96)}


def quarters(size=32):
    """Red beside green above blue beside grey: the eight ways to turn it are all different."""
    pixels = np.array(list(QUARTERS.values()), np.uint8).reshape(2, 2, 3)
    return pixels.repeat(size // 2, axis=0).repeat(size // 2, axis=1)


GREY = np.repeat([76, 150, 29, 96], 3).reshape(2, 2, 3).repeat(16, axis=0).repeat(16, axis=1)
BLACK_AND_WHITE = np.where(GREY > 127, 255, 0)


def save(path, mode='RGB', **options):
    """Write quarters() in this mode; an alpha channel takes every value."""
    image = Image.fromarray(quarters())
    image = image.quantize(4) if mode == 'P' else image.convert(mode, dither=0)
    if mode.endswith('A'):
        image.putalpha(Image.fromarray(np.arange(1024).reshape(32, 32).astype(np.uint8)))
    image.save(str(path), **options)


@pytest.mark.parametrize('name, options', [
    ('a.png', {}), ('a.bmp', {}), ('a.gif', {}), ('a.tif', {}), ('a.tiff', {'compression': 'tiff_lzw'}), ('a.ppm', {}),
    ('a.webp', {'lossless': True}), ('a.jpg', {'quality': 100, 'subsampling': 0}), ('A.JPEG', {'quality': 100, 'subsampling': 0})])
def test_decode_formats(tmp_path, name, options):
    save(tmp_path / name, **options)
    image = utils.decode_image(str(tmp_path / name))
    assert image.dtype == np.uint8 and image.shape == (32, 32, 3)
    assert abs(image.astype(int) - quarters()).max() <= (3 if 'J' in name.upper() else 0)


@pytest.mark.parametrize('mode, name, options, expected', [
    ('1', 'a.png', {}, BLACK_AND_WHITE), ('L', 'a.png', {}, GREY), ('LA', 'a.png', {}, GREY),
    ('L', 'a.jpg', {'quality': 100}, GREY), ('P', 'a.png', {}, quarters()), ('P', 'a.png', {'transparency': 2}, quarters()),
    ('P', 'a.png', {'transparency': b'\x00\x80\xff\x20'}, quarters()), ('P', 'a.gif', {}, quarters()),
    ('RGBA', 'a.png', {}, quarters()), ('CMYK', 'a.jpg', {'quality': 100}, quarters()), ('CMYK', 'a.tif', {}, quarters())])
def test_decode_modes(tmp_path, mode, name, options, expected, recwarn):
    """Transparency is dropped: what it hides is seen."""
    save(tmp_path / name, mode, **options)
    with Image.open(str(tmp_path / name)) as saved:
        assert saved.mode == mode
    assert abs(utils.decode_image(str(tmp_path / name)).astype(int) - expected).max() <= 3
    assert not recwarn.list


def write_png(path, rows, colour_type):
    """A 16-bit PNG, which Pillow writes in grey only. rows: (h, w) or (h, w, 3)."""
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    height, width = rows.shape[:2]
    lines = b''.join(b'\0' + row.astype('>u2').tobytes() for row in rows)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, colour_type, 0, 0, 0))
                     + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b''))


def test_decode_16_bits(tmp_path):
    ramp = np.arange(1024).reshape(32, 32) // 4
    write_png(tmp_path / 'grey.png', ramp * 257, colour_type=0)
    Image.fromarray((ramp * 257).astype(np.uint16)).save(str(tmp_path / 'grey.tif'))
    write_png(tmp_path / 'colour.png', quarters().astype(int) * 257, colour_type=2)
    for name in 'grey.png', 'grey.tif':
        np.testing.assert_array_equal(utils.decode_image(str(tmp_path / name)), ramp[..., None].repeat(3, -1))
    np.testing.assert_array_equal(utils.decode_image(str(tmp_path / 'colour.png')), quarters())


@pytest.mark.parametrize('orientation, seen', [
    (1, 'red green blue grey'), (2, 'green red grey blue'), (3, 'grey blue green red'), (4, 'blue grey red green'),
    (5, 'red blue green grey'), (6, 'blue red grey green'), (7, 'grey green blue red'), (8, 'green grey red blue')])
def test_decode_turns_images_upright(tmp_path, orientation, seen):
    """What is seen, quarter by quarter, of an image stored as red green / blue grey."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / 'a.jpg', quality=100, subsampling=0, exif=exif.tobytes())
    expected = np.array([QUARTERS[name] for name in seen.split()]).reshape(2, 2, 3)
    assert abs(utils.decode_image(str(tmp_path / 'a.jpg'))[8::16, 8::16].astype(int) - expected).max() <= 3


def test_decode_first_frame_of_an_animation(tmp_path):
    frames = [Image.new('RGB', (32, 32), colour) for colour in ('red', 'blue')]
    frames[0].save(str(tmp_path / 'a.gif'), save_all=True, append_images=frames[1:])
    assert (utils.decode_image(str(tmp_path / 'a.gif')) == (255, 0, 0)).all()


@pytest.mark.parametrize('height, width', [(64, 96), (16, 8), (33, 32)])
def test_decode_resizes_bilinearly(tmp_path, height, width):
    """A linear ramp stays one: pixel centres keep their place, from edge to edge of the image."""
    rows, columns = (np.arange(height) + .5) / height, (np.arange(width) + .5) / width
    write_image(tmp_path / 'a.png', (100 * rows[:, None, None] + 150 * columns[:, None]).repeat(3, -1).round())
    centres = (np.arange(32) + .5) / 32
    expected = 100 * centres[:, None, None] + 150 * centres[:, None] + np.zeros(3)
    inside = slice(4, -4)       # the border has no neighbours to mix
    assert abs(utils.decode_image(str(tmp_path / 'a.png')) - expected)[inside, inside].max() <= 1.5
    assert utils.decode_image(str(tmp_path / 'a.png'), 20).shape == (20, 20, 3)


@pytest.mark.parametrize('fit, left_column, middle_row', [
    ('stretch', {'red': 32}, {'red': 8, 'green': 16, 'blue': 8}), ('crop', {'green': 32}, {'green': 32}),
    ('pad', {'black': 8, 'red': 16, 'black again': 8}, {'red': 8, 'green': 16, 'blue': 8})])
def test_decode_fits_images_that_are_not_square(tmp_path, fit, left_column, middle_row):
    """An image of a red, a green and a blue part side by side, and the same on its side."""
    wide = np.repeat([[QUARTERS['red'], QUARTERS['green'], QUARTERS['green'], QUARTERS['blue']]], 16, axis=1).repeat(32, axis=0)
    write_image(tmp_path / 'wide.png', wide)
    write_image(tmp_path / 'high.png', wide.transpose(1, 0, 2))
    image = utils.decode_image(str(tmp_path / 'wide.png'), 32, fit)
    np.testing.assert_array_equal(utils.decode_image(str(tmp_path / 'high.png'), 32, fit), image.transpose(1, 0, 2))
    for line, parts in (image[:, 0], left_column), (image[16], middle_row):
        expected = np.repeat([QUARTERS.get(name, (0, 0, 0)) for name in parts], list(parts.values()), axis=0)
        assert (line != expected).any(axis=1).sum() <= 4        # where the resize mixes neighbours


@pytest.mark.filterwarnings('ignore:Truncated File Read')
@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.gif', 'a.bmp', 'a.tif', 'a.webp', 'a.ppm'])
@pytest.mark.parametrize('kept', [0, .01, .5, .9])
def test_decode_refuses_files_that_are_cut_off(tmp_path, name, kept):
    path = tmp_path / name
    write_image(path, np.random.RandomState(0).randint(0, 256, (40, 40, 3)))
    data = path.read_bytes()
    path.write_bytes(data[:int(kept * len(data))])
    with pytest.raises(utils.InputError) as error:
        utils.decode_image(str(path))
    assert str(error.value).startswith(str(path) + ': cannot be read as an image (') and '\n' not in str(error.value)


def test_decode_images_keeps_the_order_over_many_files(tmp_path):
    for i in range(150):
        write_image(tmp_path / '{}.png'.format(i), np.full((4, 4, 3), i))
    order = np.random.RandomState(0).permutation(150)
    images = utils.decode_images([str(tmp_path / '{}.png'.format(i)) for i in order], 4)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.tile(order[:, None, None, None], (1, 4, 4, 3)))


def test_decode_images_names_the_first_bad_file(tmp_path):
    paths = [tmp_path / '{:03d}.png'.format(i) for i in range(150)]
    for i, path in enumerate(paths):
        write_image(path, np.full((4, 4, 3), i))
    for bad in paths[140], paths[70]:
        bad.write_bytes(b'')
        with pytest.raises(utils.InputError, match=bad.name):
            utils.decode_images(list(map(str, paths)), 4)


PROCESSES = """
import multiprocessing, sys, time
import utils
utils.MANY_FILES = 1
blocks = utils.decode_blocks(sys.argv[2:] * int(sys.argv[1]), 4)
first = next(blocks)
print(len(multiprocessing.active_children()), first.mean(axis=(1, 2, 3)).astype(int).tolist(), flush=True)
print(sum(map(len, blocks)))
"""


def start_processes(times, paths):
    return subprocess.Popen([sys.executable, '-c', PROCESSES, str(times), *map(str, paths)], cwd=str(PROJECT), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True)


def test_many_small_files_are_decoded_in_a_process_for_each_core(tmp_path):
    paths = [tmp_path / '{}.png'.format(i) for i in (3, 1, 2)]
    for path in paths:
        write_image(path, np.full((4, 4, 3), int(path.stem)))
    out, err = start_processes(100, paths).communicate(timeout=100)
    assert (out, err) == ('{} {}\n236\n'.format(os.cpu_count(), ([3, 1, 2] * 22)[:64]), '')
    paths[1].write_bytes(b'')
    process = start_processes(1, paths)
    _, err = process.communicate(timeout=100)
    assert 'InputError: {}: cannot be read as an image'.format(paths[1]) in err


def test_decoding_processes_end_with_a_parent_that_is_killed(tmp_path):
    write_image(tmp_path / 'a.png', np.zeros((4, 4, 3)))
    process = start_processes(10 ** 5, [tmp_path / 'a.png'] * 50)
    assert process.stdout.readline().startswith(str(os.cpu_count()))
    process.kill()
    assert process.communicate(timeout=100) == ('', '')     # when the last process that holds the pipes has ended


def test_load_image_folder(tmp_path):
    images = write_classes(tmp_path, {'dog': 2, 'Zebra': 1, 'cat': 11}, size=8)
    (tmp_path / 'dog/000.png').rename(tmp_path / 'dog/b.PNG')
    for stray in 'cat/.DS_Store', 'cat/Thumbs.db', 'cat/._000.png', 'cat/notes.txt', 'list.csv', '.git/a.png', \
            '__MACOSX/a.png', 'unlabeled/a.png', 'cat/more/a.png', 'cat/folder.png/a.png':
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).write_bytes(b'no image')
    loaded, labels, class_names = utils.load_image_folder(str(tmp_path), 8)
    assert class_names == ['Zebra', 'cat', 'dog']
    assert loaded.dtype == np.uint8 and labels.dtype == np.int64
    np.testing.assert_array_equal(labels, [0] + 11 * [1] + 2 * [2])
    np.testing.assert_array_equal(loaded, images[[*range(12), 13, 12]])


# Normalising


def photos(n, size=8, seed=0):
    """Images with neighbouring pixels alike, of varied brightness and contrast: uint8 (n, size, size, 3)."""
    rng = np.random.RandomState(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((n, size, size, 3)), (0, 1, 1, .5))
    return np.clip(128 + 200 * rng.rand(n, 1, 1, 1) * smooth + rng.randint(-60, 60, (n, 1, 1, 1)), 0, 255).astype(np.uint8)


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
    np.testing.assert_allclose(
        utils.global_contrast_normalize(images).reshape(1, -1), contrast_normalised(images), rtol=0, atol=1e-3)


def zca(flat):
    """(mean, matrix) in float64 from the singular values."""
    mean = flat.mean(0)
    covariance = (flat - mean).T @ (flat - mean) / (len(flat) - 1) + .1 * np.eye(flat.shape[1])
    u, s, _ = np.linalg.svd(covariance)
    return mean, u @ np.diag((s + 1e-10) ** -.5) @ u.T


@pytest.fixture(params=['scipy', 'numpy'])
def linear_algebra(request, monkeypatch):
    """Whitening with scipy's operations, and with those taken where scipy is not installed."""
    if request.param == 'numpy':
        monkeypatch.setitem(sys.modules, 'scipy.linalg', None)
    utils._linear_algebra.cache_clear()
    yield
    utils._linear_algebra.cache_clear()


@pytest.mark.parametrize('n', [40, 300])       # fewer images than values, and more
def test_whitening(n, linear_algebra):
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
    whole, parts = utils.zca_whitener(images), utils.fit_whitener(utils.chunks(images, size))
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
    np.testing.assert_allclose(standard.reshape(-1, 3), (channels - channels.mean(0)) / channels.std(0), rtol=0, atol=1e-4)
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
    with pytest.raises(utils.InputError, match='class cat has 4 training images, fewer than the 5 '):
        utils.stratified_sample(labels, 5, class_names=['dog', 'cat'])


def test_hold_out_is_stratified_and_fixed():
    labels = np.repeat([0, 1, 2], [60, 13, 1])
    held = utils.hold_out(labels, 6)
    assert held.dtype == bool
    assert np.bincount(labels[held]).tolist() == [10, 2, 1]
    np.testing.assert_array_equal(held, utils.hold_out(labels, 6))
    assert not held[:10].all()


# Augmenting


SHIFTS = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]


@pytest.mark.parametrize('height, width', [(32, 32), (6, 5), (2, 3)])
def test_shift_equals_scipy(height, width):
    images = np.random.RandomState(0).standard_normal((25, height, width, 3)).astype(np.float32)
    dy, dx = np.array(SHIFTS).T
    before = images.copy()
    shifted = utils.shift(images, dy, dx)
    np.testing.assert_array_equal(images, before)
    assert shifted.dtype == np.float32
    for image, y, x, result in zip(images, dy, dx, shifted):
        np.testing.assert_array_equal(result, ndimage.shift(image, (y, x, 0), order=0, mode='reflect'))
        if min(height, width) > 4:
            for channel in range(3):
                np.testing.assert_array_equal(result[..., channel], ndimage.affine_transform(
                    image[..., channel], np.eye(2), (-y, -x), order=1, mode='reflect'))


def test_proxy_views():
    image = np.arange(4 * 4 * 3).reshape(4, 4, 3)
    images = np.stack([image, image + 100])
    views, labels = utils.proxy_views(images)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    expected = [image, np.rot90(image), np.rot90(image, 2), np.rot90(image, 3), np.fliplr(image), np.flipud(image)]
    np.testing.assert_array_equal(views[::2], expected)
    np.testing.assert_array_equal(views[1::2], np.add(expected, 100))
    assert views[2, 0, 0].tolist() == image[0, 3].tolist()      # counter-clockwise: the top right corner comes to the top left
    assert len(np.unique(views, axis=0)) == 12


# Batches


SIZE = 8
STEP = 4        # between two values: far more than the noise


def images_that_tell(n):
    """Images whose every value tells which image, row and column it comes from."""
    numbers = STEP * np.arange(n * SIZE * SIZE, dtype=np.float32).reshape(n, SIZE, SIZE, 1)
    return numbers.repeat(3, axis=-1)


class Told:
    """What images made of `images_that_tell` reveal: their indices, shifts, flips and noise. All else about them is checked."""

    def __init__(self, images):
        numbers = np.round(images / STEP).astype(int)
        self.noise = images - STEP * numbers.astype(np.float32)
        sources, rows, columns = np.unravel_index(numbers, (10000, SIZE, SIZE))
        self.indices = sources[:, 0, 0, 0]
        middle = SIZE // 2
        self.flipped = columns[:, middle, middle, 0] > columns[:, middle, middle + 1, 0]
        self.dy = middle - rows[:, middle, middle, 0]
        unflipped = np.where(self.flipped[:, None, None, None], columns[:, :, ::-1], columns)
        self.dx = middle - unflipped[:, middle, middle, 0]
        mirrored = np.pad(np.arange(SIZE), SIZE, mode='symmetric')
        for k in range(len(images)):
            assert (sources[k] == self.indices[k]).all()
            assert (rows[k] == mirrored[SIZE - self.dy[k]:][:SIZE, None, None]).all()
            assert (unflipped[k] == mirrored[SIZE - self.dx[k]:][:SIZE, None]).all()


def batches_that_tell(labeled=50, unlabeled=90, **options):
    options.setdefault('batch_size', 4)
    labels = np.eye(7, dtype=np.float32)[np.arange(labeled) % 7]
    return utils.TwoBranchBatches(
        images_that_tell(labeled), labels, None if unlabeled is None else images_that_tell(unlabeled), **options)


def told(batches, branch, steps):
    """What the images of a branch reveal over many steps; of the self branch those not rotated."""
    key, size = ('super_data', None) if branch == 'super' else ('self_data', batches.batch_size)
    return Told(np.concatenate([batches[t][0][key][:size] for t in range(steps)]))


def arrays(batch):
    return [part[key] for part in batch for key in sorted(part)]


def same(one, other):
    return all(a.tobytes() == b.tobytes() for a, b in zip(arrays(one), arrays(other)))


def test_batch_shapes_and_targets():
    inputs, targets = batches_that_tell()[3]
    assert {name: x.shape for name, x in inputs.items()} == {'self_data': (24, 8, 8, 3), 'super_data': (24, 8, 8, 3)}
    assert {name: y.shape for name, y in targets.items()} == {'self_clf': (24, 6), 'super_clf': (24, 7)}
    assert {x.dtype for x in arrays((inputs, targets))} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(targets['self_clf'], np.eye(6).repeat(4, axis=0))
    np.testing.assert_array_equal(targets['super_clf'], np.eye(7)[Told(inputs['super_data']).indices % 7])


@pytest.mark.parametrize('oversample', [True, False])
@pytest.mark.parametrize('batch_size', [5, 16])
def test_batch_sizes(batch_size, oversample):
    batches = batches_that_tell(batch_size=batch_size, oversample=oversample)
    inputs, _ = batches[0]
    assert len(inputs['super_data']) == len(inputs['self_data']) == 6 * batch_size
    assert batches.images_per_step == 12 * batch_size


def test_without_oversampling_each_labeled_image_is_augmented_six_times():
    batches = batches_that_tell(50, 90, oversample=False)
    seen = told(batches, 'super', 100)
    np.testing.assert_array_equal(seen.indices.reshape(-1, 6), seen.indices[::6, None].repeat(6, axis=1))
    passes = seen.indices[::6].reshape(-1, 50)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(50), (8, 1)))
    noise = seen.noise.reshape(-1, 6, SIZE, SIZE, 3)
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < .0005
    for drawn in seen.dy, seen.dx, seen.flipped:
        assert (drawn.reshape(-1, 6) != drawn[::6, None]).any(axis=0)[1:].all()
    np.testing.assert_array_equal(batches[7][1]['super_clf'], np.eye(7)[Told(batches[7][0]['super_data']).indices % 7])
    np.testing.assert_array_equal(batches[7][0]['self_data'], batches_that_tell(50, 90)[7][0]['self_data'])


def test_batch_depends_on_its_step_alone():
    batches, steps = batches_that_tell(), [0, 3, 17, 1000000007]
    asked_first = {t: batches[t] for t in steps}
    for t in reversed(steps):
        assert same(batches[t], asked_first[t])
        assert same(batches_that_tell()[t], asked_first[t])
    steps = steps * 25
    with ThreadPoolExecutor(8) as pool:
        for t, batch in zip(steps, pool.map(batches.__getitem__, steps)):
            assert same(batch, asked_first[t])


def test_batch_is_the_same_in_another_process():
    program = ('import hashlib, test_utils\n'
               'batch = test_utils.batches_that_tell()[17]\n'
               'print(hashlib.sha256(b"".join(x.tobytes() for x in test_utils.arrays(batch))).hexdigest())')
    expected = hashlib.sha256(b''.join(x.tobytes() for x in arrays(batches_that_tell()[17]))).hexdigest()
    path = os.pathsep.join(filter(None, [str(PROJECT / 'tests'), os.environ.get('PYTHONPATH')]))
    hash_seed = '2' if os.environ.get('PYTHONHASHSEED') == '1' else '1'
    environment = dict(os.environ, PYTHONHASHSEED=hash_seed, PYTHONPATH=path)
    assert subprocess.check_output([sys.executable, '-c', program], env=environment).decode().strip() == expected


def test_batches_leave_the_images_and_the_global_generator_alone():
    batches = batches_that_tell()
    np.random.seed(5)
    batches[0], batches[1]
    assert np.random.rand() == np.random.RandomState(5).rand()
    np.testing.assert_array_equal(batches.labeled_images, images_that_tell(50))
    np.testing.assert_array_equal(batches.unlabeled_images, images_that_tell(90))


@pytest.mark.parametrize('labeled, unlabeled', [(50, 90), (48, 96), (10, 3), (24, 4), (1, 2)])
def test_every_image_comes_once_before_any_comes_twice(labeled, unlabeled):
    batches = batches_that_tell(labeled, unlabeled)
    for branch, n in ('super', labeled), ('self', unlabeled):
        passes = told(batches, branch, 100).indices
        passes = passes[:len(passes) // n * n].reshape(-1, n)
        np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(n), (len(passes), 1)))
        if n > 20:
            assert len(np.unique(passes, axis=0)) == len(passes)
            assert abs(passes[:, 0].mean() - (n - 1) / 2) < 4 * n / np.sqrt(12 * len(passes))


def test_branches_have_orders_of_their_own():
    batches = batches_that_tell(48, 48)
    super_order, self_order = (told(batches, branch, steps).indices for branch, steps in (('super', 2), ('self', 12)))
    assert (super_order == self_order).sum() < 8


def test_self_views_share_shift_and_noise():
    views = batches_that_tell()[5][0]['self_data'].reshape(6, 4, SIZE, SIZE, 3)
    undone = [views[0], np.rot90(views[1], -1, (1, 2)), np.rot90(views[2], -2, (1, 2)), np.rot90(views[3], -3, (1, 2)),
              views[4][:, :, ::-1], views[5][:, ::-1]]
    for view in undone[1:]:
        np.testing.assert_array_equal(view, views[0])


def test_flips():
    assert abs(told(batches_that_tell(), 'super', 50).flipped.mean() - .5) < .05
    assert not told(batches_that_tell(flip=False), 'super', 50).flipped.any()
    for flip in True, False:
        assert not told(batches_that_tell(flip=flip), 'self', 50).flipped.any()


@pytest.mark.parametrize('branch', ['super', 'self'])
def test_noise_and_shifts(branch):
    seen = told(batches_that_tell(), branch, 250)
    assert abs(seen.noise.std() - .15) < .001 and abs(seen.noise.mean()) < .001
    noise = seen.noise
    neighbours = noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1], noise[..., 1:] * noise[..., :-1]
    assert max(abs(product.mean()) for product in neighbours) < .0005       # .0225 if they were equal
    tail = (abs(seen.noise) > .3).mean()
    assert abs(tail - .0455) < .003                                         # a Gaussian's part beyond two sigma
    counts = np.array([[((seen.dy == dy) & (seen.dx == dx)).sum() for dx in range(-2, 3)] for dy in range(-2, 3)])
    assert counts.sum() == len(seen.dy)
    expected = len(seen.dy) / 25
    assert ((counts - expected) ** 2 / expected).sum() < 43                 # chi-squared, 24 degrees of freedom: 99 %


def test_steps_seeds_ranks_and_branches_draw_differently():
    draws = {}
    for name, t, options in [('step 0', 0, {}), ('step 1', 1, {}), ('seed 1', 0, {'seed': 1}),
                             ('rank 1', 1, {'rank': 1, 'ranks': 2})]:
        inputs, _ = batches_that_tell(500, 500, batch_size=16, **options)[t]
        draws[name, 'super'], draws[name, 'self'] = Told(inputs['super_data'][:16]), Told(inputs['self_data'][:16])
    for i, one in enumerate(draws):
        for other in list(draws)[:i]:
            assert abs((draws[one].noise * draws[other].noise).mean()) < .003, (one, other)
            assert (draws[one].indices == draws[other].indices).sum() < 6, (one, other)
            assert (draws[one].dy == draws[other].dy).sum() < 11, (one, other)
            assert (draws[one].dx == draws[other].dx).sum() < 11, (one, other)


@pytest.mark.parametrize('ranks', [2, 3])
def test_ranks_share_a_pass(ranks):
    n = 24 * ranks
    of_ranks = [batches_that_tell(n, n, ranks=ranks, rank=rank) for rank in range(ranks)]
    for branch, steps in ('super', 1), ('self', 6):
        for first in 0, steps:      # the first pass and the second
            drawn = [[told_step(batches, branch, t) for batches in of_ranks] for t in range(first, first + steps)]
            np.testing.assert_array_equal(np.sort(np.ravel(drawn)), np.arange(n))


def told_step(batches, branch, t):
    key, size = ('super_data', None) if branch == 'super' else ('self_data', batches.batch_size)
    return Told(batches[t][0][key][:size]).indices


def test_supervised_draws_the_super_branch_of_asl():
    asl, supervised = batches_that_tell(50, 50), batches_that_tell(50, None)
    for t in 0, 9:
        inputs, targets = supervised[t]
        assert set(inputs) == {'super_data'} and set(targets) == {'super_clf'} and supervised.images_per_step == 24
        assert inputs['super_data'].tobytes() == asl[t][0]['super_data'].tobytes()
        assert targets['super_clf'].tobytes() == asl[t][1]['super_clf'].tobytes()


def test_batches_and_views_are_computed_in_float32():
    guarded = batches_that_tell()
    guarded.labeled_images = guarded.labeled_images.view(NoDoubles)
    guarded.unlabeled_images = guarded.unlabeled_images.view(NoDoubles)
    assert same(guarded[2], batches_that_tell()[2])
    for view in utils.test_views(images_that_tell(5).view(NoDoubles), 0, 0):
        assert view.dtype == np.float32


# Test views


def views(first=0, last=12, seed=0, flip=True):
    return list(utils.test_views(images_that_tell(12)[first:last], first, seed, flip))


def test_views_in_order():
    images, every = images_that_tell(12), views()
    assert len(every) == 8 and len(views(flip=False)) == 4
    assert {(view.shape, view.dtype) for view in every} == {(images.shape, np.dtype(np.float32))}
    np.testing.assert_array_equal(every[0], images)
    seen = [Told(view) for view in every]
    assert all((view.indices == range(12)).all() for view in seen)
    assert [view.flipped.all() for view in seen] == 4 * [False] + 4 * [True]
    assert [view.flipped.any() for view in seen] == 4 * [False] + 4 * [True]
    assert [view.noise.any() for view in seen] == 2 * [False, False, True, True]
    for k, view in enumerate(seen):
        np.testing.assert_array_equal(view.dy, seen[1].dy if k % 2 else 0)
        np.testing.assert_array_equal(view.dx, seen[1].dx if k % 2 else 0)
    noises = [view.noise for view in seen if view.noise.any()]
    for i, noise in enumerate(noises):
        assert abs(noise.std() - .15) < .01
        for other in noises[:i]:
            assert abs((noise * other).mean()) < .002 and abs((noise * other[:, :, ::-1]).mean()) < .002
        assert abs((noise[1:] * noise[:-1]).mean()) < .002


def test_view_shifts_are_never_zero():
    images = images_that_tell(1).repeat(1000, axis=0)
    shifted = Told(list(utils.test_views(images, 0, 0, flip=False))[1])
    counts = np.array([[((shifted.dy == dy) & (shifted.dx == dx)).sum() for dx in (-2, -1, 1, 2)] for dy in (-2, -1, 1, 2)])
    assert counts.sum() == 1000
    assert ((counts - 62.5) ** 2 / 62.5).sum() < 30     # chi-squared, 15 degrees of freedom: 99 %


def test_views_depend_on_seed_and_image_alone():
    every = views()
    for again, part, whole in zip(views(), views(5, 9), every):
        np.testing.assert_array_equal(again, whole)
        np.testing.assert_array_equal(part, whole[5:9])
    assert (Told(views(seed=1)[1]).dy != Told(every[1]).dy).any()
    assert abs((Told(views(seed=1)[2]).noise * Told(every[2]).noise).mean()) < .002
