"""Sorting files into a folder for each class: sesemi.images.sorting."""
import os

import pytest
from conftest import write_classes

from sesemi.data.datasets import load_dataset
from sesemi.errors import InputError
from sesemi.images import sorting

CLASSES = ['ant', 'bee']


@pytest.mark.parametrize('copy', [False, True])
def test_files_become_links_or_copies_that_the_next_run_reads(tmp_path, monkeypatch, copy):
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / 'in', {'one': 4, 'two': 4})
    os.rename('in/two/003.png', 'in/two/caf\udce9 "x".png')
    os.rename('in/two/002.png', 'in/two/000_2.png')
    os.symlink('../one/003.png', 'in/two/link.png')
    paths = ['in/one/000.png', 'in/two/000.png', 'in/two/000_2.png', 'in/two/caf\udce9 "x".png',
             'in/one/001.png', 'in/two/001.png', 'in/two/link.png', 'in/one/002.png']
    folders = ['ant', 'ant', 'ant', 'ant', 'bee', 'bee', 'unlabeled', '']
    expected = ['ant/000.png', 'ant/000_2.png', 'ant/000_2_2.png', 'ant/caf\udce9 "x".png',
                'bee/001.png', 'bee/001_2.png', 'unlabeled/link.png', '']

    sorting.prepare('out/deep', CLASSES, ['in'], copy)
    targets = sorting.sort_files(paths, folders, 'out/deep', copy)

    assert targets == [name and 'out/deep/' + name for name in expected]
    for path, target in zip(paths[:-1], targets):
        with open(path, 'rb') as source, open(target, 'rb') as made:
            assert source.read() == made.read()
        assert os.path.islink(target) != copy
        assert copy or os.readlink(target) == os.path.realpath(path)
    assert sum(len(files) for _, _, files in os.walk('out')) == 7
    dataset = load_dataset('folder', 'out/deep')
    assert dataset.class_names == CLASSES and len(dataset.unlabeled_images) == len(dataset.train_images) + 1


@pytest.mark.parametrize('name', ['', '.', '..', '.hidden', '/', '/etc', 'a/b', 'a\0b', 'train', 'Test',
                                  'UNLABELED', '__MACOSX', 'ä' * 128, '\ud800', 7, None])
def test_class_names_that_no_class_folder_can_have(tmp_path, name):
    with pytest.raises(InputError, match='no class folder can have this name'):
        sorting.prepare(str(tmp_path / 'out'), ['ant', name], [], False)
    assert not os.listdir(str(tmp_path))


def test_other_class_names():
    for name in ('a b', 'unknown', 'Trains', 'a.b', '漢字', 'caf\udce9', 'a\nb', '\\', 'x' * 255):
        assert sorting.is_class_folder(name), name


@pytest.mark.parametrize('directory, used, words', [
    ('in/new', ['in'], 'lies in in or around it'), ('in', ['in'], 'lies in in or around it'),
    ('.', ['in'], 'lies in in or around it'), ('link/new', ['in'], 'lies in in or around it'),
    ('empty', ['empty/list.csv'], 'lies in empty/list.csv or around it'),
    ('full', ['in'], 'is not empty'), ('in/a.png', [], 'can be made there (File exists)'),
    ('in/a.png/new', [], 'can be made there (Not a directory)'), ('empty', ['in'], ''), ('in2', ['in'], '')])
def test_places(tmp_path, monkeypatch, directory, used, words):
    monkeypatch.chdir(tmp_path)
    for name in ('in', 'empty', 'full'):
        os.mkdir(name)
    for name in ('in/a.png', 'full/.hidden'):
        (tmp_path / name).write_text('')
    os.symlink('in', 'link')
    try:
        sorting.prepare(directory, CLASSES, used, False)
        assert os.listdir(directory) == []
    except InputError as error:
        assert words and words in str(error)
    else:
        assert not words


def test_where_links_cannot_be_made_one_sentence_says_so_before_any_work(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, 'Operation not permitted')
    monkeypatch.setattr(os, 'symlink', refuse)
    with pytest.raises(InputError, match=r'no links can be made there \(Operation .*\); .* or --copy'):
        sorting.prepare(str(tmp_path / 'out'), CLASSES, [], False)
    sorting.prepare(str(tmp_path / 'out'), CLASSES, [], True)


def test_a_copy_that_cannot_be_made(tmp_path):
    with pytest.raises(InputError, match=r'ant/a.png: cannot be made \(No such file'):
        sorting.sort_files([str(tmp_path / 'a.png')], ['ant'], str(tmp_path / 'out'), True)
