import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT

import networks
import utils
from networks.layers import Dropout
from sesemi.device.backend import keras, tf
from sesemi.device.collective import Ranks
from sesemi.device.runtime import batch_number, open_session, optimizer, step_variable
from sesemi.settings import MOMENTUM, NORM_BATCHES
from sesemi.training import classifier, evaluation, training

SHAPE = (32, 32, 3)

# Loss, self and super cross-entropy of the published implementation at step 1, for convnet also at step 2.
EXACT = {
    'convnet': [(6.15949, 1.71271, 2.38306), (3.29798, 0.49009, 0.74400)],
    'nin': [(6.02817, 1.77583, 2.64432)],
    'wrn': [(6.13267, 1.69528, 2.38491)],
}
STEPS = 5       # averaged over


@pytest.fixture(autouse=True)
def session():
    with open_session('cpu') as session:
        yield session


def weight(name, shape):
    """The value of a weight in the exact check, a function of its kind and shape."""
    kind = name.split('/')[-1].split(':')[0]
    rng = np.random.RandomState(zlib.crc32(('%s%s' % (kind, shape)).encode()) & 0x7fffffff)
    normal = rng.standard_normal(shape)
    return {
        'kernel': normal * np.sqrt(2.0 / int(np.prod(shape[:-1]))), 'gamma': 1 + 0.1 * normal,
        'moving_variance': 1 + 0.1 * np.abs(normal)}.get(kind, 0.1 * normal).astype(np.float32)


def exact_batch():
    rng = np.random.RandomState(7)
    self_data, super_data = (rng.standard_normal((12,) + SHAPE).astype(np.float32) for _ in range(2))
    self_clf, super_clf = (np.eye(n, dtype=np.float32)[rng.randint(0, n, 12)] for n in (6, 10))
    return {'self_data': self_data, 'super_data': super_data}, {'self_clf': self_clf, 'super_clf': super_clf}


@pytest.mark.parametrize('network', sorted(EXACT))
def test_the_published_losses(network):
    model, _ = networks.build_sesemi(network, SHAPE, 10, super_dropout=0.0)
    training.assign_variables(model.weights,
                              [weight(w.name, tuple(map(int, w.shape))) for w in model.weights])
    train_step = training.training_function(model, optimizer('cpu', 0.05, MOMENTUM))
    for expected, tolerance in zip(EXACT[network], (1e-5, 1e-3)):
        metrics = train_step(*exact_batch())
        found = [metrics[name] for name in ('loss', 'self_clf_loss', 'super_clf_loss')]
        assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize('network, both_heads, trunk, features', [
    ('convnet', 3128720, 3126656, (6, 6, 128)), ('nin', 1011600, 1008512, (8, 8, 192)),
    ('wrn', 1472000, 1469936, (8, 8, 128))])
def test_parameter_counts_and_features(network, both_heads, trunk, features):
    model, inference_model = networks.build_sesemi(network, SHAPE, 10)
    assert model.count_params() == both_heads
    assert inference_model.count_params() - inference_model.get_layer('super_clf').count_params() == trunk
    assert inference_model.get_layer('super_gap').input_shape[1:] == features


def test_names_of_inputs_and_outputs():
    model, inference_model = networks.build_sesemi('nin', SHAPE, 7)
    assert model.input_names == ['self_data', 'super_data']
    assert model.output_names == ['self_clf', 'super_clf']
    assert inference_model.input_names == ['super_data'] and inference_model.output_names == ['super_clf']
    assert [output.shape[-1] for output in model.outputs] == [6, 7]


def test_supervised_has_no_self_branch():
    model, inference_model = networks.build_supervised('nin', SHAPE, 10)
    assert model is inference_model and model.input_names == ['super_data']
    assert model.count_params() == 1008512 + 1930


def test_l2_is_on_kernels_alone():
    model, _ = networks.build_sesemi('nin', SHAPE, 10)
    kernels = [w for w in model.trainable_weights if 'kernel' in w.name]
    expected = 5e-4 * sum(np.square(keras.backend.get_value(kernel)).sum() for kernel in kernels)
    assert keras.backend.get_session().run(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
    assert len(model.losses) == 11


def test_initial_weights_follow_from_the_seed():
    def kernels(seed):
        return [w for w in networks.build_sesemi('nin', SHAPE, 10, seed=seed)[0].get_weights() if w.ndim > 1]
    first, again, other = kernels(0), kernels(0), kernels(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other))
    alike = [kernel for kernel in first if kernel.shape == (1, 1, 192, 192)]
    assert not np.array_equal(alike[0], alike[1])
    assert alike[0].std() == pytest.approx(np.sqrt(2 / 192), rel=0.02)    # He normal
    assert np.abs(first[-1]).max() <= np.sqrt(6 / (192 + 10))                  # Glorot uniform


@pytest.mark.parametrize('network', sorted(EXACT))
def test_batch_norm_averages_are_the_published_ones(network):
    """The sum of 0.01 * 0.99 ** (t - i) * x_i / (1 - 0.99 ** t) after t steps, x_i being the super branch's
    mean or unbiased variance at step i."""
    model, inference_model = networks.build_sesemi(network, (16, 16, 3), 10, super_dropout=0.0)
    averages, statistics = zip(*training.batch_statistics(model))
    train_step = training.training_function(model, optimizer('cpu', 0.0, MOMENTUM))
    # the input of the first batch norm, and the statistics of the last, as functions of the super branch
    observe = keras.backend.function([inference_model.input, keras.backend.learning_phase()],
                                     [inference_model.get_layer('norm_2').input, *statistics[-2:]])
    rng, seen = np.random.RandomState(0), []
    for _ in range(STEPS):
        data = rng.standard_normal((2, 6, 16, 16, 3)).astype(np.float32)
        super_data, self_data = data + [[[[[1]]]], [[[[7]]]]]
        train_step({'super_data': super_data, 'self_data': self_data},
                   {'super_clf': np.eye(10)[:6], 'self_clf': np.eye(6)})
        features, *deepest = observe([super_data, 1])
        features = features.reshape(6 * 16 * 16, -1)
        seen.append([features.mean(axis=0), features.var(axis=0, ddof=1), *deepest])
    weights = np.array([0.01 * 0.99 ** (STEPS - i) / (1 - 0.99 ** STEPS) for i in range(1, STEPS + 1)])
    for average, values in zip(averages[:2] + averages[-2:], zip(*seen)):
        np.testing.assert_allclose(keras.backend.get_value(average), weights @ np.array(values),
                                   rtol=1e-4, atol=1e-4)
    assert keras.backend.get_value(step_variable()) == STEPS


def test_measured_statistics_are_means_over_batches_and_the_averages_are_put_back():
    model, _ = networks.build_sesemi('nin', (16, 16, 3), 10)
    averages, statistics = zip(*training.batch_statistics(model))
    data = np.random.RandomState(0).standard_normal((100, 6, 16, 16, 3)).astype(np.float32)
    of_batch = keras.backend.function([model.get_layer('super_data').output, keras.backend.learning_phase()],
                                      list(statistics))
    expected = [np.mean(values, axis=0)
                for values in zip(*[of_batch([data[90 + i], 1]) for i in range(NORM_BATCHES)])]
    before = training.read_variables(averages)
    drawn = [({'super_data': batch}, {}) for batch in data]
    with evaluation.NormStatistics(model, drawn, steps=90, ranks=Ranks()).use_measured():
        for found, value in zip(training.read_variables(averages), expected):
            np.testing.assert_allclose(found, value, rtol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(before, training.read_variables(averages)))


def operations():
    """The types of the operations in the current graph, before and after TensorFlow's Grappler rewrites it.

    The rewrites are those of an NPU's session. Grappler fuses only operations that are placed on a device.
    """
    from tensorflow.python.grappler import tf_optimizer  # not before sesemi.device.backend
    graph, config = keras.backend.get_session().graph, tf.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.remapping = rewrite.memory_optimization = rewrite.OFF
    made = tf.train.export_meta_graph(graph=graph, collection_list=[])
    for node in made.graph_def.node:
        node.device = '/job:localhost/replica:0/task:0/device:CPU:0'
    made.collection_def['train_op'].node_list.value.extend(
        operation.name for operation in graph.get_operations()
        if not any(output.consumers() for output in operation.outputs))
    nodes = [*made.graph_def.node, *tf_optimizer.OptimizeGraph(config, made).node]
    return {node.op for node in nodes}


@pytest.fixture(scope='module')
def supported():
    """The names of the operations that a CANN installation of early 2022 lists."""
    return set((PROJECT / 'tests/npu_supported_ops.txt').read_text().split())


RUNS = [(network, build) for network in sorted(EXACT) for build in ('build_sesemi', 'build_supervised')]


@pytest.fixture(scope='module', params=RUNS, ids='-'.join)
def run(request, tmp_path_factory):
    """A network with all dropouts, which only add operations and are not in the saved model.

    evaluating, training: the operations in the graph until then; model: the path of the saved file;
    probabilities: those of `images` by the network before it was saved.
    """
    network, build = request.param
    path = str(tmp_path_factory.mktemp(network) / 'sesemi.h5')
    matrix = np.random.RandomState(0).standard_normal((768, 768)).astype(np.float32) / 28
    whitener = utils.Whitener(np.arange(768, dtype=np.float32) / 768, matrix)
    images = np.random.RandomState(0).randint(0, 256, (4, 16, 16, 3)).astype(np.float32)
    with open_session('cpu'):
        model, inference_model = getattr(networks, build)(
            network, (16, 16, 3), 10, super_dropout=0.5, in_network_dropout=0.5, batch_number=batch_number())
        classifier.Classifier(inference_model, whitener, list('abcdefghij')).save(path)
        probabilities = inference_model.predict_on_batch(whitener(utils.global_contrast_normalize(images)))
        evaluating = operations()
        training.training_function(model, optimizer('cpu', 0.05, MOMENTUM),
                                   schedule=training.Schedule(0.05, 10, 1))
        evaluation.NormStatistics(model, [], 10, Ranks())
        return SimpleNamespace(evaluating=evaluating, training=operations(), model=path, images=images,
                               probabilities=probabilities)


def test_an_npu_has_every_operation_of_a_run(run, supported):
    """For first weights, evaluation, training and measured statistics."""
    assert run.evaluating - supported == set()
    assert run.training - supported == set()
    assert 'StatelessRandomUniformInt' in run.training


def test_plain_keras_opens_the_model_and_an_npu_has_its_operations(run, supported):
    saved = keras.models.load_model(run.model, compile=False)
    np.testing.assert_allclose(saved.predict_on_batch(run.images), run.probabilities, rtol=1e-3, atol=1e-5)
    assert operations() - supported == set()


def test_a_dropout_mask_is_a_function_of_seed_step_and_call():
    x = keras.layers.Input((1000,))
    layers = [Dropout(0.2, seed, batch_number(), name='dropout') for seed in (0, 0, 1)]
    outputs = [layers[0](x), layers[0](x), layers[1](x), layers[2](x)]
    run = keras.backend.function([x, keras.backend.learning_phase()], outputs)
    ones = np.ones((4, 1000), np.float32)

    def masks(step):
        keras.backend.set_value(step_variable(), step)
        return run([ones, 1])
    first, second_call, same_layer, other_seed = masks(3)
    assert np.array_equal(first, same_layer) and np.array_equal(first, masks(3)[0])
    assert not np.array_equal(first, second_call) and not np.array_equal(first, other_seed)
    assert not np.array_equal(first, masks(4)[0])
    assert set(np.unique(first)) == {0, np.float32(1.25)}
    assert (first == 0).mean() == pytest.approx(0.2, abs=0.03)
    assert np.array_equal(run([ones, 0])[0], ones)
    assert not layers[0].weights
