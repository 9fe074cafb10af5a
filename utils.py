"""Image folders as numpy arrays: reading, contrast normalisation, whitening, the choice of the labeled images.

An image travels through this file from top to bottom: it is read and brought to one size (uint8), contrast normalised and
whitened (float32), chosen into the labeled subset. numpy and Pillow only; scipy's BLAS where numpy's is old.
"""
import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from sesemi import machine
from sesemi.errors import InputError, RunError, reason
from sesemi.pools import prefetch, processes, progress
from sesemi.settings import CONTRAST_EPSILON, CONTRAST_SCALE, SPLIT_SEED, WHITENING_EPSILON, WHITENING_IDENTITY

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.webp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
SMALL_FILE = 16 << 10               # bytes, below which decoding is the lesser part of reading an image
MANY_FILES = 4000                   # from which on reading small files is worth starting processes
CHUNK = 5000                        # images that are normalised at once


# Reading ------------------------------------------------------------------------------------------------------------

FITS = {
    'stretch': lambda image, size: image.resize(size, Image.BILINEAR),
    'crop': lambda image, size: ImageOps.fit(image, size, Image.BILINEAR),      # the middle, of the short side's length
    'pad': lambda image, size: ImageOps.pad(image, size, Image.BILINEAR),       # black beside the short side
}


def decode_image(path, image_size=32, fit='stretch'):
    """Read an image file as uint8 (s, s, 3): upright (EXIF), RGB whatever its mode, brought to size bilinearly.

    fit: a key of FITS, what happens to an image that is not square. Raises InputError naming the file when it cannot be read as an image to its last byte.
    """
    try:
        with Image.open(path) as source:
            image = ImageOps.exif_transpose(source)
            if image.mode.startswith('I'):           # 16-bit grey; convert('RGB') would clip it to white
                values = np.asarray(image, np.float32)
                image = Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
            if image.mode == 'P':                    # its transparency, in bytes, has no direct way to RGB
                image = image.convert('RGBA')
            image = image.convert('RGB')
            if image.size != (image_size, image_size):
                image = FITS[fit](image, (image_size, image_size))
            return np.asarray(image)
    except Exception as error:                       # Pillow's decoders raise a dozen types on damaged files
        raise InputError('%s: cannot be read as an image (%s); replace or remove the file.'
                         % (path, reason(error))) from None


def decode_blocks(paths, image_size=32, fit='stretch'):
    """Decode the files on all cores, with a progress bar on a terminal: yield uint8 (up to 64, s, s, 3) in the order of `paths`.

    Raises InputError naming the first file that cannot be read.
    """
    blocks = [paths[first:first + 64] for first in range(0, len(paths), 64)]
    decode = functools.partial(_decode_block, image_size=image_size, fit=fit)
    cores = min(machine.cores(), 16)        # more processes take longer to start than they save
    try:
        yield from progress(prefetch(decode, blocks, _readers(paths, cores), 4 * cores), len(blocks), 'Reading %d images' % len(paths))
    except BrokenProcessPool:
        raise RunError('A process that read images was killed, perhaps for want of memory; start again.') from None


def _decode_block(paths, image_size, fit):
    return np.stack([decode_image(path, image_size, fit) for path in paths])


def _readers(paths, cores):
    """The pool that decodes `paths`: threads for large files, whose decoder releases the interpreter. Of small files the interpreter,
    which serves one thread at a time, is the larger part: one thread, or for many of them a process for each core.
    """
    if any(os.path.isfile(path) and os.path.getsize(path) > SMALL_FILE for path in paths[:1]):
        return ThreadPoolExecutor(cores)
    return ThreadPoolExecutor(1) if len(paths) < MANY_FILES else processes(cores)


def decode_images(paths, image_size=32, fit='stretch'):
    """The images that decode_blocks yields, in one array: uint8 (n, s, s, 3)."""
    images, done = np.empty((len(paths), image_size, image_size, 3), np.uint8), 0
    for block in decode_blocks(paths, image_size, fit):
        images[done:done + len(block)] = block
        done += len(block)
    return images


def image_files(directory):
    """The image files of a folder, sorted; stray files (.DS_Store, Thumbs.db, notes) and folders are passed over."""
    return [os.path.join(directory, name) for name in sorted(os.listdir(directory))
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')
            and os.path.isfile(os.path.join(directory, name))]


def list_image_folder(directory):
    """The images of a folder that holds a folder a class: (paths, labels int64 (n,), class names), all in sorted order.

    A folder named `unlabeled` is not a class. Raises InputError when the folder, a class or its images are missing.
    """
    if not os.path.isdir(directory):
        raise InputError('%s: no such folder; give one that holds a folder of images for each class.' % directory)
    class_names = [name for name in sorted(os.listdir(directory)) if not name.startswith(('.', '__'))
                   and name != 'unlabeled' and os.path.isdir(os.path.join(directory, name))]
    if len(class_names) < 2:
        raise InputError('%s: holds %s; a classifier needs at least two folders of images, one for each class.' % (
            directory, 'one class only (%s)' % class_names[0] if class_names else 'no class folders'))
    files = [image_files(os.path.join(directory, name)) for name in class_names]
    for name, found in zip(class_names, files):
        if not found:
            raise InputError('%s: holds no images; add some or remove the folder.' % os.path.join(directory, name))
    labels = np.repeat(np.arange(len(class_names)), [len(found) for found in files])
    return sum(files, []), labels, class_names


def load_image_folder(directory, image_size=32):
    """Read a folder that holds a folder a class: (images uint8 (n, s, s, 3), labels int64 (n,), class names).

    Classes and files come in sorted order. Raises InputError as list_image_folder and decode_images do.
    """
    paths, labels, class_names = list_image_folder(directory)
    return decode_images(paths, image_size), labels, class_names


# Normalising --------------------------------------------------------------------------------------------------------

def global_contrast_normalize(images, scale=CONTRAST_SCALE, eps=CONTRAST_EPSILON):
    """Subtract each image's mean over all its values and divide by its L2 norm, times `scale`.

    images: (n, h, w, 3), values 0-255, any dtype, left as they were. Returns float32 (n, h, w, 3). An image whose norm
    is below `eps` becomes zero. The mean is summed in float64, so that a constant image is exactly its mean.
    """
    flat = np.asarray(images).reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    norm = np.sqrt(np.einsum('ij,ij->i', flat, flat))[:, None]
    flat *= np.where(norm < eps, 0, scale / np.maximum(norm, eps)).astype(np.float32)
    return flat.reshape(images.shape)


class Whitener(NamedTuple):
    """(images - mean) times a symmetric matrix, over all d = h * w * 3 values of an image."""
    mean: np.ndarray        # float32 (d,)
    matrix: np.ndarray      # float32 (d, d)

    def __call__(self, images):
        """Whiten float32 (n, h, w, 3) images into new ones of the same shape."""
        flat = images.reshape(len(images), -1).astype(np.float32, copy=False)
        return _linear_algebra().product(flat - self.mean, self.matrix).reshape(images.shape)

    @staticmethod
    def shapes(image_shape):
        """The shapes of mean and matrix for images (h, w, 3)."""
        size = int(np.prod(image_shape))
        return (size,), (size, size)


class ChannelStandardizer(NamedTuple):
    """(images - mean) / deviation, a number a color channel: what stands for whitening where its matrix grows too large."""
    mean: np.ndarray        # float32 (3,)
    deviation: np.ndarray   # float32 (3,)

    def __call__(self, images):
        """Standardise float32 (n, h, w, 3) images into new ones."""
        return (images - self.mean) / self.deviation

    @staticmethod
    def shapes(image_shape):
        """The shapes of mean and deviation for images (h, w, 3)."""
        return image_shape[-1:], image_shape[-1:]


def fit_channel_standardizer(parts):
    """A ChannelStandardizer of an iterable of float32 (n, h, w, 3) parts."""
    count, total, squares = 0, 0, 0
    for part in parts:
        flat = part.reshape(-1, part.shape[-1])
        count += len(flat)
        total = total + flat.sum(axis=0, dtype=np.float64)
        squares = squares + np.square(flat).sum(axis=0, dtype=np.float64)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 1e-10))
    return ChannelStandardizer(mean.astype(np.float32), deviation.astype(np.float32))


def zca_whitener(images, identity_scale=WHITENING_IDENTITY, eps=WHITENING_EPSILON):
    """Fit ZCA whitening: U diag((S + eps)^-1/2) U^T of the images' covariance (by n - 1) + identity_scale * I.

    images: contrast-normalised float32 (n, h, w, 3), left as they were. Returns a Whitener.
    """
    return fit_whitener(chunks(images), identity_scale, eps)


def fit_whitener(parts, identity_scale=WHITENING_IDENTITY, eps=WHITENING_EPSILON):
    """zca_whitener over an iterable of (n_i, h, w, 3) parts, so that a whole float32 copy never has to exist.

    Products are float32, their sums float64: to the 1e-3 of a float64 computation at half its time.
    """
    count, total, products = 0, 0, 0
    for part in parts:
        flat = part.reshape(len(part), -1)
        count += len(flat)
        total = total + flat.sum(axis=0, dtype=np.float64)
        products += _linear_algebra().gram(flat)
    mean = total / count
    covariance = (products - count * np.outer(mean, mean)) / max(count - 1, 1)
    covariance.flat[::len(mean) + 1] += identity_scale
    values, vectors = _linear_algebra().eigh(covariance)
    matrix = (vectors / np.sqrt(values + eps)).astype(np.float32) @ vectors.T.astype(np.float32)
    return Whitener(mean.astype(np.float32), matrix)


class LinearAlgebra(NamedTuple):
    """The three operations of whitening, on C-contiguous matrices."""
    product: Callable       # a @ b, float32
    gram: Callable          # a.T @ a, float32 to float64; at least its lower triangle
    eigh: Callable          # eigenvalues and eigenvectors of a symmetric float64 matrix, from its lower triangle


OLD_BLAS = np.lib.NumpyVersion(np.__version__) < '1.20.0'       # on Python 3.7 it takes twice the time of scipy's on a CPU of today


@functools.lru_cache(maxsize=None)
def _linear_algebra():
    """numpy's operations, which let other threads run meanwhile, so that Ctrl-C is heard; where its BLAS is old, scipy's, if it is there."""
    if OLD_BLAS:
        with contextlib.suppress(ImportError):
            from scipy.linalg import blas, eigh
            return LinearAlgebra(lambda a, b: blas.sgemm(1, b.T, a.T).T, lambda a: blas.ssyrk(1, a.T, lower=1).astype(np.float64),
                                 functools.partial(eigh, driver='evd', check_finite=False))
    return LinearAlgebra(np.matmul, lambda a: (a.T @ a).astype(np.float64), np.linalg.eigh)


def chunks(array, size=CHUNK):
    """Consecutive slices of an array, at most `size` long."""
    return (array[i:i + size] for i in range(0, len(array), size))


# Choosing the labeled subset ----------------------------------------------------------------------------------------

def stratified_sample(labels, labels_per_class, seed=SPLIT_SEED, class_names=None):
    """The published split: one RandomState(seed); class after class, shuffle its indices and take the first ones.

    labels: int (n,). Returns int64 indices, class by class. Raises InputError naming a class that has too few images.
    """
    rng, chosen = np.random.RandomState(seed), []
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        if len(indices) < labels_per_class:
            raise InputError('class %s has %d training images, fewer than the %d labels a class asked for; lower --labels.'
                             % (class_names[label] if class_names else label, len(indices), labels_per_class))
        rng.shuffle(indices)
        chosen.append(indices[:labels_per_class])
    return np.concatenate(chosen)


def hold_out(labels, share):
    """Every run the same `share` of each class, at least one image: a boolean mask (n,) of the images held out."""
    rng, held = np.random.RandomState(0), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        held[indices[:max(1, int(len(indices) * share + 1e-6))]] = True     # 6 * (1 / 6) may come out below 1
    return held
