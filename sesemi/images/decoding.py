"""Reads an image file as an array: 8-bit RGB, upright, brought to one size. numpy and Pillow."""
import contextlib
import functools
import io
import math
import os
import warnings
from typing import NamedTuple, Tuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sesemi.errors import InputError, describe_error
from sesemi.system.files import open_regular

# Pillow warns of odd image files; a file that it cannot read raises an error
warnings.filterwarnings('ignore', module='PIL')

# Pillow's other formats start programs (EPS) or are rare
FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP', 'GIF', 'TIFF', 'PPM', 'AVIF', 'HEIF')
# most bytes a pixel takes while its image is decoded, rotated and converted (WebP, floats); RGB takes 12
PIXEL_BYTES = 22
MIN_PIXEL_LIMIT = 1 << 24   # images of this many pixels, as photographs have, are always read
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
ORIENTATION = 274           # the EXIF tag; its values and what turns such an image upright:
TURNS = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
         6: Image.ROTATE_270, 7: Image.TRANSVERSE, 8: Image.ROTATE_90}
THUMBNAIL_SIDE = 128        # pixels, the longest side
THUMBNAIL_QUALITIES = 60, 30, 10    # of JPEG: the first that takes at most so many bytes
THUMBNAIL_BYTES = 3500      # 2,000 such images, in base64, are within 10 MB


def _resize_longest(image, size):
    """Resize an image to the width and height `size` at most; its proportions stay."""
    return image.resize([max(1, round(side / max(image.size) * size[0])) for side in image.size],
                        Image.BILINEAR)


RESIZING = {        # by fit, one of settings.FITS, or 'longest' for thumbnails
    'stretch': lambda image, size: image.resize(size, Image.BILINEAR),
    # cuts a square out of the middle
    'crop': lambda image, size: ImageOps.fit(image, size, Image.BILINEAR),
    # adds black borders; ImageOps.pad alone makes a narrow image 0 pixels wide
    'pad': lambda image, size: ImageOps.pad(_resize_longest(image, size), size),
    'longest': _resize_longest,
}


class Formats(NamedTuple):
    """The formats of FORMATS that the installed Pillow reads, and the suffixes of their files."""
    names: Tuple[str, ...]
    suffixes: Tuple[str, ...]


@functools.lru_cache(maxsize=None)
def find_formats():
    """Find the Formats of this installation. Reading HEIF needs the package pillow-heif."""
    with contextlib.suppress(ImportError):
        import pillow_heif
        pillow_heif.register_heif_opener()
    Image.init()
    return Formats(tuple(name for name in FORMATS if name in Image.OPEN),
                    tuple(suffix
                          for suffix, name in Image.registered_extensions().items() if name in FORMATS))


def compute_max_pixels(memory, decoders):
    """The most pixels an image may have so that `decoders` at once stay within `memory` bytes."""
    return max(int(memory / decoders / PIXEL_BYTES), MIN_PIXEL_LIMIT)


def decode_image(path, image_size=32, fit='stretch', max_pixels=math.inf, animated=None):
    """Read an image file as RGB, uint8 (s, s, 3), turned upright (EXIF) and resized bilinearly.

    fit: one of settings.FITS, how an image that is not square is made square.
    max_pixels: a larger image is refused, as is one beyond Pillow's own limit.
    animated: a list to which the path of a file with several frames is appended; the first frame is read.
    A JPEG file at least four times as large as needed is decoded at a reduced size. Grey values of 16 bits
    keep their scale; those of 32 bits or floating point are stretched to the image's own range.
    Raises InputError(message, path, reason) if not all pixels can be read. Metadata may be damaged.
    """
    try:
        with open_regular(path) as file:
            try:
                image, is_animated = _decode(file, image_size, fit, max_pixels)
            except Exception:
                file.seek(0)
                data = file.read(len(PNG_SIGNATURE))
                if data != PNG_SIGNATURE:
                    raise
                data += file.read()
                image, _ = _decode(io.BytesIO(_drop_metadata(data)), image_size, fit, max_pixels)
                is_animated = b'fdAT' in data       # the kind of chunk that holds the later frames
        if is_animated and animated is not None:
            animated.append(path)
        return image
    except UnidentifiedImageError:
        why = ('it is of none of the formats %s, or of a kind of one that Pillow does not read'
               % ', '.join(find_formats().names)
               if os.path.getsize(path) else 'it is empty')
    except Exception as error:                       # Pillow's decoders raise a dozen types on damaged files
        why = describe_error(error)
    raise InputError('%s: cannot be read as an image (%s); replace or remove the file.' % (path, why),
                     path, why)


def make_thumbnail(path, max_pixels=math.inf):
    """The bytes of a small, upright JPEG of an image file; none if the file cannot be read."""
    try:
        image = Image.fromarray(decode_image(path, THUMBNAIL_SIDE, 'longest', max_pixels))
    except InputError:
        return b''
    for quality in THUMBNAIL_QUALITIES:
        memory = io.BytesIO()
        image.save(memory, 'JPEG', quality=quality)
        if memory.tell() <= THUMBNAIL_BYTES:
            break
    return memory.getvalue()


def _decode(file, image_size, fit, max_pixels):
    """Decode an open image file: (uint8 (s, s, 3), whether it has several frames)."""
    with Image.open(file, formats=find_formats().names) as source:
        width, height = source.size
        # decoding a progressive JPEG keeps all its coefficients, whatever the size asked for
        coefficients = width * height // 2 if source.info.get('progressive') else 0
        source.draft(None, (2 * image_size, 2 * image_size))
        if max(source.width * source.height, coefficients) > max_pixels:
            raise ValueError('it has %d x %d pixels, and there is memory for %d million'
                             % (width, height, max_pixels // 1000000))
        source.load()
        image, turn = source, None
        with contextlib.suppress(Exception):        # EXIF that cannot be parsed counts as none
            turn = TURNS.get(source.getexif().get(ORIENTATION))
        if turn is not None and source.format != 'TIFF':        # Pillow turns TIFF files itself
            image = source.transpose(turn)
        if image.mode[0] in 'IF':
            image = Image.fromarray(_scale_grey(np.asarray(image), source))
        if image.mode == 'P':      # transparency given in bytes cannot be converted to RGB directly
            image = image.convert('RGBA')
        image = image.convert('RGB')
        if image.size != (image_size, image_size):
            image = RESIZING[fit](image, (image_size, image_size))
        # an MPO file is a photograph with previews
        return np.asarray(image), getattr(source, 'is_animated', False) and source.format != 'MPO'


def _drop_metadata(data):
    """Keep only the signature and the critical chunks of a PNG file's bytes: its pixels and palette.

    Their names begin with a capital. Pillow refuses a file for a damaged chunk of any other kind, too.
    """
    kept, position = bytearray(PNG_SIGNATURE), len(PNG_SIGNATURE)
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position:position + 4], 'big')
        if data[position + 4:position + 5].isupper():
            kept += data[position:end]
        position = end
    return kept


def _scale_grey(values, source):
    """Scale grey values, int or float32 (h, w), to uint8. Raises ValueError if one is NaN or infinite."""
    low, high = 0, 65535
    # convert('RGB') would clip these to 0-255
    if source.mode == 'F' or source.mode == 'I' and source.format == 'TIFF':
        if source.format == 'TIFF' and values.dtype == np.int32 and source.tag_v2.get(339, 1) in (1, (1,)):
            values = values.view(np.uint32)     # Pillow has no mode for uint32
        low, high = values.min(), values.max()
        if not np.isfinite(values).all():
            raise ValueError('it has values that are no numbers')
    scaled = np.subtract(values, low, dtype=np.float64)
    scaled *= 255 / max(float(high) - float(low), 1e-300)
    return scaled.round(out=scaled).astype(np.uint8)
