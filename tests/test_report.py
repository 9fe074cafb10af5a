"""The report page of made-up runs, comparisons of runs, and events."""
import base64
import contextlib
import errno
import html.parser
import io
import json
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT
from matplotlib.text import Text
from PIL import Image
from programs import run

import report
from sesemi.data.batches import PROXY_TRANSFORMS, make_proxy_views
from sesemi.data.datasets import Dataset
from sesemi.device.backend import tf
from sesemi.errors import CONTROL_CHARACTERS, escape_controls
from sesemi.record import comparison, events, live, plots
from sesemi.system import files

FLAGS = {'data': 'cifar10', 'network': 'convnet', 'labels': 20, 'method': 'asl', 'epochs': 10,
         'batch_size': 16, 'lr': 0.05, 'no_oversample': False, 'no_flip': False, 'flip': True,
         'image_size': 32, 'seed': 0, 'split_seed': 1, 'dataset': None, 'result': 'result', 'resume': None,
         'eval_every': 0, 'checkpoint_minutes': 10.0, 'device': 'auto'}
CHECKSUM = 'c0ffee' * 10 + 'c0de'


def make_dataset(names, train=4, test=3):
    """train and test random images of each class, no two alike."""
    shape = len(names) * (train + test), 32, 32, 3
    images = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    train_images, test_images = np.split(images, [len(names) * train])
    return Dataset(train_images, np.arange(len(train_images)) % len(names),
                   ['train/%d.png' % i for i in range(len(train_images))],
                   test_images, np.arange(len(test_images)) % len(names),
                   ['test/%d.png' % i for i in range(len(test_images))], list(names), train_images)


def make_rows(epochs, method='asl'):
    rows = []
    for epoch in range(1, epochs + 1):
        row = {'epoch': epoch, 'step': 25 * epoch, 'learning_rate': 0.05 * (1 - epoch / 301) ** 0.5,
               'seconds': 2.0, 'loss': 1 + 4 / epoch, 'super_clf_loss': 2 / epoch,
               'super_clf_acc': 1 - 0.8 / epoch}
        if method != 'supervised':
            row.update(self_clf_loss=1 / epoch, self_clf_acc=1 - 0.5 / epoch)
        if method == 'ssl':
            row['error'] = 0.3 + 0.5 / epoch
        rows.append(row)
    return rows


def write_result(folder, confusion=((1, 0), (0, 1)), error=0.25, **flags):
    """Write args.json and result.json as run_folder.Run does."""
    folder.mkdir(parents=True, exist_ok=True)
    args = {'command': 'train_evaluate_sesemi.py --seed 0', 'flags': dict(FLAGS, **flags),
            'data_checksum': CHECKSUM}
    (folder / 'args.json').write_text(json.dumps(args))
    (folder / 'result.json').write_text(json.dumps({
        'classification_error_rate': error, 'classification_error_rate_1_view': error + 0.01,
        'balanced_error_rate': error + 0.02, 'error_rate_interval': [0.2012, 0.3061],
        'labeled_error_rate': 0.05, 'validation_error_rate': None, 'saved_epoch': 10,
        'per_class_error_rate': {}, 'confusion_matrix': np.asarray(confusion).tolist(), 'steps': 250,
        'images_per_step': 192, 'seconds_per_step': 0.08, 'images_per_second': 2400.0, 'git_revision': None,
        'seconds': {'reading': 0.5, 'training': 20.0},
        'versions': {'python': '3.7.16', 'tensorflow': '1.15.0'}, **args}))


def make_report(folder, dataset, **flags):
    """The Report of a run in `folder` that is not finished."""
    write_result(folder, **flags)
    (folder / 'result.json').unlink()
    return live.Report(str(folder), dataset, np.arange(2 * len(dataset.class_names)), FLAGS['epochs'])


def finish(folder, dataset, probabilities, rows=None, **flags):
    made = make_report(folder, dataset, **flags)
    confusion = np.zeros((len(dataset.class_names),) * 2, int)
    np.add.at(confusion, (dataset.test_labels, probabilities.argmax(axis=1)), 1)
    write_result(folder, confusion, **flags)
    made.finish(rows or make_rows(10), probabilities, json.loads((folder / 'result.json').read_text()))
    return Page(folder)


def certain(labels, classes):
    """Probabilities that predict `labels`."""
    return np.eye(classes, dtype=np.float32)[labels] * 0.9 + np.float32(0.1 / classes)


class Page(html.parser.HTMLParser):
    """The elements of a folder's report.html in their order, and what is in each."""
    VOID = ('meta', 'link', 'img')

    def __init__(self, folder):
        super().__init__()
        self.source = (folder / 'report.html').read_text(encoding='utf-8')
        self.elements, self.open = [], []
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attributes):
        attributes = dict(attributes)
        element = SimpleNamespace(tag=tag, attributes=attributes, kind=attributes.get('class'), text='',
                                  inside=[])
        self.elements.append(element)
        for outer in self.open:
            outer.inside.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def all(self, tag, kind=None, inside=None):
        """The elements with this tag, if given also of the class `kind` and in one of the class `inside`."""
        elements = self.elements
        if inside is not None:
            elements = [e for outer in self.elements if outer.kind == inside for e in outer.inside]
        return [e for e in elements if e.tag == tag and kind in (None, e.kind)]

    def tiles(self):
        return dict(zip([e.text for e in self.all('dt')], [e.text for e in self.all('dd') if e.kind is None]))

    def table(self, name):
        """The rows of the table in the box of this name, lists of texts."""
        box = next(e for e in self.all('div', 'scroll') if e.attributes['aria-label'] == name)
        return [[e.text for e in row.inside if e.tag in ('th', 'td')]
                for row in box.inside if row.tag == 'tr']


def image(uri):
    assert uri.startswith('data:image/png;base64,')
    return Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1])))


# The page


def test_finished_run(tmp_path):
    dataset = make_dataset(['bird', 'cat', 'dog'])
    predicted = dataset.test_labels.copy()
    predicted[1] = 2    # a cat
    page = finish(tmp_path, dataset, certain(predicted, 3), error=0.1111)
    assert page.all('title')[0].text == page.all('h1')[0].text == 'asl on cifar10: convnet, 6 labels'
    assert [e.text for e in page.all('h2')] == [
        'Curves', 'Confusion matrix', 'Most confident mistakes', 'Data', 'Labeled images', 'The run']
    tiles = page.tiles()
    errors = [tiles[name] for name in ('Error rate', 'Error, 1 view', 'Balanced error')]
    assert errors == ['0.1111', '0.1211', '0.1311']
    assert tiles['Error, labeled'] == '0.0500' and 'Validation error' not in tiles
    assert '95 % interval 0.201 to 0.306; mean of 8 views' in [e.text for e in page.all('dd', 'note')]
    assert (tiles['Training images'], tiles['Labeled'], tiles['Test images']) == ('12', '6', '9')
    assert tiles['Self branch draws from'] == '6'
    assert page.table('Confusion matrix') == [
        ['true \\ predicted', 'bird', 'cat', 'dog'],
        ['bird', '3', '0', '0'], ['cat', '0', '2', '1'], ['dog', '0', '0', '3']]
    assert page.table('Classes') == [
        ['Class', 'Error rate', 'Training', 'Labeled', 'Test'],
        ['bird', '0.0000', '4', '2', '3'], ['cat', '0.3333', '4', '2', '3'], ['dog', '0.0000', '4', '2', '3']]
    assert ['tensorflow', '1.15.0'] in page.table('Versions')
    assert 'train_evaluate_sesemi.py --seed 0' in page.all('code')[0].text
    strip = np.asarray(image(page.all('img', inside='images samples')[1].attributes['src']))
    # the two labeled cats
    np.testing.assert_array_equal(strip[:, :64, :3], np.hstack(dataset.train_images[[1, 4]]))
    for name in ('curves.png', 'confusion.png'):
        assert Image.open(str(tmp_path / name)).size > (400, 400)


@pytest.mark.parametrize('method, panels, drawn_from', [
    ('asl', ['Loss', 'Accuracy', 'Learning rate'], '4'),
    ('ssl', ['Loss', 'Accuracy', 'Classification error rate', 'Learning rate'], '8'),
    ('supervised', ['Loss', 'Accuracy', 'Learning rate'], 'none')])
def test_unfinished_run(tmp_path, method, panels, drawn_from):
    rows = make_rows(3, method)
    make_report(tmp_path, make_dataset('ab'), method=method).refresh(rows)
    page = Page(tmp_path)
    assert [e.text for e in page.all('h2')] == ['Curves', 'Data', 'Labeled images', 'The run']
    assert page.tiles()['Epochs done'] == '3 of 10'
    assert page.tiles()['Self branch draws from'] == drawn_from
    assert page.tiles().get('Error rate') == ('0.4667' if method == 'ssl' else None)
    assert [e.attributes['aria-label'].split(' by epoch')[0] for e in page.all('svg')] == panels
    assert ('self 0.3333' in page.all('svg')[0].attributes['aria-label']) == (method != 'supervised')
    assert not (tmp_path / 'confusion.png').exists()


def test_error_measured_after_some_epochs(tmp_path):
    rows = make_rows(5)
    rows[1]['error'] = 0.75
    make_report(tmp_path, make_dataset('ab')).refresh(rows)
    page = Page(tmp_path)
    assert page.tiles()['Error rate'] == '0.7500'
    assert 'classification error rate 0.75' in page.all('svg')[2].attributes['aria-label']


def test_validation_images(tmp_path):
    whole = make_dataset(['bird', 'cat'], train=6)
    dataset = whole._replace(valid_images=whole.test_images[:3], valid_labels=whole.test_labels[:3],
                             valid_names=whole.test_names[:3])
    rows = make_rows(4)
    for row, error in zip(rows, (0.75, 0.25, 0.5, 0.5)):
        row['validation_error'] = error
    make_report(tmp_path, dataset).refresh(rows)
    page = Page(tmp_path)
    assert page.tiles()['Validation error'] == '0.5000' and page.tiles()['Validation images'] == '3'
    assert 'after epoch 4; least 0.2500 after epoch 2' in [e.text for e in page.all('dd', 'note')]
    assert 'validation images 0.5' in page.all('svg')[2].attributes['aria-label']
    assert page.table('Classes') == [['Class', 'Training', 'Labeled', 'Test', 'Validation'],
                                     ['bird', '6', '2', '3', '2'], ['cat', '6', '2', '3', '1']]


def test_the_picture_has_all_panels_and_each_element_of_the_page_has_one():
    png, elements = plots.curves(make_rows(3, 'ssl'), 'a run')
    titles = ['Loss', 'Accuracy', 'Classification error rate', 'Learning rate']
    for title, element in zip(titles, elements):
        assert [other for other in titles if '>%s<' % other in element] == [title]
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert('L'))[50:]      # below the title
    for half in np.array_split(pixels, 2):
        assert all(quarter.min() < 128 for quarter in np.array_split(half, 2, axis=1))


@pytest.mark.parametrize('epochs, ticks', [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (30, None)])
def test_epochs_are_whole_on_the_axis(epochs, ticks):
    _, (loss, *_) = plots.curves(make_rows(epochs), 'a run')
    words = re.findall('<text[^>]*>(.*?)</text>', loss)
    shown = list(map(int, words[:words.index('epoch')]))
    assert len(shown) >= min(epochs, 3) and ticks in (None, shown)


@pytest.mark.parametrize('dataset, name', [
    ('/photos/flowers/', 'flowers'), ('scans/leaves.csv', 'leaves.csv')])
def test_own_images_have_the_name_of_their_folder_or_list(tmp_path, monkeypatch, dataset, name):
    made = make_dataset('ab')
    monkeypatch.setitem(FLAGS, 'data', 'folder')
    monkeypatch.setitem(FLAGS, 'dataset', dataset)
    page = finish(tmp_path / 'run', made, certain(made.test_labels, 2))
    assert page.all('h1')[0].text == 'asl on %s: convnet, 4 labels' % name
    assert cells(comparison.compare([str(tmp_path / 'run')]))[1][1] == name
    titles, draw = [], plots.comparison_png
    monkeypatch.setattr(plots, 'comparison_png',
                        lambda series, title: titles.append(title) or draw(series, title))
    comparison.plot([str(tmp_path / 'run')], str(tmp_path / 'errors.png'))
    assert titles == [name]


def test_the_page_needs_no_other_file(tmp_path):
    dataset = make_dataset('abc')
    page = finish(tmp_path, dataset, certain((dataset.test_labels + 1) % 3, 3), make_rows(300, 'ssl'),
                  method='ssl')
    attributes = [(name, value) for e in page.elements for name, value in e.attributes.items()]
    assert all(value.startswith(('data:', '#'))
               for name, value in attributes if name in ('src', 'href', 'xlink:href'))
    assert all(value.startswith('#') for value in re.findall(r'url\(["\']?(.)', page.source))
    assert '//' not in re.sub('base64,[^"]*', '', page.source) and not page.all('script')
    assert all(e.attributes['alt'] for e in page.all('img'))
    assert all(e.attributes['aria-label'] for e in page.all('svg'))
    ids = [value for name, value in attributes if name == 'id']
    assert len(ids) == len(set(ids))
    assert len(page.source) < 500000
    # The colours of the curves are variables, so that they can be seen in dark mode.
    svg = page.source[page.source.index('<svg'):page.source.rindex('</svg>')]
    assert 'var(--blue)' in svg and not re.search('(fill|stroke): *#', svg)


def test_any_class_name(tmp_path):
    names = ['<b>bold</b>', 'R&D "now" & \'then\'', '</table>', '猫', '$x$ costs $5', '&lt;']
    dataset = make_dataset(names)._replace(test_names=['<i>%d</i>\udcff.png' % i for i in range(18)])
    page = finish(tmp_path, dataset, certain((dataset.test_labels + 1) % 6, 6), data='<u>')
    assert [row[0] for row in page.table('Classes')[1:]] == page.table('Confusion matrix')[0][1:] == names
    assert [e.text for e in page.all('figcaption', inside='images samples')] == names
    assert {e.text for e in page.all('b')} == set(names)
    assert page.all('img', inside='images mistakes')[0].attributes['alt'] == r'test image <i>0</i>\udcff.png'
    assert not page.all('i') and not page.all('u')
    assert (tmp_path / 'confusion.png').exists()


@pytest.mark.parametrize('name', [
    '猫狗'.encode('gbk'), 'кот'.encode('cp1251'), b'caf\xe9', b'$5\xff$', b'\x1b[31mred',
    '\u202egnp'.encode()])
def test_a_name_in_other_bytes_or_with_control_characters(tmp_path, monkeypatch, capsys, name):
    """Of the data folder and of a class; in report.py compare too."""
    name = os.fsdecode(name)
    shown = escape_controls(name)
    monkeypatch.setitem(FLAGS, 'data', 'folder')
    monkeypatch.setitem(FLAGS, 'dataset', '/data/' + name)
    drawn, draw = [], Text.draw
    monkeypatch.setattr(Text, 'draw', lambda text, *args: drawn.append(text.get_text()) or draw(text, *args))
    dataset = make_dataset([name, 'dog'])
    page = finish(tmp_path, dataset, certain(1 - dataset.test_labels, 2))
    assert page.all('h1')[0].text == 'asl on %s: convnet, 4 labels' % shown
    for table in 'Classes', 'Confusion matrix':
        assert [row[0] for row in page.table(table)[1:]] == [shown, 'dog']
    assert report.main(['compare', str(tmp_path), '--plot', str(tmp_path / 'errors.png')]) == 0
    out, err = capsys.readouterr()
    assert cells(out)[1][1] == shown and not err
    in_pictures = shown.replace('$', r'\$')
    assert {in_pictures, 'asl on %s: convnet, 4 labels' % in_pictures} <= set(drawn)
    assert not any(CONTROL_CHARACTERS.search(text) for text in drawn)
    assert {path.name for path in tmp_path.glob('*.png')} == {'confusion.png', 'curves.png', 'errors.png'}


def test_most_confident_mistakes_come_first(tmp_path):
    dataset = make_dataset(['cat', 'dog'], test=40)
    probabilities = certain(dataset.test_labels, 2)
    for i, confidence in ((6, 0.8), (3, 0.99), (70, 0.6), (9, 0.8)):
        probabilities[i] = 1 - confidence
        probabilities[i, 1 - dataset.test_labels[i]] = confidence
    page = finish(tmp_path, dataset, probabilities)
    assert [e.text for e in page.all('figcaption', inside='images mistakes')] == [
        'dog taken for cat 0.990test/3.png', 'cat taken for dog 0.800test/6.png',
        'dog taken for cat 0.800test/9.png', 'cat taken for dog 0.600test/70.png']
    shown = image(page.all('img', inside='images mistakes')[0].attributes['src'])
    np.testing.assert_array_equal(np.asarray(shown), dataset.test_images[3])
    page = finish(tmp_path, dataset, certain(1 - dataset.test_labels, 2))
    assert len(page.all('figcaption', inside='images mistakes')) == 24


def test_no_mistake(tmp_path):
    dataset = make_dataset('ab')
    page = finish(tmp_path, dataset, certain(dataset.test_labels, 2), error=0.0)
    assert page.tiles()['Error rate'] == '0.0000' and not page.all('img', inside='images mistakes')


@pytest.mark.parametrize('classes', [30, 31])
def test_number_of_classes(tmp_path, classes):
    dataset = make_dataset(['class %d' % i for i in range(classes)], train=2, test=2)
    predicted = dataset.test_labels.copy()
    predicted[[0, classes]] = 1     # both images of class 0
    page = finish(tmp_path, dataset, certain(predicted, classes))
    assert len(page.table('Classes')) == classes + 1
    if classes <= 30:
        assert page.table('Confusion matrix')[1][:3] == ['class 0', '0', '2']
        assert 'rgba(213,94,0,' in page.source and 'rgba(0,114,178,' in page.source
    else:
        picture = image(page.all('img', inside='scroll')[0].attributes['src'])
        assert picture.size == (classes, classes)
        assert [picture.getpixel(at) for at in ((1, 0), (1, 1))] == [(213, 94, 0, 255), (0, 114, 178, 255)]
        assert picture.getpixel((0, 0))[3] == picture.getpixel((2, 1))[3] == 0
        assert page.table('Most frequent confusions')[1:] == [['class 0', 'class 1', '2', '2']]
    assert len(page.all('img', inside='images samples')) == min(classes, 40)


def test_class_without_test_images(tmp_path):
    dataset = make_dataset('abc')
    keep = dataset.test_labels != 1
    dataset = dataset._replace(test_images=dataset.test_images[keep], test_labels=dataset.test_labels[keep])
    page = finish(tmp_path, dataset, certain(dataset.test_labels, 3))
    assert page.table('Classes')[2] == ['b', '', '4', '2', '0']


# Around a run


def test_refreshed_every_30_seconds(tmp_path):
    made = make_report(tmp_path, make_dataset('ab'))
    seen = []
    for now, epochs in ((100, 1), (103, 2), (129.9, 3), (130, 4), (133, 5), (1000, 6)):
        made.clock = lambda: now
        made.refresh(make_rows(epochs))
        seen.append(Page(tmp_path).tiles()['Epochs done'][0])
    assert ''.join(seen) == '111446'


def test_without_matplotlib(tmp_path):
    write_result(tmp_path)
    script = """import sys
sys.modules['matplotlib'] = None
sys.path.insert(0, {!r})
import json, numpy as np, report
from sesemi.data import datasets
from sesemi.record import live
images, labels, names = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4) % 2, list('0123')
row = dict(epoch=1, step=25, learning_rate=0.05, seconds=2.0, loss=5.0, super_clf_loss=2.0, super_clf_acc=0.2)
for _ in range(2):
    data = datasets.Dataset(images, labels, names, images, labels, names, ['a', 'b'], images)
    made = live.Report({!r}, data, np.arange(4), 10)
    made.refresh([row]), made.finish([row], np.eye(2)[[0, 0, 0, 0]], json.load(open({!r})))
assert 'tensorflow' not in sys.modules
print(report.main(['compare', {!r}, '--plot', 'no.png']))""".format(
        str(PROJECT), str(tmp_path), str(tmp_path / 'result.json'), str(tmp_path))
    _, out, err = run(sys.executable, '-c', script)
    said = [line for line in err.splitlines() if 'matplotlib' in line]
    assert len(said) == 2 and said[0].startswith('No curves.png and no confusion.png')
    assert said[1].startswith('--plot no.png')
    assert all('pip install matplotlib' in line for line in said) and 'Traceback' not in err
    assert out.endswith('\n2\n')
    page = Page(tmp_path)
    assert 'log.csv' in page.source and not page.all('svg') and page.all('img', inside='images mistakes')
    assert not list(tmp_path.glob('*.png'))


DRAWS = '''
import hashlib
from sesemi.record import plots
assert not plots.import_error(), plots.import_error()
for picture in (plots.curves(%r, 'a run')[0], plots.comparison_png({'asl': {10: [0.2]}}, ''),
                plots.confusion_png(plots.np.eye(3, dtype=int), 'abc', True, '')):
    print(hashlib.md5(picture).hexdigest())
'''


@pytest.fixture(scope='module')
def drawn():
    """What DRAWS prints without any settings, in this process."""
    with io.StringIO() as out, contextlib.redirect_stdout(out):
        exec(DRAWS % make_rows(3), {})
        return out.getvalue()


@pytest.mark.parametrize('settings, environment', [
    (b'text.usetex: True\nfont.size: 20\nsavefig.bbox: tight', {}),
    (b'font.family: No Such Font\nbackend: module://no.such.backend', {'MPLBACKEND': 'no_such_backend'}),
    (b'\xff', {'MATPLOTLIBRC': 'other/matplotlibrc', 'MPLBACKEND': 'module://no.such.backend'})])
def test_pictures_do_not_depend_on_the_users_settings(tmp_path, drawn, settings, environment):
    path = tmp_path / environment.get('MATPLOTLIBRC', 'matplotlibrc')
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(settings)
    assert run(sys.executable, '-c', DRAWS % make_rows(3), cwd=tmp_path, PYTHONPATH=str(PROJECT),
               **environment) == (0, drawn, '')


def blocked_by_a_folder(path, monkeypatch):
    path.mkdir()
    return path.rmdir


def on_a_full_disk(path, monkeypatch):
    def full(descriptor):
        if path.name in os.readlink('/proc/self/fd/%d' % descriptor):
            raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    return lambda: monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


def not_drawn(path, monkeypatch):
    names = {'curves.png': 'curves', 'confusion.png': 'confusion_png'}
    module, name = (plots, names[path.name]) if path.name in names else (live.page, 'render')
    draw = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *_: float('no font'))
    return lambda: monkeypatch.setattr(module, name, draw)


@pytest.mark.parametrize('name', ['curves.png', 'confusion.png', 'report.html'])
@pytest.mark.parametrize('fail, reason', [
    (blocked_by_a_folder, 'Is a directory'), (on_a_full_disk, 'No space left'), (not_drawn, 'no font')])
def test_a_file_of_the_report_that_cannot_be_made_ends_no_run(tmp_path, monkeypatch, capsys,
                                                              fail, reason, name):
    """It is said once and tried again at the next epoch; the other files are there."""
    dataset = make_dataset('ab')
    made = make_report(tmp_path, dataset)
    mend = fail(tmp_path / name, monkeypatch)
    files = {'curves.png', 'report.html'} | {name}
    for epoch in 1, 2:
        made.refresh(make_rows(epoch))
    write_result(tmp_path)
    ended = make_rows(2), certain(dataset.test_labels, 2), json.loads((tmp_path / 'result.json').read_text())
    if name == 'confusion.png':
        made.finish(*ended)
    said = capsys.readouterr().err
    assert said.startswith('%s: ' % (tmp_path / name)) and reason in said and said.count('\n') == 1
    assert all((tmp_path / other).is_file() for other in files - {name}) and not (tmp_path / name).is_file()
    if name != 'report.html':
        page = Page(tmp_path)
        assert bool(page.all('svg')) == ((name, fail) != ('curves.png', not_drawn))
    mend()
    if name == 'confusion.png':
        made.finish(*ended)
    else:
        made.refresh(make_rows(3))
    assert (tmp_path / name).is_file() and not list(tmp_path.glob('*.part')) and not capsys.readouterr().err


# Several runs


def cells(text):
    return [re.split('  +', line) for line in text.splitlines()]


def test_compare_keeps_runs_on_several_devices_apart(tmp_path, capsys):
    for name, flags in (('before', {}), ('one', {'ranks': 1, 'seed': 1}), ('two', {'ranks': 2})):
        write_result(tmp_path / name, **flags)
    assert report.main(['compare', str(tmp_path)]) == 0
    header, one, two = cells(capsys.readouterr().out)
    place = header.index('ranks')
    assert (one[place], one[place + 1]) == ('1', '0,1') and (two[place], two[place + 1]) == ('2', '0')


def test_compare_puts_runs_that_differ_in_the_seed_into_one_line(tmp_path, capsys):
    for seed, error in ((10, 0.25), (9, 0.27), (2, 0.29)):
        write_result(tmp_path / 'asl' / ('seed-%d' % seed), error=error, seed=seed,
                     result='asl/seed-%d' % seed, device='gpu')
    write_result(tmp_path / 'ssl', error=0.1788, method='ssl', epochs=50)
    assert report.main(['compare', str(tmp_path / 'asl'), str(tmp_path / 'ssl'),
                        str(tmp_path / 'asl' / 'seed-9')]) == 0
    text = capsys.readouterr().out
    assert cells(text) == [
        ['method', 'data', 'network', 'labels', 'seed', 'error', 'error, 1 view', 'balanced error', 'epochs',
         'training', 'images/s'],
        ['asl', 'cifar10', 'convnet', '20', '2,9,10', '0.2700 +/- 0.0200 (3 runs)',
         '0.2800 +/- 0.0200 (3 runs)', '0.2900 +/- 0.0200 (3 runs)', '10', '20.0 s', '2400'],
        ['ssl', 'cifar10', 'convnet', '20', '0', '0.1788', '0.1888', '0.1988', '50', '20.0 s', '2400']]
    assert len({line.index(cell)
                for line, cell in zip(text.splitlines(), ('training', '20.0 s', '20.0 s'))}) == 1


def test_compare_keeps_other_settings_apart(tmp_path):
    write_result(tmp_path / 'a')
    write_result(tmp_path / 'b', seed=1, lr=0.1)
    write_result(tmp_path / 'c', seed=2, data='digits', flip=False, batch_size=4)
    table = cells(comparison.compare([str(tmp_path)]))
    assert table[0][:6] == ['method', 'data', 'network', 'labels', 'lr', 'seed']
    assert [row[4:6] for row in table[1:]] == [['0.05', '0'], ['0.1', '1'], ['0.05', '2']]


def test_compare_leaves_out_unfinished_runs(tmp_path, capsys):
    write_result(tmp_path / 'seed-0')
    write_result(tmp_path / 'seed-1', seed=1)
    (tmp_path / 'seed-1' / 'result.json').unlink()
    assert len(cells(comparison.compare([str(tmp_path)]))) == 2
    assert capsys.readouterr().err == '%s: not finished; left out.\n' % (tmp_path / 'seed-1')


@pytest.mark.parametrize('content', [None, '{"classification_error_rate": '])
def test_compare_names_a_folder_without_a_result(tmp_path, capsys, content):
    write_result(tmp_path / 'good')
    (tmp_path / 'bad').mkdir()
    if content:
        (tmp_path / 'bad' / 'result.json').write_text(content)
    assert report.main(['compare', str(tmp_path / 'good'), str(tmp_path / 'bad')]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(str(tmp_path / 'bad')) and 'result.json' in err and err.count('\n') == 1


@pytest.mark.parametrize('argv', [[], ['compare', 'x', '--plat', 'y']])
def test_a_wrong_command_is_one_sentence(capsys, argv):
    assert report.main(argv) == 2
    out, err = capsys.readouterr()
    assert not out and err.endswith('; --help lists the flags.\n') and err.count('\n') == 1


def test_plot(tmp_path, monkeypatch, capsys):
    for method, labels, seed, error in (('asl', 1000, 0, 0.30), ('asl', 1000, 1, 0.28),
                                        ('asl', 'all', 0, 0.1), ('ssl', 1000, 0, 0.2)):
        write_result(tmp_path / 'runs' / ('%s-%s-%s' % (method, labels, seed)),
                     error=error, method=method, labels=labels, seed=seed)
    drawn, draw = [], plots.comparison_png
    monkeypatch.setattr(plots, 'comparison_png',
                        lambda series, title: drawn.append(series) or draw(series, title))
    path = tmp_path / 'errors.png'
    assert report.main(['compare', str(tmp_path / 'runs'), '--plot', str(path)]) == 0
    assert drawn == [{'asl': {1000: [0.30, 0.28], 'all': [0.1]}, 'ssl': {1000: [0.2]}}]
    assert Image.open(str(path)).size > (400, 400)
    assert report.main(['compare', str(tmp_path / 'runs'),
                        '--plot', str(tmp_path / 'none' / 'errors.png')]) == 2


# TensorBoard


def read_events(folder):
    """((tag, step, value) of a folder's scalars as TensorBoard shows them, the Event protos of each file)."""
    files = [list(tf.train.summary_iterator(str(path)))
             for path in sorted(folder.glob('events.out.tfevents.*'))]
    shown = []
    for event in (event for file in files for event in file):
        if event.session_log.status == tf.SessionLog.START:
            shown = [point for point in shown if point[1] < event.step]
        shown += [(value.tag, event.step, value.simple_value)
                  for value in event.summary.value if not value.HasField('image')]
    return shown, files


def test_events(tmp_path):
    views = np.random.RandomState(0).randn(96, 32, 32, 3).astype(np.float32)
    rows = make_rows(3, 'ssl')
    written = events.Events(str(tmp_path), [], {'self_data': views, 'super_data': views})
    for done in (1, 1, 3):
        written.write(rows[:done])
    shown, (file,) = read_events(tmp_path)
    assert sorted(shown) == sorted((name, row['step'], np.float32(value)) for row in rows
                                   for name, value in row.items() if name not in ('epoch', 'step'))
    assert file[0].file_version == 'brain.Event:2' and all(event.wall_time > 1.5e9 for event in file)
    (value,) = [value for event in file for value in event.summary.value if value.HasField('image')]
    picture = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert (value.tag, value.image.width, value.image.height) == ('proxy_views', 192, 256)
    assert picture.size == (192, 256)


def test_grid_has_the_views_of_an_image_side_by_side():
    images = np.linspace(-3, 5, 9 * 4 * 4 * 3, dtype=np.float32).reshape(9, 4, 4, 3)
    grid = events.view_grid(make_proxy_views(images)[0])
    assert grid.shape == (8 * 4, 6 * 4, 3) and grid.dtype == np.uint8
    assert (grid.min(), grid.max()) == (0, 255)
    for row in range(8):
        upright = grid[4 * row:4 * row + 4, :4]
        for column, (_, transform) in enumerate(PROXY_TRANSFORMS):
            np.testing.assert_array_equal(grid[4 * row:4 * row + 4, 4 * column:4 * column + 4],
                                          transform(upright[None])[0])
    assert not events.view_grid(np.ones((6, 4, 4, 3), np.float32)).any()


def test_events_of_a_resumed_run_do_not_double(tmp_path):
    inputs = {'self_data': np.zeros((12, 4, 4, 3), np.float32)}
    rows = make_rows(5)
    # a run that is killed after five epochs
    events.Events(str(tmp_path), [], inputs).write([dict(row, loss=9) for row in rows])
    # it is resumed from a checkpoint of three
    resumed = events.Events(str(tmp_path), rows[:3], inputs)
    resumed.write(rows[:4])
    resumed.write(rows)
    shown, files = read_events(tmp_path)
    assert [(step, value) for tag, step, value in shown if tag == 'loss'] == [
        (25, 9), (50, 9), (75, 9)] + [(row['step'], np.float32(row['loss'])) for row in rows[3:]]
    assert sum(value.HasField('image') for file in files for event in file
               for value in event.summary.value) == 1


def test_events_of_a_supervised_run_have_no_views(tmp_path):
    inputs = {'super_data': np.zeros((12, 4, 4, 3), np.float32)}
    events.Events(str(tmp_path), [], inputs).write(make_rows(1, 'supervised'))
    shown, _ = read_events(tmp_path)
    assert {tag for tag, _, _ in shown} == {
        'learning_rate', 'seconds', 'loss', 'super_clf_loss', 'super_clf_acc'}


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_events_that_cannot_be_written_are_said_once_and_written_later(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(events.time, 'time', lambda: 1)
    path = tmp_path / 'events.out.tfevents.0000000001.000000000'
    for block, free, reason in ((lambda: path.symlink_to('/dev/full'), path.unlink, 'No space left'),
                                (path.mkdir, path.rmdir, 'irectory')):
        files._failed.clear()
        block()
        written = events.Events(str(tmp_path), [], {})
        written.write(make_rows(2))
        said = capfd.readouterr().err
        assert said.startswith('%s: ' % path) and reason in said and said.count('\n') == 1
        free()
        written.write(make_rows(3))
        shown, (events_of_file,) = read_events(tmp_path)
        assert [step for tag, step, _ in shown if tag == 'loss'] == [25, 50, 75]
        assert len(events_of_file) == 5
        path.unlink()
