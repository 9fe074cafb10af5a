"""The folder of a run: its flags, labeled split, log and result, each file whole or not there."""
import contextlib
import csv
import glob
import hashlib
import io
import json
import math
import os
import platform
import secrets
import shlex
import subprocess
import sys
import time
import weakref

import numpy as np
import PIL

from sesemi.errors import InputError, printable, reason
from sesemi.files import open_regular
from sesemi.lock import lock, release
from sesemi.settings import LEARNING_RATE, SPLIT_SEED
from utils import chunks

# The flags that make a run the one it is, and their defaults: with another value it is another run.
IDENTITY_FLAGS = {
    'data': 'cifar10', 'labels': 1000, 'split_seed': SPLIT_SEED, 'image_size': 32, 'fit': 'stretch', 'no_flip': False,
    'network': 'convnet', 'method': 'asl', 'epochs': None, 'batch_size': None, 'lr': LEARNING_RATE, 'no_oversample': False, 'seed': 0,
    'scale_lr': False, 'recompute_norm': None, 'whitening': None, 'validation': None, 'keep': 'last', 'class_weights': None,
}
RESULT_NUMBERS = ('classification_error_rate', 'classification_error_rate_1_view', 'balanced_error_rate', 'steps', 'seconds_per_step',
                  'images_per_second')
FORMAT = 3      # of a run: to be raised when the same flags make another one; 2: other averages and masks, 3: other whitening of folders
PART = '%s.%s.part'      # what is being written, with a number of its own, so that no two processes write one file
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Run:
    """The folder of one run: locked as long as this lives, made and tried for writing at once, so that a run fails before its work.

    resuming: whether it holds a run to go on with; error_rate: that of the run once it is finished, else None. Raises
    InputError when the folder cannot be written, holds a run that is not to be resumed, or another one than the flags ask for.
    """

    def __init__(self, folder, flags):
        self.folder, self.flags, self.error_rate = folder, flags, None
        self._lock = lock(folder, create=False)
        self._check()
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise InputError('--result %s: cannot be made (%s); give another --result.' % (folder, error.strerror)) from None
        if not self._lock:
            self._lock = lock(folder)
            self._check()       # another run may have come and gone
        weakref.finalize(self, release, self._lock)
        for place in folder, self.path('checkpoints'):
            for path in glob.glob(os.path.join(glob.escape(place), PART % ('*', 8 * '[0-9a-f]'))):
                os.remove(path)         # of a run that was killed while it wrote
        write_atomic(self.path('.writable'), b'')
        os.remove(self.path('.writable'))
        result = stored_result(folder)
        if result:
            self.error_rate = result['classification_error_rate']

    def _check(self):
        """Raises InputError unless the flags are for what the folder holds."""
        folder, flags, stored = self.folder, self.flags, stored_record(self.folder)
        self.resuming = stored is not None
        if self.resuming and not flags['resume']:
            raise InputError('--result %s: holds a run already; go on with it by --resume, or give another --result.' % folder)
        if flags['resume'] == 'yes' and not self.resuming:
            raise InputError('--resume: %s holds no run to go on with; leave the flag out to start one.' % folder)
        if self.resuming and not os.path.exists(self.path('result.json')):
            check_version(folder, stored)
        for name in IDENTITY_FLAGS if self.resuming else ():
            started = stored['flags'].get(name, IDENTITY_FLAGS[name])
            if flags[name] not in (None, started):
                raise InputError('--resume: the run in %s was started with --%s %s, not %s%s; leave the flag out or give another '
                                 '--result.' % (folder, name.replace('_', '-'), started, flags[name],
                                                ', and the learning rate of every step hangs on it' if name == 'epochs' else ''))

    def path(self, name):
        """A file's path in the run's folder."""
        return os.path.join(self.folder, name)

    def start(self, dataset, labeled, checksum, held=()):
        """Record what the run is, unless it is resumed. From here on the folder holds a run.

        dataset, labeled: as they were before --validation; held: the names of the labeled images that it has taken out.
        """
        if self.resuming:
            return
        held = set(held)
        write_table(self.path('labeled.csv'), [
            {'index': int(i), 'file': dataset.train_names[i], 'class': dataset.class_names[dataset.train_labels[i]],
             'split': 'valid' if dataset.train_names[i] in held else 'train'} for i in labeled])
        flags = dict(self.flags, dataset=self.flags['dataset'] and os.path.abspath(self.flags['dataset']))     # found from any folder
        write_json(self.path('args.json'), {'command': shlex.join(sys.argv) if hasattr(shlex, 'join') else ' '.join(sys.argv),
                                            'flags': flags, 'data_checksum': checksum, 'format': FORMAT})

    def read_split(self, dataset, checksum):
        """The indices of the labeled images as the run was started: int64 (labels,).

        Raises InputError when they cannot be read, or when the images are not those the run was started with.
        """
        if stored_record(self.folder)['data_checksum'] != checksum:
            raise InputError('--resume: the images are not those that the run in %s was started with; give these by --dataset '
                             'or another --result.' % self.folder)
        try:
            with open_regular(self.path('labeled.csv')) as file:
                labeled = [int(row['index']) for row in csv.DictReader(io.StringIO(file.read().decode()))]
            if not labeled or min(labeled) < 0 or max(labeled) >= len(dataset.train_labels) or len(set(labeled)) < len(labeled):
                raise ValueError('not the numbers of training images')
            return np.array(labeled)
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise InputError('%s: not the labeled images of a run (%s); give another --result.'
                             % (self.path('labeled.csv'), reason(error))) from None

    def log(self, rows):
        """Write log.csv, a row for each epoch so far."""
        write_table(self.path('log.csv'), rows)

    def result(self, dataset, dense, one_view, rows, images_per_step, clock, **errors):
        """What result.json is to hold.

        dense, one_view: float (n, classes) probabilities of the test images, the mean over all views and those of the image itself.
        errors: metrics beside theirs.
        """
        labels, names = dataset.test_labels, dataset.class_names
        confusion = confusion_matrix(dense.argmax(axis=1), labels, len(names))
        counts = confusion.sum(axis=1)
        per_class = {name: float(1 - right / count) for name, right, count in zip(names, confusion.diagonal(), counts) if count}
        record = stored_record(self.folder)
        seconds = sum(row['seconds'] for row in rows)
        return {
            'classification_error_rate': error_rate(dense, labels),
            'error_rate_interval': wilson_interval(int(counts.sum() - confusion.trace()), len(labels)),
            'classification_error_rate_1_view': error_rate(one_view, labels),
            'balanced_error_rate': float(np.mean(list(per_class.values()))),
            'per_class_error_rate': per_class,
            **errors,
            'confusion_matrix': confusion.tolist(),
            'steps': rows[-1]['step'],
            'images_per_step': images_per_step,
            'seconds_per_step': seconds / rows[-1]['step'],
            'images_per_second': images_per_step * rows[-1]['step'] / seconds,
            'seconds': clock.laps,
            'versions': versions(),
            'git_revision': git_revision(),
            **record,
        }

    def finish(self, result):
        """Write result.json, last of all that a run leaves; the run has an error_rate from here on."""
        write_json(self.path('result.json'), result)
        self.error_rate = result['classification_error_rate']


class Clock:
    """Seconds spent in each part of a run."""

    def __init__(self):
        self.laps, self._since = {}, time.perf_counter()

    def lap(self, name):
        """Everything since the last lap was `name`."""
        now = time.perf_counter()
        self.laps[name], self._since = now - self._since, now


def error_rate(probabilities, labels):
    """The share of images whose most probable class is not their label."""
    return float(np.mean(probabilities.argmax(axis=1) != labels))


def wilson_interval(errors, images, z=1.96):
    """[low, high]: the 95 % interval of an error rate that was counted on so many images (Wilson 1927)."""
    rate = errors / images
    middle, half = rate + z * z / (2 * images), z * math.sqrt(rate * (1 - rate) / images + (z / (2 * images)) ** 2)
    return [max(0.0, (middle - half) / (1 + z * z / images)), min(1.0, (middle + half) / (1 + z * z / images))]


def confusion_matrix(predicted, labels, classes):
    """int64 (classes, classes): how many images of each class (row) were taken for each class (column)."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def stored_record(folder):
    """What args.json of a run's folder holds: command, flags, data_checksum; None when the folder holds no run."""
    path = os.path.join(folder, 'args.json')
    if not os.path.lexists(path):
        return None
    record = read_json(path)
    if not isinstance(record.get('data_checksum'), str) or not _are_flags(record.get('flags')) or type(record.get('format', 1)) is not int:
        raise InputError('%s: not the record of a run; give another --result.' % path)
    return record


def stored_result(folder):
    """What result.json of a run's folder holds; None when the run is not finished."""
    path = os.path.join(folder, 'result.json')
    if not os.path.lexists(path):
        return None
    result = read_json(path)
    numbers = [result.get(name) for name in RESULT_NUMBERS]
    if not isinstance(result.get('data_checksum'), str) or not _are_flags(result.get('flags')) or not all(
            map(_is_number, numbers + [result['flags'].get(name) for name in ('seed', 'epochs')])):
        raise InputError('%s: not the result of a run; give another --result.' % path)
    return result


def _are_flags(value):
    return isinstance(value, dict) and all(flag is None or isinstance(flag, (bool, str)) or _is_number(flag) for flag in value.values())


def _is_number(value):
    return type(value) in (int, float) and abs(value) < float('inf')


def check_version(folder, stored):
    """Raises InputError when another version of this program began the run and would go on with it otherwise."""
    begun = stored.get('format', 1)
    other = ('averages and dropout masks' if begun < 2 else 'whitening of own images' if begun < 3 and stored['flags'].get('data') == 'folder'
             else 'training' if begun > FORMAT else None)
    if other:
        raise InputError('--resume: the run in %s was begun by another version of this program, with other %s; finish it with that '
                         'version or give another --result.' % (folder, other))


def data_name(flags):
    """What a run's data set is called: own images as their folder or list."""
    if flags['data'] == 'folder' and flags.get('dataset'):
        return os.path.basename(os.path.abspath(flags['dataset']))
    return flags['data']


def read_json(path):
    """The object that a JSON file of a run holds. Raises InputError when it is damaged."""
    try:
        with open_regular(path) as file:
            content = json.loads(file.read().decode())
        if not isinstance(content, dict):
            raise ValueError('it is a %s' % type(content).__name__)
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise InputError('%s: not the record of a run (%s); give another --result.' % (path, reason(error))) from None


def data_checksum(dataset, image_digests=None):
    """SHA-256 over all images and labels and the class names.

    image_digests: a list that gets S16 (n,) of the training, test, other unlabeled and validation images: half of each one's SHA-256.
    """
    digest = hashlib.sha256(json.dumps(dataset.class_names).encode())
    extra = dataset.unlabeled_images[len(dataset.train_images):]
    for images, labels in ((dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels), (extra, ()),
                           (dataset.valid_images, dataset.valid_labels)):
        own = bytearray()
        for part in map(np.ascontiguousarray, chunks(images)):
            digest.update(part)
            if image_digests is not None:
                for image in part:
                    own += hashlib.sha256(image).digest()[:16]
        digest.update(np.ascontiguousarray(labels))
        if image_digests is not None:
            image_digests.append(np.frombuffer(own, 'S16'))
    return digest.hexdigest()


def run_identity(args, checksum, labeled):
    """What must be the same for every rank of a run: JSON values by what a user calls them."""
    return {**{'--' + name.replace('_', '-'): getattr(args, name) for name in IDENTITY_FLAGS}, 'the images': checksum,
            'the choice of labeled images': hashlib.sha256(np.ascontiguousarray(labeled)).hexdigest(), 'the code': code_checksum(),
            'Python': '%d.%d' % sys.version_info[:2], 'numpy': np.__version__, 'TensorFlow': _tensorflow_version()}


def code_checksum():
    """SHA-256 over all Python files that take part in a run."""
    digest = hashlib.sha256()
    for pattern in '*.py', 'networks/**/*.py', 'sesemi/**/*.py':
        for path in sorted(glob.glob(os.path.join(glob.escape(PROJECT), pattern), recursive=True)):
            with open(path, 'rb') as file:
                digest.update(file.read())
    return digest.hexdigest()


def _tensorflow_version():
    """By the metadata of its package, which has several names, without the seconds of an import; None where there are none."""
    with contextlib.suppress(ImportError):
        if sys.version_info >= (3, 8):
            from importlib.metadata import version
        else:
            from importlib_metadata import version      # TensorFlow 1.15 brings it
        for name in 'tensorflow', 'tensorflow-cpu', 'tensorflow-gpu', 'intel-tensorflow', 'tensorflow-rocm', 'tf-nightly':
            with contextlib.suppress(ImportError):      # PackageNotFoundError is one
                return version(name)
    return None


def versions():
    """The versions that could change a result."""
    from sesemi.runtime import tf
    return {'python': platform.python_version(), 'tensorflow': tf.__version__, 'numpy': np.__version__, 'pillow': PIL.__version__,
            'platform': platform.platform()}


def git_revision():
    """The checkout's revision, with -dirty if files differ from it; None outside a checkout."""
    try:
        return subprocess.run(['git', '-C', PROJECT, 'describe', '--always', '--dirty', '--abbrev=40', '--exclude', '*'],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout.decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def check_writable(path, name):
    """Raises InputError, calling it `name`, when a file could not be written to `path`."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.exists(path) and not os.path.isfile(path) or not os.access(folder, os.W_OK):
        raise InputError('%s: cannot be written there; give a file in a folder that is there.' % name)


def write_atomic(path, data):
    """Write bytes to `path`, whole or not at all: beside it, flushed to the disk, then renamed.

    Raises InputError naming the path when the disk is full or the folder cannot be written; what was there before stays.
    """
    beside = PART % (path, secrets.token_hex(4))
    try:
        with open(beside, 'xb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(beside)
        if not isinstance(error, OSError):
            raise
        raise InputError('%s: cannot be written (%s); make room or write to another place. What was saved before is whole.'
                         % (path, error.strerror)) from None


def write_json(path, content):
    """Write a JSON file, whole or not at all."""
    write_atomic(path, (json.dumps(content, indent=1) + '\n').encode())


def write_table(path, rows):
    """Write dicts as a CSV file, a line for each, whole or not at all; its columns are all their keys."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator='\n')
    table.writeheader()
    table.writerows({key: printable(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue().encode(errors='backslashreplace'))       # file names may hold bytes that are no text
