"""--init: a run begins with the weights and the whitening of a saved model."""
import gzip
import hashlib
import json
import os
import shutil

import make_fixture
import numpy as np
import pytest
import tiny_trunk
from programs import TINY, read_until, same_weights, saved_weights, start

import networks
import report
import train_evaluate_sesemi
import utils
from networks import sesemi
from sesemi.data.batches import WHITENINGS
from sesemi.device import runtime
from sesemi.errors import InputError
from sesemi.training.classifier import Classifier
from sesemi.training.initial_model import InitialModel
from sesemi.training.training import read_variables

CLASSES = list(make_fixture.CLASSES)
WHITENING = {'channel': 'channel', 'none': 'none', 'zca': 'zca', 'shrunk': 'zca'}   # of the fixture's models


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the images of the fixture's runs and their models, NAME/sesemi.h5."""
    folder = tmp_path_factory.mktemp('initial')
    make_fixture.write_images(str(folder / 'images'))
    for name in WHITENING:
        (folder / name).mkdir()
        with gzip.open(os.path.join(make_fixture.FIXTURE, name, 'sesemi.h5.gz')) as packed:
            (folder / name / 'sesemi.h5').write_bytes(packed.read())
    return folder


def flags_for(folder, name, *flags):
    """The flags of a run that begins from the fixture's model `name`."""
    return ['--data=folder', '--dataset', folder / 'images', '--network=nin', '--image-size=16',
            '--batch-size=4', '--epochs=3', '--labels=24', '--init', folder / name / 'sesemi.h5', *flags]


def checksum_of(path):
    return 'sha256:' + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize('classes', [CLASSES, CLASSES[::-1], CLASSES + ['dog']])
@pytest.mark.parametrize('name', WHITENING)
def test_the_weights_are_those_of_the_file_and_the_rest_begins_anew(folder, monkeypatch, name, classes):
    trunk = make_fixture.residual_trunk if name == 'zca' else tiny_trunk.trunk
    monkeypatch.setitem(sesemi.TRUNKS, 'nin', trunk)
    stored, initial = saved_weights(folder / name), InitialModel(str(folder / name / 'sesemi.h5'))
    with runtime.open_session('cpu'):
        model, inference_model = networks.build_sesemi('nin', (16, 16, 3), len(classes))
        before = read_variables(model.weights)
        said = initial.set_weights(inference_model, classes)
        after = read_variables(model.weights)
        changed = set()
        for variable, old, new in zip(model.weights, before, after):
            layer, kind = variable.op.name.split('/')[-2:]
            begins_anew = layer == 'self_clf' or kind.startswith('moving') or (
                layer == 'super_clf' and classes != CLASSES)
            expected = old if begins_anew else stored['%s/%s/%s:0' % (layer, layer, kind)]
            np.testing.assert_array_equal(new, expected, err_msg=variable.name)
            changed |= set() if np.array_equal(old, new) else {layer}
    assert ('super_clf' in changed) == ('and the class head' in said) == (classes == CLASSES)
    assert len(changed) >= 2 and 'self_clf' not in changed


def test_class_names_are_compared_in_one_form_of_unicode(folder):
    initial = InitialModel(str(folder / 'none/sesemi.h5'))
    with runtime.open_session('cpu'):
        _, inference_model = networks.build_sesemi('tiny', (16, 16, 3), 3)
        for other, said in ('caf\u00e9', 'the class head of'), ('cafe', 'begins anew'):
            initial.class_names = CLASSES[:2] + ['cafe\u0301']
            assert said in initial.set_weights(inference_model, CLASSES[:2] + [other])


@pytest.mark.parametrize('kind', ['zca', 'channel', 'none'])
def test_the_whitening_is_that_of_the_file(tmp_path, kind):
    blocks = np.random.RandomState(0).randint(0, 200, (500, 4, 4, 3)) + [0, 20, 50]
    contrast = utils.global_contrast_normalize(blocks.repeat(2, axis=1).repeat(2, axis=2))
    fit = WHITENINGS[kind][1]
    whitener = fit and fit([contrast])
    with runtime.open_session('cpu'):
        _, inference_model = networks.build_supervised('tiny', (8, 8, 3), 3)
        Classifier(inference_model, whitener, CLASSES).save(str(tmp_path / 'sesemi.h5'))
    initial = InitialModel(str(tmp_path / 'sesemi.h5'))
    found = initial.whitener()
    assert (initial.whitening, initial.image_size, initial.class_names) == (kind, 8, CLASSES)
    assert type(found) is type(whitener)
    if kind != 'none':
        for one, other in zip(found, whitener):
            assert one.dtype == np.float32 and one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=0, atol=5e-6)
        np.testing.assert_allclose(found(contrast), whitener(contrast), rtol=0, atol=1e-5)


@pytest.mark.parametrize('name, given, words', [
    ('channel', '--image-size=20', ['--image-size 20', 'has 16']),
    ('channel', '--whitening=none', ['--whitening none', 'has channel']),
    ('zca', '--whitening=channel', ['--whitening channel', 'has zca']),
    ('none', '--init=', ['no such file']), ('none', '--init={0}/none', ['/none: no such file']),
    ('none', '--init={0}/images/train/ant/00.png', ['00.png: not a model saved by this program']),
    ('zca', '--network=nin', ['sesemi.h5', 'another network', '--network']),
    ('none', '--network=convnet', ['sesemi.h5', 'another network', '--network'])])
def test_a_model_that_does_not_fit_is_refused(train, folder, tmp_path, name, given, words):
    done = train(*flags_for(folder, name, '--result', tmp_path / 'run', given.format(folder)))
    assert done.status == 2 and all(word in done.sentence() for word in words), done.sentence()
    assert not (tmp_path / 'run').exists()


def test_a_run_takes_the_whitening_and_records_the_file_by_its_checksum(train, folder, tmp_path):
    model = folder / 'channel/sesemi.h5'
    other_images = '--dataset', folder / 'images/train'
    done = train(*flags_for(folder, 'channel', '--result', tmp_path / 'run', '--epochs=1', *other_images))
    assert done.status == 0, done.err
    assert 'Whitening: channel (that of %s).' % model in done.out
    assert 'Initial weights: the trunk and the class head of %s.' % model in done.out
    record = json.loads((tmp_path / 'run/args.json').read_text())
    assert record['flags']['init'] == checksum_of(model) == checksum_of(tmp_path / 'run/init.h5')
    found, expected = saved_weights(tmp_path / 'run'), saved_weights(folder / 'channel')
    for name in expected:
        if name.startswith(('contrast', 'whitened')):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
        else:
            assert not np.array_equal(found[name], expected[name]), name

    other = '--init', folder / 'none/sesemi.h5'
    refused = train('--result', tmp_path / 'run', '--resume', *other)
    assert refused.status == 2 and 'was started with --init sha256:' in refused.sentence()
    digits = train('--data=digits', '--labels=all', '--network=nin', '--image-size=16', '--epochs=1',
                   '--quiet', '--result', tmp_path / 'digits', *other)
    assert digits.status == 0 and 'the class head begins anew' in digits.out, digits.err
    assert report.main(['compare', str(tmp_path / 'run'), str(tmp_path / 'digits')]) == 0


def test_a_killed_run_goes_on_without_the_file(train, folder, tmp_path):
    """It is killed before its first checkpoint, and after one. The second of its two runs is not begun."""
    model, seeds = tmp_path / 'a.h5', ('seed-0', 'seed-1')
    shutil.copy(str(folder / 'none/sesemi.h5'), str(model))
    flags = flags_for(folder, 'none', '--init', model, '--runs=2', '--quiet', '--resume=auto', '--result')
    whole = train(*flags, tmp_path / 'whole')
    assert whole.status == 0, whole.err
    flags += [tmp_path / 'killed', '--checkpoint-minutes']
    for minutes in '1e9', '1e-9':
        process = start(TINY, *flags, minutes)
        read_until(process, 'Epoch 1/' if minutes == '1e9' else 'Epoch 2/')
        process.kill()
        process.communicate()
        assert any(tmp_path.glob('killed/seed-0/checkpoints/*.npz')) == (minutes == '1e-9')
        if model.exists():
            model.unlink()
    assert not (tmp_path / 'killed/seed-1').exists()
    done = train('--result', tmp_path / 'killed', '--resume')
    assert done.status == 0, done.err
    assert all(same_weights(tmp_path / 'whole' / seed, tmp_path / 'killed' / seed) for seed in seeds)


def test_a_model_that_changes_while_the_data_is_read_is_refused(folder, tmp_path, monkeypatch):
    path = tmp_path / 'a.h5'
    path.write_bytes((folder / 'none/sesemi.h5').read_bytes())
    args = train_evaluate_sesemi.parse_args(list(map(str, flags_for(
        folder, 'none', '--init', path, '--result', tmp_path / 'run'))))
    path.write_bytes((folder / 'channel/sesemi.h5').read_bytes())
    monkeypatch.setitem(sesemi.TRUNKS, 'nin', tiny_trunk.trunk)
    with pytest.raises(InputError, match='a.h5: has changed'):
        train_evaluate_sesemi.train_and_evaluate(args)
    assert not (tmp_path / 'run').exists()
