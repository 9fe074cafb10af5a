"""What a hostile model file can say: it is refused in a sentence before Keras, which would run code for it, sees anything."""
import copy
import json

import h5py
import numpy as np
import pytest

from sesemi import model_file
from sesemi.errors import InputError


def layer(kind, name, sources, **settings):
    return {'class_name': kind, 'name': name, 'config': dict(settings, name=name),
            'inbound_nodes': [[[source, 0, 0, {}] for source in sources]] if sources else []}


LAYERS = [
    layer('InputLayer', 'image', [], batch_input_shape=[None, 4, 4, 3]), layer('Flatten', 'flat', ['image']),
    layer('LayerNormalization', 'contrast', ['flat'], epsilon=1e-8, center=False, scale=True),
    layer('Reshape', 'whitened', ['contrast'], target_shape=[4, 4, 3]),
    layer('Conv2D', 'conv_1', ['whitened'], filters=2, kernel_size=[1, 1], padding='same', use_bias=False),
    layer('BatchNormalization', 'norm_1', ['conv_1'], momentum=0.99, epsilon=1e-3), layer('LeakyReLU', 'relu_1', ['norm_1'], alpha=0.1),
    layer('Add', 'add_1', ['relu_1', 'conv_1']), layer('MaxPooling2D', 'pool_1', ['add_1'], pool_size=[2, 2], strides=[2, 2]),
    layer('GlobalAveragePooling2D', 'gap', ['pool_1']), layer('Dense', 'clf', ['gap'], units=2, activation='softmax', use_bias=True)]
WEIGHTS = {'contrast/gamma:0': (48,), 'conv_1/kernel:0': (1, 1, 3, 2), 'norm_1/gamma:0': (2,), 'norm_1/beta:0': (2,),
           'norm_1/moving_mean:0': (2,), 'norm_1/moving_variance:0': (2,), 'clf/kernel:0': (2, 2), 'clf/bias:0': (2,)}
METADATA = {'class_names': ['cat', 'dog'], 'fit': 'pad'}


def description(layers=LAYERS, **changes):
    return dict({'name': 'sesemi', 'layers': layers, 'input_layers': [[layers[0]['name'], 0, 0]],
                 'output_layers': [[layers[-1]['name'], 0, 0]]}, **changes)


def write(path, config=None, metadata=METADATA, spoil=lambda file: None):
    """A model file of those layers; spoil(file) changes it in the end."""
    with h5py.File(str(path), 'w') as file:
        file.attrs['model_config'] = json.dumps({'class_name': 'Model', 'config': config or description()}).encode()
        file.attrs['sesemi'] = (metadata if isinstance(metadata, str) else json.dumps(metadata)).encode()
        file.create_group('model_weights').attrs['layer_names'] = [one['name'].encode() for one in LAYERS]
        for one in LAYERS:
            names = [name for name in WEIGHTS if name.split('/')[0] == one['name']]
            group = file.create_group('model_weights/' + one['name'])
            group.attrs['weight_names'] = [name.encode() for name in names]
            for name in names:
                group.create_dataset(name, data=np.ones(WEIGHTS[name], np.float32))
        spoil(file)
    return str(path)


def refused(path):
    with pytest.raises(InputError) as error:
        model_file.read_metadata(path)
    said = str(error.value)
    assert said.startswith(path + ': not a model saved by this program (') and '\n' not in said and len(said) < 500
    return said


def test_a_file_of_the_right_form(tmp_path):
    assert model_file.read_metadata(write(tmp_path / 'a.h5')) == METADATA


CODE = {'function': ['4wEAAAAA', None, None], 'function_type': 'lambda', 'output_shape': None, 'arguments': {}}


@pytest.mark.parametrize('kind, settings', [
    ('Lambda', CODE), ('Lambda', {}), ('TFOpLambda', {'function': 'io.write_file'}), ('SlicingOpLambda', {}),
    ('TensorFlowOpLayer', {'node_def': ''}),
    ('Model', {'layers': []}), ('Functional', {}), ('Sequential', {}), ('TimeDistributed', {}), ('Custom>Layer', {}), ('os>system', {}),
    ('', {}), (None, {})])
def test_layers_of_other_kinds(tmp_path, kind, settings):
    said = refused(write(tmp_path / 'a.h5', description(LAYERS[:-1] + [layer(kind, 'code', ['gap'], **settings), LAYERS[-1]])))
    assert 'a layer of the kind %r' % (kind,) in said


@pytest.mark.parametrize('place, change', [
    (10, {'activation': 'lambda x: x'}), (10, {'activation': {'class_name': 'Lambda', 'config': CODE}}),
    (10, {'activation': {'module': 'os', 'class_name': 'system'}}),
    (10, {'kernel_initializer': {'module': 'os', 'class_name': 'system', 'config': {}}}), (10, {'module': 'os'}), (10, {'units': 3}),
    (10, {'units': True}),
    (10, {'units': 10 ** 12}), (10, {'use_bias': 1}), (4, {'filters': -1}), (4, {'filters': 1e3}), (4, {'kernel_size': [1]}),
    (4, {'kernel_size': [10 ** 9, 1]}),
    (4, {'padding': 'causal'}), (4, {'data_format': 'channels_first'}), (0, {'batch_input_shape': [None, 10 ** 6, 10 ** 6, 3]}),
    (0, {'batch_input_shape': [9, 4, 4, 3]}),
    (0, {'batch_input_shape': [None, 4, 8, 3]}), (0, {'batch_input_shape': None}), (0, {'sparse': True}), (3, {'target_shape': [-1]}),
    (3, {'target_shape': [4, 4, 3.0]}),
    (2, {'epsilon': float('nan')}), (2, {'center': True}), (6, {'alpha': '0.1'}), (5, {'momentum': [0.9]}), (8, {'strides': [0, 0]}),
    (8, {'name': 'other'})])
def test_odd_settings(tmp_path, place, change):
    layers = copy.deepcopy(LAYERS)
    layers[place]['config'].update(change)
    refused(write(tmp_path / 'a.h5', description(layers)))


def circle(layers):
    layers[5]['inbound_nodes'] = [[['relu_1', 0, 0, {}]]]


@pytest.mark.parametrize('change', [
    circle, lambda layers: layers.insert(3, layers.pop(2)), lambda layers: layers.append(layers[-1]), lambda layers: layers.pop(),
    lambda layers: layers.pop(0),
    lambda layers: layers[1].update(inbound_nodes=[[['flat', 0, 0, {}]]]), lambda layers: layers[1].update(inbound_nodes=[]),
    lambda layers: layers[1].update(inbound_nodes=[[]]),
    lambda layers: layers[1].update(inbound_nodes=2 * layers[1]['inbound_nodes']),
    lambda layers: layers[1].update(inbound_nodes=[[['image', 0, 0, {'mask': ['image', 0, 0]}]]]),
    lambda layers: layers[1].update(inbound_nodes={}), lambda layers: layers[1].update(inbound_nodes=[[['image', 5, 0, {}]]]),
    lambda layers: layers[1].update(module='os'),
    lambda layers: layers[1].pop('config'), lambda layers: layers[1].update(config=[]), lambda layers: layers[1].update(name='a/../b'),
    lambda layers: layers[1].update(name=7),
    lambda layers: layers[3].update(name='white', config=dict(layers[3]['config'], name='white')),
    lambda layers: layers.insert(1, dict(layers[0], name='image2')),
    lambda layers: layers.clear()])
def test_layers_that_are_fed_oddly(tmp_path, change):
    layers = copy.deepcopy(LAYERS)
    change(layers)
    refused(write(tmp_path / 'a.h5', {**description(), 'layers': layers}))


@pytest.mark.parametrize('config', [
    description(output_layers=[['gap', 0, 0]]), description(output_layers=[]),
    description(input_layers=[['image', 0, 0], ['image', 0, 0]]), [1], {'layers': 3}])
def test_descriptions_that_are_none(tmp_path, config):
    refused(write(tmp_path / 'a.h5', config))


@pytest.mark.parametrize('metadata', [
    [], {}, '{', 10 ** 4 * '[', dict(METADATA, fit='zoom'), dict(METADATA, fit=[]), dict(METADATA, class_names=['cat']), dict(METADATA, class_names='ab'),
    dict(METADATA, class_names=['cat', 'cat']), dict(METADATA, class_names=['cat', 1]), dict(METADATA, class_names=None)])
def test_metadata_that_are_none(tmp_path, metadata):
    refused(write(tmp_path / 'a.h5', metadata=metadata))


def replace(name, make):
    def spoil(file):
        del file[name]
        make(file, name)
    return spoil


KERNEL = 'model_weights/conv_1/conv_1/kernel:0'


@pytest.mark.parametrize('spoil', [
    lambda file: file.pop(KERNEL), lambda file: file.pop('model_weights'), lambda file: file.attrs.pop('model_config'),
    lambda file: file['model_weights'].attrs.pop('layer_names'),
    lambda file: file['model_weights/conv_1'].attrs.update(weight_names=[b'../clf/clf/bias:0']),
    lambda file: file['model_weights'].attrs.update(layer_names=[b'conv_1', b'../..']),
    lambda file: file['model_weights/conv_1'].attrs.update(weight_names=3),
    replace(KERNEL, lambda file, name: file.update({name: h5py.ExternalLink('other.h5', '/kernel')})),
    replace(KERNEL, lambda file, name: file.update({name: h5py.SoftLink('/model_weights/clf/clf/kernel:0')})),
    replace('model_weights/conv_1', lambda file, name: file.update({name: h5py.ExternalLink('other.h5', '/')})),
    replace(KERNEL, lambda file, name: file.create_dataset(name, (1, 1, 3, 2), 'f8')),
    replace(KERNEL, lambda file, name: file.create_group(name)),
    replace(KERNEL, lambda file, name: file.create_dataset(name, (1, 1, 3, 2), 'f4', external=[('/etc/passwd', 0, 24)])),
    replace(KERNEL, lambda file, name: file.create_dataset(name, (1 << 40,), 'f4')),                        # never written: nothing of it is there
    replace(KERNEL, lambda file, name: file.create_dataset(name, data=np.zeros((1, 1, 3, 1 << 20), 'f4'), compression='gzip')),
    replace(KERNEL, lambda file, name: file.create_dataset(name, data=[b'a'], dtype=h5py.special_dtype(vlen=str)))])
def test_weights_that_are_not_there_as_plain_numbers(tmp_path, spoil):
    with h5py.File(str(tmp_path / 'other.h5'), 'w') as other:
        other['kernel'] = np.ones((1, 1, 3, 2), np.float32)
        other.attrs['weight_names'] = [b'kernel']
    refused(write(tmp_path / 'a.h5', spoil=spoil))


def test_files_of_another_form(tmp_path):
    whole = open(write(tmp_path / 'a.h5'), 'rb').read()
    for content in b'', b'no h5', whole[:100], whole[:len(whole) // 2], whole[:-1], whole.replace(b'FRHP', b'XXXX').replace(b'TREE', b'XXXX'):
        (tmp_path / 'a.h5').write_bytes(content)
        refused(str(tmp_path / 'a.h5'))
