"""Wrong input as a user meets it: real processes, in which an import of TensorFlow would end the process with status 1."""
import json
import os
import pickle
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
from conftest import PROJECT, write_classes, write_image
from programs import run

from sesemi import datasets, flags, identity, run_folder
from sesemi.errors import InputError


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
def start(tmp_path, no_tensorflow):
    """Runs the script in an empty folder: (exit status, standard error)."""
    (tmp_path / 'here').mkdir()

    def start(*flags):
        done = run('train_evaluate_sesemi.py', *flags, cwd=tmp_path / 'here', PYTHONPATH=no_tensorflow)
        return done.status, done.err

    return start


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


@pytest.fixture
def refuses(start, tmp_path):
    """Checks that the flags are refused in one sentence which holds all of `words`, and that the result folder stays as it is."""
    result = tmp_path / 'here/result'
    result.mkdir()
    (result / 'sesemi.h5').write_bytes(b'of an earlier run')

    def refuses(flags, *words):
        before = contents(result)
        status, sentence = start(*flags)
        assert status == 2, sentence
        assert sentence.count('\n') == 1 and sentence.endswith('.\n') and 'Traceback' not in sentence
        assert [word for word in words if str(word) not in sentence] == [], sentence
        assert contents(result) == before

    return refuses


def folder(path, *flags):
    return ['--data', 'folder', '--dataset', path, '--labels', '4', *flags]


def test_right_input_comes_to_tensorflow(start, images):
    assert start(*folder(images)) == (1, 'TensorFlow is imported\n')


# Flags


@pytest.mark.parametrize('given, words', [
    ('--network resnet', ['--network', "'resnet'", "'convnet', 'nin', 'wrn'"]),
    ('--data imagenet', ['--data', "'imagenet'", "'cifar10', 'cifar100', 'svhn', 'digits', 'folder'"]),
    ('--method fixmatch', ['--method', "'fixmatch'", "'asl', 'ssl', 'supervised'"]),
    ('--weight 3', ['--weight']), ('--epoch 3', ['--epoch']),
    ('--labels 0', ['--labels', '0', '1 up']), ('--labels -5', ['--labels', '-5']), ('--labels 1.5', ['--labels', '1.5']),
    ('--epochs 0', ['--epochs', '1 up']), ('--batch-size -1', ['--batch-size', '-1']), ('--lr nan', ['--lr', 'nan']),
    ('--seed -1', ['--seed', '-1', '0 up'])])
def test_flags(refuses, images, given, words):
    refuses(folder(images, *given.split()), *words)


@pytest.mark.parametrize('given', [
    '--net nin', '--dat digits', 'word', '--lr', '--lr inf', '--lr 0', '--lr -.1', '--lr fast', '--device tpu', '--resume maybe',
    '--labels some', '--labels 1e3', '--labels ²', '--epochs 1e3', '--batch-size 0', '--seed=-1', '--seed x', '--split-seed -1',
    '--split-seed 4294967296',
    '--eval-every -1', '--checkpoint-minutes 0', '--whitening pca', '--whitening zca --image-size 52', '--image-size 30', '--image-size 132'])
def test_more_flags(given):
    """In this process, for speed."""
    with pytest.raises(InputError) as error:
        flags.parse_args(given.split())
    assert given.split('=')[0].split()[0] in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('labels, words', [
    (1, ['--labels 1', '2 classes', 'raise it']), (13, ['--labels 13', '12 training images', '--labels all'])])
def test_labels_that_do_not_fit_the_images(refuses, images, labels, words):
    refuses(folder(images, '--labels', labels), *words)


def test_labels_that_a_class_does_not_have(refuses, own_images):
    for path in sorted(own_images.glob('train/dog/*'))[3:]:
        path.unlink()
    refuses(folder(own_images, '--labels', 8), 'class dog has 3 training images', 'the 4 labels', '--labels')


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


def test_class_without_images(refuses, own_images):
    (own_images / 'train/eel').mkdir()
    (own_images / 'train/eel/notes.txt').write_text('to be done')
    refuses(folder(own_images), own_images / 'train/eel', 'holds no images')


@pytest.mark.parametrize('name, damage', [
    ('train/cat/a.jpg', lambda data: data[:len(data) // 2]), ('test/dog/a.png', lambda data: data[:len(data) // 2]),
    ('train/cat/a.png', lambda data: b''), ('train/dog/a.png', lambda data: b'Remember to scan this one.\n')])
def test_damaged_image(refuses, own_images, name, damage):
    path = own_images / name
    write_image(path, np.random.RandomState(0).randint(0, 256, (64, 64, 3)))
    path.write_bytes(damage(path.read_bytes()))
    refuses(folder(own_images), path, 'cannot be read as an image', 'replace or remove')


def test_image_that_pillow_also_warns_of(refuses, own_images):
    path = own_images / 'train/cat/a.tif'
    write_image(path, np.zeros((40, 40, 3)))
    path.write_bytes(path.read_bytes()[:40])
    refuses(folder(own_images), path, 'cannot be read as an image')


def test_test_class_that_train_lacks(refuses, own_images):
    (own_images / 'test/dog').rename(own_images / 'test/wolf')
    refuses(folder(own_images), own_images / 'test/wolf', 'no such class', own_images / 'train')


def test_damaged_cifar_archive(refuses, tmp_path):
    path = tmp_path / 'cifar-10-python.tar.gz'
    with tarfile.open(str(path), 'w:gz') as archive:
        archive.add(str(PROJECT / 'utils.py'), 'cifar-10-batches-py/data_batch_1')
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    refuses(['--data', 'cifar10', '--dataset', path], path, 'download')
    refuses(['--data', 'cifar10', '--dataset', tmp_path], path, 'download')
    path.write_bytes(b'<html>404 Not Found</html>')
    refuses(['--data', 'cifar10', '--dataset', path], path, 'download')
    path.write_bytes(whole)
    refuses(['--data', 'cifar10', '--dataset', path], path, 'data_batch_1', 'not a whole CIFAR batch', 'download')


def test_pickle_that_is_no_cifar_batch(refuses, tmp_path):
    for name in 'data_batch_1', 'batches.meta':
        (tmp_path / name).write_bytes(pickle.dumps({b'fun': 1}, 2))
    refuses(['--data', 'cifar10', '--dataset', tmp_path], tmp_path, 'CIFAR batches', 'download')
    (tmp_path / 'data_batch_1').write_bytes(pickle.dumps(subprocess.Popen, 4))
    refuses(['--data', 'cifar10', '--dataset', tmp_path], tmp_path / 'data_batch_1', 'subprocess.Popen')


@pytest.mark.parametrize('data, module', [('digits', 'sklearn'), ('svhn', 'scipy')])
def test_missing_package(refuses, tmp_path, data, module):
    (tmp_path / 'packages' / (module + '.py')).write_text('raise ImportError')
    (tmp_path / 'train_32x32.mat').write_bytes(b'')
    refuses(['--data', data] + ['--dataset', tmp_path] * (data == 'svhn'), 'pip install ' + {'sklearn': 'scikit-learn'}.get(module, module))


# The result folder


def test_result_that_cannot_be_written(refuses, images, tmp_path):
    (tmp_path / 'file').write_text('')
    for result in tmp_path / 'file', tmp_path / 'file/below', '/proc/nope', '/proc':
        refuses(folder(images, '--result', result), result, 'cannot be')


def a_run(result, images):
    """Record the start of a run as the script does."""
    args = flags.parse_args(folder(str(images), '--result', str(result)))
    dataset = datasets.load_dataset('folder', str(images))
    run_folder.Run(str(result), vars(args)).start(dataset, [0, 1, 6, 7], identity.data_checksum(dataset))


def test_result_that_holds_a_run(refuses, images, tmp_path):
    a_run(tmp_path / 'here/result', images)
    refuses(folder(images), '--result result: holds a run already', '--resume')


def test_resume_of_a_run_that_another_version_began(refuses, images, tmp_path):
    a_run(tmp_path / 'here/result', images)
    path = tmp_path / 'here/result/args.json'
    record = json.loads(path.read_text())
    for found in {**record, 'format': record['format'] - 1}, {name: value for name, value in record.items() if name != 'format'}:
        path.write_text(json.dumps(found))
        refuses(folder(images, '--resume'), '--resume: the run in result was begun by another version', '--result')


def test_resume_without_a_run(refuses, images):
    refuses(folder(images, '--resume'), '--resume: result holds no run')
    refuses(folder(images, '--resume', '--result', 'nowhere'), '--resume: nowhere holds no run')


@pytest.mark.parametrize('given, words', [
    ('--lr .1', ['--lr 0.05', '0.1']), ('--labels 6', ['--labels 4', '6']), ('--network nin', ['--network convnet', 'nin']),
    ('--seed 3', ['--seed 0', '3']), ('--method ssl', ['--method asl', 'ssl'])])
def test_resume_as_another_run(refuses, images, tmp_path, given, words):
    a_run(tmp_path / 'here/result', images)
    refuses(folder(images, '--resume', *given.split()), '--resume', 'the run in result', *words)


@pytest.mark.parametrize('content', ['{"flags": ', '{"flags": {}}'])
def test_record_of_a_run_that_is_none(refuses, images, tmp_path, content):
    (tmp_path / 'here/result/args.json').write_text(content)
    for resume in [], ['--resume']:
        refuses(folder(images, *resume), 'result/args.json: not the record of a run', '--result')


@pytest.mark.parametrize('name, content', [('labeled.csv', None), ('labeled.csv', 'index\nx\n')])
def test_resume_of_a_damaged_run(refuses, images, tmp_path, name, content):
    a_run(tmp_path / 'here/result', images)
    if content is None:
        (tmp_path / 'here/result' / name).unlink()
    else:
        (tmp_path / 'here/result' / name).write_text(content)
    refuses(folder(images, '--resume'), 'result/' + name, '--result')


def test_resume_with_other_images(refuses, own_images, tmp_path):
    a_run(tmp_path / 'here/result', own_images)
    write_classes(own_images / 'train', {'cat': 7}, size=8)
    refuses(folder(own_images, '--resume'), '--resume: the images are not those', 'the run in result', '--dataset')


def test_resume_of_images_whose_names_are_any_bytes(start, own_images, tmp_path):
    for path in sorted(own_images.glob('train/cat/*')):
        path.rename(os.fsdecode(os.fsencode(str(path.with_suffix(''))) + b' caf\xe9.png'))
    a_run(tmp_path / 'here/result', own_images)
    assert start(*folder(own_images, '--resume')) == (1, 'TensorFlow is imported\n')
