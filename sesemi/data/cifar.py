"""CIFAR-10 and CIFAR-100 in their official files, a .tar.gz archive or the pickled batches it holds ->
arrays; and their download.
"""
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
from sesemi.system.files import open_regular
from sesemi.system.pools import show_progress

ARCHIVES = {'cifar10': 'cifar-10-python.tar.gz', 'cifar100': 'cifar-100-python.tar.gz'}
FOLDERS = {'cifar10': 'cifar-10-batches-py', 'cifar100': 'cifar-100-python'}
SHA256 = {'cifar10': '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
          'cifar100': '85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7'}
PARTIAL_PREFIX = 'download-'        # what a killed process leaves begins so
URL = 'https://www.cs.toronto.edu/~kriz/'
BLOCK_BYTES = 1 << 20         # bytes
CIFAR10 = ['data_batch_%d' % i for i in range(1, 6)], 'test_batch', 'batches.meta', b'labels', b'label_names'
CIFAR100 = ['train'], 'test', 'meta', b'fine_labels', b'fine_label_names'
FILES = [*CIFAR10[0], *CIFAR10[1:3], *CIFAR100[0], *CIFAR100[1:3]]


def read_archive(path):
    """{file name: content of the pickle} of an archive. Raises InputError when it is not whole."""
    try:
        # to its end, where the checksum is: nothing of a damaged archive is used
        with gzip.open(path) as file:
            whole = io.BytesIO(file.read())
        files = {}
        with tarfile.open(fileobj=whole) as archive:
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
    """{file name: content of the pickle} of the files in a folder. Raises InputError naming one that is not
    whole.
    """
    files = {}
    for name in FILES:
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            files[name] = _read_batch(lambda: open_regular(path), path)
    return files


def _read_batch(open_batch, what):
    try:
        with open_batch() as file:
            return read_pickle(file.read())
    except Exception as error:      # a damaged pickle raises nearly anything
        raise InputError('%s: not a whole CIFAR batch (%s); download the official files again.'
                         % (what, describe_error(error))) from None


def recognize(files):
    """'cifar10' or 'cifar100', whichever the files, at least one, are."""
    return 'cifar10' if set(files) & {*CIFAR10[0], *CIFAR10[1:3]} else 'cifar100'


def extract_arrays(files, source):
    """(train images, train labels, test images, test labels, class names) of a data set's files.

    Images are uint8 (n, 32, 32, 3), labels int64 (n,). Raises InputError naming `source` when the files are
    not a whole set.
    """
    train, test, meta, labels_key, names_key = CIFAR10 if recognize(files) == 'cifar10' else CIFAR100
    try:
        class_names = [name.decode() for name in files[meta][names_key]]
        parts = [_images_and_labels(files[name], labels_key, len(class_names)) for name in train + [test]]
        return (*map(np.concatenate, zip(*parts[:-1])), *parts[-1], class_names)
    except Exception as error:      # a pickle holds anything
        raise InputError('%s: not a whole set of CIFAR batches (%s); unpack or download it again.'
                         % (source, describe_error(error))) from None


def _images_and_labels(batch, labels_key, classes):
    images, labels = batch[b'data'].reshape(-1, 3, 32, 32), np.array(batch[labels_key], np.int64)
    fit = images.dtype == np.uint8 and labels.shape == images.shape[:1]
    if not (fit and 0 <= labels.min() <= labels.max() < classes):
        raise ValueError('labels do not fit the images')
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels


def download(data, directory):
    """Fetch the official archive of `data` into a folder: it is whole, of the official checksum, or not
    there. Raises InputError.
    """
    name = ARCHIVES[data]
    try:
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, name)
        # no two processes write one file
        beside = os.path.join(directory, PARTIAL_PREFIX + secrets.token_hex(4))
        with signals.remove_if_unfinished(beside):
            if _fetch(URL + name, beside) != SHA256[data]:
                raise ValueError('what came is not the official archive')
            os.replace(beside, path)
    except Exception as error:      # urllib and http.client raise many
        raise InputError('%s: not found, and downloading it failed (%s); put %s there or give --dataset DIR.'
                         % (directory, describe_error(error), name)) from None
    finally:
        if os.path.isdir(directory) and not os.listdir(directory):
            os.rmdir(directory)


def _fetch(url, path):
    """Write what is at a URL to a file, drawing a bar if standard error is a terminal; returns its SHA-256 in
    hexadecimal digits.
    """
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=60) as source, open(path, 'wb') as file:
        size = int(source.headers['Content-Length'] or BLOCK_BYTES)
        blocks = iter(lambda: source.read(BLOCK_BYTES), b'')
        for block in show_progress(blocks, -(-size // BLOCK_BYTES), 'Downloading %s' % url):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
