"""Images in two parts of a data set or under two labels, from the files to the warning."""
import shutil

import pytest
from conftest import write_classes
from PIL import Image

from sesemi.data import cache, datasets, leaks
from sesemi.data.checksum import data_checksum


def leaks_of(folder, decode=datasets.decode_images):
    dataset, digests = datasets.load_dataset('folder', str(folder), 8, decode=decode), []
    assert data_checksum(dataset, digests) == data_checksum(dataset)
    assert [len(part) for part in digests] == [len(dataset.train_labels), len(dataset.test_labels),
                                               len(dataset.unlabeled_images) - len(dataset.train_labels),
                                               len(dataset.valid_labels)]
    return leaks.find_leaks(dataset, *digests)


@pytest.fixture
def own(tmp_path):
    """Folders of images, no two alike."""
    write_classes(tmp_path, {'train/Red  fox': 5, 'train/cat': 5, 'train/dog': 5, 'test/cat': 3,
                             'test/dog': 3, 'unlabeled': 4, 'valid/cat': 3, 'valid/dog': 3}, size=8)
    return tmp_path


def copy(folder, source, target):
    shutil.copy(str(folder / source), str(folder / target))


def test_a_data_set_without_leaks_gives_no_warning(own):
    assert leaks_of(own) == ''


def test_leaks_and_contradictions_are_counted_and_the_first_named(own):
    for i in range(5):
        copy(own, 'train/cat/%03d.png' % i, 'test/cat/copy-%d.png' % i)
    copy(own, 'train/dog/002.png', 'test/cat/z.png')
    # the same pixels in a file of another kind
    with Image.open(str(own / 'train/dog/001.png')) as image:
        image.save(str(own / 'train/cat/of-a-dog.bmp'))
    copy(own, 'unlabeled/002.png', 'test/dog/secret.png')
    (own / 'train/redFox').mkdir()
    copy(own, 'unlabeled/003.png', 'train/redFox/a.png')
    copy(own, 'train/dog/004.png', 'valid/cat/b.png')
    copy(own, 'valid/dog/001.png', 'test/dog/c.png')
    copy(own, 'unlabeled/000.png', 'valid/cat/d.png')
    found = ('6 test images are in train too (test/cat/copy-0.png is train/cat/000.png, '
             'test/cat/copy-1.png is train/cat/001.png, test/cat/copy-2.png is train/cat/002.png and 3 more)',
             '1 validation image is in train too (valid/cat/b.png is train/dog/004.png)',
             '1 test image is in validation too (test/dog/c.png is valid/dog/001.png)',
             '1 validation image is in unlabeled too (valid/cat/d.png)',
             '1 test image is in unlabeled too (test/dog/secret.png)',
             "labels that differ in spaces, capitals or look-alike letters only: 'Red  fox' and 'redFox'")
    said = leaks_of(own)
    assert said.startswith('Warning: ') and said.endswith('.')
    labels, = [part for part in said[len('Warning: '):-1].split('; ') if 'two labels' in part]
    assert sorted(said[len('Warning: '):-1].split('; ')) == sorted([*found, labels])
    assert labels.startswith('3 labeled images are under two labels (')
    for pair in ('train/dog/004.png is valid/cat/b.png', 'train/cat/of-a-dog.bmp is train/dog/001.png',
                 'train/dog/002.png is test/cat/z.png'):
        assert pair in labels


def test_leaks_in_a_list_and_in_images_that_stay_on_disk(own):
    copy(own, 'test/dog/000.png', 'train/cat/a copy.png')
    rows = ['train/%s/%03d.png,%s,train' % (folder, i, label)
            for folder, label in (('cat', 'cat'), ('dog', 'Cat')) for i in range(5)]
    (own / 'list.csv').write_text('\n'.join([
        'path,label,split', *rows, 'train/cat/a copy.png,cat,', 'test/dog/000.png,Cat,test', '']))
    expected = ('Warning: 1 test image is in train too (test/dog/000.png is train/cat/a copy.png); '
                '1 labeled image is under two labels (train/cat/a copy.png is test/dog/000.png); '
                "labels that differ in spaces, capitals or look-alike letters only: 'Cat' and 'cat'.")
    assert leaks_of(own / 'list.csv') == expected
    small = cache.Cache(str(own / 'cache'), memory_limit=1e-9)
    assert leaks_of(own / 'list.csv', small.decode_images) == expected


@pytest.mark.parametrize('name, alike', [
    ('\ufb01sh', True), ('\uff46\uff49\uff53\uff48', True), ('fi\u200bsh', True), ('fish\ufeff', True),
    ('f\u00adish', True), ('fish\u3164', True), ('fish\ufe0f', True), ('FI SH', True), ('fisk', False),
    ('fi-sh', False), ('f\xedsh', False), ('fish\udcff', False)])
def test_labels_that_look_alike(own, name, alike):
    for part in 'train', 'test', 'valid':
        (own / part / 'dog').rename(own / part / 'fish')
        (own / part / 'cat').rename(own / part / name)
    assert leaks_of(own).startswith('Warning: labels that differ in ') == alike
