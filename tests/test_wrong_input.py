"""Wrong input is refused before TensorFlow is imported, in this process and in real ones."""
import os
import shutil
import sys

import numpy as np
import pytest
from conftest import PROJECT, write_classes, write_image
from programs import Result, run

import train_evaluate_sesemi
from sesemi.data import datasets
from sesemi.data.checksum import data_checksum
from sesemi.errors import InputError
from sesemi.record import run_folder


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder of two classes, six training and two test images each. Copy it before changing it."""
    folder = tmp_path_factory.mktemp('images')
    write_classes(folder / 'train', {'cat': 6, 'dog': 6}, size=8)
    write_classes(folder / 'test', {'cat': 2, 'dog': 2}, size=8)
    return folder


@pytest.fixture
def own_images(images, tmp_path):
    shutil.copytree(str(images), str(tmp_path / 'own'))
    return tmp_path / 'own'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, with the result folder of an earlier run."""
    folder = tmp_path / 'here'
    (folder / 'result').mkdir(parents=True)
    (folder / 'result/sesemi.h5').write_bytes(b'of an earlier run')
    monkeypatch.chdir(folder)
    return folder


def contents(folder):
    """The files and folders in a folder, except the lock, which this process may still hold."""
    paths = [path for path in folder.rglob('*') if path.name != '.lock']
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def check_refusal(done, *words):
    """Check that a Result is a refusal in one sentence with all `words`."""
    assert done.status == 2, done
    assert done.err.count('\n') == 1 and done.err.endswith('.\n') and 'Traceback' not in done.err
    assert [word for word in words if str(word) not in done.err] == [], done.err


@pytest.fixture
def refuses(here, no_tensorflow_here, capsys):
    """Checks that flags are refused in one sentence with all `words` and the result folder stays as it is."""
    def refuses(flags, *words):
        before = contents(here / 'result')
        capsys.readouterr()
        check_refusal(Result(train_evaluate_sesemi.main(list(map(str, flags))), *capsys.readouterr()), *words)
        assert contents(here / 'result') == before

    return refuses


def folder(path, *flags):
    return ['--data', 'folder', '--dataset', path, '--labels', '4', *flags]


# Real processes


def test_tensorflow_is_imported_for_right_input(here, no_tensorflow, images):
    done = run('train_evaluate_sesemi.py', *folder(images), cwd=here, PYTHONPATH=no_tensorflow)
    assert (done.status, done.err) == (1, 'TensorFlow is imported\n')


def test_a_damaged_image_that_pillow_also_warns_about(here, no_tensorflow, own_images):
    path = own_images / 'train/cat/a.tif'
    write_image(path, np.zeros((40, 40, 3)))
    path.write_bytes(path.read_bytes()[:40])
    done = run('train_evaluate_sesemi.py', *folder(own_images), cwd=here, PYTHONPATH=no_tensorflow)
    check_refusal(done, path, 'cannot be read as an image', 'replace or remove')


NEEDS = 'cannot import what this program needs ('


@pytest.mark.parametrize('program', ['train_evaluate_sesemi.py', 'predict.py', 'report.py', 'export.py'])
def test_an_interpreter_without_a_package(tmp_path, program):
    (tmp_path / 'numpy.py').write_text('raise ImportError("No module named \'numpy\'")')
    check_refusal(run(program, '--help', PYTHONPATH=str(tmp_path)), sys.executable, NEEDS,
                  "No module named 'numpy'", 'requirements.txt', 'PYTHON')


@pytest.mark.parametrize('code, reason', [
    ('raise ImportError("libcublas.so.12: cannot open shared object file")', 'libcublas.so.12'),
    ('raise TypeError("Descriptors cannot be created directly.\\nIf this call came")',
     'Descriptors cannot be created directly. If this call came'),
    ('import numpy\nnumpy.no_such_type', 'no_such_type'), ('', "No module named 'tensorflow.compat'")])
def test_a_tensorflow_that_cannot_be_imported(here, images, tmp_path, code, reason):
    (tmp_path / 'tensorflow.py').write_text(code)
    done = run('bash', PROJECT / 'run_1p.sh', *folder(images), cwd=here, PYTHONPATH=str(tmp_path))
    check_refusal(done, sys.executable, NEEDS, reason, 'requirements.txt')


# Flags


@pytest.mark.parametrize('given, words', [
    ('--network resnet', ['--network', "'resnet'", "'convnet', 'nin', 'wrn'"]),
    ('--data imagenet', ['--data', "'imagenet'", "'cifar10', 'cifar100', 'svhn', 'digits', 'folder'"]),
    ('--method fixmatch', ['--method', "'fixmatch'", "'asl', 'ssl', 'supervised'"]),
    ('--labels 0', ['--labels', '0', '1 up']), ('--seed -1', ['--seed', '-1', '0 up'])])
def test_flags(refuses, images, given, words):
    refuses(folder(images, *given.split()), *words)


@pytest.mark.parametrize('given', [
    '--weight 3', '--epoch 3', '--net nin', 'word', '--lr', '--lr nan', '--lr inf', '--lr 0', '--lr -.1',
    '--lr fast', '--device tpu', '--resume maybe', '--labels some', '--labels -5', '--labels 1.5',
    '--labels 1e3', '--labels ²', '--epochs 0', '--epochs 1e3', '--batch-size 0', '--batch-size -1',
    '--seed x', '--split-seed -1', '--split-seed 4294967296', '--eval-every -1', '--checkpoint-minutes 0',
    '--data-dump-step 3-1', '--data-dump-step 3-3', '--data-dump-step 5-', '--data-dump-step -5',
    '--data-dump-step 1|', '--data-dump-step 1-2-3', '--data-dump-step 0,5', '--data-dump-step all',
    '--whitening pca', '--whitening zca --image-size 52', '--image-size 30', '--image-size 132',
    '--no-flip False --data digits', '--validation 0', '--validation 0.6', '--keep first',
    '--class-weights 3'])
def test_more_flags(given):
    with pytest.raises(InputError) as error:
        train_evaluate_sesemi.parse_args(given.split())
    assert given.split('=')[0].split()[0] in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('labels, words', [
    (1, ['--labels 1', '2 classes', 'raise it']),
    (13, ['--labels 13', '12 training images', '--labels all'])])
def test_labels_that_do_not_fit_the_images(refuses, images, labels, words):
    refuses(folder(images, '--labels', labels), *words)


# Folders and files


def test_folder_that_is_missing_or_empty(refuses, tmp_path):
    (tmp_path / 'empty').mkdir()
    refuses(['--data', 'folder'], '--data folder needs --dataset')
    refuses(folder('nowhere'), '--dataset nowhere', 'no such file or folder')
    refuses(folder(''), '--dataset')
    refuses(folder(tmp_path / 'empty'), tmp_path / 'empty', 'no class folders')
    refuses(['--data', 'svhn'], 'dataset/svhn: not found', '--dataset')
    refuses(['--data', 'cifar10', '--dataset', 'nowhere'], '--dataset nowhere')


def test_one_class(refuses, own_images):
    shutil.rmtree(str(own_images / 'train/dog'))
    refuses(folder(own_images), own_images / 'train', 'one class only (cat)', 'at least two')


@pytest.mark.parametrize('data, module, package', [
    ('digits', 'sklearn.datasets', 'scikit-learn'), ('svhn', 'scipy.io', 'scipy')])
def test_missing_package(refuses, tmp_path, monkeypatch, data, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / 'train_32x32.mat').write_bytes(b'')
    refuses(['--data', data] + ['--dataset', tmp_path] * (data == 'svhn'), 'pip install ' + package)


# The result folder


def test_result_that_cannot_be_written(refuses, images, tmp_path):
    (tmp_path / 'file').write_text('')
    for result in tmp_path / 'file', tmp_path / 'file/below', '/proc/nope', '/proc':
        refuses(folder(images, '--result', result), result, 'cannot be')


def a_run(result, images):
    """Record the start of a run as the script does."""
    args = train_evaluate_sesemi.parse_args(folder(str(images), '--result', str(result)))
    dataset = datasets.load_dataset('folder', str(images))
    run_folder.Run(str(result), vars(args)).start(
        vars(args), None, dataset, [0, 1, 6, 7], data_checksum(dataset))
    (result / '.lock').unlink()


def test_result_that_holds_a_run(refuses, images, here):
    a_run(here / 'result', images)
    refuses(folder(images), '--result result: holds a run already', '--resume')


def test_resume_without_a_run(refuses, images):
    refuses(folder(images, '--resume'), '--resume: result holds no run')
    refuses(folder(images, '--resume', '--result', 'nowhere'), '--resume: nowhere holds no run')


@pytest.mark.parametrize('given, words', [
    ('--labels 6', ['--labels 4', '6']), ('--network nin', ['--network convnet', 'nin']),
    ('--seed 3', ['--seed 0', '3']), ('--method ssl', ['--method asl', 'ssl']),
    ('--lr .1', ['--lr 0.05', '0.1'])])
def test_resume_as_another_run(refuses, images, here, given, words):
    a_run(here / 'result', images)
    refuses(folder(images, '--resume', *given.split()), '--resume', 'the run in result', *words)


def test_resume_without_the_labeled_images(refuses, images, here):
    a_run(here / 'result', images)
    (here / 'result/labeled.csv').unlink()
    refuses(folder(images, '--resume'), 'result/labeled.csv', '--result')


def test_resume_with_other_images(refuses, own_images, here):
    a_run(here / 'result', own_images)
    write_classes(own_images / 'train', {'cat': 7}, size=8)
    refuses(folder(own_images, '--resume'), '--resume: the images are not those', 'the run in result',
            '--dataset')


def test_resume_of_images_whose_names_are_any_bytes(here, no_tensorflow_here, own_images):
    for path in sorted(own_images.glob('train/cat/*')):
        path.rename(os.fsdecode(os.fsencode(str(path.with_suffix(''))) + b' caf\xe9.png'))
    a_run(here / 'result', own_images)
    with pytest.raises(ModuleNotFoundError, match='sesemi.device.runtime'):        # nothing was refused
        train_evaluate_sesemi.main(list(map(str, folder(own_images, '--resume'))))
