"""A saved classifier's file, read without TensorFlow, and only as far as it is what this project writes.

Keras makes the layers that a file describes, and some of them run code that the file holds. So what a file describes is compared,
setting by setting, with what classifier.Classifier leaves, before Keras sees any of it.
"""
import contextlib
import json
import math
import os
import re

import numpy as np

from sesemi.errors import InputError, reason
from sesemi.decoding import FITS

# The settings each layer needs at inference, under the names that every Keras reads. All others (initialisers, regularisers,
# dtypes) are spelled differently from version to version.
LAYER_SETTINGS = {
    'InputLayer': ('batch_input_shape',), 'Flatten': (), 'LayerNormalization': ('epsilon', 'center', 'scale'),
    'Dense': ('units', 'activation', 'use_bias'), 'Reshape': ('target_shape',),
    'Conv2D': ('filters', 'kernel_size', 'padding', 'use_bias'), 'BatchNormalization': ('momentum', 'epsilon'),
    'LeakyReLU': ('alpha',), 'MaxPooling2D': ('pool_size', 'strides'), 'GlobalAveragePooling2D': (), 'Add': (),
}
PIXELS = 512            # a side: more than any image size has, and a batch of them still fits into memory


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _are_sizes(count):
    return lambda value: type(value) is list and len(value) == count and all(type(size) is int and 0 < size < 1 << 20 for size in value)


# What a setting may be.
VALID_SETTINGS = {
    'batch_input_shape': lambda value: _are_sizes(3)(value[1:]) and value == [None, value[1], value[1], 3] and value[1] <= PIXELS,
    'target_shape': _are_sizes(3), 'kernel_size': _are_sizes(2), 'pool_size': _are_sizes(2), 'strides': _are_sizes(2),
    'units': lambda value: _are_sizes(1)([value]), 'filters': lambda value: _are_sizes(1)([value]),
    'epsilon': _is_number, 'momentum': _is_number, 'alpha': _is_number,
    'center': lambda value: value is False, 'scale': lambda value: value is True, 'use_bias': lambda value: type(value) is bool,
    'activation': lambda value: value in ('linear', 'softmax'), 'padding': lambda value: value in ('same', 'valid'),
}


@contextlib.contextmanager
def open_model(path):
    """The open h5 file. Raises InputError when it is none, or when anything in the block finds that it is not one of this program."""
    if not os.path.isfile(path):
        raise InputError('%s: no such file; give the sesemi.h5 of a result folder.' % path)
    import h5py     # takes a third of a second, which only the use of a model needs
    try:
        with h5py.File(path, 'r') as file:
            yield file
    except Exception as error:      # a damaged file, or Keras for one that does not fit together, raises nearly anything
        raise InputError('%s: not a model saved by this program (%s); give the sesemi.h5 of a result folder.'
                         % (path, reason(error))) from None


def read_metadata(path):
    """What is saved with a classifier: {'class_names': [...], 'fit': a key of decoding.FITS}. Raises InputError as open_model."""
    with open_model(path) as file:
        metadata = json.loads(file.attrs['sesemi'])
        names = metadata['class_names']
        if type(names) is not list or not all(type(name) is str for name in names) or len(set(names)) != len(names) or metadata['fit'] not in FITS:
            raise ValueError('odd class names or fit')
        read_description(file)
        read_weights(file)
        return metadata


def read_description(file):
    """The layers as keras.Model.from_config takes them, each with the settings of LAYER_SETTINGS and nothing else. Raises ValueError.

    Every layer is fed by layers before it, so that there is no circle; the last one gives the probabilities of the classes.
    """
    description = json.loads(file.attrs['model_config'])['config']
    layers, names = description['layers'], []
    for kind in (layer['class_name'] for layer in layers):
        if kind not in LAYER_SETTINGS:
            raise ValueError('it has a layer of the kind %.40r' % (kind,))
    for layer in layers:
        kind, settings, name = layer['class_name'], layer['config'], layer['name']
        if set(layer) != {'class_name', 'name', 'config', 'inbound_nodes'} or set(settings) != {*LAYER_SETTINGS[kind], 'name'}:
            raise ValueError('the layer %.40r has other settings' % (name,))
        if not re.fullmatch(r'[A-Za-z0-9_]{1,60}', name) or name in names or settings['name'] != name:
            raise ValueError('a layer has the name %.40r' % (name,))
        wrong = [setting for setting in LAYER_SETTINGS[kind] if not VALID_SETTINGS[setting](settings[setting])]
        sources = [source for source, *_ in layer['inbound_nodes'][0]] if names else []
        nodes = [[[source, 0, 0, {}] for source in sources]] if sources else []
        if wrong or layer['inbound_nodes'] != nodes or not set(sources) <= set(names) or (kind == 'InputLayer') != (not names):
            raise ValueError('the layer %s has an odd %s' % (name, wrong[0] if wrong else 'place'))
        names.append(name)
    classes = len(json.loads(file.attrs['sesemi'])['class_names'])
    if 'whitened' not in names or layers[-1]['config'].get('units') != classes:
        raise ValueError('it does not lead from images to %d classes' % classes)
    if description['input_layers'] != [[names[0], 0, 0]] or description['output_layers'] != [[names[-1], 0, 0]]:
        raise ValueError('it has other inputs or outputs')
    return {'name': 'sesemi', 'layers': layers, 'input_layers': description['input_layers'], 'output_layers': description['output_layers']}


def read_weights(file):
    """{layer: its weights, open h5 datasets of float32 in the order of the layer}. Raises ValueError.

    Only what lies in this very file as it is counts: HDF5 has links into other files, and compression that makes gigabytes of nothing.
    """
    items = {}
    file.visititems(items.__setitem__)      # does not follow links
    found = {}
    for name in map(_text, items['model_weights'].attrs['layer_names']):
        group = 'model_weights/' + name
        found[name] = [items['%s/%s' % (group, _text(weight))] for weight in items[group].attrs['weight_names']]
        for data in found[name]:
            if data.dtype != np.float32 or data.external or data.is_virtual or data.id.get_storage_size() != 4 * data.size:
                raise ValueError('the weights of %s are not plain numbers' % name)
    return found


def _text(name):
    return name.decode() if isinstance(name, bytes) else name
