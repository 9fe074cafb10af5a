"""predict.py as a user runs it, with a saved model of one convolution for 64 x 64 images, padded."""
import base64
import csv
import html
import io
import os
import re
import shutil
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import programs
import pytest
from conftest import PROJECT
from PIL import Image

import predict
from sesemi.errors import InputError
from utils import decode_image, fit_channel_standardizer, global_contrast_normalize

CLASSES = ['ané', 'bee', 'cow', 'dog', 'elk fawn']


def picture(number):
    """Four coloured quarters, a function of `number`: uint8 (64, 64, 3)."""
    quarters = np.random.RandomState(number).randint(0, 256, (2, 2, 3))
    return np.kron(quarters, np.ones((32, 32, 1))).astype(np.uint8)


def write_picture(path, number, size=(64, 64), mode='RGB'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number)).resize(size).convert(mode).save(str(path))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """model: the saved file. probabilities(path): those of an image by the network before it was saved."""
    import tiny_trunk  # noqa: F401

    import networks
    from sesemi.device import runtime
    from sesemi.training import classifier
    path = tmp_path_factory.mktemp('model') / 'sesemi.h5'
    images = global_contrast_normalize(np.stack([picture(number) for number in range(1000, 1100)]))
    standardize = fit_channel_standardizer([images])
    with runtime.open_session('cpu'):
        _, network = networks.build_supervised('tiny', (64, 64, 3), len(CLASSES))
        head = network.get_layer('super_clf')
        kernel, bias = head.get_weights()
        bias -= np.log(network.predict_on_batch(standardize(images))).mean(axis=0)
        head.set_weights([5 * kernel, 5 * bias])        # so that not all images are of one class
        classifier.Classifier(network, standardize, CLASSES, fit='pad').save(str(path))
        yield SimpleNamespace(model=str(path), probabilities=lambda path: network.predict_on_batch(
            standardize(global_contrast_normalize(decode_image(str(path), 64, 'pad')[None])))[0])


def run(*flags, **options):
    """A process of predict.py: (exit status, standard output's lines, standard error)."""
    status, out, err = programs.run('predict.py', *flags, **options)
    return status, out.splitlines(), err


def test_images_of_any_format_and_depth_get_a_line_each(saved, tmp_path):
    os.symlink(saved.model, str(tmp_path / 'sesemi.h5'))
    names = ['photos/B.JPG', 'photos/a.png', 'photos/caf\udce9.png', 'photos/grey.tif',
             'photos/sub/deep/p.gif', 'photos/sub/z.bmp']
    sizes = (40, 30), (64, 64), (90, 90), (5, 7), (300, 200), (1, 1)
    modes = 'RGB', 'RGBA', 'LA', 'L', 'P', 'RGB'
    for number, (name, size, mode) in enumerate(zip(names, sizes, modes)):
        write_picture(tmp_path / name, number, size, mode)
    write_picture(tmp_path / 'alone.png', 10)
    (tmp_path / 'alone.png').rename(tmp_path / 'alone')
    for stray in ('photos/notes.txt', 'photos/.hidden.png', 'photos/.cache/a.png'):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_text('not an image')

    Image.fromarray(picture(0)).save(str(tmp_path / 'photos/B.JPG'), exif=b'Exif\0\0II*\0\x08\0\0\0\1\0')

    status, lines, error = run('sesemi.h5', 'photos', '--device', 'cpu', 'alone', cwd=tmp_path)

    assert status == 0, error
    assert 'Corrupt EXIF' not in error, 'a warning of Pillow'
    cells = [line.split('\t') for line in lines]
    assert [path for path, *_ in cells] == [name.replace('\udce9', '\\udce9') for name in names] + ['alone']
    for name, (_, *classes) in zip(names + ['alone'], cells):
        expected = saved.probabilities(tmp_path / name)
        best = np.argsort(-expected)[:3]
        assert [text.rsplit(' ', 1)[0] for text in classes] == [CLASSES[i] for i in best]
        np.testing.assert_allclose([float(text.rsplit(' ', 1)[1]) for text in classes],
                                   expected[best], atol=1e-4)


def test_csv_of_several_batches_equals_one_by_one_and_lists_the_unreadable(saved, tmp_path):
    for number in range(65):        # two batches of 33 with one place of padding
        write_picture(tmp_path / 'images/{:03d}.png'.format(number), number)
    whole = (tmp_path / 'images/050.png').read_bytes()
    (tmp_path / 'images/050.png').write_bytes(whole[:len(whole) // 2])

    status, lines, error = run(saved.model, tmp_path / 'images', '--csv', tmp_path / 'out.csv', '--top', 99)

    assert status == 1
    assert [line.startswith(str(tmp_path / 'images/050.png: cannot be read'))
            for line in error.splitlines()].count(True) == 1
    assert 'Traceback' not in error
    with open(str(tmp_path / 'out.csv'), newline='') as file:
        header, *rows = csv.reader(file)
    assert header == ['file', 'class', 'probability', *(
        '{}_{}'.format(name, place) for place in range(2, 6) for name in ('class', 'probability')), 'margin']
    assert [row[0] for row in rows] == [str(tmp_path / 'images/{:03d}.png'.format(number))
                                        for number in range(65)]
    assert rows.pop(50)[1:] == ['unreadable'] + [''] * 10
    for path, *cells, margin in rows:
        classes, values = cells[::2], np.array(cells[1::2], float)
        assert sorted(classes) == CLASSES and (np.diff(values) <= 0).all() and abs(values.sum() - 1) < 1e-5
        assert float(margin) == pytest.approx(values[0] - values[1], abs=2e-6)
        expected = saved.probabilities(path)[[CLASSES.index(name) for name in classes]]
        np.testing.assert_allclose(values, expected, atol=1e-4)
    counts = {line.split(None, 1)[1]: int(line.split()[0]) for line in lines[1:]}
    assert counts.pop('unreadable') == 1
    assert counts == {name: [row[1] for row in rows].count(name) for name in counts}
    assert sum(counts.values()) == 64
    assert len(counts) >= 3, 'the images are too alike to tell one from another'


def test_page_and_folders_of_images_by_class(saved, tmp_path):
    names = ['{:02d}.png'.format(number) for number in range(30)]
    names += ['sub/00.png', 'a<b>&"\'x.png', 'caf\udce9.png', 'new\nline.png', '$state %s.png']
    for number, name in enumerate(names):
        write_picture(tmp_path / 'photos' / name, number, (40, 64))
    for name, size in (('cut.png', 500), ('empty.png', 0)):
        data = (tmp_path / 'photos/00.png').read_bytes()
        (tmp_path / 'photos' / name).write_bytes(data[:len(data) // 2] if size else b'')
    expected = {name: saved.probabilities(tmp_path / 'photos' / name) for name in names}
    best = np.sort(np.max(list(expected.values()), axis=1))
    threshold = float(best[7] + best[8]) / 2
    flags = 'photos', '--html=out.html', '--per-class=4', '--threshold', threshold, '--top=1'

    status, lines, error = run(saved.model, *flags, '--sort-into=sorted', '--csv=out.csv', cwd=tmp_path)

    assert status == 1 and error.count('cannot be read') == 2
    assert lines[:3] == ['sorted: 35 images.', 'out.csv: 37 images.', 'out.html: 37 images.']
    groups = {heading: {} for heading in [*CLASSES, 'Below --threshold {:g}'.format(threshold)]}
    for name, values in expected.items():
        ordered = np.sort(values)
        heading = CLASSES[values.argmax()] if ordered[-1] >= threshold else list(groups)[-1]
        groups[heading][name] = ordered[-1] - ordered[-2]
    with open(str(tmp_path / 'out.csv'), newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['file', 'class', 'probability', 'margin', 'sorted_to']
    escaped = [name.encode('unicode_escape').decode() if name in names[-3:-1] else name for name in names]
    by_file = {row['file']: row for row in rows}
    for name, shown in zip(names, escaped):
        row = by_file['photos/' + shown]
        heading = next(heading for heading in groups if name in groups[heading])
        folder = heading if heading in CLASSES else 'unlabeled'
        assert float(row['margin']) == pytest.approx(groups[heading][name], abs=1e-4)
        base = os.path.basename(shown)
        assert row['sorted_to'] in ('sorted/{}/{}'.format(folder, base),
                                    'sorted/{}/{}'.format(folder, base.replace('.', '_2.')))
        if name != 'sub/00.png':
            assert os.readlink(str(tmp_path / 'sorted' / folder / name)) == str(tmp_path / 'photos' / name)
    assert [row['sorted_to'] for row in rows if row['class'] == 'unreadable'] == ['', '']
    assert sum(len(files) for _, _, files in os.walk(str(tmp_path / 'sorted'))) == 35

    page = (tmp_path / 'out.html').read_text(encoding='utf-8')
    assert not re.search('src="(?!data:)|href="(?!data:)', page)
    sections = re.findall('<section>\n<h2>(.*?)</h2>(.*?)</section>', page, re.DOTALL)
    assert [heading for heading, _ in sections] == [name for name in groups if groups[name]] + ['Unreadable']
    assert len(sections) >= 4, 'the images are too alike'
    for heading, content in sections[:-1]:
        order = sorted(groups[heading], key=groups[heading].get)
        found = re.findall('<figcaption>(.*) ([0-9.]+)<small>(.*)</small>', content)
        assert [html.unescape(name) for _, _, name in found] == [
            os.path.basename(escaped[names.index(name)]) for name in order[:4]]
        for name, (label, probability, _) in zip(order, found):
            assert label == CLASSES[expected[name].argmax()]
            assert float(probability) == pytest.approx(expected[name].max(), abs=1e-4)
        thumbnails = re.findall('src="data:image/jpeg;base64,(.*?)"', content)
        sizes = [Image.open(io.BytesIO(base64.b64decode(text))).size for text in thumbnails]
        assert sizes == [(80, 128)] * min(4, len(order))
        assert ('%d more.' % (len(order) - 4) in content) == (len(order) > 4)
    assert re.findall('<small>(.*?)</small>', sections[-1][1]) == ['cut.png', 'empty.png']
    assert 'img' not in sections[-1][1] and 'it is empty' in sections[-1][1]


def test_evaluation_of_some_of_the_classes_equals_the_hand_computation(saved, tmp_path):
    labeled = ['bee', 'dog', 'elk fawn']
    confusion = np.zeros((3, 5), int)
    for number in range(40):
        path = tmp_path / 'test' / labeled[number % 3] / '{}.png'.format(number)
        write_picture(path, number)
        confusion[number % 3, saved.probabilities(path).argmax()] += 1
    (tmp_path / 'test/dog/broken.png').write_bytes(b'')
    right = confusion[[0, 1, 2], [1, 3, 4]]
    assert 0 < right.sum() < 40 and (confusion.sum(axis=0) > 0).sum() >= 3, 'the images are too alike'

    status, lines, error = run(saved.model, '--evaluate', tmp_path / 'test')

    write_picture(tmp_path / 'one/ane\u0301/0.png', 0)     # é as two letters
    write_picture(tmp_path / 'one/ane\u0301/result/curves.png', 0)
    (tmp_path / 'one/ane\u0301/result/.lock').write_text('')
    ended, said, passed_over = run(saved.model, '--evaluate', tmp_path / 'one')
    assert (ended, passed_over) == (0, 'Folders passed over: result.\n')
    assert [line.split()[:2] for line in said if line.startswith('ané')] == [['ané', '1']]
    assert status == 1 and str(tmp_path / 'test/dog/broken.png') in error
    *_, header, bee, dog, elk, last = lines
    assert last == 'classification error rate: {:.4f}'.format(1 - right.sum() / 40)
    assert header.split() == ['class', 'images', 'error', *' '.join(CLASSES).split()]
    assert len({len(line) for line in (header, bee, dog, elk)}) == 1, 'not aligned'
    for line, name, row, hits in zip((bee, dog, elk), labeled, confusion, right):
        assert line.startswith(name)
        assert line[len(name):].split() == [
            str(row.sum()), '{:.4f}'.format(1 - hits / row.sum()), *map(str, row)]


def test_below_the_threshold_an_image_is_unknown(saved, tmp_path, capsys):
    expected = []
    for number in range(24):
        write_picture(tmp_path / 'images/{:02d}.png'.format(number), number)
        expected.append(saved.probabilities(tmp_path / 'images/{:02d}.png'.format(number)))
    best = np.sort(np.max(expected, axis=1))
    threshold = float(best[11] + best[12]) / 2

    status, lines, error = run(saved.model, tmp_path / 'images', '--threshold', threshold, '--top', 2)

    assert status == 0, error
    for line, probabilities in zip(lines, expected):
        first, second = np.argsort(-probabilities)[:2]
        names = ([CLASSES[first], CLASSES[second]] if probabilities[first] >= threshold
                 else ['unknown', CLASSES[first]])
        assert [cell.rsplit(' ', 1)[0] for cell in line.split('\t')[1:]] == names
        assert float(line.split('\t')[1].rsplit(' ', 1)[1]) == pytest.approx(probabilities[first], abs=1e-4)
    assert sum('unknown' in line for line in lines) == 12

    predict.print_evaluation(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]),
                             np.array([0, 1, 1, 1]), ['a', 'b'], 0.65)
    assert capsys.readouterr().out.endswith(
        '1 of 4 images are unknown below --threshold 0.65; the error rate of the others is 0.3333.\n'
        'classification error rate: 0.5000\n')
    predict.print_evaluation(np.array([[0.6, 0.4]]), np.array([1]), ['a', 'b'], 0.9)
    assert '1 of 1 images are unknown below --threshold 0.9.\n' in capsys.readouterr().out


def test_all_batches_have_one_size_and_errors_the_index_of_their_file(tmp_path):
    paths = [str(tmp_path / '{}.png'.format(number)) for number in range(5)]
    for number in (0, 1, 2, 4):
        write_picture(tmp_path / '{}.png'.format(number), number)
    (tmp_path / '3.png').write_text('not an image')

    batches = list(predict.decode_batches(paths, 64, 'pad', 2))

    assert [(images.shape, images.dtype, list(errors)) for images, errors in batches] == [
        ((2, 64, 64, 3), np.float32, wrong) for wrong in ([], [3], [])]
    for number in (0, 1, 2, 4):
        np.testing.assert_array_equal(batches[number // 2][0][number % 2], decode_image(paths[number], 64))
    assert isinstance(batches[1][1][3], InputError)
    assert not batches[1][0][1].any() and not batches[2][0][1].any()


@pytest.mark.parametrize('layer, weight, value', [
    ('super_clf', 'kernel:0', np.ones((5, 4), np.float32)), ('whitened', 'bias:0', None),
    ('conv_1', 'bias:0', np.array([1, np.nan, 1, 1], np.float32))])
def test_weights_that_do_not_fit_the_layers(saved, tmp_path, layer, weight, value):
    from sesemi.training import classifier
    path = str(tmp_path / 'sesemi.h5')
    shutil.copy(saved.model, path)
    with h5py.File(path, 'r+') as file:
        group = file['model_weights'][layer]
        names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs['weight_names']]
        changed = names[0].rsplit('/', 1)[0] + '/' + weight
        if changed in names:
            del group[changed]
        if value is not None:
            group[changed] = value
        group.attrs['weight_names'] = [name.encode() for name in dict.fromkeys(names + [changed])
                                       if name in group]
    with pytest.raises(InputError, match='its weights'):
        classifier.load_classifier(path)


@pytest.fixture
def folder(tmp_path):
    """Images, a labeled folder and files that are no models."""
    write_picture(tmp_path / 'image.png', 0)
    for name in ('bee', 'wolf'):
        write_picture(tmp_path / 'labeled' / name / '0.png', 0)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.h5').write_text('not an h5 file')
    with h5py.File(str(tmp_path / 'other.h5'), 'w') as file:
        file.attrs['keras_version'] = '2.2.4'
    return tmp_path


@pytest.mark.parametrize('flags, words', [
    (['missing.h5', 'image.png'], 'missing.h5: no such file'),
    (['labeled', 'image.png'], 'labeled: no such file'),
    (['{model}', 'image.png', 'nowhere'], 'nowhere: no such file or folder'),
    (['{model}', 'image.png', 'empty'], 'empty: holds no images'),
    (['{model}'], 'give either images to classify or --evaluate'),
    (['{model}', 'image.png', '--evaluate', 'labeled'], 'give either images to classify or --evaluate'),
    (['{model}', '--evaluate', 'nowhere'], 'nowhere: no such folder'),
    (['{model}', 'image.png', '--top', '0'], '--top: 0 is not a whole number from 1 up'),
    (['{model}', 'image.png', '--top', 'many'], '--top: many is not a whole number from 1 up'),
    (['{model}', 'image.png', '--threshold', '2'], '--threshold: 2 is not above 0 and up to 1'),
    (['{model}', 'image.png', '--csv', 'nowhere/out.csv'], '--csv nowhere/out.csv: cannot be written'),
    (['{model}', 'image.png', '--csv', 'empty'], '--csv empty: cannot be written'),
    (['{model}', 'image.png', '--html', 'empty'], '--html empty: cannot be written'),
    (['{model}', 'image.png', '--per-class', '0'], '--per-class: 0 is not a whole number from 1 up'),
    (['{model}', '--evaluate', 'labeled', '--sort-into', 'new'], '--sort-into goes with images to classify'),
    (['{model}', 'image.png', '--copy'], '--copy goes with it'),
    (['{model}', 'labeled', '--sort-into', 'labeled/new'], 'lies in labeled or around it'),
    (['{model}', 'image.png', '--csv', 'empty/list.csv', '--sort-into', 'empty'], 'lies in empty/list.csv'),
    (['{model}', 'image.png', '--tpo', '1'], '--tpo'),
    (['text.h5', 'image.png'], 'text.h5: not a model saved by this program'),
    (['other.h5', 'image.png'], 'other.h5: not a model saved by this program'),
    (['{model}', '--evaluate', 'labeled'], 'labeled/wolf: the model has no class of this name'),
])
@pytest.mark.usefixtures('no_tensorflow_here')
def test_wrong_input_ends_in_one_sentence_before_tensorflow_is_imported(
        saved, folder, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(folder)
    status = predict.main([flag.format(model=saved.model) for flag in flags])
    out, error = capsys.readouterr()
    assert (status, out, error.count('\n')) == (2, '', 1)
    assert words in error


def test_a_process_imports_tensorflow_for_right_input_only(saved, folder, no_tensorflow):
    status, lines, error = run(saved.model, '--evaluate', 'labeled', cwd=folder, PYTHONPATH=no_tensorflow)
    assert (status, lines) == (2, [])
    assert error.startswith('labeled/wolf: the model has no class of this name')
    ended = run(saved.model, 'image.png', cwd=folder, PYTHONPATH=no_tensorflow)
    assert ended == (1, [], 'TensorFlow is imported\n')


@pytest.mark.parametrize('program, output', [('predict.py', 'image.png'), ('export.py', 'sesemi.pb')])
def test_tensorflow_is_imported_with_docstrings_whatever_python_is_told(
        saved, folder, no_tensorflow, program, output):
    """Without them its import fails."""
    (folder / 'packages/tensorflow.py').write_text('import sys\nraise SystemExit(str(sys.flags.optimize))')
    words = program, saved.model, output
    done = programs.run(*words, cwd=folder, PYTHONPATH=no_tensorflow, PYTHONOPTIMIZE='2')
    assert done == (1, '', '0\n')


def test_a_closed_pipe_prints_no_error():
    program = ('import predict, sys; predict.predict = lambda args: print("a line")\n'
               'sys.exit(predict.main(["sesemi.h5", "image.png"]))')
    process = programs.start(sys.executable, '-c', program, cwd=PROJECT)
    process.stdout.close()
    assert process.stderr.read() == ''
    process.stderr.close()
    assert process.wait() == 1
