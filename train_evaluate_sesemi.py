"""Train and evaluate SESEMI: image classification from few labels, regularised by predicting rotations and flips.

Tran 2019, "Exploring Self-Supervised Regularization for Supervised and Semi-Supervised Learning", arXiv 1906.10343.
Ends with `classification error rate: 0.xxxx` on standard output. Exit status 2: wrong input; 3: training diverged;
130 and 143: stopped by Ctrl-C and SIGTERM after saving a checkpoint, from which --resume goes on.
"""
import argparse
import sys
from typing import NamedTuple, Optional

import numpy as np

import record
from datasets import PRESETS, load_dataset
from utils import (InputError, RunError, TwoBranchBatches, Whitener, chunks, fit_whitener, global_contrast_normalize,
                   stratified_sample)

NETWORKS = ('convnet', 'nin', 'wrn')
METHODS = ('asl', 'ssl', 'supervised')


def train_and_evaluate(args):
    """One run, from the files to the error rate, which it returns; leaves the model and its record in args.result.

    args: what parse_args returns. Raises InputError, training.Diverged and training.Interrupted.
    """
    clock = record.Clock()
    run = record.Run(args.result, resume=args.resume)
    dataset = load_dataset(args.data, args.dataset, args.image_size, with_unlabeled=args.method == 'ssl')
    labeled = run.read_split() if run.resuming else choose_labeled(dataset, args.labels, args.split_seed)
    steps_per_epoch, args.epochs = count_steps(args, dataset, len(labeled))
    clock.lap('reading')

    import classifier           # these import TensorFlow: only now, when all that can be checked without it has been
    import networks
    import runtime
    import training
    from checkpoints import Checkpoints
    device, why = runtime.choose_device(args.device)
    run.start(vars(args), dataset, labeled)
    print('%s, %s, %s: %d of %d training images labeled, %d test images, %d classes; %d epochs of %d steps; %s (%s).' % (
        args.data, args.network, args.method, len(labeled), len(dataset.train_images), len(dataset.test_images),
        len(dataset.class_names), args.epochs, steps_per_epoch, device, why))

    images = prepare_images(dataset, labeled, args.method, PRESETS[args.data].whiten)
    labels_one_hot = np.eye(len(dataset.class_names), dtype=np.float32)[dataset.train_labels[labeled]]
    batches = TwoBranchBatches(images.labeled, labels_one_hot, images.unlabeled, args.batch_size, args.flip, args.seed,
                               oversample=not args.no_oversample)
    clock.lap('preparing')

    with runtime.open_session(device), training.StopSignals() as stop:
        build = networks.build_supervised if args.method == 'supervised' else networks.build_sesemi
        model, inference_model = build(args.network, images.test.shape[1:], len(dataset.class_names),
                                       **dropout_rates(args.data, args.network, args.method), seed=args.seed)
        training.compile_model(model, runtime.optimizer(device, args.lr, training.MOMENTUM))
        evaluate = training.DenseEvaluator(inference_model, images.test, args.seed, args.flip, stop)
        checkpoints = Checkpoints(run.path('checkpoints'), model, steps_per_epoch, args.checkpoint_minutes)

        def after_epoch(rows):
            if args.eval_every and rows[-1]['epoch'] % args.eval_every == 0:
                rows[-1]['error'] = record.error_rate(evaluate()[0], dataset.test_labels)
            run.log(rows)

        progress = training.train(model, batches, steps_per_epoch, args.epochs, args.lr, checkpoints.restore(),
                                  checkpoints.after_step, after_epoch, stop)
        checkpoints.save(progress)
        clock.lap('training')
        dense, plain = evaluate()
        clock.lap('evaluating')
        model = classifier.build_classifier(args.network, inference_model, images.whitener)
        classifier.save_classifier(run.path('sesemi.h5'), model, dataset.class_names)
    error = run.finish(dataset, dense, plain, progress.rows, batches, clock)
    print('classification error rate: %.4f' % error)
    return error


def choose_labeled(dataset, labels, split_seed):
    """The indices of the labeled training images: `labels` // classes of each class, or 'all' of them.

    Raises InputError when there are not as many, or fewer than one a class.
    """
    images, classes = len(dataset.train_labels), len(dataset.class_names)
    if labels in ('all', images):
        return np.arange(images)
    if labels > images:
        raise InputError('--labels %d: there are only %d training images; lower it or say --labels all.' % (labels, images))
    if labels < classes:
        raise InputError('--labels %d: %d classes need at least one label each; raise it.' % (labels, classes))
    if labels % classes:
        print('--labels %d is no multiple of %d classes: %d labels of each class are used.' % (labels, classes, labels // classes))
    return stratified_sample(dataset.train_labels, labels // classes, split_seed, dataset.class_names)


def count_steps(args, dataset, labeled):
    """(steps an epoch, epochs). An epoch is a pass of the self branch: over the labeled images, or in ssl over all of them."""
    preset, images = PRESETS[args.data], labeled
    if args.method == 'ssl':
        images = len(dataset.train_images) + (0 if dataset.unlabeled_images is None else len(dataset.unlabeled_images))
    steps = max(1, images // args.batch_size)
    default = preset.ssl_epochs if args.method == 'ssl' else preset.epochs
    if preset.steps:
        default = max(1, round(preset.steps / steps))
    return steps, args.epochs or default


def dropout_rates(data, network, method):
    """The published dropout rates (METHOD): more of it on SVHN."""
    if data == 'svhn' and network == 'convnet':
        return {'super_dropout': 0.5, 'in_network_dropout': 0.5}
    if data == 'svhn' and network == 'wrn' and method == 'ssl':
        return {'super_dropout': 0.5, 'in_network_dropout': 0.0}
    return {'super_dropout': 0.2, 'in_network_dropout': 0.0}


class Images(NamedTuple):
    """Normalised images, float32 (n, s, s, 3), by what they are for."""
    labeled: np.ndarray
    unlabeled: Optional[np.ndarray]     # what the self branch draws from; None without a self branch
    test: np.ndarray
    whitener: Optional[Whitener]


def prepare_images(dataset, labeled, method, whiten):
    """Contrast normalise, and whiten by the statistics of all training images, what the method needs."""
    pools = [dataset.train_images]
    if dataset.unlabeled_images is not None:
        pools.append(dataset.unlabeled_images)
    whitener = None
    if whiten:
        whitener = fit_whitener(global_contrast_normalize(part) for pool in pools for part in chunks(pool))

    def prepare(*pools):
        prepared = np.empty((sum(map(len, pools)), *pools[0].shape[1:]), np.float32)
        done = 0
        for part in (part for pool in pools for part in chunks(pool)):
            part = global_contrast_normalize(part)
            prepared[done:done + len(part)] = whitener(part) if whitener else part
            done += len(part)
        return prepared

    if method == 'ssl':
        unlabeled = prepare(*pools)
        return Images(unlabeled[labeled], unlabeled, prepare(dataset.test_images), whitener)
    labeled_images = prepare(dataset.train_images[labeled])
    return Images(labeled_images, labeled_images if method == 'asl' else None, prepare(dataset.test_images), whitener)


# Flags --------------------------------------------------------------------------------------------------------------

# What defines a run: resuming with another value of one of these would be another run.
DEFAULTS = {
    'data': 'cifar10', 'network': 'convnet', 'labels': 1000, 'method': 'asl', 'epochs': None, 'batch_size': None, 'lr': 0.05,
    'no_oversample': False, 'no_flip': False, 'image_size': 32, 'seed': 0, 'split_seed': 1,
}
OTHER_DEFAULTS = {'dataset': None, 'result': 'result', 'resume': None, 'eval_every': None, 'checkpoint_minutes': 10.0,
                  'device': 'auto'}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError('%s; --help lists the flags.' % message)


def parse_args(argv):
    """The flags as a Namespace, each given or set to its default, or when resuming to the value the run was started with."""
    parser = Parser(prog='train_evaluate_sesemi.py', description=__doc__.split('\n')[0], allow_abbrev=False)
    group = parser.add_argument_group('data')
    group.add_argument('--data', choices=list(PRESETS), help='data set, which also chooses its preset (default: cifar10)')
    group.add_argument('--dataset', metavar='DIR', help='folder of the files: train/CLASS/* and test/CLASS/*, or CLASS/*, or '
                       'the official CIFAR batches or archive, or the SVHN .mat files (default: dataset/cifar-10, ...)')
    group.add_argument('--labels', type=_labels, metavar='N|all', help='labeled images in all (default: 1000)')
    group.add_argument('--split-seed', type=_whole(0), metavar='N', help='which images are labeled (default: 1, the published split)')
    group.add_argument('--image-size', type=_whole(1), metavar='N', help=argparse.SUPPRESS)
    group.add_argument('--no-flip', action='store_const', const=True, help='images have a left and a right (text, digits)')

    group = parser.add_argument_group('method')
    group.add_argument('--network', choices=NETWORKS, help='(default: convnet)')
    group.add_argument('--method', choices=METHODS, help='self-supervision on the labeled images, on all training images, or '
                       'none (default: asl)')
    group.add_argument('--epochs', type=_whole(1), metavar='N', help='(default: 300; ssl: 50, on svhn 30; digits: about 400 steps)')
    group.add_argument('--batch-size', type=_whole(1), metavar='N', help='self-supervised images a step, each in six views, beside '
                       'six times as many labeled ones (default: 16; digits: 4)')
    group.add_argument('--lr', type=_positive, metavar='X', help='learning rate of the first step (default: 0.05)')
    group.add_argument('--no-oversample', action='store_const', const=True, help='as many labeled images a step as '
                       'self-supervised ones, not six times as many')
    group.add_argument('--seed', type=_whole(0), metavar='N', help='initial weights, batches, dropout (default: 0)')

    group = parser.add_argument_group('run')
    group.add_argument('--result', metavar='DIR', help='folder for the model and the record of the run (default: result)')
    group.add_argument('--resume', nargs='?', const='yes', choices=['yes', 'auto'], help='go on with the run in --result; '
                       'auto: or start it')
    group.add_argument('--eval-every', type=_whole(0), metavar='N', help='also evaluate every N epochs (default: ssl 1, else 0: '
                       'at the end only)')
    group.add_argument('--checkpoint-minutes', type=_positive, metavar='X', help='longest time between checkpoints (default: 10)')
    group.add_argument('--device', choices=['auto', 'cpu', 'gpu', 'npu'], help='(default: auto)')

    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    args = {**DEFAULTS, **OTHER_DEFAULTS, **given}
    stored = stored_flags(args)
    for name in DEFAULTS if stored else ():
        if given.get(name, stored[name]) != stored[name]:
            raise InputError('--resume: the run in %s was started with --%s %s, not %s; leave the flag out or give another --result.'
                             % (args['result'], name.replace('_', '-'), stored[name], given[name]))
        args[name] = stored[name]
    preset = PRESETS[args['data']]
    args['batch_size'] = args['batch_size'] or preset.batch_size
    args['flip'] = preset.flip and not args['no_flip']
    if args['eval_every'] is None:
        args['eval_every'] = 1 if args['method'] == 'ssl' else 0
    return argparse.Namespace(**args)


def stored_flags(args):
    """The flags that the run to be resumed was started with; None when there is none to resume."""
    stored = record.stored_record(args['result']) if args['resume'] else None
    if args['resume'] == 'yes' and not stored:
        raise InputError('--resume: %s holds no run to go on with; leave the flag out to start one.' % args['result'])
    return stored and stored['flags']


def _whole(least):
    def parse(text):
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError('%s is not a whole number from %d up' % (text, least))
        return int(text)
    return parse


def _labels(text):
    return text if text == 'all' else _whole(1)(text)


def _positive(text):
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError('%s is not a number above 0' % text)
    return value


def main(argv):
    """Run the program; returns its exit status."""
    try:
        args = parse_args(argv)
        train_and_evaluate(args)
        return 0
    except RunError as error:
        print(error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
