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


def test_part_names_in_capitals_are_read(own):
    (own / 'train').rename(own / 'Train')
    (own / 'test').rename(own / 'TEST')
    assert load(own).train_names[0] == 'Train/cat/000.png' and load(own).test_names[0] == 'TEST/cat/000.png'


def write_tree(folder, places):
    """Write three images into each of the folders `places`, separated by spaces; no two images are alike."""
    write_classes(folder, dict.fromkeys(places.split(), 3), size=8)


@pytest.mark.parametrize('places, words', [
    ('training_set/cat training_set/dog test_set/cat test_set/dog', 'test_set, {}/training_set: named like'),
    ('seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a seg_test/seg_test/b seg_pred/seg_pred',
     'seg_test/seg_test, {}/seg_train/seg_train: named like'),
    ('train_images/a train_images/b test_images', '{}/train_images: named like'),
    ('train/a train/b testing/a testing/b', '{}/testing, {}/train: named like'),
    ('train/a train/b test/a test/b dev/a dev/b', '{}/dev, {}/train: named like'),
    ('training/a training/b validation/a validation/b', '{}/validation: named like'),
    ('training/a training/b other/a other/b', '{}/training: named like'),
    ('trainSet/a trainSet/b CIFARTest/a CIFARTest/b', '{}/CIFARTest, {}/trainSet: named like'),
    ('TRAIN2017/a TRAIN2017/b x-val/a x-val/b cow', '{}/x-val: named like'),
    ('cat/train cat/test dog/train dog/test', 'cat, dog hold the same folders (test, train)'),
    ('cat/Training cat/eval dog/Training dog/eval', 'seem to be parts of a data set'),
    ('PetImages/cat PetImages/dog', '(PetImages); if the folders in it are the classes, give {}/PetImages.'),
    ('a/b/train/cat a/b/test/cat', 'give {}/a/b.'),
    ('cat', 'only (cat); give at least two folders'), ('cat/images', 'only (cat); give at least two f')])
def test_parts_that_would_be_classes_are_refused(tmp_path, places, words):
    write_tree(tmp_path, places)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert words.replace('{}', str(tmp_path)) in str(error.value)


@pytest.mark.parametrize('places, words', [
    (' '.join('fold%d/%s' % (i, name) for i in range(1, 6) for name in ('cat', 'dog')),
     'fold1, fold2, fold3 and 2 more hold the same folders (cat, dog); if these are your classes, give '
     '{}/fold1 or a list.csv.'),
    ('amazon/images/a amazon/images/b dslr/images/a dslr/images/b', '(a, b); {}/amazon/images or'),
    ('cat/images cat/masks dog/images dog/masks', 'cat, dog hold the same folders (images, masks)'),
    ('cat/x cat/y cow dog/x dog/y dog/z', 'cat, dog hold the same folders (x, y)'),
    ('train/1/a train/1/b train/2/a train/2/b', '1, 2 hold the same folders (a, b); {}/train/1 or'),
    ('cat/siteA dog/siteB', ''), ('cat/images dog/images', ''), ('cat/other cat/x dog/other dog/y', ''),
    ('cat cat/x cat/y dog dog/x dog/y', ''), ('train/a train/b test/a train_more/a', ''),
    ('trains tests', ''), ('train_station/images test_tube/images', ''), ('device/a values/b trains/c', ''),
    ('latest/a contrast/b', ''), ('valid/images invalid/images', '')])
def test_classes_that_hold_the_same_folders_are_warned_of(tmp_path, capsys, places, words):
    write_tree(tmp_path, places)
    load(tmp_path)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith('Warning')]
    assert len(warnings) == bool(words)
    for part in filter(None, words.replace('{}', str(tmp_path)).split('; ')):
        assert part in warnings[0]


@pytest.mark.parametrize('place', ['', 'train', 'train/dog', 'test/cat/a', 'unlabeled', 'flat', 'flat/dog/a'])
def test_the_folder_of_a_run_is_passed_over(own, capsys, place):
    write_tree(own / 'flat', 'cat dog')
    write_tree(own, 'unlabeled test/cat/a')
    directory = own / place.split('/')[0] if 'flat' in place else own
    before = load(directory, with_unlabeled=True)
    run = own / place / 'result[1]'
    for folder in run, run / 'seed-7':
        write_image(folder / 'curves.png', np.zeros((8, 8, 3)))
    for name in 'args.json', '.lock', 'seed-7/args.json', 'seed-7/.lock':
        (run / name).write_text('')
        capsys.readouterr()
        dataset = load(directory, with_unlabeled=True)
        assert dataset.class_names == ['cat', 'dog'] and dataset.test_names == before.test_names
        assert len(dataset.unlabeled_images) == len(before.unlabeled_images)
        assert 'result[1]' in capsys.readouterr().out
        (run / name).unlink()


CAFE = 'café', 'cafe\u0301'      # the same name in Unicode's forms NFC and NFD


@pytest.mark.parametrize('here, there', [CAFE, CAFE[::-1]])
def test_names_that_are_equal_in_nfc_are_one_class(tmp_path, here, there):
    write_classes(tmp_path, {'train/%s' % here: 2, 'train/cafz': 2, 'test/%s' % there: 1}, size=8)
    dataset = load(tmp_path)
    assert dataset.class_names == sorted([here, 'cafz'])
    assert dataset.test_labels.tolist() == [dataset.class_names.index(here)]
    assert dataset.test_names == ['test/%s/000.png' % there]
    write_classes(tmp_path / 'train', {there: 3}, size=8)
    dataset = load(tmp_path)
    assert dataset.class_names == [CAFE[1], 'cafz'] and np.bincount(dataset.train_labels).tolist() == [5, 2]
    assert [dataset.class_names[label] == 'cafz' for label in dataset.train_labels] == [
        'cafz' in name for name in dataset.train_names]
    rows = ['train/cafz/%03d.png,%s,%s' % row for row in [(0, there, ''), (1, here, 'test')]]
    (tmp_path / 'list.csv').write_text('\n'.join(
        ['path,label,split', *rows, 'test/%s/000.png,cafz,' % here]), encoding='utf-8')
    dataset = load(tmp_path)
    assert dataset.class_names == sorted([there, 'cafz'])
    assert dataset.test_labels.tolist() == [dataset.class_names.index(there)]


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
