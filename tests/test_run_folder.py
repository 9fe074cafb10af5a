"""A run's folder: damage is named in one sentence, and files that may be another run's are left alone."""
import json
import os
import shutil

import pytest
from conftest import write_classes

import train_evaluate_sesemi
from sesemi.data import datasets
from sesemi.data.checksum import data_checksum
from sesemi.errors import InputError
from sesemi.record import comparison, run_folder


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    write_classes(folder / 'train', {'cat': 6, 'dog': 6}, size=8)
    write_classes(folder / 'test', {'cat': 2, 'dog': 2}, size=8)
    return str(folder)


def started(images, folder, *given):
    """(the Run in `folder`, its Dataset of the images)."""
    args = train_evaluate_sesemi.parse_args(['--data', 'folder', '--dataset', images, '--labels', '4',
                                             '--result', str(folder), *given])
    return run_folder.Run(str(folder), vars(args)), datasets.load_dataset('folder', images)


def a_run(images, folder):
    """Record the start of a run as the program does."""
    run, dataset = started(images, folder)
    run.start(run.flags, None, dataset, [0, 1, 6, 7], data_checksum(dataset))


def test_a_damaged_record_is_named_and_left_alone(images, tmp_path):
    a_run(images, tmp_path)
    (tmp_path / '.lock').unlink()
    whole = (tmp_path / 'args.json').read_bytes()
    of_another_program = b'{"learning_rate": 0.1}', b'[1, 2]'
    for content in (b'', whole[:100], bytes(len(whole)), *of_another_program):
        (tmp_path / 'args.json').write_bytes(content)
        for given in ['--resume'], ['--resume', 'auto'], []:
            with pytest.raises(InputError, match='args.json: not the record of a run .*; give another'):
                args = train_evaluate_sesemi.parse_args(['--result', str(tmp_path), *given])
                run_folder.Run(str(tmp_path), vars(args))
        assert sorted(os.listdir(str(tmp_path))) == ['args.json', 'labeled.csv']


def test_a_record_with_a_flag_that_no_longer_exists_is_named(images, tmp_path):
    a_run(images, tmp_path)
    record = json.loads((tmp_path / 'args.json').read_text())
    record['flags']['network'] = 'own'
    (tmp_path / 'args.json').write_text(json.dumps(record))
    with pytest.raises(InputError, match="args.json: begun by another version .*--network.*'own'.*; finish"):
        train_evaluate_sesemi.parse_args(['--result', str(tmp_path), '--resume'])


@pytest.mark.parametrize('given', [['--resume'], ['--whitening', 'none']])
@pytest.mark.parametrize('folder', ['run', 'new/folders/run', '.'])
def test_a_start_that_is_refused_leaves_nothing(images, tmp_path, folder, given):
    """It is refused by the folder itself, or by what is read before the run is recorded."""
    def refuse():
        run, _ = started(images, tmp_path / folder, *given)
        with run.clean_up_on_error():
            raise InputError('the images are damaged')
    with pytest.raises(InputError):
        refuse()
    assert os.listdir(str(tmp_path)) == []


def test_a_refused_start_leaves_the_lock_of_another_run(images, tmp_path):
    run, _ = started(images, tmp_path / 'run')
    with pytest.raises(InputError, match='damaged'), run.clean_up_on_error():
        shutil.rmtree(str(tmp_path / 'run'))
        started(images, tmp_path / 'run')
        raise InputError('the images are damaged')
    assert os.listdir(str(tmp_path / 'run')) == ['.lock']


@pytest.mark.parametrize('again', [False, True])
def test_a_run_stops_writing_if_its_folder_was_removed_or_taken(images, tmp_path, again):
    run, dataset = started(images, tmp_path / 'run')
    run.start(run.flags, None, dataset, [0, 1, 6, 7], '')
    shutil.rmtree(str(tmp_path / 'run'))
    if again:
        started(images, tmp_path / 'run')
    for write in (lambda: run.log([{'epoch': 1}])), (lambda: run.start(run.flags, None, dataset, [0], '')):
        with pytest.raises(InputError, match='--result .*run: was removed'):
            write()
    assert os.listdir(str(tmp_path)) == again * ['run']
    assert not again or os.listdir(str(tmp_path / 'run')) == ['.lock']


@pytest.mark.parametrize('name', ['result.json', 'checkpoints/step-000000007.npz'])
def test_files_of_a_run_without_its_record_are_not_used(images, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('of another run')
    for given in [], ['--resume', 'auto']:
        said = '--result .*: holds {} of a run, but not its args.json; give another --result'.format(name)
        with pytest.raises(InputError, match=said):
            started(images, tmp_path, *given)


def test_a_damaged_result_is_named(tmp_path):
    path = tmp_path / 'result.json'
    record = dict(dict.fromkeys(run_folder.RESULT_KEYS, 0.5),
                  flags={'data': 'digits', 'seed': 0, 'epochs': 1})
    path.write_text(json.dumps(record))
    assert run_folder.stored_result(str(tmp_path)) == record == comparison.load_results([str(tmp_path)])[0]
    for content in '', path.read_text()[:-1], '{"accuracy": 0.5}':
        path.write_text(content)
        for read in run_folder.stored_result, lambda folder: comparison.load_results([folder]):
            with pytest.raises(InputError, match='result.json: not the record of a run'):
                read(str(tmp_path))


@pytest.mark.parametrize('content', [b'', b'index,file\n', bytes(100), b'number\n1\n', b'index\nx\n'])
def test_damaged_labeled_images_are_named(images, tmp_path, content):
    a_run(images, tmp_path)
    run, dataset = started(images, tmp_path, '--resume')
    assert run.read_split(dataset, data_checksum(dataset)).tolist() == [0, 1, 6, 7]
    (tmp_path / 'labeled.csv').write_bytes(content)
    with pytest.raises(InputError, match='labeled.csv: not the labeled images of a run'):
        run.read_split(dataset, data_checksum(dataset))
