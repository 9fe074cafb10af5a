"""What a run's folder holds, of odd content: named in one sentence, whatever it is."""
import json
import os
import shutil

import pytest
from conftest import write_classes

import report
from sesemi import datasets, flags, identity, run_folder
from sesemi.errors import InputError


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    write_classes(folder / 'train', {'cat': 6, 'dog': 6}, size=8)
    write_classes(folder / 'test', {'cat': 2, 'dog': 2}, size=8)
    return str(folder)


def started(images, folder, *given):
    """The Run in `folder` of a run on the images, and their Dataset."""
    args = flags.parse_args(['--data', 'folder', '--dataset', images, '--labels', '4', '--result', str(folder), *given])
    return run_folder.Run(str(folder), vars(args)), datasets.load_dataset('folder', images)


def a_run(images, folder):
    """Record the start of a run as the program does."""
    run, dataset = started(images, folder)
    run.start(dataset, [0, 1, 6, 7], identity.data_checksum(dataset))


ODD_JSON = ['', '\0', '[1]', '"a"', '3', 'null', 100000 * '[', '{"a": ' * 100000, '{"flags": "\x00"}', '\ufeff{}', '{}']


@pytest.mark.parametrize('content', [
    *ODD_JSON, b'\xff', *(json.dumps(record) for record in (
        {'flags': [1], 'data_checksum': ''}, {'flags': {'lr': [1]}, 'data_checksum': ''}, {'flags': {'lr': float('nan')}, 'data_checksum': ''},
        {'flags': {'dataset': {}}, 'data_checksum': ''}, {'flags': {}, 'data_checksum': 3}))])
def test_records_of_odd_content(tmp_path, content):
    (tmp_path / 'args.json').write_bytes(content if isinstance(content, bytes) else content.encode())
    for flags_given in ['--resume'], ['--resume', 'auto'], []:
        with pytest.raises(InputError) as error:
            run_folder.Run(str(tmp_path), vars(flags.parse_args(['--result', str(tmp_path), *flags_given])))
        assert str(error.value).startswith(str(tmp_path / 'args.json')) and len(str(error.value)) < 500
    assert os.listdir(str(tmp_path)) == ['args.json']


@pytest.mark.parametrize('name, value', [
    ('labels', 'many'), ('labels', -1), ('labels', True), ('labels', 1.5), ('lr', 'fast'), ('lr', -1), ('lr', False), ('epochs', '3'),
    ('epochs', 0),
    ('seed', -1), ('seed', 2.5), ('batch_size', 0), ('network', 'resnet'), ('network', 3), ('data', 'imagenet'), ('fit', True),
    ('image_size', 33),
    ('image_size', '32'), ('no_flip', 'yes'), ('no_flip', 1), ('method', ''), ('dataset', 'a\0b'), ('dataset', 3),
    ('split_seed', 2 ** 40), ('scale_lr', 0)])
def test_stored_flags_that_the_command_line_would_not_take(images, tmp_path, name, value):
    a_run(images, tmp_path / 'run')
    path = tmp_path / 'run/args.json'
    stored = json.loads(path.read_text())
    stored['flags'][name] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r'args\.json: not the record of a run, its {} is .*; give another --result'.format(name)):
        flags.parse_args(['--result', str(tmp_path / 'run'), '--resume'])


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir])
def test_a_record_that_is_no_file_is_not_waited_for(tmp_path, make):
    make(str(tmp_path / 'args.json'))
    with pytest.raises(InputError, match='args.json: not the record of a run .not a regular file'):
        flags.parse_args(['--result', str(tmp_path), '--resume'])


@pytest.mark.parametrize('given', [['--resume'], ['--labels', 'all', '--fit', 'crop'], ['--whitening', 'none']])
@pytest.mark.parametrize('folder', ['run', 'new/folders/run', '.'])
def test_a_start_that_is_refused_leaves_nothing(images, tmp_path, folder, given):
    """By the folder itself, and by what is read until the run is recorded."""
    def refuse():
        run, _ = started(images, tmp_path / folder, *given)
        with run.starting():
            raise InputError('the images are damaged')
    with pytest.raises(InputError):
        refuse()
    assert os.listdir(str(tmp_path)) == []


def test_a_refused_start_leaves_the_lock_of_another_run(images, tmp_path):
    run, _ = started(images, tmp_path / 'run')
    with pytest.raises(InputError, match='damaged'), run.starting():
        shutil.rmtree(str(tmp_path / 'run'))
        started(images, tmp_path / 'run')
        raise InputError('the images are damaged')
    assert os.listdir(str(tmp_path / 'run')) == ['.lock']


@pytest.mark.parametrize('again', [False, True])
def test_a_run_whose_folder_was_removed_or_is_anothers_writes_no_more(images, tmp_path, again):
    run, dataset = started(images, tmp_path / 'run')
    run.start(dataset, [0, 1, 6, 7], '')
    shutil.rmtree(str(tmp_path / 'run'))
    if again:
        started(images, tmp_path / 'run')
    for write in (lambda: run.log([{'epoch': 1}])), (lambda: run.start(dataset, [0], '')):
        with pytest.raises(InputError, match='--result .*run: was removed'):
            write()
    assert os.listdir(str(tmp_path)) == again * ['run'] and (not again or os.listdir(str(tmp_path / 'run')) == ['.lock'])


@pytest.mark.parametrize('name', ['result.json', 'checkpoints/step-000000007.npz'])
def test_what_another_run_left_without_its_record_is_not_taken_for_this_ones(images, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(RESULT))
    for given in [], ['--resume', 'auto']:
        with pytest.raises(InputError, match='--result .*: holds {} of a run, but not its args.json; give another --result'.format(name)):
            started(images, tmp_path, *given)


RESULT = dict(dict.fromkeys(run_folder.RESULT_NUMBERS, 0.5), flags={'data': 'digits', 'seed': 0, 'epochs': 1}, data_checksum='')
ODD_RESULTS = [json.dumps(dict(RESULT, **change)) for change in (
    {'classification_error_rate': None}, {'classification_error_rate': '0.5'}, {'classification_error_rate': [0.5]},
    {'classification_error_rate': float('nan')}, {'classification_error_rate': True}, {'steps': -float('inf')}, {'flags': {}},
    {'flags': {'data': 'digits', 'seed': '0', 'epochs': 1}}, {'flags': {'seed': 0, 'epochs': 1}}, {'flags': []}, {'data_checksum': None})]


@pytest.mark.parametrize('content', ODD_JSON + ODD_RESULTS)
def test_results_of_odd_content(tmp_path, content):
    (tmp_path / 'result.json').write_text(json.dumps(RESULT))
    assert run_folder.stored_result(str(tmp_path)) == RESULT and len(report.load_results([str(tmp_path)])) == 1
    (tmp_path / 'result.json').write_text(content)
    for read in run_folder.stored_result, lambda path: report.load_results([path]):
        with pytest.raises(InputError, match='result.json: not the re'):
            read(str(tmp_path))


@pytest.mark.parametrize('content', [
    b'', b'index\n', b'index\n12\n', b'index\n-1\n', b'index\n1\n1\n', b'index\n\0\n', b'ind\0ex\n1\n', b'index\n1e0\n',
    b'index\n99999999999999999999\n', b'number\n1\n',
    b'file,index\na\n', b'index\n' + 200000 * b'1' + b'\n', b'index\n"' + 200000 * b'1' + b'\n', b'\xff\xfe', b'index\n1,2,3\n"'])
def test_labeled_images_of_odd_content(images, tmp_path, content):
    a_run(images, tmp_path)
    run, dataset = started(images, tmp_path, '--resume')
    assert run.read_split(dataset, identity.data_checksum(dataset)).tolist() == [0, 1, 6, 7]
    (tmp_path / 'labeled.csv').write_bytes(content)
    with pytest.raises(InputError, match='labeled.csv: not the labeled images of a run'):
        run.read_split(dataset, identity.data_checksum(dataset))
