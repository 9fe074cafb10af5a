"""Compares the kinds of whitening by the error after a short training, on data sets of several sizes:

    python benchmarks/whitening.py --dataset DIR [--rows TEXT] [--seeds N] [--steps N] [--json FILE]

It trains nin at 16 pixels, with all training images labeled. DIR is CIFAR-10 as image folders. The rule of
`--whitening auto` (settings.IMAGES_PER_WHITENED_VALUE) was chosen on the rows in CHOOSING and then only tried
on those in JUDGING. Prints a Markdown table of mean errors in percent; lower is better. Each run is written
to FILE when it ends; runs that are already there are not repeated.
"""
import argparse
import json
import os
import sys

import numpy as np
from PIL import Image, ImageDraw

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, PROJECT)

from networks import build_sesemi  # noqa: E402
from sesemi.data import cache  # noqa: E402
from sesemi.data.batches import (  # noqa: E402
    WHITENINGS,
    TwoBranchBatches,
    choose_whitening,
    make_test_views,
    prepare_images,
)
from sesemi.data.datasets import Dataset, load_dataset  # noqa: E402
from sesemi.device import runtime  # noqa: E402
from sesemi.device.collective import Ranks  # noqa: E402
from sesemi.settings import LEARNING_RATE, MOMENTUM  # noqa: E402
from sesemi.system.files import write_json  # noqa: E402
from sesemi.training import evaluation, training  # noqa: E402
from sesemi.training.metrics import error_rate  # noqa: E402
from utils import stratified_sample  # noqa: E402

SIZE, BATCH, TESTED = 16, 4, 500        # pixels a side; images of the self branch a step; most test images


def own_images(images, labels, training_images, seed=0):
    """A Dataset of so many training images, equally many of each class, and at most TESTED test images."""
    order = np.random.RandomState(seed).permutation(len(images))
    classes = int(labels.max()) + 1
    chosen = order[stratified_sample(labels[order], training_images // classes)]
    others = np.setdiff1d(order, chosen)
    others = others[np.random.RandomState(seed).permutation(len(others))[:TESTED]]
    return Dataset(images[chosen], labels[chosen], [], images[others], labels[others], [],
                   list(map(str, range(classes))), images[chosen])


def textures(count):
    """(images, labels) of five classes: noise, filtered in five ways."""
    from scipy import ndimage
    rng, images, labels = np.random.RandomState(0), [], np.arange(count) % 5
    for label in labels:
        sigmas = [(2, .5, 0), (.5, 2, 0), (1, 1, 0), (.4, .4, 1), (2, 2, .5)][label]
        smooth = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE, 3)), sigmas)
        images.append(np.clip(rng.uniform(80, 170) + rng.uniform(20, 60) * smooth / smooth.std(), 0, 255))
    return np.array(images, np.uint8), labels


def shapes(count):
    """(images, labels) of five classes: shapes of random color, place, size and angle, on a random ground."""
    rng, images, labels = np.random.RandomState(0), [], np.arange(count) % 5
    corners = [36, 3, 4, 10, 12]        # a disc, a triangle, a square, a star of five points, one of six
    for label in labels:
        scale = 8
        ground, color = rng.randint(0, 256, (2, 3))
        ground = np.clip(rng.normal(ground, 15, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
        image = Image.fromarray(ground).resize((scale * SIZE,) * 2)
        radius, turn = scale * rng.uniform(4, 7), rng.uniform(0, 2 * np.pi)
        x, y = scale * rng.uniform(6, SIZE - 6, 2)
        angles = turn + 2 * np.pi * np.arange(corners[label]) / corners[label]
        radii = radius * np.where(np.arange(corners[label]) % 2 * (corners[label] in (10, 12)), .45, 1)
        ImageDraw.Draw(image).polygon([(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(radii, angles)],
                                      tuple(color.tolist()))
        images.append(np.asarray(image.resize((SIZE, SIZE), Image.BILINEAR)))
    return np.array(images), labels


def cifar10(count):
    """The function that makes a Dataset of `count` training images of CIFAR-10."""
    def row(args):
        full = load_dataset('cifar10', args.dataset, SIZE, 'stretch', False,
                            cache.Cache(cache.default_folder()).decode_images)
        dataset = own_images(np.asarray(full.train_images), full.train_labels, count)
        return dataset._replace(test_images=np.asarray(full.test_images[:TESTED * 20])[::20],
                                test_labels=full.test_labels[:TESTED * 20:20])
    return row


def digits(args):
    """scikit-learn's digits, with at most TESTED of their test images."""
    full = load_dataset('digits', image_size=SIZE)
    return full._replace(test_images=full.test_images[:TESTED], test_labels=full.test_labels[:TESTED])


# {name: (function that makes the Dataset, whether a mirrored image is of the same class)}
CHOOSING = {'textures, 300': (lambda args: own_images(*textures(800), 300), False),
            'CIFAR-10, 300': (cifar10(300), True), 'CIFAR-10, 3,000': (cifar10(3000), True),
            'digits, 1,442': (digits, False)}
JUDGING = {'CIFAR-10, 1,000': (cifar10(1000), True),
           'shapes, 300': (lambda args: own_images(*shapes(800), 300), True)}


def measure_error(dataset, whitening, flip, seed, steps):
    """Train for so many steps; returns the error on the test images, with the mean over their views."""
    labeled = np.arange(len(dataset.train_labels))
    images = prepare_images(dataset, '', labeled, 'asl', whitening, cache.Cache(None))
    one_hot = np.eye(len(dataset.class_names), dtype=np.float32)[dataset.train_labels]
    batches = TwoBranchBatches(images.labeled, one_hot, images.unlabeled, BATCH, flip, seed)
    with runtime.open_session('cpu'):
        model, inference_model = build_sesemi('nin', (SIZE, SIZE, 3), len(dataset.class_names), seed=seed,
                                                      batch_number=runtime.batch_number())
        optimizer = runtime.optimizer('cpu', LEARNING_RATE, MOMENTUM)
        train_step = training.training_function(model, optimizer,
                                                schedule=training.Schedule(LEARNING_RATE, steps, 1))
        runtime.keras.backend.get_session().run(runtime.tf.global_variables_initializer())
        for t in range(steps):
            train_step(*batches[t])
        with evaluation.NormStatistics(model, batches, steps, Ranks()).use_measured():
            evaluate = evaluation.DenseEvaluator(
                inference_model, images.test, lambda part, first: make_test_views(part, first, seed, flip),
                training.StopSignals(), Ranks())
            return error_rate(evaluate()[0], dataset.test_labels)


def table(found, seeds):
    """A Markdown table of mean errors. A row's lowest is bold; an arrow marks the choice of `auto`."""
    lines = ['| data set | %s |' % ' | '.join(WHITENINGS), '|---|%s' % ('---|' * len(WHITENINGS))]
    for name, row in found.items():
        means = {kind: 100 * np.mean([row['errors'][kind][str(seed)] for seed in range(seeds)])
                 for kind in WHITENINGS}
        chosen, _ = choose_whitening('auto', row['images'], SIZE)
        cells = [('**%.1f**' if mean == min(means.values()) else '%.1f') % mean
                 + (' ←' if kind == chosen else '') for kind, mean in means.items()]
        lines.append('| %s%s | %s |' % (name, ' (judging)' if name in JUDGING else '', ' | '.join(cells)))
    return '\n'.join(lines)


def main():
    """Measure the rows that are asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0] + '.')
    parser.add_argument('--dataset', metavar='DIR', help='CIFAR-10 as image folders')
    parser.add_argument('--rows', default='', metavar='TEXT', help='only rows whose name contains this')
    parser.add_argument('--seeds', type=int, default=3, metavar='N')
    parser.add_argument('--steps', type=int, default=200, metavar='N')
    parser.add_argument('--json', metavar='FILE', help='write every run to this file')
    args = parser.parse_args()
    found = {}
    if args.json and os.path.exists(args.json):
        with open(args.json) as file:
            found = json.load(file)
    rows = {name: row for name, row in {**CHOOSING, **JUDGING}.items() if args.rows in name}
    datasets = {name: make(args) for name, (make, _) in rows.items()}
    for name, dataset in datasets.items():
        found.setdefault(name, {'images': len(dataset.train_images), 'steps': args.steps,
                                'errors': {kind: {} for kind in WHITENINGS}})
    for seed in map(str, range(args.seeds)):
        for name, (_, flip) in rows.items():
            for kind, errors in found[name]['errors'].items():
                if seed not in errors:
                    errors[seed] = measure_error(datasets[name], kind, flip, int(seed), args.steps)
                    print('%s, %s, seed %s: %.1f %%' % (name, kind, seed, 100 * errors[seed]),
                          file=sys.stderr)
                    if args.json:
                        write_json(args.json, found)
    print(table({name: found[name] for name in rows}, args.seeds))


if __name__ == '__main__':
    main()
