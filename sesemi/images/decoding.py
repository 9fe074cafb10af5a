"""Reads an image file as an array: 8-bit RGB, upright, brought to one size. numpy and Pillow."""
import contextlib
import functools
import math
import os
from typing import NamedTuple, Tuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sesemi.errors import InputError, describe_error
from sesemi.system.files import open_regular

# Pillow's other formats start programs (EPS) or are rare
FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP', 'GIF', 'TIFF', 'PPM', 'AVIF', 'HEIF')
# most bytes a pixel takes while its image is decoded, rotated and converted (WebP, floats); RGB takes 12
PIXEL_BYTES = 22
MIN_PIXEL_LIMIT = 1 << 24   # images of this many pixels, as photographs have, are always read
RESIZING = {        # by fit, one of settings.FITS
    'stretch': lambda image, size: image.resize(size, Image.BILINEAR),
    # cuts a square out of the middle
    'crop': lambda image, size: ImageOps.fit(image, size, Image.BILINEAR),
    'pad': lambda image, size: ImageOps.pad(image, size, Image.BILINEAR),       # adds black borders
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
    Raises InputError naming the file if it cannot be read to its last byte.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=find_formats().names) as source:
            # decoding a progressive JPEG keeps all its coefficients, whatever the size asked for
            coefficients = source.width * source.height // 2 if source.info.get('progressive') else 0
            source.draft(None, (2 * image_size, 2 * image_size))
            if max(source.width * source.height, coefficients) > max_pixels:
                raise ValueError('it has %d x %d pixels, and there is memory for %d million'
                                 % (*source.size, max_pixels // 1000000))
            image = ImageOps.exif_transpose(source)
            if image.mode[0] in 'IF':
                image = Image.fromarray(_scale_grey(np.asarray(image), source))
            if image.mode == 'P':      # transparency given in bytes cannot be converted to RGB directly
                image = image.convert('RGBA')
            image = image.convert('RGB')
            if image.size != (image_size, image_size):
                image = RESIZING[fit](image, (image_size, image_size))
            # an MPO file is a photograph with previews
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
