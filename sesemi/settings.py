"""Every number of the method, with its source, and the presets of each data set.

"Paper" means Tran 2019, arXiv 1906.10343, or the code its author published; "ours" means chosen here by
measurement.
"""
import os
from typing import NamedTuple, Optional

# Preprocessing
CONTRAST_SCALE = 55             # L2 norm of a contrast-normalised image; paper
CONTRAST_EPSILON = 1e-10        # an image with a smaller norm becomes zero; paper
WHITENING_IDENTITY = 0.1        # this times the identity is added to the covariance; paper
WHITENING_EPSILON = 1e-10       # added to the eigenvalues of the covariance; paper
# largest image side in pixels for ZCA whitening: the matrix has (3 N²)² values, at 48 pixels 191 MB of the
# saved model; ours
MAX_WHITENED_SIZE = 48
# `--whitening auto` chooses ZCA from this many training images for each of an image's 3 N² values; ours, from
# benchmarks/whitening.py
IMAGES_PER_WHITENED_VALUE = 3
SPLIT_SEED = 1                  # chooses the labeled images; 1 gives the published split

NETWORKS = ('convnet', 'nin', 'wrn')
METHODS = ('asl', 'ssl', 'supervised')
FITS = ('stretch', 'crop', 'pad')       # how an image that is not square is made square

# Memory of a training step on a CPU: bytes for each pixel of each view, and bytes of the program itself; ours
STEP_BYTES = {'convnet': 11700, 'nin': 10800, 'wrn': 8000}
PROGRAM_BYTES = 900e6

# Augmentation
SHIFTS = (-2, -1, 0, 1, 2)      # pixels, each axis; paper
TEST_SHIFTS = (-2, -1, 1, 2)    # pixels, never 0; paper
NOISE = 0.15                    # standard deviation, on normalised images; paper
PROXY_CLASSES = 6               # rotations by 0, 90, 180, 270 degrees, left-right flip, up-down flip; paper

SUPER_DROPOUT = 0.2             # on the supervised head; for SVHN see dropout_rates; paper

# Optimisation: SGD with Nesterov momentum
LEARNING_RATE = 0.05            # of the first step; paper
DECAY_POWER = 0.5               # rate of step t of T: LEARNING_RATE * (1 - t / T) ** DECAY_POWER; paper
MOMENTUM = 0.9                  # paper
L2 = 5e-4                       # on kernels of convolutions and heads, not on biases or batch norm; paper
BATCH_NORM_MOMENTUM = 0.99      # paper
BATCH_NORM_EPSILON = 1e-3       # paper
NORM_BATCHES = 10               # batches that --recompute-norm measures the statistics on; ours


class Preset(NamedTuple):
    """Settings that depend on the data set."""
    whitening: str = 'zca'          # a key of batches.WHITENINGS, or auto: by number and size of the images
    flip: bool = True               # left-right flips; False where they change an image's class
    batch_size: int = 16            # self-branch images a step; PROXY_CLASSES times as many labeled ones
    epochs: int = 300               # for asl and supervised
    ssl_epochs: int = 50
    steps: Optional[int] = None     # instead of epochs: train about this many steps
    recompute_norm: bool = False    # measure the batch-norm statistics again before evaluating


PRESETS = {
    'cifar10': Preset(),                                                        # paper
    'cifar100': Preset(),                                                       # paper
    'svhn': Preset(whitening='none', flip=False, ssl_epochs=30),                # paper
    'digits': Preset(whitening='none', flip=False, batch_size=4, steps=75, recompute_norm=True),      # ours
    'folder': Preset(whitening='auto', recompute_norm=True),                    # ours
}


def dropout_rates(data, network, method):
    """The dropout rates, as keyword arguments of networks.build_sesemi; paper."""
    if data == 'svhn' and network == 'convnet':
        return {'super_dropout': 0.5, 'in_network_dropout': 0.5}
    if data == 'svhn' and network == 'wrn' and method == 'ssl':
        return {'super_dropout': 0.5, 'in_network_dropout': 0.0}
    return {'super_dropout': SUPER_DROPOUT, 'in_network_dropout': 0.0}


def default_directory(data):
    """The folder of a data set's files if no --dataset is given; None if the data set has no such folder."""
    return None if data in ('digits', 'folder') else os.path.join('dataset', data.replace('cifar', 'cifar-'))
