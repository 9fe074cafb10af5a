"""Downloads CIFAR-10 and CIFAR-100, and reads their official .tar.gz archive or the pickled batches in it."""
import gzip
import hashlib
import io
import os
import secrets
import tarfile
import urllib.request
import zlib

import numpy as np

from sesemi.data.pickles import read_pickle
from sesemi.errors import InputError, describe_error
from sesemi.system import signals
from sesemi.system.files import flush_to_disk, open_regular
from sesemi.system.pools import show_progress

ARCHIVES = {'cifar10': 'cifar-10-python.tar.gz', 'cifar100': 'cifar-100-python.tar.gz'}
FOLDERS = {'cifar10': 'cifar-10-batches-py', 'cifar100': 'cifar-100-python'}
SHA256 = {'cifar10': '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
          'cifar100': '85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7'}
PARTIAL_PREFIX = 'download-'    # of an unfinished download, which a killed process leaves
URL = 'https://www.cs.toronto.edu/~kriz/'
# of the binary and the MATLAB version, which are not read
OTHER_FOLDERS = 'cifar-10-batches-bin', 'cifar-10-batches-mat', 'cifar-100-binary'
OTHER_FILES = ('cifar-10-binary.tar.gz', 'cifar-10-matlab.tar.gz', 'cifar-100-binary.tar.gz',
               'data_batch_1.bin', 'data_batch_1.mat', 'fine_label_names.txt')
BLOCK_BYTES = 1 << 20           # downloaded at a time
# training files, test file, file with the class names, key of the labels, key of the class names
CIFAR10 = ['data_batch_%d' % i for i in range(1, 6)], 'test_batch', 'batches.meta', b'labels', b'label_names'
CIFAR100 = ['train'], 'test', 'meta', b'fine_labels', b'fine_label_names'
FILES = [*CIFAR10[0], *CIFAR10[1:3], *CIFAR100[0], *CIFAR100[1:3]]


def read_archive(path):
    """Read an archive: {file name: content of the pickle}. Raises InputError if it is cut off or damaged."""
    try:
        # read to the end, where the checksum is, before anything is used
        with gzip.open(path) as file:
            unpacked = io.BytesIO(file.read())
        files = {}
        with tarfile.open(fileobj=unpacked) as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if member.isreg() and name in FILES:
                    files[name] = _read_batch(lambda: archive.extractfile(member), '%s in %s' % (name, path))
        return files
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        # gzip reports a cut-off file as EOFError
        raise InputError('%s: not a whole .tar.gz archive (%s); download it again.'
                         % (path, describe_error(error))) from None


def read_batches(folder):
    """Read the batches in a folder: {file name: content of the pickle}. Raises InputError for a bad file."""
    files = {}
    for name in FILES:
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            files[name] = _read_batch(lambda: open_regular(path), path)
    return files


def _read_batch(open_batch, name):
    try:
        with open_batch() as file:
            return read_pickle(file.read())
    except Exception as error:      # a damaged pickle raises nearly anything
        raise InputError('%s: not a whole CIFAR batch (%s); download the official files again.'
                         % (name, describe_error(error))) from None


def recognize(files):
    """Tell by their names whether the files, at least one, are of 'cifar10' or 'cifar100'."""
    return 'cifar10' if set(files) & {*CIFAR10[0], *CIFAR10[1:3]} else 'cifar100'


def extract_arrays(files, source):
    """Return (train images, train labels, test images, test labels, class names) of a data set's files.

    files: as read_archive returns them. Images are uint8 (n, 32, 32, 3), labels int64 (n,). Raises InputError
    naming `source` if a file is missing or damaged.
    """
    train, test, meta, labels_key, names_key = CIFAR10 if recognize(files) == 'cifar10' else CIFAR100
    try:
        class_names = [name.decode() for name in files[meta][names_key]]
        parts = [_images_and_labels(files[name], labels_key, len(class_names)) for name in train + [test]]
        return (*map(np.concatenate, zip(*parts[:-1])), *parts[-1], class_names)
    except Exception as error:      # a pickle can hold anything
        raise InputError('%s: not a whole set of CIFAR batches (%s); unpack or download it again.'
                         % (source, describe_error(error))) from None


def _images_and_labels(batch, labels_key, classes):
    images, labels = batch[b'data'].reshape(-1, 3, 32, 32), np.array(batch[labels_key], np.int64)
    matching = images.dtype == np.uint8 and labels.shape == images.shape[:1]
    if not (matching and 0 <= labels.min() <= labels.max() < classes):
        raise ValueError('labels do not fit the images')
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels


def download(data, directory):
    """Download the official archive of `data` into a folder and check its SHA-256. Raises InputError."""
    name = ARCHIVES[data]
    try:
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, name)
        # the random part keeps two processes from writing the same file
        temporary = os.path.join(directory, PARTIAL_PREFIX + secrets.token_hex(4))
        with signals.remove_if_unfinished(temporary):
            if _fetch(URL + name, temporary) != SHA256[data]:
                raise ValueError('what came is not the official archive')
            os.replace(temporary, path)
    except Exception as error:      # urllib and http.client raise many types
        raise InputError('%s: not found, and downloading it failed (%s); put %s there or give --dataset DIR.'
                         % (directory, describe_error(error), name)) from None
    finally:
        if os.path.isdir(directory) and not os.listdir(directory):
            os.rmdir(directory)


def _fetch(url, path):
    """Download a URL into a file, with a progress bar; returns its SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=60) as source, open(path, 'wb') as file:
        size = int(source.headers['Content-Length'] or BLOCK_BYTES)
        blocks = iter(lambda: source.read(BLOCK_BYTES), b'')
        for block in show_progress(blocks, -(-size // BLOCK_BYTES), 'Downloading %s' % url):
            digest.update(block)
            file.write(block)
        flush_to_disk(file)
    return digest.hexdigest()
