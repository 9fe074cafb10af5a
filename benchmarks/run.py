"""Times each part of the program beside a baseline, the usual way of doing the same:

    python benchmarks/run.py [--dataset DIR] [--repeats N] [--json FILE]

Prints medians over the repeats, and the ratio of ours to the baseline. A row is marked if its ratio is a
quarter worse than the one in ratios.json for this major version of TensorFlow; --store replaces the ratios
there. The rows that read files need DIR, CIFAR-10 as image folders.
"""
import argparse
import contextlib
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(HERE), os.path.join(os.path.dirname(HERE), 'tests')]

import baseline  # noqa: E402
import startup  # noqa: E402
import tiny_trunk  # noqa: E402,F401

import utils  # noqa: E402
from networks import build_sesemi, sesemi  # noqa: E402
from sesemi.data.batches import NormalizedImages, TwoBranchBatches  # noqa: E402
from sesemi.data.batches import make_test_views as views_of
from sesemi.device import collective, precision, runtime  # noqa: E402
from sesemi.settings import MOMENTUM  # noqa: E402
from sesemi.system import machine, pools  # noqa: E402
from sesemi.system.files import write_json  # noqa: E402
from sesemi.training import training  # noqa: E402
from sesemi.training.evaluation import EVALUATION_BATCH, DenseEvaluator  # noqa: E402

RATIOS = os.path.join(HERE, 'ratios.json')
WORSE = 1.25
random = np.random.RandomState(0)


def median(function, repeats):
    """Median seconds of a call of `function`."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


@contextlib.contextmanager
def one_core(number=0):
    """Keep this process, and those it starts, on one core within the block."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def two_branches():
    """Random data for both branches: 1000 images, their one-hot labels, and the same images again."""
    images = random.standard_normal((1000, 32, 32, 3)).astype(np.float32)
    return images, np.eye(10, dtype=np.float32)[np.arange(1000) % 10], images


# Functions that measure the rows. They return (baseline, ours) or (baseline, ours, floor) in seconds or GB,
# with None for what does not exist, or {row: such a tuple}.

def batch_on_one_core(args):
    theirs, ours = baseline.batches(*two_branches()), TwoBranchBatches(*two_branches())
    steps = itertools.count()
    with one_core():
        return (median(lambda: [next(theirs) for _ in range(5)], args.repeats) / 5,
                median(lambda: [ours[next(steps)] for _ in range(20)], args.repeats) / 20)


def batch_in_two_threads(args):
    theirs, ours = baseline.batches(*two_branches()), TwoBranchBatches(*two_branches())
    return (median(lambda: [next(theirs) for _ in range(5)], args.repeats) / 5,
            median(lambda: [None for _ in pools.prefetch(ours.__getitem__, range(100))], args.repeats) / 100)


def normalise_and_fit(args):
    images = random.randint(0, 256, (args.images, 32, 32, 3)).astype(np.uint8)
    flat = images.reshape(len(images), -1)
    return (median(lambda: baseline.zca(baseline.global_contrast_normalize(flat)), 1),
            median(lambda: utils.zca_whitener(map(utils.global_contrast_normalize, utils.chunks(images))),
                   args.repeats))


def whiten(args):
    images = random.randint(0, 256, (args.images * 6 // 5, 32, 32, 3)).astype(np.uint8)
    whitener = utils.Whitener(np.zeros(3072, np.float32),
                              random.standard_normal((3072, 3072)).astype(np.float32))
    flat, matrix = images.reshape(len(images), -1), whitener.matrix.astype(np.float64)

    def theirs():
        for part in utils.chunks(flat):
            baseline.global_contrast_normalize(part) @ matrix
    return median(theirs, 1), median(lambda: np.asarray(NormalizedImages(images, whitener)), args.repeats)


def test_views(args):
    images = random.standard_normal((args.images // 5, 32, 32, 3)).astype(np.float32)

    def ours():
        chunks = range(0, len(images), EVALUATION_BATCH)
        for _ in pools.prefetch(lambda i: list(views_of(images[i:i + EVALUATION_BATCH], i, 0)), chunks):
            pass
    return median(lambda: baseline.test_views(images), 1), median(ours, args.repeats)


def step_with_a_tiny_trunk(args):
    """Everything in a step but the network. The floor is ours with batches that are made already."""
    ours = TwoBranchBatches(*two_branches())
    theirs, made = baseline.batches(*two_branches()), ours[0]
    upcoming = pools.prefetch(ours.__getitem__, itertools.count())
    with runtime.open_session('cpu'):
        model, _ = build_sesemi('tiny', (32, 32, 3), 10)
        train_step = training.training_function(model, runtime.optimizer('cpu', 0.05, MOMENTUM))
        train_step(*made)

        def step(source):
            return median(lambda: [train_step(*next(source)) for _ in range(20)], args.repeats) / 20
        found = step(theirs), step(upcoming), step(itertools.repeat(made))
    upcoming.close()
    return found


def host_share(args):
    """The host's part of a step on one core, without making its batch.

    The trunk only pools, so the device has almost nothing to do.
    """
    batch, steps, stop = TwoBranchBatches(*two_branches())[0], 100, training.StopSignals()

    class Made:
        def __getitem__(self, t):
            return batch

    def ignore(*_):
        pass
    sesemi.TRUNKS['pool'] = lambda dropout, seed, batch_number: runtime.keras.layers.MaxPooling2D(
        2, 16, name='pool')
    with one_core(), runtime.open_session('cpu'):
        model, _ = build_sesemi('pool', (32, 32, 3), 10)
        train_step = training.training_function(
            model, runtime.optimizer('cpu', 0.05, MOMENTUM), schedule=training.Schedule(0.05, 10 ** 6, 1))
        train_step(*batch)

        def train(step):
            with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
                training.train(step, Made(), training.Schedule(0.05, steps, 1), training.Progress(), stop,
                               training.Hooks(lambda step: False, ignore, ignore))
        metrics = train_step(*batch)
        run = median(lambda: [train_step(*batch) for _ in range(steps)], args.repeats) / steps
        loop = median(lambda: train(lambda *_: dict(metrics)), args.repeats) / steps
        total = median(lambda: train(train_step), args.repeats) / steps
    return {'host share of a step, all but the batch': (None, total),
            'host share, feeding and session.run': (None, run),
            'host share, loop and progress line': (None, loop)}


def measure_step(network, precision_mode, repeats):
    """Median seconds of a step of 192 images."""
    batches = TwoBranchBatches(*two_branches())
    with runtime.open_session('cpu', runtime.Options(precision_mode)):
        model, _ = build_sesemi(network, (32, 32, 3), 10)
        train_step = training.training_function(model, runtime.optimizer('cpu', 0.05, MOMENTUM))
        train_step(*batches[0])
        return median(lambda: train_step(*batches[1]), repeats)


def network_step(network):
    """The function that measures a network's step, in float32 and, with that as its baseline, in bfloat16.

    bfloat16 is left out where this machine does not have it.
    """
    def row(args):
        plain = measure_step(network, 'float32', args.repeats)
        rows = {'step, %s' % network: (None, plain)}
        if not precision.missing_for_bfloat16(runtime.tf.__version__):
            rows['step, %s, bfloat16' % network] = plain, measure_step(network, 'mixed', args.repeats)
        return rows
    return row


def evaluation(args):
    """Evaluation of nin, making the views included, with the forward passes alone as its baseline."""
    images = random.standard_normal((1000, 32, 32, 3)).astype(np.float32)
    with runtime.open_session('cpu'):
        _, model = build_sesemi('nin', (32, 32, 3), 10)
        evaluate = DenseEvaluator(model, images, lambda part, first: views_of(part, first, 0),
                                  training.StopSignals(), collective.Ranks())
        part = images[:EVALUATION_BATCH]
        model.predict_on_batch(part)
        return median(lambda: [model.predict_on_batch(part) for _ in range(8 * 4)], 1), median(evaluate, 1)


DECODE = 'import sys, utils; utils.load_image_folder(sys.argv[1])'


def decode(args):
    """Decoding of JPEG files. Ours runs in a new process, as a run decodes before it imports TensorFlow."""
    folder = os.path.join(args.dataset, 'train')
    return (median(lambda: [utils.decode_image(path) for path in utils.list_image_folder(folder)[0]], 1),
            median(lambda: subprocess.run([sys.executable, '-c', DECODE, folder],
                                          cwd=startup.PROJECT, check=True), args.repeats))


def start_ups(args):
    """Start-up of asl and ssl on CIFAR-10, with an empty cache (cold) and a filled one (warm)."""
    flags, rows = ['--dataset', args.dataset, '--network', 'nin'], {}
    for method in 'asl', 'ssl':
        with tempfile.TemporaryDirectory() as cache:
            for state in 'cold', 'warm':
                found = startup.measure([*flags, '--method', method], cache)
                rows['start-up, %s, %s' % (method, state)] = None, found['seconds']
                rows['peak memory (GB) until then, %s, %s' % (method, state)] = None, found['gb']
    return rows


ROWS = {'batch, one core': batch_on_one_core, 'batch, two threads': batch_in_two_threads,
        'normalise and fit the whitening': normalise_and_fit, 'whiten': whiten,
        '8 views of the test images': test_views, 'step, tiny trunk': step_with_a_tiny_trunk,
        'host share of a step': host_share, 'evaluation, nin, 1000 images': evaluation,
        'step, nin': network_step('nin'), 'step, wrn': network_step('wrn'),
        'step, convnet': network_step('convnet')}


def main():
    """Measure the rows that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0] + '.')
    parser.add_argument('--dataset', metavar='DIR', help='CIFAR-10 as image folders')
    parser.add_argument('--images', type=int, default=50000, metavar='N',
                        help='training images in the whitening rows')
    parser.add_argument('--repeats', type=int, default=5, metavar='N')
    parser.add_argument('--rows', default='', metavar='TEXT', help='only rows whose name contains this')
    parser.add_argument('--json', metavar='FILE', help='write the figures to this file')
    parser.add_argument('--store', action='store_true', help='write the ratios to ratios.json')
    args = parser.parse_args()
    rows = dict(ROWS, **{'decode 50,000 JPEG files': decode, 'start-up': start_ups} if args.dataset else {})
    found, version = {}, runtime.tf.__version__.split('.')[0]
    with open(RATIOS) as file:
        ratios = json.load(file)
    stored = ratios.setdefault(version, {})
    print('%s, %d cores, TensorFlow %s, numpy %s'
          % (platform.machine(), machine.count_cores(), runtime.tf.__version__, np.__version__))
    print('%-45s %12s %12s %12s %8s' % ('seconds', 'baseline', 'ours', 'floor', 'ratio'))
    for name, row in rows.items():
        if args.rows in name:
            result = row(args)
            for name, figures in (result if isinstance(result, dict) else {name: result}).items():
                found[name] = figures
                ratio = figures[1] / figures[0] if figures[0] else None
                worse = ratio and ratio > WORSE * stored.get(name, ratio)
                print('%-45s %12s %12s %12s %8s%s'
                      % (name, *['%.4f' % figure if figure else '-' for figure in (*figures, None)[:3]],
                         '%.3f' % ratio if ratio else '-', '  worse than stored' if worse else ''))
    if args.json:
        write_json(args.json, {name: list(figures) for name, figures in found.items()})
    if args.store:
        stored.update({name: figures[1] / figures[0] for name, figures in found.items() if figures[0]})
        write_json(RATIOS, ratios)


if __name__ == '__main__':
    main()
