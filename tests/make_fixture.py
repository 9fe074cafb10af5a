"""Makes tests/fixture anew: the files of runs of this version, which every later version must read.

    python tests/make_fixture.py

Each folder holds the files of a run, without its report and events. Finished runs also have `predicted.csv`,
what predict.py prints for image.png; their result.json names the version that made them. test_fixture.py
compares the results of today's code with these, so make a folder anew only when older runs need not be read
any more. A folder whose flags no longer exist cannot be made anew and stays as it is.
"""
import gzip
import os
import shutil
import signal
import sys
import tempfile
from unittest import mock

import numpy as np
from PIL import Image

TESTS = os.path.dirname(os.path.abspath(__file__))
FIXTURE = os.path.join(TESTS, 'fixture')
RUNS_FOLDER = '/tmp/sesemi'         # always the same, because a run records where its images are
CLASSES = 'ant', 'bee', 'cow'
STOPPED = 15                # HALVES stop after this step, in the third epoch of four
RECORD = 'args.json', 'labeled.csv', 'log.csv', 'result.json'

COMMON = ('--data=folder', '--dataset=images', '--image-size=16', '--batch-size=4', '--epochs=4',
          '--device=cpu', '--precision-mode=float32', '--quiet')
# CHANNEL's model has the batch-norm averages of training. NONE's best weights are those of its second epoch.
CHANNEL = '--whitening=channel', '--network=nin', '--labels=24', '--recompute-norm=False'
NONE = ('--whitening=none', '--network=nin', '--labels=all', '--validation=0.25', '--keep=best', '--lr=0.2',
        '--seed=21')
RUNS = {
    'channel': CHANNEL,
    'none': NONE,
    'zca': ('--whitening=zca', '--network=wrn', '--labels=24', '--method=ssl', '--fit=pad'),
}
HALVES = {'channel-half': CHANNEL, 'none-half': NONE}


def write_images(folder):
    """The images of all runs, labeled and unlabeled: blocks of random color with a slight tint by class."""
    rng = np.random.RandomState(0)

    def write(name, tint):
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        blocks = np.kron(rng.randint(0, 200, (4, 4, 3)), np.ones((4, 4, 1)))
        Image.fromarray((blocks + tint).astype(np.uint8)).save(path)
    tints = 25 * np.eye(3)
    for part, count in ('train', 12), ('test', 8):
        for label, tint in zip(CLASSES, tints):
            for i in range(count):
                write(os.path.join(part, label, '%02d.png' % i), tint)
    for i in range(6):
        write(os.path.join('unlabeled', '%02d.png' % i), tints[i % 3])


def residual_trunk(dropout=0.0, seed=0, batch_number=None):
    """A trunk with the kinds of layers and settings that the tiny trunk lacks."""
    from networks.layers import Layers, chain, residual
    make = Layers(slope=0.0, use_bias=False, seed=seed, batch_number=batch_number)
    return chain(
        make.conv_norm(4, 3, padding='valid'),
        residual(chain(make.conv_norm(6, 3), make.conv(6, 3)), shortcut=make.conv(6, 1)), make.pool(),
        residual(chain(make.norm(), make.conv(6, 3), make.dropout(dropout))), make.norm())


def rounded(fit):
    """`fit` with its 768 x 768 matrix rounded to 1/64, which gzip packs well."""
    def fit_rounded(parts):
        whitener = fit(parts)
        return whitener._replace(matrix=np.round(whitener.matrix * 64) / np.float32(64))
    return fit_rounded


def stopping(train):
    """A training.train that receives SIGTERM after step STOPPED - 1, so that it stops after step STOPPED."""
    from sesemi.training import training

    def stopped(train_step, batches, schedule, progress, stop, hooks):
        def due(step):
            if step == STOPPED - 1:
                stop.received[training.SIGNALS.index(signal.SIGTERM)] = 1
            return hooks.is_due(step)
        return train(train_step, batches, schedule, progress, stop, hooks._replace(is_due=due))
    return stopped


def train(name, flags, status=0):
    """Run the program with its result in the folder `name`; exit unless it ends with this status."""
    import tiny_trunk
    sys.argv = ['train_evaluate_sesemi.py', *COMMON, *flags, '--result', name]
    ended = tiny_trunk.main(sys.argv[1:])
    if ended != status:
        sys.exit('%s: ended with status %d, not %d' % (name, ended, status))


def copy_to_fixture(name):
    """Copy a run's records into the fixture, and its model or, if it has none, its checkpoints."""
    target = os.path.join(FIXTURE, name)
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target)
    for file in RECORD:
        if os.path.exists(os.path.join(name, file)):
            shutil.copy(os.path.join(name, file), target)
    if os.path.exists(os.path.join(name, 'sesemi.h5')):
        with open(os.path.join(name, 'sesemi.h5'), 'rb') as model:
            with open(os.path.join(target, 'sesemi.h5.gz'), 'wb') as packed:
                packed.write(gzip.compress(model.read(), 9))
        shutil.copy(os.path.join(name, 'predicted.csv'), target)
    else:
        shutil.copytree(os.path.join(name, 'checkpoints'), os.path.join(target, 'checkpoints'))


def main():
    sys.path.insert(0, os.path.dirname(TESTS))
    import predict
    from networks import sesemi
    from sesemi.data import batches
    from sesemi.training import training
    from utils import Whitener
    os.makedirs(FIXTURE, exist_ok=True)
    colors = np.random.RandomState(1).randint(0, 256, (4, 6, 3))
    image = np.kron(colors, np.ones((5, 5, 1))).astype(np.uint8)
    Image.fromarray(image).save(os.path.join(FIXTURE, 'image.png'))
    os.mkdir(RUNS_FOLDER)
    os.chdir(RUNS_FOLDER)
    write_images('images')
    shutil.copy(os.path.join(FIXTURE, 'image.png'), '.')
    whitenings = {name: (kind, rounded(fit))
                  for name, (kind, fit) in batches.WHITENINGS.items() if kind is Whitener}
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, SESEMI_CACHE=cache), \
            mock.patch.dict(sesemi.TRUNKS, wrn=residual_trunk), \
            mock.patch.dict(batches.WHITENINGS, whitenings):
        for name, flags in RUNS.items():
            train(name, flags)
            predict.main([name + '/sesemi.h5', 'image.png', '--device=cpu', '--csv', name + '/predicted.csv'])
            copy_to_fixture(name)
        with mock.patch.object(training, 'train', stopping(training.train)):
            for name, flags in HALVES.items():
                train(name, flags, status=128 + signal.SIGTERM)
                copy_to_fixture(name)
    shutil.rmtree(RUNS_FOLDER)


if __name__ == '__main__':
    main()
