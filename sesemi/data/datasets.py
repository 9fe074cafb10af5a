"""Reads a data set by its name: its images, labels, file names and class names.

The form of the files (image folders, a CSV list, the official CIFAR files, SVHN's .mat files) is recognised
from the content of the folder. Everything is decoded and checked before TensorFlow is imported.
"""
import os
from typing import List, NamedTuple

import numpy as np
from PIL import Image

from sesemi.data import cifar, svhn
from sesemi.data.image_folders import list_folders
from sesemi.data.image_list import list_table
from sesemi.errors import InputError
from sesemi.images.folders import list_entries
from sesemi.settings import default_directory
from sesemi.system.files import hold_lock
from utils import decode_images, hold_out


class Dataset(NamedTuple):
    """Images are uint8 (n, s, s, 3), labels int64 (n,); names are paths in the data folder or indices."""
    train_images: np.ndarray
    train_labels: np.ndarray
    train_names: List[str]
    test_images: np.ndarray
    test_labels: np.ndarray
    test_names: List[str]
    class_names: List[str]
    unlabeled_images: np.ndarray    # the training images, then those without a label
    # measure the error during training; not part of any images above
    valid_images: np.ndarray = np.zeros((0, 1, 1, 3), np.uint8)
    valid_labels: np.ndarray = np.zeros(0, np.int64)
    valid_names: List[str] = []


def load_dataset(data, directory=None, image_size=32, fit='stretch', with_unlabeled=True,
                 decode=decode_images):
    """Read a data set: returns a Dataset.

    data: a key of settings.PRESETS; directory: the folder or file to read, by default the data set's own
    folder; image_size: pixels a side; fit: one of settings.FITS; with_unlabeled: whether to read images
    without a label; decode: a function like utils.decode_images, or a cache.Cache's decode_images.
    Raises InputError naming the file or folder that is missing, damaged or of an unknown form.
    """
    if data == 'digits':
        return _load_digits(image_size)
    if directory is None:
        directory = _fill_default_directory(data)
    if not os.path.exists(directory):
        raise InputError('--dataset %s: no such file or folder; give the folder that holds the images.'
                         % directory)
    for name in sorted(cifar.ARCHIVES, key=lambda name: name != data):     # the one asked for first
        archive = _find_file(directory, [cifar.ARCHIVES[name]])
        if archive:
            return _resize(_load_cifar(data, cifar.read_archive(archive), archive), image_size)
        batch = _find_file(directory, cifar.FILES, inside=(cifar.FOLDERS[name], ''))
        if batch:
            folder = os.path.dirname(batch)
            return _resize(_load_cifar(data, cifar.read_batches(folder), folder), image_size)
    if _find_file(directory, svhn.FILES):
        _check_name(data, 'svhn', directory)
        return _resize(_load_svhn(directory), image_size)
    other = _find_file(directory, cifar.OTHER_FILES, inside=('', *cifar.OTHER_FOLDERS))
    if other:
        raise InputError('%s: is of the binary or the MATLAB version of CIFAR; download the Python version, '
                         'such as cifar-10-python.tar.gz.' % other)
    if os.path.isfile(os.path.join(directory, 'list.csv')):
        directory = os.path.join(directory, 'list.csv')
    is_table = directory.lower().endswith('.csv') and os.path.isfile(directory)
    listed = (list_table if is_table else list_folders)(directory, with_unlabeled)
    return _read_files(os.path.dirname(directory) if is_table else directory, *listed,
                       lambda paths: decode(paths, image_size, fit))


def _find_file(directory, names, inside=('',)):
    """Find the first file of `names` in `directory`; returns `directory` if that is an archive, else None."""
    if os.path.isfile(directory):
        return directory if directory.endswith(('.tar.gz', '.tgz')) else None
    paths = (os.path.join(directory, folder, name) for folder in inside for name in names)
    return next((path for path in paths if os.path.isfile(path)), None)


def _check_name(data, found, source):
    """Raise InputError if the files are of another data set than --data says: its preset would be wrong."""
    if data not in (found, 'folder'):
        raise InputError('--data %s: %s holds %s; say --data %s.' % (data, source, found, found))


def _fill_default_directory(data):
    """Return settings.default_directory, and download CIFAR into it if needed. Raises InputError."""
    directory = default_directory(data)
    if directory is None:
        raise InputError('--data folder needs --dataset DIR, a folder that holds train/CLASS/* and '
                         'test/CLASS/*, or CLASS/*.')
    if not _has_files(directory):
        if data not in cifar.ARCHIVES:
            raise InputError('%s: not found; put train_32x32.mat and test_32x32.mat from '
                             'http://ufldl.stanford.edu/housenumbers there, or give --dataset DIR.'
                             % directory)
        with hold_lock(directory + '.lock'):
            if not _has_files(directory):       # another process may have downloaded them meanwhile
                cifar.download(data, directory)
    return directory


def _has_files(directory):
    """Whether a folder exists and holds more than unfinished downloads."""
    return os.path.isdir(directory) and any(not entry.name.startswith(cifar.PARTIAL_PREFIX)
                                            for part in list_entries(directory) for entry in part)


# Image files

def _read_files(directory, class_names, parts, extra, decode):
    """Decode the files into a Dataset; without test files, hold out a sixth of each class for test.

    Every run holds out the same images. parts: (paths, labels) of the training, test and validation images;
    extra: paths of the unlabeled images; decode: a function of a list of paths.
    """
    (paths, labels), (test_paths, test_labels), (valid_paths, valid_labels) = parts
    if not test_paths:
        held_out = hold_out(labels, 1 / 6)
        alone = np.flatnonzero(np.bincount(labels[~held_out], minlength=len(class_names)) == 0)
        if len(alone):
            raise InputError('%s: class %s has one image, and one of each class is kept for test; add '
                             'images, or test files.'
                             % (directory, class_names[alone[0]]))
        print('No test images: a sixth of each class, %d of %d images, the same at every run, is held out '
              'for test.'
              % (held_out.sum(), len(held_out)))
        test_paths, test_labels = [path for path, out in zip(paths, held_out) if out], labels[held_out]
        paths, labels = [path for path, out in zip(paths, held_out) if not out], labels[~held_out]
    images, test_from = decode(paths + extra + test_paths + valid_paths), len(paths) + len(extra)
    valid_from = test_from + len(test_paths)
    names, test_names, valid_names = ([os.path.relpath(path, directory or '.') for path in part]
                                      for part in (paths, test_paths, valid_paths))
    return Dataset(images[:len(paths)], labels, names, images[test_from:valid_from], test_labels, test_names,
                   class_names,
                   images[:test_from], images[valid_from:], valid_labels, valid_names)


# CIFAR

def _load_cifar(data, files, source):
    """Return the Dataset of CIFAR-10 or CIFAR-100; files: as cifar.read_archive returns them."""
    if not files:
        raise InputError('%s: holds no CIFAR batches of the Python version, perhaps those of the '
                         'binary one; download the Python version.' % source)
    _check_name(data, cifar.recognize(files), source)
    train_images, train_labels, test_images, test_labels, class_names = cifar.extract_arrays(files, source)
    return Dataset(train_images, train_labels, [str(i) for i in range(len(train_labels))],
                   test_images, test_labels, [str(i) for i in range(len(test_labels))], class_names,
                   train_images)


# SVHN and digits

def _load_svhn(directory):
    """Read SVHN's two files in a folder: returns a Dataset."""
    if os.path.exists(os.path.join(directory, svhn.EXTRA_FILE)):
        print('1 file passed over: %s.' % svhn.EXTRA_FILE)
    parts = []
    for images, labels in map(svhn.read_file, (os.path.join(directory, name) for name in svhn.FILES)):
        parts += [images, labels, [str(i) for i in range(len(labels))]]
    return Dataset(*parts, class_names=[str(digit) for digit in range(10)], unlabeled_images=parts[0])


def _load_digits(image_size):
    """Load scikit-learn's 1,797 digits of 8 x 8 pixels, and hold out a fifth of each class for test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError('--data digits comes with scikit-learn: pip install scikit-learn.') from None
    digits = load_digits()
    grey = (digits.images * (255 / 16)).round().astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    held_out = hold_out(digits.target, 1 / 5)
    names = np.arange(len(held_out)).astype(str)
    return _resize(Dataset(images[~held_out], digits.target[~held_out], list(names[~held_out]),
                           images[held_out], digits.target[held_out], list(names[held_out]),
                           [str(digit) for digit in range(10)], images[~held_out]),
                   image_size)


def _resize(dataset, image_size):
    """Resize the images of a Dataset to image_size, bilinearly as decode_image does."""
    def resize(images):
        if images.shape[1] == image_size:
            return images
        return np.stack([Image.fromarray(image).resize((image_size, image_size), Image.BILINEAR)
                         for image in images])
    train_images = resize(dataset.train_images)
    return dataset._replace(train_images=train_images, test_images=resize(dataset.test_images),
                            unlabeled_images=train_images)
