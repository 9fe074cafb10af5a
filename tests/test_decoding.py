"""Decoding one image file: formats, modes, sizes, and refused files."""
import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from conftest import write_image
from PIL import Image

from sesemi.errors import InputError
from sesemi.images.decoding import decode_image, find_formats

QUARTERS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255), 'grey': (96, 96, 96)}


def quarters(size=32):
    """Red beside green above blue beside grey."""
    pixels = np.array(list(QUARTERS.values()), np.uint8).reshape(2, 2, 3)
    return pixels.repeat(size // 2, axis=0).repeat(size // 2, axis=1)


def save(path, mode='RGB', **options):
    """Write quarters() in this mode; an alpha channel takes every value."""
    image = Image.fromarray(quarters())
    image = image.quantize(4) if mode == 'P' else image.convert(mode, dither=0)
    if mode.endswith('A'):
        image.putalpha(Image.fromarray(np.arange(1024).reshape(32, 32).astype(np.uint8)))
    image.save(str(path), **options)


def test_the_formats_by_their_suffixes():
    usual = {'.png', '.jpg', '.jpeg', '.bmp', '.webp', '.gif', '.tif', '.tiff', '.ppm'}
    assert usual <= set(find_formats().suffixes)


@pytest.mark.parametrize('mode, name, options', [
    ('RGB', 'a.tif', {}), ('RGB', 'a.tiff', {'compression': 'tiff_lzw'}), ('CMYK', 'a.tif', {}),
    ('RGBA', 'a.png', {}), ('P', 'a.png', {'transparency': b'\x00\x80\xff\x20'})])
def test_decode_modes(tmp_path, mode, name, options, recwarn):
    """Transparency is dropped, so hidden pixels show."""
    save(tmp_path / name, mode, **options)
    with Image.open(str(tmp_path / name)) as saved:
        assert saved.mode == mode
    image = decode_image(str(tmp_path / name))
    assert image.dtype == np.uint8 and image.shape == (32, 32, 3)
    assert abs(image.astype(int) - quarters()).max() <= 3
    assert not recwarn.list


def write_png(path, rows, colour_type):
    """A 16-bit PNG, which Pillow writes in grey only. rows: (h, w) or (h, w, 3)."""
    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)
    height, width = rows.shape[:2]
    lines = b''.join(b'\0' + row.astype('>u2').tobytes() for row in rows)
    head = struct.pack('>IIBBBBB', width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(lines))
                     + chunk(b'IEND', b''))


def test_decode_16_bits(tmp_path):
    ramp = np.arange(1024).reshape(32, 32) // 4
    write_png(tmp_path / 'grey.png', ramp * 257, colour_type=0)
    Image.fromarray((ramp * 257).astype(np.uint16)).save(str(tmp_path / 'grey.tif'))
    write_png(tmp_path / 'colour.png', quarters().astype(int) * 257, colour_type=2)
    for name in 'grey.png', 'grey.tif':
        np.testing.assert_array_equal(decode_image(str(tmp_path / name)), ramp[..., None].repeat(3, -1))
    np.testing.assert_array_equal(decode_image(str(tmp_path / 'colour.png')), quarters())


def test_decode_turns_images_upright(tmp_path):
    """The file holds red green / blue grey and the mark to turn it by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / 'a.jpg', quality=100, subsampling=0, exif=exif.tobytes())
    expected = np.array([QUARTERS[name] for name in ('blue', 'red', 'grey', 'green')]).reshape(2, 2, 3)
    assert abs(decode_image(str(tmp_path / 'a.jpg'))[8::16, 8::16].astype(int) - expected).max() <= 3


@pytest.mark.parametrize('height, width', [(64, 96), (16, 8)])
def test_decode_resizes_bilinearly(tmp_path, height, width):
    """A linear ramp stays linear, and pixel centres keep their places."""
    rows, columns = (np.arange(height) + .5) / height, (np.arange(width) + .5) / width
    write_image(tmp_path / 'a.png',
                (100 * rows[:, None, None] + 150 * columns[:, None]).repeat(3, -1).round())
    centres = (np.arange(32) + .5) / 32
    expected = 100 * centres[:, None, None] + 150 * centres[:, None] + np.zeros(3)
    inside = slice(4, -4)       # border pixels lack neighbours
    assert abs(decode_image(str(tmp_path / 'a.png')) - expected)[inside, inside].max() <= 1.5
    assert decode_image(str(tmp_path / 'a.png'), 20).shape == (20, 20, 3)


@pytest.mark.parametrize('fit, left_column, middle_row', [
    ('stretch', {'red': 32}, {'red': 8, 'green': 16, 'blue': 8}), ('crop', {'green': 32}, {'green': 32}),
    ('pad', {'black': 8, 'red': 16, 'black again': 8}, {'red': 8, 'green': 16, 'blue': 8})])
def test_decode_fits_images_that_are_not_square(tmp_path, fit, left_column, middle_row):
    """The image is red, green and blue from left to right; a second one is that transposed."""
    parts = [QUARTERS[name] for name in ('red', 'green', 'green', 'blue')]
    wide = np.repeat([parts], 16, axis=1).repeat(32, axis=0)
    write_image(tmp_path / 'wide.png', wide)
    write_image(tmp_path / 'high.png', wide.transpose(1, 0, 2))
    image = decode_image(str(tmp_path / 'wide.png'), 32, fit)
    np.testing.assert_array_equal(decode_image(str(tmp_path / 'high.png'), 32, fit), image.transpose(1, 0, 2))
    for line, parts in (image[:, 0], left_column), (image[16], middle_row):
        expected = np.repeat([QUARTERS.get(name, (0, 0, 0)) for name in parts], list(parts.values()), axis=0)
        assert (line != expected).any(axis=1).sum() <= 4        # resizing mixes neighbours


@pytest.mark.filterwarnings('ignore:Truncated File Read')
@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.tif'])
@pytest.mark.parametrize('kept', [.5, .9])
def test_decode_refuses_files_that_are_cut_off(tmp_path, name, kept):
    path = tmp_path / name
    write_image(path, np.random.RandomState(0).randint(0, 256, (40, 40, 3)))
    data = path.read_bytes()
    path.write_bytes(data[:int(kept * len(data))])
    with pytest.raises(InputError) as error:
        decode_image(str(path))
    assert str(error.value).startswith(str(path) + ': cannot be read as an image (')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('save_as, values', [
    ('F', np.linspace(-3e4, 7e7, 1024)), ('F', np.linspace(.2, .3, 1024)),
    ('I', np.linspace(-2 ** 31, 2 ** 31 - 1, 1024)), ('I', np.arange(1024) - 500)])
def test_tiff_of_floats_and_32_bit_numbers_is_scaled_by_its_range(tmp_path, save_as, values):
    values = values.reshape(32, 32)
    Image.fromarray(values.astype(np.float32 if save_as == 'F' else np.int32)).save(str(tmp_path / 'a.tif'))
    expected = (values - values.min()) / (values.max() - values.min()) * 255
    assert abs(decode_image(str(tmp_path / 'a.tif')) - expected[..., None]).max() <= .51


def test_tiff_of_unsigned_32_bit_numbers(tmp_path):
    values = np.linspace(0, 2 ** 32 - 1, 1024).reshape(32, 32)
    Image.fromarray(values.astype(np.uint32).view(np.int32)).save(str(tmp_path / 'a.tif'))
    signed, unsigned = (struct.pack('<HHII', 339, 3, 1, sample_format) for sample_format in (2, 1))
    data = (tmp_path / 'a.tif').read_bytes()
    assert data.count(signed) == 1
    (tmp_path / 'a.tif').write_bytes(data.replace(signed, unsigned))
    assert abs(decode_image(str(tmp_path / 'a.tif')) - values[..., None] / (2 ** 32 - 1) * 255).max() <= .51


def test_tiff_of_one_value_is_black_and_nan_or_infinity_is_refused(tmp_path):
    values = np.full((32, 32), 7.5, np.float32)
    Image.fromarray(values).save(str(tmp_path / 'a.tif'))
    assert not decode_image(str(tmp_path / 'a.tif')).any()
    for wrong in np.nan, np.inf:
        values[5, 5] = wrong
        Image.fromarray(values).save(str(tmp_path / 'a.tif'))
        with pytest.raises(InputError,
                           match='a.tif: cannot be read as an image .it has values that are no numbers'):
            decode_image(str(tmp_path / 'a.tif'))


@pytest.mark.parametrize('side, decoded', [(127, 127), (128, 64), (400, 100), (1000, 125)])
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path, side, decoded):
    rows = np.arange(side)[:, None] / side
    write_image(tmp_path / 'a.jpg',
                np.stack([200 * rows + 20 * rows.T, 100 * rows.T + 50 * rows, 90 + 60 * rows * rows.T], -1))
    with Image.open(str(tmp_path / 'a.jpg')) as image:
        image.draft(None, (decoded, decoded))
        assert image.size == (decoded, decoded)
        expected = np.asarray(image.resize((32, 32), Image.BILINEAR)).astype(int)
    with Image.open(str(tmp_path / 'a.jpg')) as image:
        whole = np.asarray(image.resize((32, 32), Image.BILINEAR)).astype(int)
    np.testing.assert_array_equal(decode_image(str(tmp_path / 'a.jpg')), expected)
    assert abs(whole - expected).max() <= 3


def test_an_image_of_too_many_pixels_is_refused_before_it_takes_memory(tmp_path):
    pixels = np.zeros((1600, 1600, 3))
    write_image(tmp_path / 'a.png', pixels)
    write_image(tmp_path / 'a.jpg', pixels)         # decoded at 200 x 200
    Image.fromarray(pixels.astype(np.uint8)).save(str(tmp_path / 'progressive.jpg'), progressive=True)
    for name, most in ('a.png', 1600 ** 2), ('a.jpg', 200 ** 2), ('progressive.jpg', 1600 ** 2 // 2):
        assert not decode_image(str(tmp_path / name), max_pixels=most).any()
        with pytest.raises(InputError, match='%s: cannot be read as an image .it has' % name):
            decode_image(str(tmp_path / name), max_pixels=most - 1)


def test_a_file_of_another_format_starts_no_program(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for EPS."""
    (tmp_path / 'gs').write_text('#!/bin/sh\ntouch %s\n' % (tmp_path / 'started'))
    (tmp_path / 'gs').chmod(0o755)
    monkeypatch.setenv('PATH', '%s:/usr/bin:/bin' % tmp_path)
    Image.new('RGB', (32, 32)).save(str(tmp_path / 'a.png'), 'EPS')
    with pytest.raises(InputError, match='it is of none of the formats PNG, JPEG, '):
        decode_image(str(tmp_path / 'a.png'))
    assert not (tmp_path / 'started').exists()


def test_empty_and_unsupported_files_are_not_called_another_format(tmp_path):
    save(tmp_path / 'empty.png')
    (tmp_path / 'empty.png').write_bytes(b'')
    Image.new('F', (32, 32)).save(str(tmp_path / 'double.tif'))
    content = (tmp_path / 'double.tif').read_bytes()
    of_bits = struct.pack('<HHIHH', 258, 3, 1, 32, 0)
    assert content.count(of_bits) == 1
    (tmp_path / 'double.tif').write_bytes(content.replace(of_bits, of_bits.replace(b'\x20', b'\x40')))
    for name, why in (('empty.png', 'it is empty'),
                      ('double.tif', 'or of a kind of one that Pillow does not read')):
        with pytest.raises(InputError, match='%s: cannot be read as an image .*%s' % (name, why)):
            decode_image(str(tmp_path / name))


def test_heic_is_read_if_pillow_heif_is_installed(tmp_path, monkeypatch):
    """A stand-in for pillow-heif reads PNG files that begin with 'heif'."""
    def opener(file, name):
        file.seek(4)
        return Image.open(io.BytesIO(file.read()), formats=['PNG'])

    def register():
        Image.register_open('HEIF', opener, lambda prefix: prefix.startswith(b'heif'))
        Image.register_extension('HEIF', '.heic')
    monkeypatch.setitem(sys.modules, 'pillow_heif', types.SimpleNamespace(register_heif_opener=register))
    for table in 'OPEN', 'EXTENSION':
        monkeypatch.setattr(Image, table, dict(getattr(Image, table)))
    save(tmp_path / 'a.png')
    (tmp_path / 'a.heic').write_bytes(b'heif' + (tmp_path / 'a.png').read_bytes())
    find_formats.cache_clear()
    assert '.heic' in find_formats().suffixes
    np.testing.assert_array_equal(decode_image(str(tmp_path / 'a.heic')), quarters())
    find_formats.cache_clear()
