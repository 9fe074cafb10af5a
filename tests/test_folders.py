"""Image folders: files at any depth are read, and everything that is passed over is reported."""
import os

import numpy as np
import pytest
from conftest import write_classes, write_image

from sesemi.data import datasets
from sesemi.errors import InputError


@pytest.fixture
def own(tmp_path):
    """train and test folders of two classes."""
    write_classes(tmp_path / 'own/train', {'cat': 3, 'dog': 2}, size=8)
    write_classes(tmp_path / 'own/test', {'cat': 1, 'dog': 1}, size=8)
    return tmp_path / 'own'


def load(folder, with_unlabeled=False):
    return datasets.load_dataset('folder', str(folder), 8, with_unlabeled=with_unlabeled)


def test_images_at_any_depth_of_a_class_are_read(own, capsys):
    for number, name in enumerate(['train/dog/a/b/x.jpg', 'train/dog/a/x.png',
                                   'test/cat/deep/er/x.png', 'train/cat/x.PNG']):
        write_image(own / name, np.full((8, 8, 3), 10 * number))
    dataset = load(own)
    assert dataset.train_names == ['train/cat/000.png', 'train/cat/001.png', 'train/cat/002.png',
                                   'train/cat/x.PNG', 'train/dog/000.png', 'train/dog/001.png',
                                   'train/dog/a/b/x.jpg', 'train/dog/a/x.png']
    assert dataset.train_labels.tolist() == [0] * 4 + [1] * 4
    assert dataset.train_images[[3, 6, 7], 4, 4, 0].tolist() == [30, 0, 10]
    assert dataset.test_names == ['test/cat/000.png', 'test/cat/deep/er/x.png', 'test/dog/000.png']
    assert capsys.readouterr().out == ''


def test_one_line_reports_what_was_passed_over_and_why(own, tmp_path, capsys):
    heic = ['train/dog/%d.heic' % i for i in range(20)]
    for name in heic + ['test/cat/a/notes.TXT', 'train/cat/README', 'test/dog/.DS_Store']:
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_bytes(b'')
    for name in ('own/train/loose.png', 'own/loose.jpg', 'own/old/cat/a.png', 'own/train/cat/__MACOSX/a.png',
                 'own/train/.git/a.png', 'elsewhere/a.png'):
        write_image(tmp_path / name, np.zeros((8, 8, 3)))
    (own / 'train/dog/link.png').symlink_to(tmp_path / 'elsewhere/a.png')
    (own / 'train/dog/nowhere.png').symlink_to('nothing')
    (own / 'train/dog/itself.png').symlink_to('itself.png')
    (own / 'train/dog/folder').symlink_to(tmp_path / 'elsewhere')
    (own / 'train/cow').symlink_to(tmp_path / 'elsewhere')
    os.mkfifo(str(own / 'train/dog/fifo.png'))
    dataset = load(own)
    assert dataset.train_names[3:] == ['train/cow/a.png', 'train/dog/000.png', 'train/dog/001.png',
                                       'train/dog/link.png']
    line, = capsys.readouterr().out.splitlines()
    files, folders = line.split('; ')
    assert files.startswith('28 files passed over: 20 .heic')
    assert set(files.split(': ')[1].replace(' (pillow-heif reads them)', '').split(', ')) == {
        '20 .heic', '2 links that lead nowhere', '2 outside the class folders', '1 that are no regular files',
        '1 .txt', '1 without a suffix', '1 hidden'}
    assert folders == 'folders passed over: old, .git, __MACOSX and 1 more.'


@pytest.mark.parametrize('with_unlabeled', [False, True])
def test_unlabeled_images_are_used_or_reported(own, capsys, with_unlabeled):
    for number, name in enumerate(['b.png', 'a/z.png', '.hidden/c.png']):
        write_image(own / 'unlabeled' / name, np.full((8, 8, 3), number))
    dataset = load(own, with_unlabeled)
    assert dataset.unlabeled_images[5:, 0, 0, 0].tolist() == [1, 0][:2 * with_unlabeled]
    said = 'Folders passed over: %s.\n' % ('.hidden' if with_unlabeled else 'unlabeled (for --method ssl)')
    assert capsys.readouterr().out == said


def test_a_class_whose_files_cannot_be_read_is_refused_with_the_reason(own):
    (own / 'train/eel').mkdir()
    for name in 'a.heic', 'b.heic', 'c\n.raw\n':
        (own / 'train/eel' / name).write_bytes(b'')
    with pytest.raises(InputError) as error:
        load(own)
    assert str(error.value).startswith(
        '%s: holds no images that are read (3 files passed over: 2 .heic' % (own / 'train/eel'))
    assert r'1 .raw\n' in str(error.value) and str(error.value).isprintable()


def test_part_names_in_capitals_are_read_and_other_part_names_are_refused(own):
    (own / 'train').rename(own / 'Train')
    (own / 'test').rename(own / 'TEST')
    assert load(own).train_names[0] == 'Train/cat/000.png' and load(own).test_names[0] == 'TEST/cat/000.png'
    (own / 'Train').rename(own / 'training')
    (own / 'TEST').rename(own / 'validation')
    with pytest.raises(InputError, match='own/training: seems to be a part of a data set and no class'):
        load(own)


def test_classes_may_have_names_of_parts(tmp_path):
    write_classes(tmp_path, {'valid': 6, 'invalid': 6}, size=8)
    dataset = load(tmp_path)
    assert dataset.class_names == ['invalid', 'valid'] and not len(dataset.valid_labels)


def test_a_fifo_in_a_list_is_refused(tmp_path):
    write_classes(tmp_path, {'x': 4}, size=8)
    os.mkfifo(str(tmp_path / 'fifo.png'))
    (tmp_path / 'list.csv').write_text(
        'path,label\nx/000.png,a\nx/001.png,b\nx/002.png,a\nx/003.png,b\nfifo.png,a\n')
    with pytest.raises(InputError, match='fifo.png: cannot be read as an image .not a regular file'):
        load(tmp_path / 'list.csv')
