"""Image folders as numpy arrays: reading, contrast normalisation, whitening, the choice of the labeled
images.

An image travels through this file from top to bottom: it is read and brought to one size (uint8), contrast
normalised and whitened (float32), chosen into the labeled subset. numpy and Pillow only.
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
from sesemi.images.folders import PassedOver, find_images, find_skip_reason, is_junk, list_entries
from sesemi.settings import (
    CONTRAST_EPSILON,
    CONTRAST_SCALE,
    SPLIT_SEED,
    WHITENING_EPSILON,
    WHITENING_IDENTITY,
)
from sesemi.system import machine
from sesemi.system.pools import make_process_pool, prefetch, show_progress

SMALL_FILE = 16 << 10               # bytes, below which decoding is the lesser part of reading an image
MANY_FILES = 4000                   # from which on reading small files is worth starting processes
CHUNK = 5000                        # images that are normalised at once


# Reading

def decode_blocks(paths, image_size=32, fit='stretch', memory=None):
    """Decode the files on all cores, with a progress bar on a terminal: yield uint8 (up to 64, s, s, 3) in
    the order of `paths`.

    memory: bytes that decoding may take, by default half of all. Raises InputError naming the first file that
    cannot be read.
    """
    blocks = [paths[first:first + 64] for first in range(0, len(paths), 64)]
    cores = min(machine.count_cores(), 16)        # more processes take longer to start than they save
    decode = functools.partial(_decode_block, image_size=image_size, fit=fit,
                               most=compute_max_pixels(memory or machine.get_memory_size() / 2, cores))
    decoded, several = prefetch(decode, blocks, _readers(paths, cores), 4 * cores), []
    try:
        for images, animated in show_progress(decoded, len(blocks), 'Reading %d images' % len(paths)):
            several += animated
            yield images
    except BrokenProcessPool:
        raise RunError('A process that read images was killed, perhaps for want of memory; start '
                       'again.') from None
    if several:
        print('Of %d files with several frames the first is read: %s.' % (len(several), join_names(several)))


def _decode_block(paths, image_size, fit, most):
    animated = []
    return np.stack([decode_image(path, image_size, fit, most, animated) for path in paths]), animated


def _readers(paths, cores):
    """The pool that decodes `paths`: threads for large files, whose decoder releases the interpreter. Of
    small files the interpreter, which serves one thread at a time, is the larger part: one thread, or for
    many of them a process for each core.
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
    """The images of a folder that holds a folder a class: (paths, labels int64 (n,), class names), all in
    sorted order.

    A class's images lie in its folder or below it. A folder named `unlabeled` is not a class. passed_over: a
    folders.PassedOver that gets all that is not read. Raises InputError when the folder, the `least` classes
    or a class's images are missing.
    """
    if not os.path.isdir(directory):
        raise InputError('%s: no such folder; give one that holds a folder of images for each class.'
                         % directory)
    passed_over = PassedOver() if passed_over is None else passed_over
    folders, files = list_entries(directory)
    class_names = [folder.name for folder in folders if not is_junk(folder)
                   and folder.name.lower() != 'unlabeled']
    passed_over.folders.update((folder.path, '') for folder in folders if folder.name not in class_names)
    passed_over.files.update(find_skip_reason(file) or 'outside the class folders' for file in files)
    if len(class_names) < least:
        raise InputError('%s: holds %s; %s.' % (
            directory, 'one class only (%s)' % class_names[0] if class_names else 'no class folders',
            'give at least two folders of images, one for each class' if least > 1
            else 'give a folder of images for each class'))
    found = [find_images(os.path.join(directory, name), passed_over) for name in class_names]
    for name, images in zip(class_names, found):
        if not images:
            here = PassedOver()
            find_images(os.path.join(directory, name), here)
            raise InputError('%s: holds no images%s; add some or remove the folder.' % (
                os.path.join(directory, name), ' that are read (%s)' % str(here)[:-1] if str(here) else ''))
    labels = np.repeat(np.arange(len(class_names)), [len(images) for images in found])
    return list(itertools.chain(*found)), labels, class_names


def load_image_folder(directory, image_size=32):
    """Read a folder that holds a folder a class: (images uint8 (n, s, s, 3), labels int64 (n,), class names).

    Classes and files come in sorted order. Raises InputError as list_image_folder and decode_images do.
    """
    paths, labels, class_names = list_image_folder(directory)
    return decode_images(paths, image_size), labels, class_names


# Normalising

def global_contrast_normalize(images, scale=CONTRAST_SCALE, eps=CONTRAST_EPSILON):
    """Subtract each image's mean over all its values and divide by its L2 norm, times `scale`.

    images: (n, h, w, 3), values 0-255, any dtype, left as they were. Returns float32 (n, h, w, 3). An image
    whose norm is below `eps` becomes zero. The mean is summed in float64, so that a constant image is exactly
    its mean.
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
    """(images - mean) / deviation for each color channel: in place of whitening where its matrix grows too
    large.
    """
    mean: np.ndarray        # float32 (3,)
    deviation: np.ndarray   # float32 (3,)

    def __call__(self, images):
        """Standardise float32 (n, h, w, 3) images into new ones."""
        return (images - self.mean) / self.deviation


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
    """Fit ZCA whitening: U diag((S + eps)^-1/2) U^T of the images' covariance (by n - 1) + identity_scale *
    I.

    images: contrast-normalised float32 (n, h, w, 3), left as they were, or an iterable of such parts, so that
    a whole float32 copy never has to exist. Products are float32, their sums float64: to the 1e-3 of a
    float64 computation at half its time. Returns a Whitener.
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
    """The published split: one RandomState(seed); class after class, shuffle its indices and take the first
    ones.

    labels: int (n,). Returns int64 indices, class by class. Raises InputError naming a class that has too few
    images.
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


def hold_out(labels, share):
    """Every run the same `share` of each class, at least one image: a boolean mask (n,) of the images held
    out.
    """
    rng, held = np.random.RandomState(0), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        held[indices[:max(1, int(len(indices) * share + 1e-6))]] = True     # 6 * (1 / 6) may come out below 1
    return held
