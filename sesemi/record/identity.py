"""What makes a run the one it is: its flags, images and code; and the versions that could change its result."""
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import subprocess
import sys

import numpy as np
import PIL

from sesemi.settings import LEARNING_RATE, SPLIT_SEED
from utils import chunks

# The flags that make a run the one it is, and their defaults: with another value it is another run.
IDENTITY_FLAGS = {
    'data': 'cifar10', 'labels': 1000, 'split_seed': SPLIT_SEED, 'image_size': 32, 'fit': 'stretch', 'no_flip': False,
    'network': 'convnet', 'method': 'asl', 'epochs': None, 'batch_size': None, 'lr': LEARNING_RATE, 'no_oversample': False, 'seed': 0,
    'scale_lr': False, 'recompute_norm': None, 'whitening': None, 'validation': None, 'keep': 'last', 'class_weights': None,
}
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


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
    return {**{'--' + name.replace('_', '-'): getattr(args, name) for name in (*IDENTITY_FLAGS, 'precision_mode', 'eval_every', 'runs')}, 'the images': checksum,
            'the choice of labeled images': hashlib.sha256(np.ascontiguousarray(labeled)).hexdigest(), 'the code': code_checksum(),
            'Python': '%d.%d' % sys.version_info[:2], 'numpy': np.__version__, 'TensorFlow': tensorflow_version()}


def code_checksum():
    """SHA-256 over all Python files that take part in a run."""
    digest = hashlib.sha256()
    for pattern in '*.py', 'networks/**/*.py', 'sesemi/**/*.py':
        for path in sorted(pathlib.Path(PROJECT).glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def tensorflow_version():
    """That of the package's metadata, which has several names, without the seconds of an import; None where there is none."""
    with contextlib.suppress(ImportError):
        if sys.version_info >= (3, 8):
            from importlib.metadata import version
        else:
            from importlib_metadata import version  # TensorFlow 1.15 brings it
        for name in 'tensorflow', 'tensorflow-cpu', 'tensorflow-gpu', 'intel-tensorflow', 'tensorflow-rocm', 'tf-nightly':
            with contextlib.suppress(ImportError):      # PackageNotFoundError is one
                return version(name)
    return None


def versions():
    """The versions that could change a result."""
    from sesemi.device.runtime import tf
    return {'python': platform.python_version(), 'tensorflow': tf.__version__, 'numpy': np.__version__, 'pillow': PIL.__version__,
            'platform': platform.platform()}


def git_revision():
    """The checkout's revision, with -dirty if files differ from it; None outside a checkout."""
    try:
        return subprocess.run(['git', '-C', PROJECT, 'describe', '--always', '--dirty', '--abbrev=40', '--exclude', '*'],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout.decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return None
