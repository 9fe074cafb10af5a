import struct
import sys
import zlib

import numpy as np
import pytest
from conftest import PROJECT, NoDoubles, write_classes, write_image
from PIL import Image
from programs import result, start
from scipy import ndimage

import utils
from sesemi import machine


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
from sesemi import machine
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
    assert (out, err) == ('{} {}\n236\n'.format(machine.cores(), ([3, 1, 2] * 22)[:64]), '')
    paths[1].write_bytes(b'')
    _, _, err = result(start_processes(1, paths))
    assert 'InputError: {}: cannot be read as an image'.format(paths[1]) in err


def test_decoding_processes_end_with_a_parent_that_is_killed(tmp_path):
    write_image(tmp_path / 'a.png', np.zeros((4, 4, 3)))
    process = start_processes(10 ** 5, [tmp_path / 'a.png'] * 50)
    assert process.stdout.readline().startswith(str(machine.cores()))
    process.kill()
    assert process.communicate() == ('', '')     # when the last process that holds the pipes has ended


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
    """Whitening with scipy's operations, as where numpy's BLAS is old, and with those taken where scipy is not installed either."""
    monkeypatch.setattr(utils, 'OLD_BLAS', True)
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
    held = utils.hold_out(labels, 1 / 6)
    assert held.dtype == bool
    assert np.bincount(labels[held]).tolist() == [10, 2, 1]
    np.testing.assert_array_equal(held, utils.hold_out(labels, 1 / 6))
    assert not held[:10].all()
