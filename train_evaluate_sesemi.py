"""Train and evaluate SESEMI: image classification from few labels, regularised by predicting rotations and flips.

Tran 2019, "Exploring Self-Supervised Regularization for Supervised and Semi-Supervised Learning", arXiv 1906.10343.
Ends with `classification error rate: 0.xxxx` on standard output. Exit status 2: wrong input; 3: training diverged;
130 and 143: stopped by Ctrl-C and SIGTERM after saving a checkpoint, from which --resume goes on.
"""
import argparse
import contextlib
import functools
import os
import sys
import warnings

import numpy as np

import report
from sesemi import cache, run_folder as record
from sesemi.batches import TwoBranchBatches, choose_whitening, prepare_images
from sesemi.datasets import load_dataset, take_validation
from sesemi.errors import InputError, RunError
from sesemi.flags import idle, parse_args
from sesemi.leaks import find_leaks
from sesemi.process_group import JOIN_SECONDS, PEER_SECONDS, ProcessGroup
from sesemi.ranks import find_gpus, find_rank
from sesemi.settings import MOMENTUM, PRESETS, dropout_rates
from sesemi.step_memory import check_memory
from utils import stratified_sample


def train_and_evaluate(args, group=ProcessGroup()):
    """One run, from the files to the error rate, which it returns; leaves the model and its record in args.result.

    args: what parse_args returns; group: a ProcessGroup that has been joined. Rank 0 alone evaluates and writes: the others return
    None after their last step. Raises InputError, training.Diverged and training.Interrupted.
    """
    clock = record.Clock()
    run = None if group.rank else record.Run(args.result, vars(args))
    store = cache.Cache(None if args.no_cache else cache.default_folder(), args.memory_limit, group.local_size)
    with group.main_process_first():
        dataset = load_dataset(args.data, args.dataset, args.image_size, args.fit, args.method == 'ssl', store.decode_images)
    digests = []
    checksum = record.data_checksum(dataset, digests)
    leaks = find_leaks(dataset, *digests)
    if leaks:
        print(leaks)
    chosen = labeled = run.read_split(dataset, checksum) if run and run.resuming else choose_labeled(dataset, args.labels, args.split_seed)
    loaded = dataset
    if args.validation:
        dataset, labeled = take_validation(dataset, labeled, args.validation)
        checksum_of_trained = record.data_checksum(dataset)
    else:
        checksum_of_trained = checksum
    validated = bool(len(dataset.valid_labels))
    if args.eval_every is None:
        args.eval_every = int(validated or args.method == 'ssl')
    if args.keep == 'best' and not (validated and args.eval_every):
        raise InputError('--keep best: needs validation images to choose by, from a valid folder or --validation 0.1, and an --eval-every above 0.')
    args.whitening, why_not_another = choose_whitening(args.whitening, len(dataset.unlabeled_images), args.image_size)
    steps_per_epoch, args.epochs = count_steps(args, dataset, len(labeled))
    if group.world_size > 1:
        group.check_equal(record.run_identity(args, checksum, labeled))
    if group.broadcast(b'finished' if run and run.error_rate is not None else b''):
        print('%s holds the finished run.' % args.result)
        return run and run.error_rate
    clock.lap('reading')

    import networks             # these import TensorFlow: only now, when all that can be checked without it has been
    from sesemi import classifier, runtime, training
    from sesemi.checkpoints import Checkpoints
    from sesemi.reporting.events import Events
    device, why = runtime.choose_device(args.device)
    runtime.check_ranks(device, group)
    if device == 'cpu':
        check_memory(args.network, args.method, args.batch_size, args.image_size, group.local_size)
    options = runtime.device_options(device, args.precision_mode, args.result, args.over_dump, args.data_dump,
                                     args.data_dump_step, args.profiling, args.autotune)
    if run:
        run.start(loaded, chosen, checksum, dataset.valid_names if args.validation else ())
    print('%s, %s, %s: %d of %d training images labeled, %d test images, %d classes; %d epochs of %d steps; %s%s (%s).' % (
        args.data, args.network, args.method, len(labeled), len(dataset.train_images), len(dataset.test_images),
        len(dataset.class_names), args.epochs, steps_per_epoch, '%d x ' % group.world_size if group.world_size > 1 else '',
        device, why))

    print('Whitening: %s%s.' % (args.whitening, ' (%s)' % why_not_another if why_not_another else ''))
    with group.main_process_first():
        images = prepare_images(dataset, checksum_of_trained, labeled, args.method, args.whitening, store)
    labels_one_hot = np.eye(len(dataset.class_names), dtype=np.float32)[dataset.train_labels[labeled]]
    batches = TwoBranchBatches(images.labeled, labels_one_hot, images.unlabeled, args.batch_size, args.flip, args.seed,
                               group.rank, group.world_size, oversample=not args.no_oversample)
    rate = args.lr * (group.world_size if args.scale_lr else 1)
    clock.lap('preparing')

    with runtime.open_session(device, options, group), training.StopSignals(group.request_stop if group.rank else None) as stop:
        group.on_stop = stop.note
        build = networks.build_supervised if args.method == 'supervised' else networks.build_sesemi
        model, inference_model = build(args.network, images.test.shape[1:], len(dataset.class_names),
                                       **dropout_rates(args.data, args.network, args.method), seed=args.seed)
        steps = steps_per_epoch * args.epochs
        weights = training.balanced_weights(dataset.train_labels[labeled], len(dataset.class_names)) if args.class_weights else None
        optimizer = runtime.optimizer(device, training.scheduled_rate(rate, steps), MOMENTUM, options, group)
        train_step = training.training_function(model, optimizer, weights)
        checkpoints = Checkpoints(os.path.join(args.result, 'checkpoints'), model, optimizer, steps_per_epoch, args.checkpoint_minutes)
        progress = checkpoints.restore() if run else None
        if group.world_size > 1:
            progress = checkpoints.unpack(group.broadcast(checkpoints.pack(progress) if run else b''))
        train = functools.partial(training.train, train_step, batches, steps_per_epoch, args.epochs, rate, progress, stop=stop)
        if not run:
            train(after_step=lambda *_: None, after_epoch=lambda *_: None, verbose=False)
            group.finish()
            return None
        size = training.evaluation_batch(*(len(part) for part in (images.test, images.valid) if len(part)), image_size=args.image_size)
        test, valid, seen = (training.DenseEvaluator(inference_model, part, args.seed, args.flip, stop, size)
                             for part in (images.test, images.valid, images.labeled))
        statistics = training.NormStatistics(model, batches, steps).measured if args.recompute_norm else contextlib.nullcontext
        saved = classifier.Classifier(inference_model, images.whitener, dataset.class_names, args.fit, args.whitening)
        page = report.Report(args.result, dataset, labeled, args.epochs)
        events = Events(args.result, progress.rows, batches[0][0])

        def after_epoch(rows):
            due = args.eval_every and rows[-1]['epoch'] % args.eval_every == 0
            if validated and (due or rows[-1]['epoch'] == args.epochs):
                with statistics():
                    rows[-1]['validation_error'] = record.error_rate(valid()[0], dataset.valid_labels)
                    if args.keep == 'best' and training.best_row(rows) is rows[-1]:
                        checkpoints.keep_best()
            elif due:
                with statistics():
                    rows[-1]['error'] = record.error_rate(test()[0], dataset.test_labels)
            run.log(rows)
            events.write(rows)
            page.refresh(rows)
            print(training.epoch_line(rows[-1], args.epochs, batches.images_per_step, steps_per_epoch))

        progress = train(after_step=checkpoints.after_step, after_epoch=after_epoch,
                         callbacks=runtime.profiler(device, options, model, steps), verbose=not args.quiet)
        checkpoints.save(progress)
        clock.lap('training')
        checkpoints.take_best()     # with the statistics they were evaluated with
        kept = training.best_row(progress.rows) if args.keep == 'best' else progress.rows[-1]
        with contextlib.nullcontext() if args.keep == 'best' else statistics():
            dense, plain = test()
            of_labeled = record.error_rate(seen.one_view(), dataset.train_labels[labeled])
            clock.lap('evaluating')
            saved.save(run.path('sesemi.h5'))
    result = run.result(dataset, dense, plain, progress.rows, batches.images_per_step, clock, labeled_error_rate=of_labeled,
                        validation_error_rate=kept.get('validation_error'), saved_epoch=kept['epoch'])
    if args.keep == 'best':
        print('The weights of epoch %d, of the least validation error, %.4f, are saved.' % (kept['epoch'], kept['validation_error']))
    page.finish(progress.rows, dense, result)
    run.finish(result)
    return run.error_rate


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
    """(steps an epoch, epochs). An epoch is a pass of the self branches of all ranks: over the labeled images, in ssl over all."""
    preset, images = PRESETS[args.data], labeled
    if args.method == 'ssl':
        images = len(dataset.unlabeled_images)
    default = preset.ssl_epochs if args.method == 'ssl' else preset.epochs
    if preset.steps:
        default = max(1, round(preset.steps / max(1, images // args.batch_size)))
    return max(1, images // (args.batch_size * args.ranks)), args.epochs or default


def train_runs(args, group):
    """The run, or the runs with one seed after another that --runs asks for, each in its own folder; prints the error rate.

    Several runs also leave one plot of their errors, runs.png.
    """
    if args.runs == 1:
        error = train_and_evaluate(args, group)
        if not group.rank:
            print('classification error rate: %.4f' % error)
        return
    folders = {seed: os.path.join(args.result, 'seed-%d' % seed) for seed in range(args.seed, args.seed + args.runs)}
    errors = []
    for seed, folder in folders.items():
        resume = args.resume and 'auto'         # of several runs the later ones may not have been started yet
        error = train_and_evaluate(argparse.Namespace(**{**vars(args), 'seed': seed, 'result': folder, 'resume': resume}), group)
        if not group.rank:
            errors.append(error)
            print('Seed %d: error rate %.4f, in %s.' % (seed, error, folder))
    if group.rank:
        return
    print(report.compare(folders.values()))
    try:
        report.plot(folders.values(), os.path.join(args.result, 'runs.png'))
    except InputError as error:     # without matplotlib the runs are as good
        print(error, file=sys.stderr)
    print(report.summary(errors))


def take_gpu(args, info, argv):
    """Let this process see only the GPU that --gpu-id or --gpus gives it; one that --gpus makes several becomes run_local.sh."""
    if args.gpus:
        gpus = find_gpus(args.gpus, os.environ)
        if len(gpus) > info.world_size == 1:
            os.environ.setdefault('PYTHON', sys.executable)
            os.execvp('bash', ['bash', os.path.join(record.PROJECT, 'run_local.sh'), str(len(gpus)), *argv])
        args.gpu_id = gpus[info.rank % len(gpus)]
    if args.gpu_id:
        os.environ['CUDA_VISIBLE_DEVICES'] = args.gpu_id


def main(argv):
    """Run the program; returns its exit status."""
    warnings.filterwarnings('ignore', module='PIL')     # of an odd image file; one that cannot be read ends the run
    group, status, sentence = ProcessGroup(), 0, ''
    try:
        args = parse_args(argv)
        info = find_rank(args.workers, args.rank, os.environ)
        take_gpu(args, info, argv)
        if args.verbose:
            os.environ['TF_CPP_MIN_LOG_LEVEL'] = '0'
        args.rank, args.ranks = info.rank, info.world_size
        for words in idle(args, info.world_size):
            print(words, file=sys.stderr)
        group = ProcessGroup(info, args.peer_timeout or PEER_SECONDS)
        group.join(args.join_timeout or JOIN_SECONDS)
        with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere if info.rank else sys.stdout):
            train_runs(args, group)
    except RunError as error:
        status, sentence = error.status, str(error)
        print(sentence, file=sys.stderr)
    except KeyboardInterrupt:
        status, sentence = 130, 'Stopped by SIGINT.'
    except Exception:
        group.wait_for_lost_rank()
        raise
    group.leave(status, sentence)
    return status


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
