"""Train and evaluate SESEMI: image classification from few labels with a self-supervised second task.

Tran 2019, "Exploring Self-Supervised Regularization for Supervised and Semi-Supervised Learning", arXiv
1906.10343. The last line of standard output is `classification error rate: 0.xxxx`; with --runs it has the
mean and the standard deviation. Exit status 1: a rank or a process was lost; 2: wrong input; 3: training
diverged; 130, 143, 129, 138 and 152: stopped by Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGXCPU. When a signal
stops the training, it saves a checkpoint first, and --resume continues from there.
"""
import argparse
import contextlib
import os
import sys
from typing import NamedTuple

if __name__ == '__main__':
    from sesemi.system import command_line, output, signals
    command_line.keep_docstrings()
    command_line.report_import_errors()
    output.tolerate_write_errors()
    signals.watch()     # before the slow imports, so that a signal during them is handled too

import numpy as np

from sesemi import flags
from sesemi.data.batches import TwoBranchBatches, choose_whitening, prepare_images
from sesemi.data.cache import Cache, default_folder
from sesemi.data.checksum import data_checksum
from sesemi.data.datasets import Dataset, load_dataset
from sesemi.data.leaks import find_leaks
from sesemi.data.split import choose_labeled, split_validation
from sesemi.device import precision
from sesemi.device.npu import tensorflow_version
from sesemi.device.ranks import RankInfo, find_gpus, find_rank
from sesemi.errors import InputError
from sesemi.record import comparison
from sesemi.record.identity import PROJECT, run_identity
from sesemi.record.run_folder import Clock, flags_to_resume, open_run
from sesemi.settings import MOMENTUM, PRESETS, default_directory, dropout_rates
from sesemi.system import signals
from sesemi.system.command_line import report_run_errors
from sesemi.training.initial_model import InitialModel, take_settings


def parse_args(argv):
    """Parse the flags into a Namespace that has every flag, and `flip`, with --init also `init_file`.

    A flag that is not given has the value recorded by the run to resume, if there is one, else its default.
    Raises InputError naming the flag.
    """
    given = flags.parse_given(argv)
    recorded = flags_to_resume(given.get('result', flags.DEFAULTS['result'])) if given.get('resume') else {}
    args = flags.resolve(given, recorded)
    take_settings(args, given, recorded)
    try:
        precision.check(precision.known_device(args['device']), args['precision_mode'], tensorflow_version())
    except InputError:
        if 'precision_mode' in given or 'device' not in given:
            raise
        args['precision_mode'] = None       # it was recorded on another device
    return argparse.Namespace(**args)


class Plan(NamedTuple):
    """The settings of a run, after those that depend on the data are known."""
    args: argparse.Namespace    # every flag with its value
    steps_per_epoch: int
    whitening_reason: str       # why this whitening was chosen; '' if --whitening names it


class Data(NamedTuple):
    """The data of a run, before and after --validation takes out images."""
    dataset: Dataset        # as read
    checksum: str           # of all images and labels of `dataset`
    chosen: np.ndarray      # int64 (--labels,): indices of the labeled training images of `dataset`
    trained: Dataset        # `dataset` with the images that --validation takes out as validation images
    labeled: np.ndarray     # int64 (n,): indices of the labeled training images of `trained`

    @property
    def validation_names(self):
        """The names of the labeled images that --validation takes out; empty without --validation."""
        return () if self.trained is self.dataset else self.trained.valid_names


def train_and_evaluate(args, info=RankInfo()):
    """Train and evaluate one run, write the model and the record to args.result and return the error rate.

    args: the Namespace of parse_args, not changed; info: the rank of this process. All ranks compute the
    same; only rank 0 reads and writes the folder of the run. Raises InputError, training.Diverged and
    training.Interrupted.
    """
    clock = Clock()
    with contextlib.nullcontext() if info.rank else open_run(args.result, vars(args)) as run:
        # 1. Read
        cache = Cache(None if args.no_cache else default_folder(), args.memory_limit, info.local_size,
                      args.join_timeout)
        dataset, checksum = read_dataset(args, cache)

        # 2. Choose the labels
        if run and run.resuming:
            chosen = run.read_split(dataset, checksum)
        else:
            chosen = choose_labeled(dataset, args.labels, args.split_seed)
        data = Data(dataset, checksum, chosen, *split_validation(dataset, chosen, args.validation))
        plan = make_plan(args, data, info)
        clock.lap('reading')
        if run and run.error_rate is not None and info.world_size == 1:
            print('%s holds the finished run.' % args.result)
            return run.error_rate
        return train_on(data, plan, info, run, cache, clock)


def train_on(data, plan, info, run, cache, clock):
    """Do steps 3 to 7 of a run and return the error rate.

    data: a Data; plan: a Plan; run: the run_folder.Run on rank 0, None on other ranks; cache: a Cache; clock:
    a Clock.
    """
    import networks  # imported late: these load TensorFlow, and wrong input is reported before that
    from sesemi.device import collective, devices, runtime
    from sesemi.record.observer import Observer
    from sesemi.training import training
    from sesemi.training.checkpoints import Checkpoints
    from sesemi.training.classifier import Classifier
    from sesemi.training.evaluation import Evaluation, evaluation_statistics, make_evaluators
    args = plan.args
    device, options, device_reason = devices.choose_for_run(args, info)
    print(describe_run(data, plan, device, device_reason))

    # 3. Normalise and whiten
    checksum = data.checksum if data.trained is data.dataset else data_checksum(data.trained)
    initial = args.init and InitialModel(args.init_file, args.init)
    images = prepare_images(data.trained, checksum, data.labeled, args.method,
                            initial.whitener() if initial else args.whitening, cache)

    # 4. Batches: augmented labeled images beside augmented images in six proxy views
    labels = np.eye(len(data.trained.class_names), dtype=np.float32)[data.trained.train_labels[data.labeled]]
    batches = TwoBranchBatches(images.labeled, labels, images.unlabeled, args.batch_size, args.flip,
                               args.seed,
                               info.rank, info.world_size, oversample=not args.no_oversample)
    clock.lap('preparing')

    ranks = collective.Ranks(info, device, args.join_timeout, args.peer_timeout)
    with runtime.open_session(device, options, ranks):
        ranks.join()
        ranks.check_equal({**run_identity(args, data.checksum, data.chosen), 'the device': device})
        if ranks.broadcast(b'finished' if run and run.error_rate is not None else b''):
            print('%s holds the finished run.' % args.result)
            return run and run.error_rate
        with training.StopSignals(ranks.sum) as stop:
            # 5. A trunk and two heads
            build = networks.build_supervised if args.method == 'supervised' else networks.build_sesemi
            model, inference_model = build(args.network, images.test.shape[1:], labels.shape[1],
                                           **dropout_rates(args.data, args.network, args.method),
                                           seed=args.seed,
                                           batch_number=ranks.batch_number())
            classifier = Classifier(inference_model, images.whitener, data.trained.class_names, args.fit,
                                    args.whitening)

            # 6. Train
            schedule = training.Schedule(args.lr * (args.ranks if args.scale_lr else 1), plan.steps_per_epoch,
                                         args.epochs)
            optimizer = runtime.optimizer(device, schedule.base_rate, MOMENTUM, options, ranks)
            class_weights = training.balanced_weights(labels) if args.class_weights else None
            train_step = training.training_function(model, optimizer, class_weights, ranks, schedule)
            checkpoints = Checkpoints(os.path.join(args.result, 'checkpoints'), model, optimizer,
                                      plan.steps_per_epoch, args.checkpoint_minutes, ranks)
            if initial:
                print(initial.set_weights(inference_model, data.trained.class_names))
            progress = checkpoints.restore()
            statistics = evaluation_statistics(model, batches, schedule.steps, ranks, args.recompute_norm)
            evaluators = make_evaluators(inference_model, images, args, stop, ranks)
            evaluation = Evaluation(evaluators, data.trained, data.labeled, statistics, checkpoints, args)
            observer = run and Observer(run, plan, device, data, batches, progress)
            callbacks = runtime.profiler_callbacks(device, options, model, schedule.steps)
            hooks = make_hooks(evaluation, checkpoints, observer, callbacks, not args.quiet)
            progress = training.train(train_step, batches, schedule, progress, stop, hooks)
            hooks.save(progress)
            clock.lap('training')

            # 7. Evaluate: the mean softmax over the test views
            with evaluation.kept_weights(progress.rows) as row:
                probabilities, metrics = evaluation.test()
                weights = classifier.read_weights()
            metrics.update(validation_error_rate=row.get('validation_error'), saved_epoch=row['epoch'])
            clock.lap('evaluating')
            if observer:
                classifier.save(os.path.join(args.result, 'sesemi.h5'), weights)
                observer.finish(progress.rows, probabilities, metrics, clock.laps)
            return metrics['classification_error_rate']


def read_dataset(args, cache):
    """Read the data set of the flags: (Dataset, its checksum).

    Prints a warning if images are in two parts of the data set or under two labels.
    """
    dataset = load_dataset(args.data, args.dataset, args.image_size, args.fit, args.method == 'ssl',
                           cache.decode_images)
    digests = []
    checksum = data_checksum(dataset, digests)
    leaks = find_leaks(dataset, *digests)
    if leaks:
        print(leaks)
    return dataset, checksum


def make_plan(args, data, info):
    """Choose the settings that depend on the data and the number of ranks; returns a Plan.

    In an epoch the self branches of all ranks together pass once over the labeled images, in ssl over all
    training images. Raises InputError if --keep best has no validation error to choose by.
    """
    dataset = data.trained
    validated = len(dataset.valid_labels) > 0
    eval_every = int(validated or args.method == 'ssl') if args.eval_every is None else args.eval_every
    if args.keep == 'best' and not (validated and eval_every):
        raise InputError('--keep best: needs validation images to choose by, from a valid folder or '
                         '--validation 0.1, and an --eval-every above 0.')
    preset = PRESETS[args.data]
    images = len(dataset.unlabeled_images) if args.method == 'ssl' else len(data.labeled)
    epochs = preset.ssl_epochs if args.method == 'ssl' else preset.epochs
    steps_per_epoch = max(1, images // (args.batch_size * info.world_size))
    if preset.steps:
        epochs = max(1, round(preset.steps / steps_per_epoch))
    whitening, reason = choose_whitening(args.whitening, len(dataset.unlabeled_images), args.image_size)
    if args.init:
        reason = 'that of ' + args.init_file
    mode = precision.resolve(precision.known_device(args.device), args.precision_mode)
    resolved = dict(vars(args), dataset=args.dataset or default_directory(args.data),
                    epochs=args.epochs or epochs, eval_every=eval_every, whitening=whitening,
                    precision_mode=mode, rank=info.rank, ranks=info.world_size)
    return Plan(argparse.Namespace(**resolved), steps_per_epoch, reason)


def describe_run(data, plan, device, device_reason):
    """The two lines that are printed before a run: data, epochs and device; whitening and precision."""
    args, dataset = plan.args, data.trained
    return (
        '%s, %s, %s: %d of %d training images labeled, %d for validation, %d for test, %d classes; %d epochs '
        'of %d steps; %s%s (%s).\n'
        'Whitening: %s%s.%s') % (
            args.data, args.network, args.method, len(data.labeled), len(dataset.train_images),
            len(dataset.valid_labels),
            len(dataset.test_labels), len(dataset.class_names), args.epochs, plan.steps_per_epoch,
            '%d x ' % args.ranks if args.ranks > 1 else '', device, device_reason,
            args.whitening, ' (%s)' % plan.whitening_reason if plan.whitening_reason else '',
            precision.opening_sentence(device, args.precision_mode, tensorflow_version()))


def make_hooks(evaluation, checkpoints, observer, callbacks, verbose):
    """The training.Hooks that evaluate, save checkpoints and, on rank 0, record and print the progress.

    observer: an Observer on rank 0, None on other ranks.
    """
    from sesemi.training.training import Hooks

    def save(progress):
        if observer:
            observer.check_held()
        checkpoints.save(progress)

    def after_epoch(rows):
        evaluation.after_epoch(rows)
        if observer:
            observer.after_epoch(rows)
    return Hooks(checkpoints.is_due, save, after_epoch, callbacks, verbose, checkpoints.ranks.alone)


def train_runs(args, info):
    """Do the run, or the --runs runs with consecutive seeds, and print the error rate.

    Each of several runs has a folder of its own; a plot of their errors is written to runs.png.
    """
    if args.runs == 1:
        error = train_and_evaluate(args, info)
        if not info.rank:
            print('classification error rate: %.4f' % error)
        return
    folders = {seed: os.path.join(args.result, 'seed-%d' % seed)
               for seed in range(args.seed, args.seed + args.runs)}
    if args.resume == 'yes' and not any(os.path.exists(os.path.join(folder, 'args.json'))
                                        for folder in folders.values()) and not info.rank:
        raise InputError('--resume: %s holds no runs to go on with; leave the flag out to start them.'
                         % args.result)
    errors = []
    for seed, folder in folders.items():
        resume = args.resume and 'auto'         # the later runs may not have been started yet
        run_args = dict(vars(args), seed=seed, result=folder, resume=resume)
        error = train_and_evaluate(argparse.Namespace(**run_args), info)
        if not info.rank:
            errors.append(error)
            print('Seed %d: error rate %.4f, in %s.' % (seed, error, folder))
    if info.rank:
        return
    print(comparison.compare(folders.values()))
    try:
        comparison.plot(folders.values(), os.path.join(args.result, 'runs.png'))
    except Exception as error:      # a plotting library may raise anything, and the runs are done
        print('No runs.png: %s' % error, file=sys.stderr)
    print(comparison.summary(errors))


def select_gpu(args, info, argv):
    """Restrict this process to its GPU of --gpu-id or --gpus.

    If --gpus names several GPUs and this is the only process, run_local.sh replaces it and starts one each.
    """
    if args.gpus:
        gpus = find_gpus(args.gpus, os.environ)
        if len(gpus) > info.world_size == 1:
            os.environ.setdefault('PYTHON', sys.executable)
            signals.unblock()
            os.execvp('bash', ['bash', os.path.join(PROJECT, 'run_local.sh'), str(len(gpus)), *argv])
        args.gpu_id = gpus[info.rank % len(gpus)]
    if args.gpu_id:
        os.environ['CUDA_VISIBLE_DEVICES'] = args.gpu_id


@report_run_errors
def main(argv):
    """Run the program; returns its exit status."""
    args = parse_args(argv)
    info = find_rank(args.workers, args.rank, os.environ)
    select_gpu(args, info, argv)
    if args.verbose:
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '0'
    for sentence in flags.unused_flags(args, info.world_size):
        print(sentence, file=sys.stderr)
    with open(os.devnull, 'w') as null, contextlib.redirect_stdout(null if info.rank else sys.stdout):
        train_runs(args, info)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
