"""An image file to an array: which formats are read, how much memory one may take, 8 bits a color, upright,
one size. numpy and Pillow.
"""
import contextlib
import functools
import math
import os
from typing import NamedTuple, Tuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sesemi.errors import InputError, describe_error
from sesemi.system.files import open_regular

# others start programs (EPS) or are hardly ever met
FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP', 'GIF', 'TIFF', 'PPM', 'AVIF', 'HEIF')
# at most, of one pixel while its image is decoded, turned and converted (WebP, floats); RGB takes 12
PIXEL_BYTES = 22
MIN_PIXEL_LIMIT = 1 << 24      # that are read whatever the memory: a photograph
RESIZING = {        # by the name of settings.FITS
    'stretch': lambda image, size: image.resize(size, Image.BILINEAR),
    # the middle, of the short side's length
    'crop': lambda image, size: ImageOps.fit(image, size, Image.BILINEAR),
    'pad': lambda image, size: ImageOps.pad(image, size, Image.BILINEAR),       # black beside the short side
}


class Formats(NamedTuple):
    """Of FORMATS, those that the installed Pillow reads, and their files' suffixes."""
    names: Tuple[str, ...]
    suffixes: Tuple[str, ...]


@functools.lru_cache(maxsize=None)
def find_formats():
    """The Readable of this installation; HEIF is what the package pillow-heif adds to Pillow."""
    with contextlib.suppress(ImportError):
        import pillow_heif
        pillow_heif.register_heif_opener()
    Image.init()
    return Formats(tuple(name for name in FORMATS if name in Image.OPEN),
                    tuple(suffix
                          for suffix, name in Image.registered_extensions().items() if name in FORMATS))


def compute_max_pixels(memory, decoders):
    """How many pixels an image may have for so many decoders at once to stay within so many bytes."""
    return max(int(memory / decoders / PIXEL_BYTES), MIN_PIXEL_LIMIT)


def decode_image(path, image_size=32, fit='stretch', max_pixels=math.inf, animated=None):
    """Read an image file as uint8 (s, s, 3): upright (EXIF), RGB whatever its mode, brought to size
    bilinearly.

    fit: of settings.FITS, what happens to an image that is not square. most: pixels, beyond which it is
    refused, as it is beyond Pillow's own limit; a JPEG file of four times the size or more is decoded at a
    part of it. Grey values of 32 bits or floating point are scaled by their range, those of 16 bits are not.
    animated: a list that gets the path of a file of several frames, of which the first is read.
    Raises InputError naming the file when it cannot be read as an image to its last byte.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=find_formats().names) as source:
            # its coefficients, at any size
            whole = source.width * source.height // 2 if source.info.get('progressive') else 0
            source.draft(None, (2 * image_size, 2 * image_size))
            if max(source.width * source.height, whole) > max_pixels:
                raise ValueError('it has %d x %d pixels, and there is memory for %d million'
                                 % (*source.size, max_pixels // 1000000))
            image = ImageOps.exif_transpose(source)
            if image.mode[0] in 'IF':
                image = Image.fromarray(_grey(np.asarray(image), source))
            if image.mode == 'P':                    # its transparency, in bytes, has no direct way to RGB
                image = image.convert('RGBA')
            image = image.convert('RGB')
            if image.size != (image_size, image_size):
                image = RESIZING[fit](image, (image_size, image_size))
            # a photograph with previews
            if animated is not None and getattr(source, 'is_animated', False) and source.format != 'MPO':
                animated.append(path)
            return np.asarray(image)
    except UnidentifiedImageError:
        why = ('it is of none of the formats %s, or of a kind of one that Pillow does not read'
               % ', '.join(find_formats().names)
               if os.path.getsize(path) else 'it is empty')
    except Exception as error:                       # Pillow's decoders raise a dozen types on damaged files
        why = describe_error(error)
    raise InputError('%s: cannot be read as an image (%s); replace or remove the file.' % (path, why))


def _grey(values, source):
    """The grey values of an image, int or float32 (h, w), as uint8. Raises ValueError if they are not all
    numbers.
    """
    low, high = 0, 65535
    # convert('RGB') would clip them to 0-255
    if source.mode == 'F' or source.mode == 'I' and source.format == 'TIFF':
        if source.format == 'TIFF' and values.dtype == np.int32 and source.tag_v2.get(339, 1) in (1, (1,)):
            values = values.view(np.uint32)     # which Pillow has no mode for
        low, high = values.min(), values.max()
        if not np.isfinite(values).all():
            raise ValueError('it has values that are no numbers')
    scaled = np.subtract(values, low, dtype=np.float64)
    scaled *= 255 / max(float(high) - float(low), 1e-300)
    return scaled.round(out=scaled).astype(np.uint8)
