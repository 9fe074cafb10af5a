"""What is not in the published method: validation images, best weights, class weights, plain --resume."""
import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import programs
import pytest
import tiny_trunk  # noqa: F401
from conftest import write_image

import networks
import train_evaluate_sesemi
from sesemi import flags
from sesemi.data import datasets
from sesemi.data.batches import TwoBranchBatches
from sesemi.data.batches import make_test_views as views_of
from sesemi.data.split import split_validation
from sesemi.device.backend import keras
from sesemi.device.collective import Ranks
from sesemi.device.runtime import open_session, optimizer
from sesemi.errors import InputError
from sesemi.record import run_folder
from sesemi.settings import MOMENTUM
from sesemi.training import evaluation, metrics, training
from sesemi.training.checkpoints import Checkpoints

SHAPE, STEPS, EPOCHS = (16, 16, 3), 3, 4


def batches():
    images = np.random.RandomState(0).standard_normal((20,) + SHAPE).astype(np.float32)
    return TwoBranchBatches(images, np.eye(3)[np.arange(20) % 3], images, batch_size=2)


# The best weights


class Run:
    """A tiny run in its own session with these validation errors, killed after step `killed_after`.

    best: its best weights; weights: those of each epoch, with the statistics of the evaluation.
    """

    def __init__(self, folder, errors, killed_after=None, minutes=1e-9):
        self.weights, steps = {}, STEPS * EPOCHS
        with open_session('cpu'):
            model, _ = networks.build_sesemi('tiny', SHAPE, 3)
            sgd, schedule = optimizer('cpu', 0.05, MOMENTUM), training.Schedule(0.05, STEPS, EPOCHS)
            train_step = training.training_function(model, sgd, schedule=schedule)
            checkpoints = Checkpoints(str(folder), model, sgd, STEPS, minutes, Ranks())
            statistics = evaluation.NormStatistics(model, batches(), steps, Ranks())
            start = checkpoints.restore()

            def after_epoch(rows):
                with statistics.use_measured():
                    self.weights[rows[-1]['epoch']] = model.get_weights()
                    rows[-1]['validation_error'] = errors[rows[-1]['epoch'] - 1]
                    if evaluation.best_row(rows) is rows[-1]:
                        checkpoints.store_best()

            def save(progress):
                if progress.step == killed_after:
                    raise KeyboardInterrupt
                checkpoints.save(progress)
            try:
                training.train(
                    train_step, batches(), schedule, start, training.StopSignals(),
                    training.Hooks(checkpoints.is_due, save, after_epoch, verbose=False))
            except KeyboardInterrupt:
                return
            checkpoints.load_best()
            self.best = model.get_weights()


def test_the_best_weights_survive_a_kill_at_any_step(tmp_path, capsys):
    """Runs are killed one step after their last checkpoint: one before the best epoch is over, and one at the
    end, where that checkpoint is damaged too."""
    def same(weights, others):
        return all(np.array_equal(a, b) for a, b in zip(weights, others))
    errors, epoch = (0.5, 0.2, 0.3, 0.2), 2
    whole = Run(tmp_path / 'whole', errors)
    assert same(whole.best, whole.weights[epoch]) and not same(whole.best, whole.weights[epoch - 1])
    for killed_after in (STEPS * epoch, STEPS * EPOCHS):
        folder = tmp_path / str(killed_after)
        Run(folder, errors, killed_after)
        if killed_after == STEPS * EPOCHS:
            newest = folder / ('step-%09d.npz' % (killed_after - 1))
            newest.write_bytes(newest.read_bytes()[:-1000])
        assert same(whole.best, Run(folder, errors).best), killed_after
    assert '%s: damaged' % newest in capsys.readouterr().err


# Class weights


def test_class_weights_multiply_the_cross_entropy_of_each_labeled_image():
    inputs, targets = batches()[0]
    losses = {}
    for weights in (None, (1, 1, 1), (0.5, 2, 3)):
        with open_session('cpu'):
            model, _ = networks.build_sesemi('tiny', SHAPE, 3, super_dropout=0.0)
            outputs = keras.backend.function(model.inputs + [keras.backend.learning_phase()], model.outputs)
            before = outputs([inputs['self_data'], inputs['super_data'], 1])[1]
            step = training.training_function(model, optimizer('cpu', 0.05, MOMENTUM),
                                              weights and np.array(weights, np.float32))
            losses[weights] = [step(inputs, targets), step(inputs, targets)]
    assert losses[None] == losses[1, 1, 1]
    entropies = -np.log((before * targets['super_clf']).sum(axis=1))
    first = losses[0.5, 2, 3][0]
    weighted = entropies * (targets['super_clf'] @ [0.5, 2, 3])
    assert first['super_clf_loss'] == pytest.approx(np.mean(weighted), rel=1e-5)
    of_the_rest = losses[None][0]['loss'] - losses[None][0]['super_clf_loss']
    assert first['loss'] - first['super_clf_loss'] == pytest.approx(of_the_rest, rel=1e-5)
    assert losses[0.5, 2, 3][1]['self_clf_loss'] != losses[None][1]['self_clf_loss']


def test_balanced_weights_make_all_classes_weigh_the_same():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = training.balanced_weights(np.eye(3)[labels])
    np.testing.assert_allclose(weights[labels].sum(), 10, rtol=1e-6)
    np.testing.assert_allclose([weights[labels[labels == k]].sum() for k in range(3)], 10 / 3, rtol=1e-6)
    assert (training.balanced_weights(np.eye(3)[np.arange(12) % 3]) == 1).all()


# Whole runs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Classes that are hard to tell apart, so the last epoch is seldom the best; one has fewer images."""
    folder, rng = tmp_path_factory.mktemp('flowers'), np.random.RandomState(4)
    for part, counts in (('train', (16, 8, 16)), ('test', (9, 9, 9))):
        for k, count in enumerate(counts):
            for i in range(count):
                write_image(folder / part / 'abc'[k] / ('%02d.png' % i),
                            rng.randint(0, 200, (16, 16, 3)) + 8 * np.eye(3, dtype=int)[k])
    return folder


def validation_error(data, path):
    """The error of a saved model on the images that --validation 0.25 takes out, over the views of seed 5."""
    dataset = datasets.load_dataset('folder', str(data), 16)
    dataset, _ = split_validation(dataset, np.arange(len(dataset.train_labels)), 0.25)
    with open_session('cpu'):
        model = keras.models.load_model(str(path), compile=False)
        whitened = model.get_layer('whitened').output
        images, = keras.backend.function([model.input], [whitened])([dataset.valid_images.astype(np.float32)])
        classify = keras.backend.function([whitened], [model.output])
        behind_whitening = SimpleNamespace(predict_on_batch=lambda views: classify([views])[0])
        evaluate = evaluation.DenseEvaluator(
            behind_whitening, images, lambda images, first: views_of(images, first, 5),
            training.StopSignals(), Ranks())
        dense, _ = evaluate()
    return metrics.error_rate(dense, dataset.valid_labels)


def test_a_validated_run_killed_and_resumed_by_one_flag_ends_as_one_left_alone(
        train, data, tmp_path, monkeypatch):
    def flags(name):
        return ('--data=folder', '--dataset=' + data.name, '--network=nin', '--image-size=16',
                '--batch-size=4', '--epochs=8', '--labels=all', '--lr=0.2', '--validation=0.25',
                '--keep=best', '--class-weights=balanced', '--checkpoint-minutes=0.0001', '--seed=5',
                '--scale-lr', '--result', tmp_path / name)
    process = programs.start(programs.TINY, *flags('cut'), cwd=data.parent)
    programs.read_until(process, 'Epoch 4/8: loss')
    process.kill()
    programs.result(process)
    assert not (tmp_path / 'cut/result.json').exists(), 'it ended before it was killed'
    monkeypatch.chdir(data.parent)
    whole = train(*flags('whole'))
    monkeypatch.chdir(tmp_path)         # it is resumed from another folder
    resumed = train('--result', 'cut', '--resume')
    assert whole.status == resumed.status == 0, whole.err + resumed.err
    assert 'Epoch 1/8' not in resumed.out and '--scale-lr: there is one process' in resumed.err
    assert re.search('classification error rate: .*', whole.out).group() in resumed.out
    assert programs.same_weights(tmp_path / 'whole', tmp_path / 'cut')

    record = json.loads((tmp_path / 'cut' / 'result.json').read_text())
    with open(str(tmp_path / 'cut' / 'log.csv'), newline='') as file:
        errors = [float(row['validation_error']) for row in csv.DictReader(file)]
    assert len(errors) == 8 and record['validation_error_rate'] == min(errors)
    assert record['saved_epoch'] == errors.index(min(errors)) + 1
    assert record['saved_epoch'] < 8, 'the last weights are the best, so this tests nothing'
    assert validation_error(data, tmp_path / 'cut' / 'sesemi.h5') == min(errors)
    assert 'The weights of epoch %d, of the least validation error' % record['saved_epoch'] in resumed.out
    low, high = record['error_rate_interval']
    assert 0 <= low < record['classification_error_rate'] < high <= 1
    assert 0 <= record['labeled_error_rate'] <= 1
    with open(str(tmp_path / 'cut' / 'labeled.csv'), newline='') as file:
        split = [(row['class'], row['split']) for row in csv.DictReader(file)]
    assert [split.count((name, 'valid')) for name in 'abc'] == [4, 2, 4] and len(split) == 40
    page = (tmp_path / 'cut' / 'report.html').read_text(encoding='utf-8')
    assert 'asl on %s: nin, 30 labels' % data.name in page and '95 % interval' in page
    assert 'Validation images' in page

    for words, said in ((('--epochs', '9'), 'the learning rate of every step'),
                        (('--keep', 'last'), '--keep best'),
                        (('--validation', '.1'), '--validation 0.25, not 0.1')):
        refused = train('--result', 'cut', '--resume', *words)
        assert refused.status == 2 and said in refused.err


def test_keep_best_needs_validation_images(train, data, tmp_path):
    for words in (('--keep=best',), ('--keep=best', '--validation=0.2', '--eval-every=0')):
        refused = train('--data=folder', '--dataset', data, '--labels=all',
                        '--result', tmp_path / 'run', *words)
        assert refused.status == 2 and refused.err.startswith('--keep best: ')
        assert not (tmp_path / 'run' / 'args.json').exists()


# Flags


def begin(folder, words='', **record):
    """Write the args.json of a run that was begun with the flags `words`."""
    args = vars(train_evaluate_sesemi.parse_args(words.split()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'args.json').write_text(json.dumps(
        {'flags': args, 'data_checksum': '', 'format': run_folder.FORMAT, **record}))


def test_flags_that_a_resumed_run_takes_from_its_record(tmp_path):
    begin(tmp_path, '--data folder --dataset x --labels 30 --method ssl --epochs 7 --validation 0.2 '
                    '--keep best --eval-every 3 --runs 4 --rank 1 --class-weights balanced '
                    '--checkpoint-minutes 2 --memory-limit 3 --quiet --workers a:1,b:2 --device cpu')
    result = ['--result', str(tmp_path), '--resume']
    args = train_evaluate_sesemi.parse_args(result)
    assert (args.eval_every, args.dataset) == (3, 'x')
    args = train_evaluate_sesemi.parse_args(result + ['--eval-every', '2', '--dataset', 'y'])
    assert (args.data, args.labels, args.method, args.epochs) == ('folder', 30, 'ssl', 7)
    assert (args.validation, args.keep, args.class_weights) == (0.2, 'best', 'balanced')
    assert (args.checkpoint_minutes, args.memory_limit, args.eval_every, args.dataset) == (2, 3, 2, 'y')
    assert (args.runs, args.rank, args.workers) == (1, None, None)
    assert (args.device, args.quiet, args.resume) == ('auto', False, 'yes')
    assert train_evaluate_sesemi.parse_args(result[:2]).labels == 1000


def test_the_first_of_several_runs_tells_their_flags(tmp_path):
    for seed in (11, 9):
        begin(tmp_path / ('seed-%d' % seed), '--data digits --seed %d --runs 3' % seed)
    args = train_evaluate_sesemi.parse_args(['--result', str(tmp_path), '--resume'])
    assert (args.data, args.seed, args.runs) == ('digits', 9, 3)
    assert train_evaluate_sesemi.parse_args(['--result', str(tmp_path), '--resume', '--runs', '5']).runs == 5


@pytest.mark.parametrize('data, begun, refused', [
    ('folder', 2, True), ('cifar10', 2, True), ('cifar10', None, True), ('cifar10', 3, True),
    ('folder', 99, True), ('folder', run_folder.FORMAT, False)])
def test_a_run_that_another_version_began(tmp_path, data, begun, refused):
    begin(tmp_path, '--data %s --dataset x' % data, format=begun)
    args = vars(train_evaluate_sesemi.parse_args(['--result', str(tmp_path), '--resume']))
    if refused:
        with pytest.raises(InputError, match='begun by another version of this program'):
            run_folder.Run(str(tmp_path), args)
    else:
        assert run_folder.Run(str(tmp_path), args).resuming


def test_unused_flags_are_named():
    def said(words, ranks=1):
        return [sentence.split(':')[0].split()[0]
                for sentence in flags.unused_flags(train_evaluate_sesemi.parse_args(words.split()), ranks)]
    assert said('--data-dump-step 5 --scale-lr --join-timeout 9') == [
        '--data-dump-step', '--scale-lr', '--join-timeout']
    assert said('--data-dump --data-dump-step 5 --scale-lr --join-timeout 9', ranks=2) == []
    assert said('') == said('--data svhn --dataset x') == []
    assert said('--data digits --dataset x') == ['--dataset']
    assert train_evaluate_sesemi.parse_args(['--no-flip', 'False']).flip


def test_profiling_in_a_run_that_is_too_short_is_reported(capsys):
    from sesemi.device import runtime
    assert runtime.profiler_callbacks('cpu', runtime.Options(profiling='x'), None, 9) == []
    assert re.match('--profiling: step 10 .* has 9;', capsys.readouterr().err)


# The error's interval


def test_wilson_interval():
    # Newcombe 1998's form
    assert metrics.wilson_interval(10, 100) == pytest.approx([0.0552, 0.1744], abs=1e-4)
    assert metrics.wilson_interval(0, 20) == pytest.approx([0, 0.1611], abs=1e-4)
    assert metrics.wilson_interval(20, 20) == pytest.approx([0.8389, 1], abs=1e-4)
