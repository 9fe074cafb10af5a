"""The runs of earlier versions in tests/fixture, made by make_fixture.py, can still be read."""
import csv
import gzip
import json
import os
import re
import shutil

import make_fixture
import numpy as np
import pytest
from programs import saved_weights
from test_export import frozen_classifier

import export
import predict
import report
from sesemi.record import run_folder
from utils import decode_images

MODELS = {'channel': 'stretch', 'none': 'stretch', 'zca': 'pad', 'shrunk': 'stretch'}     # name -> --fit


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A copy of the fixture with the models unpacked and the images of its runs in the folder `images`."""
    folder = tmp_path_factory.mktemp('fixture') / 'runs'
    shutil.copytree(make_fixture.FIXTURE, str(folder))
    make_fixture.write_images(str(folder / 'images'))
    for name in MODELS:
        packed = folder / name / 'sesemi.h5.gz'
        packed.with_suffix('').write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


def rows_of(path):
    with open(str(path), newline='') as file:
        return list(csv.DictReader(file))


def result_of(folder):
    return json.loads((folder / 'result.json').read_text())


def error_line(folder):
    return 'classification error rate: %.4f\n' % result_of(folder)['classification_error_rate']


@pytest.mark.parametrize('name', ['channel-half', 'none-half', 'shrunk'])
def test_an_unfinished_run_of_an_earlier_version_cannot_be_resumed(train, tmp_path, name):
    run = shutil.copytree(os.path.join(make_fixture.FIXTURE, name), str(tmp_path / 'run'),
                          ignore=shutil.ignore_patterns('result.json'))
    for flags in ['--resume'], ['--resume', 'auto', '--quiet']:
        resumed = train(*flags, '--result', run)
        assert resumed.status == 2 and resumed.sentence() == (
            '--resume: the run in %s was begun by another version of this program, which trains otherwise; '
            'finish it with that version or give another --result.' % run)


@pytest.mark.parametrize('name, saved_epoch', [('channel', 4), ('none', 2)])
def test_a_stopped_run_ends_as_it_did_uninterrupted(train, runs, name, saved_epoch):
    """One has training's averages in its model; the best weights of the other are only in its checkpoint.

    Their records are given today's FORMAT, because only the rounding has changed since format 3.
    """
    half, whole = runs / (name + '-half'), runs / name
    record = json.loads((half / 'args.json').read_text())
    (half / 'args.json').write_text(json.dumps(dict(record, format=run_folder.FORMAT)))
    before, labeled = rows_of(half / 'log.csv'), (half / 'labeled.csv').read_bytes()
    done = train('--result', half, '--resume', '--dataset', runs / 'images', '--device', 'cpu')
    assert done.status == 0, done.err
    assert 'Epoch 3/4: ' in done.out and 'Epoch 2/4: ' not in done.out

    rows, expected = rows_of(half / 'log.csv'), rows_of(whole / 'log.csv')
    assert len(before) == 2 and rows[:2] == before
    assert [row['step'] for row in rows] == ['6', '12', '18', '24']
    for row, other in zip(rows, expected):
        assert list(row) == list(other)
        for column in set(other) - {'seconds'}:
            assert float(row[column]) == pytest.approx(float(other[column]), abs=1e-4), column
    assert (half / 'labeled.csv').read_bytes() == labeled == (whole / 'labeled.csv').read_bytes()
    found, expected = result_of(half), result_of(whole)
    assert set(found) >= set(expected) and found['steps'] == 24 and found['saved_epoch'] == saved_epoch
    assert found['confusion_matrix'] == expected['confusion_matrix']
    found, expected = saved_weights(half), saved_weights(whole)
    assert list(found) == list(expected)
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.parametrize('name', MODELS)
def test_a_model_gives_the_same_probabilities_as_when_it_was_made(runs, tmp_path, monkeypatch, name):
    monkeypatch.chdir(runs)
    model = name + '/sesemi.h5'
    assert predict.main([model, 'image.png', '--device=cpu', '--csv', str(tmp_path / 'predicted.csv')]) == 0
    (found,), (expected,) = rows_of(tmp_path / 'predicted.csv'), rows_of(name + '/predicted.csv')
    assert list(found) == [*expected, 'margin']     # the versions before did not write it
    for column, value in expected.items():
        if 'probability' in column:
            assert float(found[column]) == pytest.approx(float(value), abs=1e-4)
        else:
            assert found[column] == value


@pytest.mark.parametrize('name', MODELS)
def test_the_frozen_graph_of_a_model_gives_them_too(runs, tmp_path, name):
    model, pb = runs / name / 'sesemi.h5', tmp_path / 'a.pb'
    assert export.main([str(model), str(pb), '--from-images', '--batch', '1']) == 0
    image = decode_images([str(runs / 'image.png')], 16, MODELS[name]).astype(np.float32)
    row, = rows_of(runs / name / 'predicted.csv')
    expected = {row['class' + rank]: float(row['probability' + rank]) for rank in ('', '_2', '_3')}
    found, = frozen_classifier(pb, 'images')(image)
    np.testing.assert_allclose(found, [expected[label] for label in make_fixture.CLASSES], rtol=0, atol=1e-4)


def test_the_exported_views_of_a_finished_run_have_its_score(runs, tmp_path, capsys):
    model, pb = runs / 'channel/sesemi.h5', tmp_path / 'a.pb'
    bins, outputs = tmp_path / 'bins', tmp_path / 'outputs'
    assert export.main([str(model), str(pb), '--batch', '24', '--bins', str(bins),
                           '--dataset', str(runs / 'images')]) == 0
    outputs.mkdir()
    classify = frozen_classifier(pb, 'super_data')
    for path in (bins / 'views').iterdir():
        probabilities = classify(np.fromfile(str(path), '<f4').reshape(24, 16, 16, 3))
        probabilities.tofile(str(outputs / (path.stem + '_output_0.bin')))
    capsys.readouterr()
    assert export.main(['--score', str(bins), str(outputs)]) == 0
    assert capsys.readouterr().out == error_line(runs / 'channel')


def test_finished_runs_are_compared(runs, capsys):
    assert report.main(['compare', *(str(runs / name) for name in MODELS)]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert {'method', 'data', 'network', 'labels', 'whitening', 'seed', 'error'} <= set(heading.split())
    assert len(lines) == len(MODELS)
    for name in MODELS:
        result = result_of(runs / name)
        shown = '{method} +images +{network} +{labels} '.format(**result['flags'])
        errors = ' +'.join('%.4f' % result[error] for error in (
            'classification_error_rate', 'classification_error_rate_1_view', 'balanced_error_rate'))
        pattern = '^%s.* %s .* %d +%s +4 ' % (shown, name, result['flags']['seed'], errors)
        assert sum(bool(re.search(pattern, line)) for line in lines) == 1, name


@pytest.mark.parametrize('name', MODELS)
def test_a_finished_run_is_known_to_be_finished(train, runs, name):
    done = train('--result', runs / name, '--resume', '--dataset', runs / 'images')
    assert done.status == 0 and 'holds the finished run' in done.out, done.err
    assert done.out.endswith(error_line(runs / name))
