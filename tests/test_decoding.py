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
from sesemi.images.decoding import decode_image, find_formats, make_thumbnail

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


def chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)


def write_png(path, rows, colour_type):
    """A 16-bit PNG, which Pillow writes in grey only. rows: (h, w) or (h, w, 3)."""
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


def upright(orientation):
    """quarters(), turned as a viewer turns an image of this EXIF orientation."""
    pixels = quarters()
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[::-1 if orientation in (3, 4, 7, 8) else 1, ::-1 if orientation in (2, 3, 6, 7) else 1]


def exif(orientation, kind='H', number=3, *others):
    """EXIF of the orientation, as a struct `kind` of the TIFF type `number`, and of other entries."""
    entries = [(274, number, struct.pack('<' + kind, orientation)), *others]
    head, contents = b'', b''
    for tag, number, content in entries:
        head += struct.pack('<HHI', tag, number, 1)
        if len(content) > 4:
            where = 14 + 12 * len(entries) + len(contents)
            contents, content = contents + content, struct.pack('<I', where)
        head += content.ljust(4, b'\0')
    return b'II*\0' + struct.pack('<IH', 8, len(entries)) + head + bytes(4) + contents


EXIF = {
    **{'orientation %d' % orientation: (orientation, exif(orientation)) for orientation in range(1, 9)},
    'int8': (6, exif(6, 'b', 6)), 'int16': (6, exif(6, 'h', 8)), 'uint64': (6, exif(6, 'Q', 16)),
    # entries that Pillow cannot write again
    'negative': (6, exif(6, 'H', 3, (40000, 8, struct.pack('<h', -5)))),
    'negative int8': (6, exif(6, 'H', 3, (40000, 6, b'\xff'))),
    'above uint32': (6, exif(6, 'H', 3, (40000, 16, struct.pack('<Q', 2 ** 63)))),
    'text for an offset': (6, exif(6, 'H', 3, (34665, 2, b'a'))),
    'offset beyond the end': (6, exif(6, 'H', 3, (34665, 4, struct.pack('<I', 2 ** 31)))),
    **{'unknown %d' % orientation: (1, exif(orientation)) for orientation in (0, 9, 65535)},
    'no EXIF': (1, b'no EXIF'), 'cut to 9': (1, exif(6)[:9]), 'cut to 20': (1, exif(6)[:20])}


@pytest.mark.parametrize('orientation, content', EXIF.values(), ids=EXIF)
def test_decode_turns_images_upright_whatever_else_the_exif_holds(tmp_path, orientation, content):
    save(tmp_path / 'a.jpg', quality=100, subsampling=0, exif=b'Exif\0\0' + content)
    save(tmp_path / 'a.webp', lossless=True, exif=content)
    save(tmp_path / 'a.png')
    data = (tmp_path / 'a.png').read_bytes()
    (tmp_path / 'a.png').write_bytes(data[:-12] + chunk(b'eXIf', content) + data[-12:])
    for name in 'a.jpg', 'a.webp', 'a.png':
        assert abs(decode_image(str(tmp_path / name)).astype(int) - upright(orientation)).max() <= 3, name


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_thumbnail_is_upright(tmp_path, orientation):
    pixels = np.random.RandomState(0).randint(0, 256, (1000, 500, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(str(tmp_path / 'noise.jpg'), exif=b'Exif\0\0' + exif(orientation))
    save(tmp_path / 'small.jpg', quality=100, exif=b'Exif\0\0' + exif(orientation))
    (tmp_path / 'empty.jpg').write_text('')
    noise, small, none = (make_thumbnail(str(tmp_path / name))
                          for name in ('noise.jpg', 'small.jpg', 'empty.jpg'))
    assert max(len(noise), len(small)) <= 3500 and none == b''
    assert Image.open(io.BytesIO(noise)).size == ((128, 64) if orientation > 4 else (64, 128))
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size, image.getexif().get(274)) == ('JPEG', (128, 128), None)
        corners = np.asarray(image)[16::96, 16::96].astype(int)
    assert abs(corners - upright(orientation)[::31, ::31]).max() <= 8


@pytest.mark.parametrize('compression', [None, 'tiff_lzw'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_tiff_image_is_turned_once(tmp_path, orientation, compression):
    save(tmp_path / 'a.tif', tiffinfo={274: orientation}, compression=compression)
    np.testing.assert_array_equal(decode_image(str(tmp_path / 'a.tif')), upright(orientation))


def animation():
    content = io.BytesIO()
    frames = [Image.fromarray(quarters()), Image.new('RGB', (32, 32))]
    frames[0].save(content, 'PNG', save_all=True, append_images=frames[1:])
    return content.getvalue()


CHUNKS = {
    'zTXt of 2 MB': chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(2 << 20))),
    'iCCP of 1.3 MB': chunk(b'iCCP', b'a\0\0' + zlib.compress(bytes(1300000))),
    'EXIF in zTXt': chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(b'\n\n\nno')),
    'empty iCCP': chunk(b'iCCP', b''), 'empty sRGB': chunk(b'sRGB', b''),
    **{'checksum of ' + kind: chunk(kind.encode(), bytes(9), 1)
       for kind in ('tEXt', 'tIME', 'pHYs', 'tRNS', 'eXIf', 'prVt')},
    **{'short ' + kind: chunk(kind.encode(), b'a')
       for kind in ('gAMA', 'cHRM', 'pHYs', 'tRNS', 'acTL', 'fcTL')}}


@pytest.mark.parametrize('damage', CHUNKS.values(), ids=CHUNKS)
def test_damaged_metadata_of_a_png_file_does_no_harm(tmp_path, damage):
    """Nor does it make a good image of one whose pixels are cut off."""
    save(tmp_path / 'a.png')
    still = (tmp_path / 'a.png').read_bytes()
    for whole, is_animated in (still, False), (animation(), True):
        first = whole.index(b'IDAT') - 4
        data = whole[:first] + damage + whole[first:]
        (tmp_path / 'a.png').write_bytes(data)
        animated = []
        image = decode_image(str(tmp_path / 'a.png'), animated=animated)
        np.testing.assert_array_equal(image, quarters())
        assert len(animated) == is_animated
        (tmp_path / 'a.png').write_bytes(data[:data.index(b'IDAT') + 40])
        with pytest.raises(InputError, match='cannot be read as an image'):
            decode_image(str(tmp_path / 'a.png'))


def test_metadata_behind_and_between_the_pixels_of_a_png_file(tmp_path):
    save(tmp_path / 'a.png')
    data = (tmp_path / 'a.png').read_bytes()
    first = data.index(b'IDAT')
    pixels = data[first + 4:-16]
    for rest in (chunk(b'IDAT', pixels) + chunk(b'gAMA', b'a') + chunk(b'IEND', b''),
                 chunk(b'IDAT', pixels) + struct.pack('>I', 99) + b'tEXtcut off',
                 chunk(b'IDAT', pixels[:50]) + chunk(b'tEXt', b'a\0b') + chunk(b'IDAT', pixels[50:])):
        (tmp_path / 'a.png').write_bytes(data[:first - 4] + rest)
        np.testing.assert_array_equal(decode_image(str(tmp_path / 'a.png')), quarters())


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


@pytest.mark.parametrize('width, height', [(9, 400), (400, 9), (1, 3000)])
def test_a_line_of_a_narrow_image_is_left_when_it_is_padded(tmp_path, width, height):
    write_image(tmp_path / 'a.png', np.full((height, width, 3), 200))
    image = decode_image(str(tmp_path / 'a.png'), 16, 'pad')
    line = image if height > width else image.transpose(1, 0, 2)
    assert (line[:, 8] == 200).all() and line.sum() == 16 * 3 * 200


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
        with pytest.raises(InputError, match='%s: cannot be read as an image .it has 1600 x 1600' % name):
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
