"""Reads and checks SVHN's official .mat files."""
import numpy as np

from sesemi.errors import InputError, describe_error
from sesemi.system.files import open_regular

FILES = 'train_32x32.mat', 'test_32x32.mat'
EXTRA_FILE = 'extra_32x32.mat'      # easier training images, which are not read


def read_file(path):
    """Read one file: images uint8 (n, 32, 32, 3), and labels int64 (n,), 0 to 9. Raises InputError."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError("%s: SVHN's .mat files need scipy: pip install scipy." % path) from None
    try:
        with open_regular(path) as file:
            content = loadmat(file, variable_names=['X', 'y'])
        images, labels = content['X'].transpose(3, 0, 1, 2), content['y'].ravel()
        valid = images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3)
        if not valid or labels.shape != images.shape[:1] or not len(labels):
            raise ValueError('images %s %s, labels %s' % (images.dtype, images.shape, labels.shape))
        if not np.isin(labels, np.arange(11)).all():
            raise ValueError('labels that are not whole numbers from 0 to 10')
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError('%s: not a whole SVHN file (%s); download it again.'
                         % (path, describe_error(error))) from None
    return np.ascontiguousarray(images), labels.astype(np.int64) % 10        # label 10 means digit 0
