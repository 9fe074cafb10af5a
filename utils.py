"""Image folders as numpy arrays: reading, contrast normalisation, whitening, the labeled subset.

The parts stand in the order of their use: images are read and resized (uint8), contrast normalised and
whitened (float32), and the labeled ones are chosen. Needs only numpy and Pillow.
"""
import functools
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

from sesemi.errors import InputError, RunError, join_names
from sesemi.images.decoding import compute_max_pixels, decode_image
from sesemi.images.folders import (
    PassedOver,
    find_images,
    find_places,
    find_skip_reason,
    is_junk,
    list_entries,
    unite_names,
)
from sesemi.settings import (
    CONTRAST_EPSILON,
    CONTRAST_SCALE,
    SPLIT_SEED,
    WHITENING_EPSILON,
    WHITENING_IDENTITY,
)
from sesemi.system import machine
from sesemi.system.pools import make_process_pool, prefetch, show_progress

SMALL_FILE = 16 << 10       # bytes; for smaller files, decoding takes less than half of the time to read them
MANY_FILES = 4000           # so many small files or more are worth starting processes
MAX_UNREADABLE = 100        # files that cannot be read, after which no more are tried
CHUNK = 5000                # images that are normalised at once


# Reading

def decode_blocks(paths, image_size=32, fit='stretch', memory=None):
    """Decode image files on all cores: yield uint8 (up to 64, s, s, 3) in the order of `paths`.

    Shows a progress bar on a terminal. memory: bytes that decoding may take, by default half of the memory.
    Raises InputError naming the first ten files that cannot be read, after trying the others.
    """
    blocks = [paths[first:first + 64] for first in range(0, len(paths), 64)]
    cores = min(machine.count_cores(), 16)        # more processes would take longer to start than they save
    decode = functools.partial(_decode_block, image_size=image_size, fit=fit,
                               max_pixels=compute_max_pixels(memory or machine.get_memory_size() / 2, cores))
    decoded = prefetch(decode, blocks, _make_pool(paths, cores), 4 * cores)
    animated, unreadable = [], []
    try:
        for images, found, failed in show_progress(decoded, len(blocks), 'Reading %d images' % len(paths)):
            animated += found
            unreadable += failed
            if len(unreadable) >= MAX_UNREADABLE:
                decoded.close()
                break
            yield images
    except BrokenProcessPool:
        raise RunError('A process that read images was killed, perhaps for lack of memory; start '
                       'again.') from None
    if len(unreadable) == 1:
        raise unreadable[0]
    if unreadable:
        count = min(len(unreadable), MAX_UNREADABLE)
        raise InputError('%d images%s cannot be read; replace or remove the files: %s.' % (
            count, ' or more' if count == MAX_UNREADABLE else '',
            join_names(['%s (%s)' % error.args[1:] for error in unreadable[:count]], 10)))
    if animated:
        print('%d files have several frames; only the first is read: %s.' % (
            len(animated), join_names(animated)))


def _decode_block(paths, image_size, fit, max_pixels):
    """Decode files: (uint8 (n, s, s, 3), paths of animations, an InputError for each unreadable file)."""
    images = np.zeros((len(paths), image_size, image_size, 3), np.uint8)
    animated, unreadable = [], []
    for i, path in enumerate(paths):
        try:
            images[i] = decode_image(path, image_size, fit, max_pixels, animated)
        except InputError as error:
            unreadable.append(error)
    return images, animated, unreadable


def _make_pool(paths, cores):
    """Make the pool that decodes `paths`, judged by the size of the first file.

    Large files get a thread for each core, because their decoder releases Python's global lock. Reading small
    files mostly holds the lock: few of them get one thread, many a process for each core.
    """
    if any(os.path.isfile(path) and os.path.getsize(path) > SMALL_FILE for path in paths[:1]):
        return ThreadPoolExecutor(cores)
    return ThreadPoolExecutor(1) if len(paths) < MANY_FILES else make_process_pool(cores)


def decode_images(paths, image_size=32, fit='stretch', memory=None):
    """The images that decode_blocks yields, in one array: uint8 (n, s, s, 3)."""
    images, done = np.empty((len(paths), image_size, image_size, 3), np.uint8), 0
    for block in decode_blocks(paths, image_size, fit, memory):
        images[done:done + len(block)] = block
        done += len(block)
    return images


def list_image_folder(directory, passed_over=None, least=2):
    """List the images of a folder of class folders: (paths, labels int64 (n,), class names).

    Classes and paths are sorted. A class's images are in its folder or below it. Folders with names that are
    equal in Unicode's form NFC are one class. A folder named `unlabeled` is not a class. passed_over: a
    folders.PassedOver, which collects what is not read. Raises InputError when the folder is missing, has
    fewer than `least` classes, or a class has no images.
    """
    if not os.path.isdir(directory):
        raise InputError('%s: no such folder; give one that holds a folder of images for each class.'
                         % directory)
    passed_over = PassedOver() if passed_over is None else passed_over
    folders, files = list_entries(directory)
    names = [folder.name for folder in folders if not is_junk(folder) and folder.name.lower() != 'unlabeled']
    class_names = unite_names(names)
    passed_over.folders.update((folder.path, '') for folder in folders if folder.name not in names)
    passed_over.files.update(find_skip_reason(file) or 'outside the class folders' for file in files)
    if len(class_names) < least:
        raise InputError('%s: holds %s; %s.' % (
            directory, 'one class only (%s)' % class_names[0] if class_names else 'no class folders',
            'give at least two folders of images, one for each class' if least > 1
            else 'give a folder of images for each class'))
    found = [find_images(os.path.join(directory, name), passed_over) for name in names]
    for name, images in zip(names, found):
        if not images:
            skipped = PassedOver()
            find_images(os.path.join(directory, name), skipped)
            raise InputError('%s: holds no images%s; add some or remove the folder.' % (
                os.path.join(directory, name),
                ' that are read (%s)' % str(skipped)[:-1] if str(skipped) else ''))
    labels = np.repeat(find_places(names, class_names), [len(images) for images in found])
    return list(itertools.chain(*found)), labels, class_names


def load_image_folder(directory, image_size=32):
    """Read a folder of class folders: (images uint8 (n, s, s, 3), labels int64 (n,), class names).

    Classes and files are sorted. Raises InputError as list_image_folder and decode_images do.
    """
    paths, labels, class_names = list_image_folder(directory)
    return decode_images(paths, image_size), labels, class_names


# Normalising

def global_contrast_normalize(images, scale=CONTRAST_SCALE, eps=CONTRAST_EPSILON):
    """Subtract each image's mean over all its values, divide by its L2 norm and multiply by `scale`.

    images: (n, h, w, 3), values 0-255, any dtype, not changed. Returns float32 (n, h, w, 3). An image whose
    norm is below `eps` becomes zero. The mean is summed in float64, so that a constant image becomes exactly
    zero.
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
        return ((flat - self.mean) @ self.matrix).reshape(images.shape)


class ChannelStandardizer(NamedTuple):
    """(images - mean) / deviation for each color channel, where a whitening matrix would be too large."""
    mean: np.ndarray        # float32 (3,)
    deviation: np.ndarray   # float32 (3,)

    def __call__(self, images):
        """Standardise float32 (n, h, w, 3) images into new ones of the same shape."""
        return (images - self.mean) / self.deviation


def fit_channel_standardizer(parts):
    """Fit a ChannelStandardizer to an iterable of parts, each float32 (n, h, w, 3)."""
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
    """Fit ZCA whitening; returns a Whitener with the matrix U diag((S + eps)^-1/2) U^T.

    U diag(S) U^T is the images' covariance, divided by n - 1, plus identity_scale * I. images:
    contrast-normalised float32 (n, h, w, 3), not changed, or an iterable of such parts, which saves memory.
    Products are float32 and their sums float64: within 1e-3 of a float64 computation, in half its time.
    """
    parts = chunks(images) if isinstance(images, np.ndarray) else images
    count, total, products = 0, 0, 0
    for part in parts:
        flat = part.reshape(len(part), -1)
        count += len(flat)
        total = total + flat.sum(axis=0, dtype=np.float64)
        products += (flat.T @ flat).astype(np.float64)
    mean = total / count
    covariance = (products - count * np.outer(mean, mean)) / max(count - 1, 1)
    covariance.flat[::len(mean) + 1] += identity_scale      # the diagonal
    values, vectors = np.linalg.eigh(covariance)
    matrix = (vectors / np.sqrt(values + eps)).astype(np.float32) @ vectors.T.astype(np.float32)
    return Whitener(mean.astype(np.float32), matrix)


def chunks(array, size=CHUNK):
    """Consecutive slices of an array, at most `size` long."""
    return (array[i:i + size] for i in range(0, len(array), size))


# Choosing the labeled subset

def stratified_sample(labels, labels_per_class, seed=SPLIT_SEED, class_names=None):
    """Draw labels_per_class images of each class; with the default seed, the published split.

    One RandomState(seed) shuffles the indices of each class in turn, and the first ones are taken. labels:
    int (n,). Returns int64 indices, class by class. Raises InputError naming a class with too few images.
    """
    rng, chosen = np.random.RandomState(seed), []
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        if len(indices) < labels_per_class:
            raise InputError('class %s has %d training images, fewer than the %d labels a class asked for; '
                             'lower --labels.'
                             % (class_names[label] if class_names else label, len(indices), labels_per_class))
        rng.shuffle(indices)
        chosen.append(indices[:labels_per_class])
    return np.concatenate(chosen)


def hold_out(labels, fraction):
    """Choose a fraction of each class, at least one image, the same in every run: a boolean mask (n,)."""
    rng, mask = np.random.RandomState(0), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        mask[indices[:max(1, int(len(indices) * fraction + 1e-6))]] = True      # 6 * (1 / 6) may be below 1
    return mask
