import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading

import numpy as np
import pytest
from conftest import write_classes, write_image
from PIL import Image
from test_pickles import Forged

from sesemi.data import cifar, datasets
from sesemi.data.cache import Cache
from sesemi.data.image_folders import VALIDATION_NAMES
from sesemi.data.split import split_validation
from sesemi.errors import InputError
from sesemi.settings import PRESETS, Preset


def same_images(images, expected):
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, expected)


def refusal(*args, **options):
    """The sentence of the InputError that load_dataset raises."""
    with pytest.raises(InputError) as error:
        datasets.load_dataset(*args, **options)
    assert '\n' not in str(error.value)
    return str(error.value)


# Image folders


def test_train_and_test_folders(tmp_path):
    train = write_classes(tmp_path / 'train', {'cat': 3, 'dog': 2})
    test = write_classes(tmp_path / 'test', {'cat': 1, 'dog': 2})
    dataset = datasets.load_dataset('folder', str(tmp_path))
    same_images(dataset.train_images, train)
    same_images(dataset.test_images, test)
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1] and dataset.test_labels.tolist() == [0, 1, 1]
    assert dataset.train_names[3] == 'train/dog/000.png' and dataset.test_names[0] == 'test/cat/000.png'
    assert dataset.class_names == ['cat', 'dog']
    assert len(dataset.unlabeled_images) == len(dataset.train_images)


def test_test_classes_keep_the_numbers_of_train(tmp_path):
    write_classes(tmp_path / 'train', {'ant': 1, 'bee': 1, 'cat': 1, 'dog': 1})
    test = write_classes(tmp_path / 'test', {'dog': 2})
    assert datasets.load_dataset('folder', str(tmp_path)).test_labels.tolist() == [3, 3]
    test = write_classes(tmp_path / 'test', {'bee': 1, 'dog': 2})
    dataset = datasets.load_dataset('folder', str(tmp_path))
    assert dataset.class_names == ['ant', 'bee', 'cat', 'dog']
    assert dataset.test_labels.tolist() == [1, 3, 3]
    same_images(dataset.test_images, test)


def test_test_class_that_train_lacks(tmp_path):
    write_classes(tmp_path / 'train', {'ant': 1, 'bee': 1})
    write_classes(tmp_path / 'test', {'ant': 1, 'cow': 1})
    sentence = refusal('folder', str(tmp_path))
    assert sentence.startswith('{}/test/cow: no such class in {}/train'.format(tmp_path, tmp_path))


def test_test_folder_without_train(tmp_path):
    write_classes(tmp_path / 'test', {'ant': 1, 'bee': 1})
    sentence = refusal('folder', str(tmp_path))
    assert sentence.startswith('{}: has a test folder but no train folder'.format(tmp_path))


@pytest.mark.parametrize('below', ['', 'train'])
def test_a_sixth_is_held_out_without_a_test_folder(tmp_path, below, capsys):
    images = write_classes(tmp_path / below, {'cat': 12, 'dog': 6, 'eel': 2})
    dataset = datasets.load_dataset('folder', str(tmp_path))
    assert np.bincount(dataset.test_labels).tolist() == [2, 1, 1]
    assert np.bincount(dataset.train_labels).tolist() == [10, 5, 1]
    names = sorted(dataset.train_names + dataset.test_names)
    assert len(set(names)) == 20 and set(dataset.train_names).isdisjoint(dataset.test_names)
    for part in (dataset.train_names, dataset.train_images, dataset.train_labels), \
            (dataset.test_names, dataset.test_images, dataset.test_labels):
        assert part[0] == sorted(part[0])
        for name, image, label in zip(*part):
            same_images(image, images[names.index(name)])
            assert name.split('/')[-2] == dataset.class_names[label]
    assert 'a sixth of each class, 4 of 20 images' in capsys.readouterr().out
    assert datasets.load_dataset('folder', str(tmp_path)).test_names == dataset.test_names


@pytest.mark.parametrize('name', VALIDATION_NAMES)
def test_a_folder_for_validation(tmp_path, name):
    write_classes(tmp_path / 'train', {'ant': 6, 'bee': 6})
    write_classes(tmp_path / 'test', {'ant': 1, 'bee': 1})
    assert not len(datasets.load_dataset('folder', str(tmp_path)).valid_labels)
    write_classes(tmp_path / name, {'bee': 3})
    assert datasets.load_dataset('folder', str(tmp_path)).valid_labels.tolist() == [1, 1, 1]
    valid = write_classes(tmp_path / name, {'ant': 1, 'bee': 3})
    dataset = datasets.load_dataset('folder', str(tmp_path))
    same_images(dataset.valid_images, valid)
    assert dataset.valid_labels.tolist() == [0, 1, 1, 1] and dataset.valid_names[3] == name + '/bee/002.png'
    assert len(dataset.train_images) == len(dataset.unlabeled_images) == 12 and len(dataset.test_images) == 2
    with pytest.raises(InputError, match='validation images of its own'):
        split_validation(dataset, np.arange(12), 0.5)
    (tmp_path / VALIDATION_NAMES[VALIDATION_NAMES.index(name) - 1]).mkdir()
    assert 'keep one' in refusal('folder', str(tmp_path))


@pytest.mark.parametrize('limit', [None, 1e-9])
def test_a_part_of_the_labeled_images_taken_out_for_validation(tmp_path, limit):
    images = write_classes(tmp_path / 'train', {'cat': 30, 'dog': 20})
    write_classes(tmp_path / 'test', {'cat': 1, 'dog': 1})
    write_image(tmp_path / 'unlabeled/a.png', np.full((32, 32, 3), 1))
    whole = datasets.load_dataset('folder', str(tmp_path),
                                  decode=Cache(str(tmp_path / 'cache'), limit).decode_images)
    labeled = np.array([*range(2, 22), 31, *range(32, 41)])
    dataset, left = split_validation(whole, labeled, 0.2)
    assert np.bincount(dataset.valid_labels).tolist() == [4, 2]
    assert np.bincount(dataset.train_labels[left]).tolist() == [16, 8]
    places = [whole.train_names.index(name) for name in dataset.valid_names]
    assert set(places) < set(labeled)
    assert set(places).isdisjoint(whole.train_names.index(dataset.train_names[i]) for i in left)
    same_images(dataset.valid_images, images[places])
    same_images(dataset.train_images[left], images[sorted(set(labeled) - set(places))])
    assert len(dataset.train_images) == len(dataset.train_labels) == len(dataset.train_names) == 44
    unlabeled = np.concatenate([images[sorted(set(range(50)) - set(places))],
                                np.full((1, 32, 32, 3), 1, np.uint8)])
    same_images(np.asarray(dataset.unlabeled_images), unlabeled)
    assert split_validation(whole, labeled, 0.2)[0].valid_names == dataset.valid_names
    with pytest.raises(InputError, match='class cat has one labeled image'):
        split_validation(whole, np.array([0, 31, 32]), 0.2)


def test_class_of_one_image_without_a_test_folder(tmp_path):
    write_classes(tmp_path, {'cat': 3, 'dog': 1})
    sentence = refusal('folder', str(tmp_path))
    assert sentence.startswith(str(tmp_path)) and 'class dog has one image' in sentence


def test_unlabeled_folder_is_read_on_demand(tmp_path):
    write_classes(tmp_path / 'train', {'cat': 3, 'dog': 2})
    write_classes(tmp_path / 'test', {'cat': 1, 'dog': 2})
    write_image(tmp_path / 'unlabeled/b.png', np.full((32, 32, 3), 2))
    write_image(tmp_path / 'unlabeled/A.PNG', np.full((32, 32, 3), 1))
    (tmp_path / 'unlabeled/notes.txt').write_text('no image')
    dataset = datasets.load_dataset('folder', str(tmp_path), with_unlabeled=True)
    assert dataset.unlabeled_images[-2:, 0, 0, 0].tolist() == [1, 2]
    same_images(dataset.unlabeled_images[:-2], dataset.train_images)
    assert dataset.class_names == ['cat', 'dog'] and len(dataset.train_images) == 5
    (tmp_path / 'unlabeled').rename(tmp_path / 'train/Unlabeled')
    beside_the_classes = datasets.load_dataset('folder', str(tmp_path), with_unlabeled=True)
    assert beside_the_classes.class_names == ['cat', 'dog']
    same_images(beside_the_classes.unlabeled_images, dataset.unlabeled_images)
    (tmp_path / 'train/Unlabeled/b.png').write_text('not an image, but not read')
    assert len(datasets.load_dataset('folder', str(tmp_path), with_unlabeled=False).unlabeled_images) == 5


# A list of files


def write_list(path, *lines, encoding='utf-8'):
    path.write_bytes('\n'.join(lines).encode(encoding))
    return str(path)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_list_of_files(tmp_path, monkeypatch, encoding):
    images = write_classes(tmp_path / 'scans', {'x': 6})
    path = write_list(
        tmp_path / 'list.CSV', 'split,label,path', 'train,dög,scans/x/004.png', ',cat,scans/x/001.png',
        'test,dög,scans/x/002.png', 'train,,scans/x/003.png', 'train,cat,"scans/x/000.png"',
        'valid,dög,scans/x/005.png', encoding=encoding)
    monkeypatch.chdir(tmp_path)
    for given in path, 'list.CSV':
        dataset = datasets.load_dataset('folder', given)
        assert dataset.class_names == ['cat', 'dög']
        same_images(dataset.train_images, images[[4, 1, 0]])
        same_images(dataset.test_images, images[[2]])
        same_images(dataset.unlabeled_images, images[[4, 1, 0, 3]])
        same_images(dataset.valid_images, images[[5]])
        assert dataset.train_labels.tolist() == [1, 0, 0]
        assert dataset.test_labels.tolist() == dataset.valid_labels.tolist() == [1]
        assert dataset.train_names == ['scans/x/004.png', 'scans/x/001.png', 'scans/x/000.png']
    assert len(datasets.load_dataset('folder', path, with_unlabeled=False).unlabeled_images) == 3


def test_a_folder_that_holds_the_list_is_read_by_it(tmp_path):
    write_classes(tmp_path, {'x': 3, 'y': 3})
    write_list(tmp_path / 'list.csv', 'path,label,split', *('{}/{:03d}.png,{},{}'.format(
        folder, i, 'ab'[i % 2], 'test' if folder == 'y' else '') for folder in 'xy' for i in range(3)))
    dataset = datasets.load_dataset('folder', str(tmp_path))
    assert dataset.class_names == ['a', 'b']
    assert dataset.train_names == ['x/000.png', 'x/001.png', 'x/002.png']


def test_unlabeled_rows_of_a_list_are_used_or_reported(tmp_path, capsys):
    write_classes(tmp_path, {'x': 6})
    labels = 'a', 'b', '', ' ', 'a', 'b'
    path = write_list(tmp_path / 'list.csv', 'path,label,split', *(
        'x/{:03d}.png,{},{}'.format(i, label, 'test' if i > 3 else 'train')
        for i, label in enumerate(labels)))
    for with_unlabeled, count, said in (
            (True, 4, ''), (False, 2, '2 unlabeled images passed over (for --method ssl).\n')):
        dataset = datasets.load_dataset('folder', path, with_unlabeled=with_unlabeled)
        assert dataset.class_names == ['a', 'b'] and len(dataset.unlabeled_images) == count
        assert capsys.readouterr().out == said


def test_list_without_test_files(tmp_path, capsys):
    write_classes(tmp_path, {'x': 14})
    path = write_list(tmp_path / 'list.csv', 'path,label',
                      *('x/{:03d}.png,{}'.format(i, 'ab'[i % 2]) for i in range(14)))
    dataset = datasets.load_dataset('folder', path)
    assert sorted(dataset.test_labels) == [0, 1] and len(dataset.train_labels) == 12
    assert 'a sixth of each class, 2 of 14 images' in capsys.readouterr().out


@pytest.mark.parametrize('lines, words', [
    ([], 'header'), (['path,label'], 'header'), (['file,label', 'a.png,cat'], 'header'),
    (['path,label', 'a.png,cat'], 'two classes'),
    (['label,path', 'cat,a.png', 'dog'], 'line 3'), (['path,label', ',cat'], 'line 2'),
    (['path,label,split', 'a.png,cat,dev'], 'line 2'),
    (['path,label,split', 'a.png,cat,', 'a.png,,test'], 'line 3'),
    (['path,label,split', 'a.png,cat,', 'a.png,,valid'], 'line 3'),
    (['path,label,split', 'a.png,cat,train', 'a.png,dog,train', 'a.png,eel,test'], 'eel'),
    (['path,label', 'a.png,cat', 'a.png,dog', 'a.png,cat', 'nowhere.png,dog'], 'nowhere.png: no such file'),
    (['path:label', 'a.png:cat'], 'semicolons'),
    (['path,label,split', 'a.png,cat,', 'a.png,nan,test'], "line 3: the label 'nan' counts as none"),
    (['path,label', 'a\0.png,cat', 'a.png,dog'], '')])
def test_wrong_lists(tmp_path, lines, words):
    write_image(tmp_path / 'a.png', np.zeros((32, 32, 3)))
    sentence = refusal('folder', write_list(tmp_path / 'list.csv', *lines))
    assert str(tmp_path) in sentence and words in sentence


@pytest.mark.parametrize('lines', [
    ['path;label;split', 'é/a.png;cat;train', 'é/b.png;"a;b";train', 'é/c.png;cat;test'],
    ['Path\tLABEL \tSplit', 'é/a.png\tcat\t', 'é/b.png\ta;b\tTrain', 'é/c.png\tcat\tTEST'],
    [' split | label | path', '|cat|é/a.png', ' | a;b | é/b.png ', 'test |cat| é/c.png'],
    ['path, label, split', 'é\\a.png, cat , ', '.\\é\\b.png, "a;b",', 'e\u0301\\c.png,cat, test'],
    ['path,label,split', 'e\u0301/a.png,cat,', 'e\u0301/b.png,a;b,', 'é/c.png,cat,test']])
@pytest.mark.parametrize('folder', ['é', 'e\u0301'])
def test_how_a_list_may_be_written(tmp_path, lines, folder):
    for name in 'abc':
        write_image(tmp_path / folder / (name + '.png'), np.full((8, 8, 3), ord(name)))
    dataset = datasets.load_dataset('folder', write_list(tmp_path / 'list.csv', *lines), 8)
    assert dataset.class_names == ['a;b', 'cat'] and dataset.train_labels.tolist() == [1, 0]
    assert dataset.train_images[:, 0, 0, 0].tolist() == [97, 98] and dataset.test_labels.tolist() == [1]
    assert dataset.train_names == [folder + '/a.png', folder + '/b.png']


@pytest.mark.parametrize('labels, test, classes, count', [
    (['0', '1', '-1', '-1', '0', '1'], '0', ['0', '1'], 2),
    (['cat', 'nan', 'NaN', '<NA>', 'dog', 'dog'], 'cat', ['cat', 'dog'], 3),
    (['0', '1', '-1', 'nan', '<NA>', '2'], '0', ['0', '1', '2'], 3),
    (['0', '1', '-1', '-1', '0', '1'], '-1', ['-1', '0', '1'], 0),
    (['1', '-1', '-1', '1', '1', '1'], '1', ['-1', '1'], 0),
    (['0', '1', '-1', 'cat', '0', '1'], '0', ['-1', '0', '1', 'cat'], 0),
    (['0', '1', '-1', '-2', '0', '1'], '0', ['-1', '-2', '0', '1'], 0),
    (['0', 'minus1', '1', 'None', 'na', 'NULL'], '0', ['0', '1', 'NULL', 'None', 'minus1', 'na'], 0)])
def test_labels_of_a_list_that_stand_for_none(tmp_path, capsys, labels, test, classes, count):
    write_classes(tmp_path, {'x': 7}, size=8)
    rows = ['x/%03d.png,%s,%s' % (i, label, 'test' if i == 6 else '')
            for i, label in enumerate([*labels, test])]
    dataset = datasets.load_dataset('folder', write_list(tmp_path / 'list.csv', 'path,label,split', *rows), 8)
    assert dataset.class_names == classes
    assert (len(dataset.train_labels), len(dataset.unlabeled_images)) == (6 - count, 6)
    said = capsys.readouterr().out
    assert said.startswith('%d images labeled ' % count) and 'minus1' in said if count else said == ''


# CIFAR's official batches


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as in the official files."""
    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, text):
        self.write(b'U' + bytes([len(text)]) + text if len(text) < 256
                   else b'T' + struct.pack('<i', len(text)) + text)
        self.memoize(text)

    dispatch[bytes] = save_bytes


def python_2_pickle(content):
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(content)
    return file.getvalue().replace(b'numpy._core', b'numpy.core')       # its name before numpy 2


def cifar_batches(data, dump=python_2_pickle, per_batch=4):
    """(file name -> bytes, images, labels): the batches of a tiny CIFAR. Its test images come last."""
    if data == 'cifar10':
        names = ['data_batch_{}'.format(i) for i in range(1, 6)] + ['test_batch']
        labels_key, names_key, classes, meta = b'labels', b'label_names', 10, 'batches.meta'
    else:
        names = ['train', 'test']
        labels_key, names_key, classes, meta = b'fine_labels', b'fine_label_names', 100, 'meta'
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (len(names) * per_batch, 32, 32, 3)).astype(np.uint8)
    labels = rng.randint(0, classes, len(images))
    files = {meta: dump({names_key: [b'class %d' % i for i in range(classes)], b'num_vis': 3072})}
    for i, name in enumerate(names):
        part = slice(i * per_batch, (i + 1) * per_batch)
        files[name] = dump({
            b'batch_label': name.encode(), labels_key: labels[part].tolist(),
            b'coarse_labels': per_batch * [0],
            b'data': images[part].transpose(0, 3, 1, 2).reshape(per_batch, 3072),
            b'filenames': per_batch * [b'a.png']})
    return files, images, labels


FOLDERS = {'cifar10': 'cifar-10-batches-py', 'cifar100': 'cifar-100-python'}


def unpack(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def pack(path, data, files):
    with tarfile.open(str(path), 'w:gz') as archive:
        for name, content in dict(files, **{'readme.html': b'<html>'}).items():
            member = tarfile.TarInfo(FOLDERS[data] + '/' + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def assert_is_cifar(dataset, data, images, labels):
    tests = len(images) // (6 if data == 'cifar10' else 2)
    same_images(dataset.train_images, images[:-tests])
    same_images(dataset.test_images, images[-tests:])
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
    assert dataset.train_labels.tolist() + dataset.test_labels.tolist() == labels.tolist()
    assert dataset.train_names == [str(i) for i in range(len(images) - tests)]
    assert dataset.class_names == ['class %d' % i for i in range(10 if data == 'cifar10' else 100)]


@pytest.mark.parametrize('data', ['cifar10', 'cifar100'])
@pytest.mark.parametrize('place', [
    'unpacked', 'sub folder', 'archive', 'archive itself', 'archive of another name'])
def test_cifar(tmp_path, data, place):
    files, images, labels = cifar_batches(data)
    directory = tmp_path
    if place == 'unpacked':
        unpack(tmp_path, files)
    elif place == 'sub folder':
        unpack(tmp_path / FOLDERS[data], files)
    elif place == 'archive of another name':
        directory = pack(tmp_path / 'backup.tgz', data, files)
    else:
        archive = {'cifar10': 'cifar-10-python.tar.gz', 'cifar100': 'cifar-100-python.tar.gz'}[data]
        path = pack(tmp_path / archive, data, files)
        directory = path if place == 'archive itself' else tmp_path
    for asked in data, 'folder':
        assert_is_cifar(datasets.load_dataset(asked, str(directory)), data, images, labels)


def test_cifar_written_by_numpy_2(tmp_path):
    files, images, labels = cifar_batches('cifar100')
    unpack(tmp_path, {name: data.replace(b'numpy.core', b'numpy._core') for name, data in files.items()})
    assert_is_cifar(datasets.load_dataset('cifar100', str(tmp_path)), 'cifar100', images, labels)


def test_cifar_in_another_size(tmp_path):
    files, images, _ = cifar_batches('cifar10')
    unpack(tmp_path, files)
    dataset = datasets.load_dataset('cifar10', str(tmp_path), 16)
    assert dataset.train_images.shape == (20, 16, 16, 3)
    same_images(dataset.test_images[0],
                np.asarray(Image.fromarray(images[20]).resize((16, 16), Image.BILINEAR)))


def test_cifar_of_the_other_kind(tmp_path):
    unpack(tmp_path, cifar_batches('cifar100')[0])
    sentence = refusal('cifar10', str(tmp_path))
    assert sentence == '--data cifar10: {} holds cifar100; say --data cifar100.'.format(tmp_path)


@pytest.mark.parametrize('name', [
    'cifar-10-batches-bin/data_batch_1.bin', 'data_batch_1.bin', 'cifar-10-binary.tar.gz',
    'cifar-100-binary/fine_label_names.txt', 'cifar-10-batches-mat/data_batch_1.mat'])
def test_other_versions_of_cifar(tmp_path, name):
    unpack((tmp_path / name).parent, {os.path.basename(name): b''})
    assert refusal('cifar10', str(tmp_path)).startswith('%s: is of the binary' % (tmp_path / name))


def test_an_archive_of_the_binary_version(tmp_path):
    path = pack(tmp_path / 'cifar-10-binary.tar.gz', 'cifar10', {'data_batch_1.bin': b''})
    assert 'of the binary one' in refusal('cifar10', str(path))


@pytest.mark.parametrize('data', ['cifar10', 'cifar100'])
@pytest.mark.parametrize('packed', [[], ['cifar10'], ['cifar100'], ['cifar10', 'cifar100']])
def test_both_cifars_in_a_folder(tmp_path, data, packed):
    for kind in 'cifar10', 'cifar100':
        files, images, labels = cifar_batches(kind)
        if kind in packed:
            archive = {'cifar10': 'cifar-10-python.tar.gz', 'cifar100': 'cifar-100-python.tar.gz'}[kind]
            pack(tmp_path / archive, kind, files)
        else:
            unpack(tmp_path / FOLDERS[kind], files)
        if kind == data:
            expected = images, labels
    assert_is_cifar(datasets.load_dataset(data, str(tmp_path)), data, *expected)


@pytest.mark.parametrize('place', ['unpacked', 'archive'])
def test_pickle_that_runs_code_is_refused(tmp_path, place):
    """test_pickles.py has other kinds of such pickles."""
    trick = pickle.dumps(Forged(os.system, ('touch "%s"' % (tmp_path / 'ran'),)))
    files = dict(cifar_batches('cifar10')[0], data_batch_3=trick)
    if place == 'unpacked':
        unpack(tmp_path, files)
        name = '%s/data_batch_3' % tmp_path
    else:
        name = 'data_batch_3 in %s' % pack(tmp_path / 'cifar-10-python.tar.gz', 'cifar10', files)
    assert refusal('cifar10', str(tmp_path)).startswith(name + ': not a whole CIFAR batch (it asks for ')
    assert not (tmp_path / 'ran').exists()


def test_damaged_cifar_archive(tmp_path):
    path = pack(tmp_path / 'cifar-10-python.tar.gz', 'cifar10', cifar_batches('cifar10')[0])
    whole = path.read_bytes()
    for content in b'', whole[:len(whole) // 2], whole[:-1], b'<html>404 Not Found</html>':
        path.write_bytes(content)
        for given in path, tmp_path:
            sentence = refusal('cifar10', str(given))
            assert str(path) in sentence and 'download' in sentence


def test_cifar_archive_with_a_wrong_bit_is_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.delattr(cifar, 'read_pickle')
    path = pack(tmp_path / 'cifar-10-python.tar.gz', 'cifar10', cifar_batches('cifar10', per_batch=1)[0])
    whole = path.read_bytes()
    for place in np.random.RandomState(0).randint(50, len(whole), 50):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        assert refusal('cifar10', str(tmp_path)).startswith('{}: not a whole .tar.gz archive ('.format(path))


def test_empty_cifar_archive(tmp_path):
    path = pack(tmp_path / 'cifar-10-python.tar.gz', 'cifar10', {})
    assert refusal('cifar10', str(tmp_path)).startswith('{}: holds no CIFAR batches'.format(path))


@pytest.mark.parametrize('damage', [
    lambda path, whole: path.write_bytes(b''), lambda path, whole: path.write_bytes(whole[:len(whole) // 2]),
    lambda path, whole: path.write_bytes(whole[:-1]), lambda path, whole: path.write_bytes(b'<html>\n'),
    lambda path, whole: path.unlink() or path.symlink_to('nowhere')])
def test_damaged_cifar_batch(tmp_path, damage):
    unpack(tmp_path, cifar_batches('cifar10')[0])
    path = tmp_path / 'data_batch_2'
    damage(path, path.read_bytes())
    assert refusal('cifar10', str(tmp_path)).startswith('{}: not a whole CIFAR batch ('.format(path))


@pytest.mark.parametrize('name', ['data_batch_4', 'test_batch', 'batches.meta'])
def test_missing_cifar_batch(tmp_path, name):
    unpack(tmp_path, cifar_batches('cifar10')[0])
    (tmp_path / name).unlink()
    sentence = refusal('cifar10', str(tmp_path))
    assert sentence.startswith("{}: not a whole set of CIFAR batches ('{}')".format(tmp_path, name))


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, 'Permission denied', path)

    (tmp_path / 'dataset/cifar-10').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in 'listdir', 'scandir':
        monkeypatch.setattr(os, name, refuse)
    for data, folder in ('folder', str(tmp_path)), ('cifar10', None):
        assert ': cannot be listed (Permission denied); ' in refusal(data, folder)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize('content', [
    {b'data': PIXELS, b'labels': [0]}, {b'data': PIXELS, b'labels': [0, 10]},
    {b'data': PIXELS, b'labels': [0, -1]}, {b'data': PIXELS.astype(np.int64), b'labels': [0, 1]},
    {'data': PIXELS, 'labels': [0, 1]}])
def test_pickle_that_is_no_cifar_batch(tmp_path, content):
    files = cifar_batches('cifar10')[0]
    files['data_batch_2'] = python_2_pickle(content)
    unpack(tmp_path, files)
    said = refusal('cifar10', str(tmp_path))
    assert said.startswith(str(tmp_path)) and 'not a whole ' in said and 'CIFAR batch' in said


# Downloads, from a server in this process


@pytest.fixture
def server(monkeypatch):
    """A local server in place of the official one. content: its answer, or b'' for 404; asked: the paths."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.send_response(200 if self.server.content else 404)
            self.send_header('Content-Length', str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
        server.content, server.asked = b'', []
        monkeypatch.setattr(cifar, 'URL', 'http://127.0.0.1:%d/' % server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def official_archive(tmp_path, monkeypatch):
    """Makes an archive whose checksum counts as the official one: (path, images, labels)."""
    def make(data):
        files, images, labels = cifar_batches(data)
        path = pack(tmp_path / 'official.tar.gz', data, files)
        monkeypatch.setitem(cifar.SHA256, data, hashlib.sha256(path.read_bytes()).hexdigest())
        return path, images, labels
    return make


@pytest.mark.parametrize('data', ['cifar10', 'cifar100'])
def test_download(tmp_path, monkeypatch, official_archive, server, data):
    monkeypatch.chdir(tmp_path)
    archive, images, labels = official_archive(data)
    folder = tmp_path / 'dataset' / data.replace('cifar', 'cifar-')
    (folder / 'download-of-a-killed-process').mkdir(parents=True)
    server.content = archive.read_bytes()
    for _ in range(2):
        assert_is_cifar(datasets.load_dataset(data), data, images, labels)
    assert server.asked == ['/' + cifar.ARCHIVES[data]]


@pytest.mark.parametrize('content, said', [
    (b'<html>log in first</html>', 'not the official archive'), (b'', 'HTTP Error 404'),
    (None, 'Connection refused')])
def test_download_that_fails_is_tried_again(tmp_path, monkeypatch, official_archive, server, content, said):
    monkeypatch.chdir(tmp_path)
    archive, images, labels = official_archive('cifar10')
    server.content, url = content, cifar.URL
    if content is None:
        monkeypatch.setattr(cifar, 'URL', 'http://127.0.0.1:1/')
    for _ in range(2):
        sentence = refusal('cifar10')
        assert sentence.startswith('dataset/cifar-10: not found, and downloading it failed (')
        assert said in sentence
        assert 'put cifar-10-python.tar.gz there or give --dataset DIR' in sentence
        assert not (tmp_path / 'dataset/cifar-10').exists()
    server.content = archive.read_bytes()
    monkeypatch.setattr(cifar, 'URL', url)
    assert_is_cifar(datasets.load_dataset('cifar10'), 'cifar10', images, labels)


def test_download_to_a_place_that_cannot_be_written(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'dataset').write_text('')
    assert refusal('cifar10').startswith('dataset/cifar-10: not found, and downloading it failed (')
    assert server.asked == []


def test_default_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, images, labels = cifar_batches('cifar100')
    unpack(tmp_path / 'dataset/cifar-100/cifar-100-python', files)
    assert_is_cifar(datasets.load_dataset('cifar100'), 'cifar100', images, labels)
    assert refusal('svhn').startswith('dataset/svhn: not found; put train_32x32.mat and test_32x32.mat')
    assert refusal('folder').startswith('--data folder needs --dataset DIR')
    assert refusal('svhn', 'nowhere').startswith('--dataset nowhere: no such file or folder')
    (tmp_path / 'notes.txt').write_text('')
    assert refusal('cifar10', 'notes.txt').startswith('--dataset notes.txt: neither a folder')


# SVHN and digits


def write_svhn(folder, name, n, seed=0):
    from scipy.io import savemat
    rng = np.random.RandomState(seed)
    images, labels = rng.randint(0, 256, (n, 32, 32, 3)).astype(np.uint8), np.arange(1, n + 1) % 10
    column = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    savemat(str(folder / name), {'X': images.transpose(1, 2, 3, 0), 'y': column}, do_compression=True)
    return images, labels


def test_svhn(tmp_path, capsys):
    train, train_labels = write_svhn(tmp_path, 'train_32x32.mat', 13)
    test, test_labels = write_svhn(tmp_path, 'test_32x32.mat', 11, seed=1)
    dataset = datasets.load_dataset('svhn', str(tmp_path))
    same_images(dataset.train_images, train)
    same_images(dataset.test_images, test)
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
    assert dataset.train_labels.tolist() == train_labels.tolist()
    assert dataset.test_labels.tolist() == test_labels.tolist()
    assert 0 in train_labels and dataset.class_names == [str(digit) for digit in range(10)]
    assert dataset.test_names == [str(i) for i in range(11)]
    assert capsys.readouterr().out == ''
    (tmp_path / 'extra_32x32.mat').write_bytes(b'')
    datasets.load_dataset('svhn', str(tmp_path))
    assert capsys.readouterr().out == '1 file passed over: extra_32x32.mat.\n'


def cut_off(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize('damage', [cut_off, lambda path: path.unlink()])
@pytest.mark.parametrize('name', ['train_32x32.mat', 'test_32x32.mat'])
def test_damaged_svhn(tmp_path, name, damage):
    write_svhn(tmp_path, 'train_32x32.mat', 13)
    write_svhn(tmp_path, 'test_32x32.mat', 11)
    damage(tmp_path / name)
    assert refusal('svhn', str(tmp_path)).startswith('{}/{}: not a whole SVHN file ('.format(tmp_path, name))


@pytest.mark.parametrize('images, labels', [
    (np.zeros((32, 32, 3, 2), np.uint8), [[1], [11]]), (np.zeros((32, 32, 3, 2)), [[1], [2]]),
    (np.zeros((48, 48, 3, 2), np.uint8), [[1], [2]])])
def test_other_data_in_svhns_files(tmp_path, images, labels):
    from scipy.io import savemat
    savemat(str(tmp_path / 'train_32x32.mat'), {'X': images, 'y': np.array(labels)})
    sentence = refusal('svhn', str(tmp_path))
    assert sentence.startswith('{}/train_32x32.mat: not a whole SVHN file ('.format(tmp_path))


def test_digits():
    from sklearn.datasets import load_digits
    originals = load_digits()
    dataset = datasets.load_dataset('digits', image_size=8)
    assert dataset.class_names == [str(digit) for digit in range(10)]
    assert sorted(map(int, dataset.train_names + dataset.test_names)) == list(range(1797))
    for images, labels, names in (dataset.train_images, dataset.train_labels, dataset.train_names), \
            (dataset.test_images, dataset.test_labels, dataset.test_names):
        indices = [int(name) for name in names]
        assert labels.tolist() == originals.target[indices].tolist()
        assert images.dtype == np.uint8
        assert abs(images - originals.images[indices][..., None] / 16 * 255).max() <= .5
    assert np.bincount(dataset.test_labels).tolist() == (np.bincount(originals.target) // 5).tolist()


def test_digits_in_their_usual_size():
    dataset, small = datasets.load_dataset('digits'), datasets.load_dataset('digits', image_size=8)
    assert dataset.test_names == small.test_names
    assert dataset.train_images.shape[1:] == dataset.test_images.shape[1:] == (32, 32, 3)
    for image, original in zip(dataset.test_images, small.test_images):
        same_images(image, np.asarray(Image.fromarray(original).resize((32, 32), Image.BILINEAR)))


# Presets


@pytest.mark.parametrize('data, whitening, flip, batch_size, epochs, ssl_epochs', [
    ('cifar10', 'zca', True, 16, 300, 50), ('cifar100', 'zca', True, 16, 300, 50),
    ('svhn', 'none', False, 16, 300, 30), ('folder', 'auto', True, 16, 300, 50),
    ('digits', 'none', False, 4, 300, 50)])
def test_presets(data, whitening, flip, batch_size, epochs, ssl_epochs):
    assert PRESETS[data]._replace(recompute_norm=False) == Preset(
        whitening, flip, batch_size, epochs, ssl_epochs, steps=75 if data == 'digits' else None)
