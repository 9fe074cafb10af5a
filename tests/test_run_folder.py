"""A run's folder: damage is named in one sentence, and files that may be another run's are left alone."""
import errno
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from conftest import write_classes

import train_evaluate_sesemi
from sesemi.data import cache, datasets
from sesemi.data.checksum import data_checksum
from sesemi.data.split import choose_labeled
from sesemi.errors import InputError
from sesemi.record import comparison, identity, run_folder
from sesemi.system import files
from utils import ChannelStandardizer


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


@pytest.mark.parametrize('content', [
    b'', b'index,file\n', bytes(100), b'number\n1\n', b'index\nx\n', b'index\n0\n1\n6\n',
    b'index\n0\n1\n6\n7\n8\n'])
def test_damaged_labeled_images_are_named(images, tmp_path, content):
    a_run(images, tmp_path)
    run, dataset = started(images, tmp_path, '--resume')
    assert run.read_split(dataset, data_checksum(dataset)).tolist() == [0, 1, 6, 7]
    (tmp_path / 'labeled.csv').write_bytes(content)
    with pytest.raises(InputError, match='labeled.csv: not the labeled images of a run'):
        run.read_split(dataset, data_checksum(dataset))


@pytest.mark.parametrize('labels, chosen', [('4', 4), ('5', 4), ('12', 12), ('all', 12)])
def test_labeled_images_are_as_many_as_were_chosen(images, tmp_path, labels, chosen):
    given = ['--labels', labels, '--resume', 'auto']
    run, dataset = started(images, tmp_path, *given)
    indices = choose_labeled(dataset, run.flags['labels'], 1)
    run.start(run.flags, None, dataset, indices, data_checksum(dataset))
    again, _ = started(images, tmp_path, *given)
    assert again.read_split(dataset, data_checksum(dataset)).tolist() == indices.tolist()
    with (tmp_path / 'labeled.csv').open('a') as file:
        file.write('0,a copy,cat,train\n')
    with pytest.raises(InputError, match='labeled.csv: .*it has %d images, not %d' % (chosen + 1, chosen)):
        again.read_split(dataset, data_checksum(dataset))


@pytest.mark.parametrize('log, checkpoint, said', [
    ('epoch\n1\n2\n3\n', None, 3), ('epoch\n1\n', None, 1), ('epoch\n1\n', 'step-000000007.npz', None),
    ('epoch\n1\n', 'step-000000007.npz.0123abcd.part', 1), (None, None, None), ('', None, None)])
def test_lost_checkpoints_are_named(images, tmp_path, capsys, log, checkpoint, said):
    a_run(images, tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    if log is not None:
        (tmp_path / 'log.csv').write_text(log)
    if checkpoint:
        (tmp_path / 'checkpoints' / checkpoint).write_text('')
    run, dataset = started(images, tmp_path, '--resume')
    run.start(run.flags, 'cpu', dataset, [0, 1, 6, 7], data_checksum(dataset))
    sentence = '%s: no checkpoint of the %s epochs in log.csv is there; it starts again.\n' % (tmp_path, said)
    assert capsys.readouterr().err == (sentence if said else '')


def test_a_log_that_cannot_be_replaced_is_said_once_and_written_later(images, tmp_path, capsys):
    (tmp_path / 'log.csv').mkdir()
    a_run(images, tmp_path)
    run, _ = started(images, tmp_path, '--resume')
    for epochs in 1, 2:
        run.log([{'epoch': epoch + 1} for epoch in range(epochs)])
    said = capsys.readouterr().err
    assert said.startswith('%s: cannot be written (Is a directory)' % (tmp_path / 'log.csv'))
    assert said.count('\n') == 1
    (tmp_path / 'log.csv').rmdir()
    run.log([{'epoch': 1}, {'epoch': 2}])
    assert (tmp_path / 'log.csv').read_text() == 'epoch\n1\n2\n' and not capsys.readouterr().err


@pytest.mark.parametrize('error', [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_is_used(tmp_path, monkeypatch, error):
    def refuse(descriptor):
        raise OSError(error, os.strerror(error))
    monkeypatch.setattr(os, 'fsync', refuse)
    files.write_json(str(tmp_path / 'args.json'), 1)
    store = cache.Cache(str(tmp_path / 'cache'))
    store.get_whitener(ChannelStandardizer, 'images', lambda: ChannelStandardizer(np.ones(3), np.ones(3)))
    assert os.listdir(store.folder)
    assert json.loads((tmp_path / 'args.json').read_text()) == 1
    error = errno.EIO
    with pytest.raises(InputError, match='Input/output error'):
        files.write_json(str(tmp_path / 'args.json'), 2)
    assert json.loads((tmp_path / 'args.json').read_text()) == 1


@pytest.mark.skipif(not shutil.which('git'), reason='needs git')
def test_the_git_revision_is_that_of_this_folder_alone(tmp_path, monkeypatch):
    """Not that of a repository around it, nor of one that environment variables name."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}

    def git(folder, *words):
        done = subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b.c', *words], cwd=str(folder),
                              env=environment, check=True, stdout=subprocess.PIPE)
        return done.stdout.decode().strip()

    def make_repository(folder):
        folder.mkdir(exist_ok=True)
        git(folder, 'init', '-q')
        git(folder, 'commit', '-q', '--allow-empty', '-m', folder.name)
        return git(folder, 'rev-parse', 'HEAD')
    make_repository(tmp_path)
    make_repository(tmp_path / 'other')
    project = tmp_path / 'project'
    project.mkdir()
    monkeypatch.setattr(identity, 'PROJECT', str(project))
    assert identity.git_revision() is None
    for name, path in (('GIT_DIR', 'other/.git'), ('GIT_WORK_TREE', 'other'),
                       ('GIT_INDEX_FILE', 'other/.git/index')):
        monkeypatch.setenv(name, str(tmp_path / path))
    assert identity.git_revision() is None
    revision = make_repository(project)
    assert identity.git_revision() == revision
    git(project, 'worktree', 'add', '-q', str(tmp_path / 'tree'))
    monkeypatch.setattr(identity, 'PROJECT', str(tmp_path / 'tree'))
    assert identity.git_revision() == revision
    (tmp_path / 'tree/.git').unlink()
    assert identity.git_revision() is None
