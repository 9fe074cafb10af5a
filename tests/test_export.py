"""export.py as a user runs it, on a tiny run. A plain TensorFlow session takes the place of msame.

SESEMI_ONNX=1 turns on the test of an ONNX export, which needs tf2onnx and onnxruntime.
"""
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_image
from programs import TINY, run

import export
from sesemi.data import cache, datasets
from sesemi.data.batches import make_test_views as views_of
from sesemi.data.batches import prepare_images
from sesemi.record import run_folder

SEED, BATCH, IMAGES, CLASSES = 3, 7, 45, 3     # the last batch holds three images


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A tiny run on whitened images of classes that differ a little, and the files of export.py for it."""
    folder, rng = tmp_path_factory.mktemp('export'), np.random.RandomState(0)
    for part, count in (('train', 12), ('test', IMAGES // CLASSES)):
        for label in range(CLASSES):
            for i in range(count):
                blocks = np.kron(rng.randint(0, 200, (4, 4, 3)), np.ones((4, 4, 1)))
                write_image(folder / 'data' / part / 'abc'[label] / '{:02d}.png'.format(i),
                            blocks + 25 * np.eye(3)[label])
    status, _, error = run(TINY, '--data', 'folder', '--dataset', 'data', '--network', 'nin',
                           '--image-size', 16, '--batch-size', 4, '--epochs', 3, '--labels', 24,
                           '--seed', SEED, '--whitening', 'zca', cwd=folder)
    assert status == 0, error
    shutil.copytree(str(folder / 'result'), str(folder / 'moved'))
    (folder / 'data').rename(folder / 'elsewhere')
    status, printed, error = run('export.py', 'moved/sesemi.h5', '--batch', BATCH, 'sesemi.pb',
                                 '--bins', 'bins', '--dataset', 'elsewhere', cwd=folder)
    assert status == 0, error
    return SimpleNamespace(folder=folder, printed=printed.splitlines(), pb=folder / 'sesemi.pb',
                           bins=folder / 'bins', model=folder / 'moved/sesemi.h5', data=folder / 'elsewhere')


def load_graph(pb):
    from sesemi.device.backend import tf
    graph = tf.GraphDef()
    graph.ParseFromString(pb.read_bytes())
    return graph


def frozen_classifier(pb, name):
    """The file's graph in its own session, without Keras: a function from the input `name` to softmax."""
    from sesemi.device.backend import tf
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(load_graph(pb), name='')
    session = tf.Session(graph=graph, config=tf.ConfigProto(device_count={'GPU': 0}))
    return lambda images: session.run('super_clf/Softmax:0', {name + ':0': images})


@pytest.fixture(scope='module')
def saved(exported):
    """probabilities, whitened: functions of images of values 0-255, by the h5 in Keras."""
    from sesemi.device import runtime
    with runtime.open_session('cpu'):
        keras = runtime.keras
        model = keras.models.load_model(str(exported.model), compile=False)
        whitened = keras.Model(model.input, model.get_layer('whitened').output)
        yield SimpleNamespace(probabilities=model.predict_on_batch, whitened=whitened.predict_on_batch)


@pytest.fixture(scope='module')
def test_set(exported):
    return datasets.load_dataset('folder', str(exported.data), 16)


def test_the_graph_is_one_that_atc_takes(exported):
    nodes = {node.name: node for node in load_graph(exported.pb).node}
    kinds = {node.op for node in nodes.values()}
    assert [name for name, node in nodes.items() if 'Placeholder' in node.op] == ['super_data']
    assert [size.size for size in nodes['super_data'].attr['shape'].shape.dim] == [BATCH, 16, 16, 3]
    assert nodes['super_data'].attr['dtype'].type == 1, 'not float32'
    assert nodes['super_clf/Softmax'].op == 'Softmax'
    assert not {kind for kind in kinds
                if re.search('Switch|Merge|Variable|VarHandle|Assign|NoOp|Random|Shape', kind)}, kinds
    assert not [name for name in nodes
                if 'learning_phase' in name or name.startswith(('flat', 'contrast', 'whiten'))]
    unknown_to_1_15 = {'exponential_avg_factor', 'grad_a', 'grad_b'}
    assert not [name for name, node in nodes.items() if unknown_to_1_15 & set(node.attr)]
    assert len(exported.pb.read_bytes()) < 10000, 'the whitening matrix is in the file'


def test_the_graph_gives_the_probabilities_of_the_h5(exported, saved, test_set):
    images = test_set.test_images[:BATCH].astype(np.float32)
    expected = saved.probabilities(images)
    assert np.ptp(expected, axis=0).max() > .1, 'the images are too alike'
    found = frozen_classifier(exported.pb, 'super_data')(saved.whitened(images))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_with_from_images_the_graph_takes_values_from_0_to_255(exported, saved, test_set, tmp_path):
    status, printed, error = run('export.py', exported.model, tmp_path / 'whole.pb', '--from-images',
                                 '--batch=2')
    assert status == 0, error
    assert 'not for atc' in printed and '--soc_version' not in printed
    nodes = load_graph(tmp_path / 'whole.pb').node
    assert [node.name for node in nodes if 'Placeholder' in node.op] == ['images']
    assert not [node.op for node in nodes if re.search('Switch|Merge|Variable|VarHandle', node.op)]
    images = np.stack([test_set.test_images[0], np.full((16, 16, 3), 255)]).astype(np.float32)
    found = frozen_classifier(tmp_path / 'whole.pb', 'images')(images)
    np.testing.assert_allclose(found, saved.probabilities(images), rtol=0, atol=1e-5)


def test_the_commands_it_prints_fit_the_graph(exported):
    assert exported.printed == [
        'sesemi.pb: super_data float32 [7, 16, 16, 3] -> super_clf/Softmax float32 [7, 3]',
        'atc --model=sesemi.pb --framework=3 --output=sesemi --soc_version=Ascend310 '
        '--input_shape="super_data:7,16,16,3"',
        './msame --model sesemi.om --input bins/views --output outputs --outfmt BIN',
        'python export.py --score bins outputs']


def test_the_bins_hold_the_views_of_the_evaluation_in_training(exported, test_set):
    images = prepare_images(test_set, 'checksum', [0], 'supervised', 'zca', cache.Cache(None)).test
    names = sorted(os.listdir(str(exported.bins / 'views')))
    assert len(names) == 7 * 8
    for number, expected in enumerate(views_of(np.asarray(images), 0, SEED)):
        files = [exported.bins / 'views' / name for name in names
                 if name.endswith('_view_{}.bin'.format(number))]
        found = np.concatenate([np.fromfile(str(path), '<f4').reshape(BATCH, 16, 16, 3) for path in files])
        np.testing.assert_allclose(found[:IMAGES], expected, atol=1e-3)
        assert found.shape == (49, 16, 16, 3) and not found[IMAGES:].any()
    np.testing.assert_array_equal(np.fromfile(str(exported.bins / 'labels.bin'), '<i4'), test_set.test_labels)
    manifest = run_folder.read_json(str(exported.bins / 'manifest.json'))
    assert manifest == {'batch': 7, 'images': 45, 'views': 8, 'classes': 3,
                        'view_dtype': 'float32', 'label_dtype': 'int32'}


@pytest.fixture(scope='module')
def outputs(exported):
    """The files of msame for the views: float32 probabilities, in a folder named after the time."""
    classify, folder = frozen_classifier(exported.pb, 'super_data'), exported.folder / 'outputs'
    (folder / '20260101_120000').mkdir(parents=True)
    for path in (exported.bins / 'views').iterdir():
        probabilities = classify(np.fromfile(str(path), '<f4').reshape(BATCH, 16, 16, 3))
        probabilities.tofile(str(folder / '20260101_120000' / (path.stem + '_output_0.bin')))
    return folder


def test_the_score_is_the_error_rate_of_the_run(exported, outputs):
    error_rate = json.loads((exported.folder / 'result/result.json').read_text())['classification_error_rate']
    assert .1 < error_rate < .9, 'too few or too many errors to tell right from wrong'
    scored = run('export.py', '--score', exported.bins, outputs)
    assert scored == (0, 'classification error rate: {:.4f}\n'.format(error_rate), '')


def test_the_score_is_that_of_the_mean_over_the_views(exported, outputs, tmp_path):
    """One view of each batch gives 8, 0, 0, the others 0.1, 0.6, 0.3. The files have their older names."""
    shutil.copytree(str(outputs), str(tmp_path / 'outputs'))
    for path in list((tmp_path / 'outputs').rglob('*.bin')):
        row = [8, 0, 0] if 'view_5' in path.stem else [.1, .6, .3]
        np.tile(np.float32(row), (BATCH, 1)).tofile(str(path))
        path.rename(path.parent / path.name.replace('_output', ''))
    status, printed, error = run('export.py', '--score', exported.bins, tmp_path / 'outputs')
    assert (status, printed) == (0, 'classification error rate: {:.4f}\n'.format(1 - 1 / 3)), error


@pytest.mark.skipif('SESEMI_ONNX' not in os.environ,
                    reason='SESEMI_ONNX=1 turns it on: needs tf2onnx, onnxruntime')
def test_the_onnx_model_gives_the_probabilities_of_the_h5(exported, saved, test_set, tmp_path):
    import onnxruntime
    status, printed, error = run('export.py', exported.model, tmp_path / 'sesemi.onnx')
    assert (status, printed.count('\n')) == (0, 1), error
    session = onnxruntime.InferenceSession(str(tmp_path / 'sesemi.onnx'), providers=['CPUExecutionProvider'])
    images = test_set.test_images.astype(np.float32)
    found, = session.run(['super_clf/Softmax'], {'images': images})
    np.testing.assert_allclose(found, saved.probabilities(images), rtol=0, atol=1e-5)
    result = json.loads((exported.folder / 'result/result.json').read_text())
    assert np.mean(found.argmax(axis=1) != test_set.test_labels) == pytest.approx(
        result['classification_error_rate_1_view'])
    assert json.loads(session.get_modelmeta().custom_metadata_map['class_names']) == ['a', 'b', 'c']


# Wrong input

@pytest.fixture
def here(exported, tmp_path):
    """The working folder, with right and wrong files."""
    for name in ('moved', 'bins'):
        shutil.copytree(str(exported.folder / name), str(tmp_path / name))
    (tmp_path / 'alone').mkdir()
    shutil.copy(str(exported.model), str(tmp_path / 'alone/sesemi.h5'))
    (tmp_path / 'text.h5').write_text('not an h5 file')
    os.symlink(str(exported.data), str(tmp_path / 'data'))
    shutil.copytree(str(exported.data), str(tmp_path / 'other'))
    write_image(tmp_path / 'other/test/a/00.png', np.zeros((16, 16, 3)))
    return tmp_path


@pytest.fixture
def refuses(here, no_tensorflow_here, monkeypatch, capsys):
    """Checks that flags are refused in one sentence with these words, and that nothing is written."""
    monkeypatch.chdir(here)

    def refuses(flags, words):
        status = export.main(flags.split())
        printed, error = capsys.readouterr()
        assert (status, printed, error.count('\n')) == (2, '', 1), error
        assert words in error
        assert not (here / 'new.pb').exists() and not (here / 'new').exists()
    return refuses


MODEL = 'moved/sesemi.h5 new.pb '


@pytest.mark.parametrize('flags, words', [
    ('', 'give MODEL and OUT, or --score BINS OUTPUTS'), ('moved/sesemi.h5', 'give MODEL and OUT'),
    ('moved/sesemi.h5 new.txt', 'new.txt: the file must end in .onnx or .pb'),
    ('moved/sesemi.h5 new.onnx --batch 2', 'new.onnx: --batch, --from-images, --bins and --dataset are for'),
    ('nowhere.h5 new.pb', 'nowhere.h5: no such file'),
    ('text.h5 new.pb', 'text.h5: not a model saved by this program'),
    ('moved/sesemi.h5 nowhere/new.pb', 'nowhere/new.pb: cannot be written there'),
    (MODEL + '--batch 0', '--batch: 0 is not a whole number from 1 up'),
    (MODEL + '--batch many', '--batch: many is not a whole number from 1 up'),
    (MODEL + '--bin new', '--bin'), (MODEL + '--dataset data', '--dataset is read for --bins DIR only'),
    (MODEL + '--from-images --bins new', '--bins writes whitened views'),
    (MODEL + '--bins bins', '--bins bins: is there already'),
    (MODEL + '--bins new', '--dataset data/nowhere: no such file or folder'),
    (MODEL + '--bins new --dataset other',
     'the images found are not those of the run that left moved/sesemi.h5'),
    ('alone/sesemi.h5 new.pb --bins new',
     'alone/args.json: not there, and --bins takes the data, seed and flips'),
    ('--score bins', '--score: expected 2 arguments'),
    ('--score bins outputs --batch 7', '--score BINS OUTPUTS takes no other'),
    ('--score nowhere outputs', '--score nowhere: not a complete folder written by --bins'),
    ('--score bins outputs', 'outputs: there is no batch_0000_view_0_output_0.bin')])
def test_wrong_input_ends_in_one_sentence_before_tensorflow_is_imported(here, refuses, flags, words):
    content = json.loads((here / 'moved/args.json').read_text())
    content['flags']['dataset'] = 'data/nowhere'
    (here / 'moved/args.json').write_text(json.dumps(content))
    refuses(flags, words)


@pytest.mark.parametrize('dataset, status, words', [
    ('nowhere', 2, '--dataset nowhere: no such file or folder'), ('data', 1, 'TensorFlow is imported')])
def test_a_process_imports_tensorflow_for_right_input_only(here, no_tensorflow, dataset, status, words):
    flags = [*MODEL.split(), '--bins', 'new', '--dataset', dataset]
    ended = run('export.py', *flags, cwd=here, PYTHONPATH=no_tensorflow)
    assert (ended.status, ended.out) == (status, '')
    assert ended.err.startswith(words) and ended.err.count('\n') == 1


def test_outputs_that_are_damaged_or_of_two_runs_of_msame(here, refuses, outputs):
    shutil.copytree(str(outputs), str(here / 'outputs'))
    path = next((here / 'outputs').rglob('batch_0003_view_2_output_0.bin'))
    whole = path.read_bytes()
    for content in whole[:-2], np.float32('nan').tobytes() + whole[4:]:     # as float16 does for raw images
        path.write_bytes(content)
        refuses('--score bins outputs', path.name + ': does not hold finite float32 values of shape (7, 3)')
    path.write_bytes(whole)
    shutil.copy(str(path), str(here / 'outputs/batch_0003_view_2_0.bin'))
    refuses('--score bins outputs', 'outputs: holds outputs/2026')


def test_bins_that_are_not_whole(here, refuses):
    (here / 'bins/labels.bin').write_bytes(bytes(4))
    refuses('--score bins outputs',
            '--score bins: not a complete folder written by --bins (manifest.json and labels.bin')
    (here / 'bins/manifest.json').write_text('{"batch": 7')
    refuses('--score bins outputs', '--score bins: not a complete folder written by --bins (')
