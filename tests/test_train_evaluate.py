"""Whole runs of the program on tiny data sets, as a user starts it or by its main function."""
import csv
import json
import os
import random
import re
import signal
import sys
import time

import numpy as np
import programs
import pytest
import scipy.io
from conftest import PROJECT
from PIL import Image
from programs import TINY, read_until, run, same_weights, saved_weights, start

import predict
import train_evaluate_sesemi
from networks import sesemi
from sesemi.record import comparison
from sesemi.system.signals import NOTICES
from train_evaluate_sesemi import parse_args

CLASSES = ('cat', 'dog', 'mouse')
ERROR = re.compile(r'^classification error rate: (0|1)\.(\d{4})$', re.MULTILINE)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """train/, test/ and unlabeled/ with images of three classes that differ in colour."""
    folder, rng = tmp_path_factory.mktemp('data'), np.random.RandomState(0)

    def write(path, tint):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((rng.randint(0, 120, (16, 16, 3)) + tint).astype(np.uint8)).save(str(path))
    tints = (100 * np.eye(3)).astype(int)
    for part, count in (('train', 12), ('test', 5)):
        for name, tint in zip(CLASSES, tints):
            for i in range(count):
                write(folder / part / name / ('%02d.png' % i), tint)
    for i in range(6):
        write(folder / 'unlabeled' / ('%02d.jpg' % i), tints[i % 3])
    return folder


def flags_for(data, result, *flags):
    return ['--data', 'folder', '--dataset', data, '--network', 'nin', '--image-size', '16',
            '--batch-size', '4', '--epochs', '3', '--labels', '24', '--result', result, *flags]


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
    """A finished asl run: (its folder, what it printed)."""
    result = tmp_path_factory.mktemp('runs') / 'asl'
    done = run(TINY, *flags_for(data, result))
    assert done.status == 0, done.err
    return result, done.out


def test_a_run_prints_its_error_and_leaves_its_record(finished, data):
    result, printed = finished
    record = json.loads((result / 'result.json').read_text())
    assert ERROR.findall(printed)
    assert printed.endswith('classification error rate: %.4f\n' % record['classification_error_rate'])
    assert re.search(r'6/6 \[=+\] - \d+s \d+m?s/step - loss: \d', printed)
    assert 'folder, nin, asl: 24 of 36 training images labeled' in printed
    confusion = np.array(record['confusion_matrix'])
    assert confusion.sum(axis=1).tolist() == [5, 5, 5]
    assert 1 - confusion.trace() / 15 == pytest.approx(record['classification_error_rate'])
    assert list(record['per_class_error_rate']) == list(CLASSES)
    assert record['steps'] == 18 and record['images_per_step'] == 48 and record['flags']['seed'] == 0
    assert record['versions']['tensorflow'] and record['command'] and record['seconds']['training'] > 0
    with open(str(result / 'log.csv')) as file:
        rows = list(csv.DictReader(file))
    assert [row['step'] for row in rows] == ['6', '12', '18']
    assert float(rows[-1]['loss']) < float(rows[0]['loss'])
    with open(str(result / 'labeled.csv')) as file:
        labeled = list(csv.DictReader(file))
    assert len(labeled) == 24
    assert all((data / row['file']).exists() and row['class'] in row['file'] for row in labeled)


def test_a_run_called_from_python_leaves_the_flags_as_they_are(data, tmp_path, monkeypatch):
    import tiny_trunk
    args = parse_args(list(map(str, flags_for(data, tmp_path / 'run', '--epochs', '1'))))
    monkeypatch.setitem(sesemi.TRUNKS, 'nin', tiny_trunk.trunk)
    before = dict(vars(args))
    error = train_evaluate_sesemi.train_and_evaluate(args)
    assert vars(args) == before and args.eval_every is None
    record = json.loads((tmp_path / 'run/args.json').read_text())
    assert record['flags']['epochs'] == 1 and record['flags']['eval_every'] == 0
    assert record['flags']['ranks'] == 1
    assert error == json.loads((tmp_path / 'run/result.json').read_text())['classification_error_rate']


def test_the_saved_model_needs_nothing_of_the_project(finished, data, tmp_path):
    """A process without the project loads it with plain Keras and predicts the raw files as the run did."""
    result, _ = finished
    code = '''
import json, sys, numpy as np
from PIL import Image
from tensorflow import keras
result, data = sys.argv[1:]
model = keras.models.load_model(result + '/sesemi.h5')
files = [(i, data + '/test/%s/%02d.png' % (name, k))
         for i, name in enumerate(('cat', 'dog', 'mouse')) for k in range(5)]
images = np.stack([np.asarray(Image.open(path)) for _, path in files])
predicted = model.predict(images.astype('float32')).argmax(axis=1)
print(np.mean(predicted != [i for i, _ in files]))
'''
    done = run(sys.executable, '-c', code, result, data, cwd=tmp_path, TF_USE_LEGACY_KERAS='1')
    assert done.status == 0, done.err
    record = json.loads((result / 'result.json').read_text())
    assert float(done.out.split()[-1]) == pytest.approx(record['classification_error_rate_1_view'])


def test_one_seed_gives_one_model_and_a_finished_run_is_kept(train, finished, data, tmp_path):
    result, printed = finished
    before = {path.name: path.read_bytes() for path in result.glob('[!.]*') if path.is_file()}
    refused = train(*flags_for(data, result))
    assert refused.status == 2 and str(result) in refused.sentence() and '--resume' in refused.sentence()
    assert before == {path.name: path.read_bytes() for path in result.glob('[!.]*') if path.is_file()}
    again = train(*flags_for(data, tmp_path / 'again'))     # in another process
    assert ERROR.search(again.out).group() == ERROR.search(printed).group()
    assert same_weights(result, tmp_path / 'again')


@pytest.mark.parametrize('method, images, steps', [('ssl', 48, 10), ('supervised', 24, 6)])
def test_the_other_methods(train, data, tmp_path, method, images, steps):
    done = train(*flags_for(data, tmp_path / 'run', '--method=' + method, '--epochs=2'))
    assert done.status == 0, done.err
    record = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert record['images_per_step'] == images
    assert record['steps'] == 2 * steps     # ssl: 36 training images and 6 more
    with open(str(tmp_path / 'run' / 'log.csv')) as file:
        errors = [row.get('error') for row in csv.DictReader(file)]
    assert all(errors) if method == 'ssl' else not any(errors)


def test_measured_statistics_are_saved_and_training_is_the_same(train, finished, data, tmp_path):
    """`finished` has them, because its images are a folder. Without, the kernels are the same, and the
    statistics are training's averages."""
    done = train(*flags_for(data, tmp_path / 'run', '--recompute-norm', 'False', '--quiet'))
    assert done.status == 0, done.err
    measured, averaged = saved_weights(finished[0]), saved_weights(tmp_path / 'run')
    assert list(measured) == list(averaged)
    for name in measured:
        assert np.array_equal(measured[name], averaged[name]) == ('moving' not in name), name
    with np.load(str(finished[0] / 'checkpoints/step-000000018.npz')) as kept:
        found = [kept[name].tobytes() for name in kept.files]
    assert all(averaged[name].tobytes() in found for name in averaged if 'norm' in name)


def test_svhn_on_the_convnet(train, tmp_path, monkeypatch, capsys):
    """The run has dropout in the trunk, and predict.py opens its model. Its files are found in their default
    folder, from another working folder, and after they were moved.
    """
    (tmp_path / 'dataset/svhn').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    rng = np.random.RandomState(0)
    for name in ('train_32x32.mat', 'test_32x32.mat'):
        scipy.io.savemat('dataset/svhn/' + name, {
            'X': rng.randint(0, 256, (32, 32, 3, 20)).astype(np.uint8), 'y': np.arange(20)[:, None] % 10 + 1})
    done = train('--data=svhn', '--image-size=16', '--labels=10', '--batch-size=10', '--epochs=1',
                 '--result', tmp_path / 'run')
    assert done.status == 0 and ERROR.search(done.out), done.err
    (tmp_path / 'moved').mkdir()
    for folder in '/', tmp_path / 'moved':
        monkeypatch.chdir(folder)
        done = train('--result', tmp_path / 'run', '--resume')
        assert done.status == 0 and 'holds the finished run' in done.out, done.err
        if folder == '/':
            (tmp_path / 'dataset').rename(tmp_path / 'moved/dataset')
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(str(tmp_path / 'image.png'))
    assert predict.main([str(tmp_path / 'run/sesemi.h5'), str(tmp_path / 'image.png')]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_run_killed_at_random_and_resumed_ends_as_one_left_alone(finished, data, tmp_path):
    left_alone, printed = finished
    result, draw = tmp_path / 'run', random.Random(0)
    flags = flags_for(data, result, '--resume', 'auto', '--checkpoint-minutes', '0.0001')
    for _ in range(2):
        process = start(TINY, *flags)
        read_until(process, 'Epoch')
        # read some of the progress line, to kill it after some of the steps
        process.stdout.read(draw.randrange(2000))
        process.kill()
        process.communicate()
    assert [name for name in checkpoints(result) if name.endswith('.npz')], 'no checkpoint'
    done = run(TINY, *flags)
    assert done.status == 0, done.err
    assert ERROR.search(done.out).group() == ERROR.search(printed).group()
    assert same_weights(left_alone, result)


def stop(data, result, number):
    """The Result of a run that gets a signal in its second epoch, a notice again and again."""
    process = start(TINY, *flags_for(data, result, '--epochs', '1000'))
    read_until(process, 'Epoch 2/1000')
    process.send_signal(number)
    while number in NOTICES and process.poll() is None:
        process.send_signal(number)
        time.sleep(0.1)
    return programs.result(process)


def checkpoints(result):
    return {path.name: path.read_bytes() for path in (result / 'checkpoints').iterdir()}


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, *NOTICES])
def test_a_signal_saves_and_says_so(data, tmp_path, number):
    done = stop(data, tmp_path / 'run', number)
    assert done.status == 128 + number
    assert done.sentence() == 'Stopped by %s; go on with --resume.' % signal.Signals(number).name
    assert [name for name in checkpoints(tmp_path / 'run') if name.endswith('.npz')]
    if number == signal.SIGTERM:
        check_that_a_full_disk_loses_no_checkpoint(data, tmp_path / 'run')


def check_that_a_full_disk_loses_no_checkpoint(data, result):
    """A limit on the size of files takes the place of a full disk. Records fit, checkpoints do not."""
    before = checkpoints(result)
    full = run('bash', '-c', 'ulimit -f 4; exec "$@"', 'bash', sys.executable, PROJECT / TINY,
               *flags_for(data, result, '--epochs', '1000', '--resume', '--checkpoint-minutes', '0.0001'))
    assert full.status == 2 and 'checkpoints' in full.sentence()
    assert checkpoints(result) == before


def test_files_that_cannot_be_replaced(train, data, tmp_path):
    """The log and the page end no run; the model does, with a checkpoint, from which it is written later."""
    result = tmp_path / 'run'
    blocked = [result / name for name in ('log.csv', 'report.html', 'sesemi.h5')]
    for path in blocked:
        path.mkdir(parents=True)
    flags = flags_for(data, result, '--epochs', '2', '--quiet')
    done = train(*flags)
    assert done.status == 2 and done.err.count('cannot be written') == 3
    for path, line in zip(blocked, done.err.splitlines()):
        assert line.startswith('%s: cannot be written (Is a directory)' % path)
    for path in blocked[0], blocked[2]:
        path.rmdir()
    done = train(*flags, '--resume')
    assert done.status == 0 and 'Epoch' not in done.out, done.err
    assert (result / 'log.csv').read_text().count('\n') == 3 and (result / 'sesemi.h5').is_file()
    assert not done.err     # the page was said before


def test_several_runs_are_one_result_and_are_not_run_again(train, data, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, 'plot', lambda folders, path: drawn.append(
        [os.path.basename(folder) for folder in folders] + [path]))
    drawn = []
    flags = flags_for(data, tmp_path / 'runs', '--runs=2', '--seed=3', '--epochs=1', '--quiet')
    done = train(*flags)
    assert done.status == 0, done.err
    errors = [json.loads((tmp_path / 'runs' / seed / 'result.json').read_text())['classification_error_rate']
              for seed in ('seed-3', 'seed-4')]
    said = re.findall(r'^Seed \d: error rate (0\.\d{4}), in .*seed-\d\.$', done.out, re.MULTILINE)
    assert ['%.4f' % error for error in errors] == said
    last = 'classification error rate: %.4f +/- %.4f (2 runs)\n' % (np.mean(errors), np.std(errors, ddof=1))
    assert done.out.endswith(last)
    assert re.search(r'^asl +%s +nin +24 +3,4 ' % data.name, done.out, re.MULTILINE)
    assert drawn == [['seed-3', 'seed-4', str(tmp_path / 'runs/runs.png')]]
    refused = train('--result', tmp_path / 'none', '--runs', '2', '--resume')
    assert refused.status == 2 and 'holds no runs' in refused.sentence()
    os.remove(str(tmp_path / 'runs' / 'seed-4' / 'result.json'))
    monkeypatch.setattr(comparison, 'plot', lambda folders, path: 1 / 0)
    again = train('--result', tmp_path / 'runs', '--resume')
    assert again.out.endswith(last) and again.out.count('holds the finished run') == 1
    assert 'Epoch' not in again.out


def test_large_images_that_are_not_square(train, tmp_path, capsys):
    """They are standardised by channel, and padded in training and in prediction."""
    rng = np.random.RandomState(0)
    for part, count in (('train', 6), ('test', 4)):
        for name, tint in zip(CLASSES, (100 * np.eye(3)).astype(int)):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = (rng.randint(0, 120, (30, 70, 3)) + tint).astype(np.uint8)
                Image.fromarray(pixels).save(str(tmp_path / part / name / ('%d.png' % i)))
    result = tmp_path / 'result'
    done = train(*flags_for(tmp_path, result, '--image-size=52', '--fit=pad', '--labels=all', '--quiet',
                            '--epochs=1'))
    assert done.status == 0 and 'Whitening: channel (' in done.out, done.err
    record = json.loads((result / 'result.json').read_text())
    assert predict.main([str(result / 'sesemi.h5'), '--evaluate', str(tmp_path / 'test')]) == 0
    said = 'classification error rate: %.4f' % record['classification_error_rate_1_view']
    assert ERROR.search(capsys.readouterr().out).group() == said


def test_divergence_ends_with_status_3(train, data, tmp_path):
    done = train(*flags_for(data, tmp_path / 'run', '--lr', '1e30'))
    assert done.status == 3 and re.search(r'step \d+', done.sentence()) and '--lr' in done.sentence()
    assert not (tmp_path / 'run' / 'sesemi.h5').exists()


def test_an_option_that_the_device_does_not_have_is_refused(train, data, tmp_path):
    done = train(*flags_for(data, tmp_path / 'run', '--autotune', '--device', 'cpu'))
    assert done.status == 2 and done.sentence().startswith('--autotune: only the npu')
    assert not (tmp_path / 'run' / 'args.json').exists()


@pytest.mark.skipif('SESEMI_CIFAR10' not in os.environ,
                    reason='SESEMI_CIFAR10=DIR, with train/ and test/, turns it on')
def test_real_cifar10(tmp_path):
    """A real trunk on all training images, whitened, and on few test images: eight views take minutes."""
    real, data = os.environ['SESEMI_CIFAR10'], tmp_path / 'data'
    for name in sorted(os.listdir(os.path.join(real, 'test'))):
        (data / 'test' / name).mkdir(parents=True)
        for file in sorted(os.listdir(os.path.join(real, 'test', name)))[:5]:
            os.symlink(os.path.join(real, 'test', name, file), str(data / 'test' / name / file))
    os.symlink(os.path.join(real, 'train'), str(data / 'train'))
    done = run('train_evaluate_sesemi.py', '--data', 'cifar10', '--network', 'nin', '--dataset', data,
               '--labels', '320', '--epochs', '1', '--no-oversample', '--result', tmp_path / 'run')
    assert done.status == 0, done.err
    losses = [float(loss) for loss in re.findall(r'/20 \[.*?- loss: ([\d.]+)', done.out)]
    assert len(losses) == 20 and losses[-1] < losses[0]
    assert ERROR.search(done.out) and '320 of 50000 training images labeled' in done.out
