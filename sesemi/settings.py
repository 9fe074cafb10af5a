"""Every number of the method in one place, each with its source, and the presets of each data set.

"Paper" is Tran 2019, arXiv 1906.10343, with the code its author published; "ours" was chosen here, by
measurement.
"""
import os
from typing import NamedTuple, Optional

# Preprocessing
CONTRAST_SCALE = 55             # L2 norm of a contrast-normalised image; paper
CONTRAST_EPSILON = 1e-10        # an image whose norm is below it becomes zero; paper
WHITENING_IDENTITY = 0.1        # times the identity, added to the covariance; paper
WHITENING_EPSILON = 1e-10       # added to its eigenvalues; paper
# pixels a side at most: the matrix is (3 N²)², at 48 already 191 MB of the saved model; ours
MAX_WHITENED_SIZE = 48
# training images for each of an image's 3 N² values, from which on `auto` whitens; ours:
# benchmarks/whitening.py
IMAGES_PER_WHITENED_VALUE = 3
SPLIT_SEED = 1                  # of the labeled subset; the published split

NETWORKS = ('convnet', 'nin', 'wrn')
METHODS = ('asl', 'ssl', 'supervised')
FITS = ('stretch', 'crop', 'pad')       # what may happen to an image that is not square

# The memory of a training step on a CPU: bytes for each pixel of each view, beside those of the program;
# measured; ours
STEP_BYTES = {'convnet': 11700, 'nin': 10800, 'wrn': 8000}
PROGRAM_BYTES = 900e6

# Augmentation
SHIFTS = (-2, -1, 0, 1, 2)      # pixels, each axis; paper
TEST_SHIFTS = (-2, -1, 1, 2)    # pixels: a shifted test view always moves; paper
NOISE = 0.15                    # standard deviation, on normalised images; paper
PROXY_CLASSES = 6               # rotations by 0, 90, 180, 270 degrees, left-right flip, up-down flip; paper

SUPER_DROPOUT = 0.2             # on the supervised head; more of it on SVHN: dropout_rates; paper

# Optimisation: SGD with Nesterov momentum
LEARNING_RATE = 0.05            # of the first step; paper
DECAY_POWER = 0.5               # step t of T has rate * (1 - t / T) ** DECAY_POWER; paper
MOMENTUM = 0.9                  # paper
# on the kernels of convolutions and heads, not on biases, not in batch norm; paper
L2 = 5e-4
BATCH_NORM_MOMENTUM = 0.99      # paper
BATCH_NORM_EPSILON = 1e-3       # paper
NORM_BATCHES = 10               # training batches that --recompute-norm measures the statistics on; ours


class Preset(NamedTuple):
    """What depends on the data set."""
    whitening: str = 'zca'          # a key of batches.WHITENINGS; auto: by the number and size of the images
    flip: bool = True               # False where a mirrored image is another class or none
    # images of the self branch a step, beside PROXY_CLASSES times as many labeled ones
    batch_size: int = 16
    epochs: int = 300               # asl and supervised
    ssl_epochs: int = 50
    steps: Optional[int] = None     # instead of epochs: train about this many steps
    # evaluate with batch-norm statistics measured anew for the weights as they are
    recompute_norm: bool = False


PRESETS = {
    'cifar10': Preset(),                                                        # paper
    'cifar100': Preset(),                                                       # paper
    'svhn': Preset(whitening='none', flip=False, ssl_epochs=30),                # paper
    'digits': Preset(whitening='none', flip=False, batch_size=4, steps=75, recompute_norm=True),      # ours
    'folder': Preset(whitening='auto', recompute_norm=True),                    # ours
}


def dropout_rates(data, network, method):
    """The dropout rates as the arguments of networks.build_sesemi: paper, more of it on SVHN."""
    if data == 'svhn' and network == 'convnet':
        return {'super_dropout': 0.5, 'in_network_dropout': 0.5}
    if data == 'svhn' and network == 'wrn' and method == 'ssl':
        return {'super_dropout': 0.5, 'in_network_dropout': 0.0}
    return {'super_dropout': SUPER_DROPOUT, 'in_network_dropout': 0.0}


def default_directory(data):
    """Where the files of a data set are looked for if no folder is given; None where none is looked for."""
    return None if data in ('digits', 'folder') else os.path.join('dataset', data.replace('cifar', 'cifar-'))
