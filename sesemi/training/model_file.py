"""Reads and checks a saved classifier's file without TensorFlow.

Keras makes the layers that a file describes, and some kinds of layer run code from the file. So before Keras
reads it, the kinds and settings of its layers are compared with those that classifier.Classifier writes.
"""
import contextlib
import json
import os

from sesemi.errors import InputError, describe_error
from sesemi.settings import FITS

# The settings that each kind of layer needs at inference, by names that every Keras reads. Other settings
# (initialisers, regularisers, dtypes) have different names in different versions.
LAYER_SETTINGS = {
    'InputLayer': ('batch_input_shape',), 'Flatten': (), 'LayerNormalization': ('epsilon', 'center', 'scale'),
    'Dense': ('units', 'activation', 'use_bias'), 'Reshape': ('target_shape',),
    'Conv2D': ('filters', 'kernel_size', 'padding', 'use_bias'),
    'BatchNormalization': ('momentum', 'epsilon'),
    'LeakyReLU': ('alpha',), 'MaxPooling2D': ('pool_size', 'strides'), 'GlobalAveragePooling2D': (),
    'Add': (),
}
ACTIVATIONS = 'linear', 'softmax'


@contextlib.contextmanager
def open_model(path):
    """Open the h5 file for the block; yields the h5py.File.

    Raises InputError if it is not an h5 file, and instead of any exception that is raised in the block.
    """
    if not os.path.isfile(path):
        raise InputError('%s: no such file; give the sesemi.h5 of a result folder.' % path)
    import h5py  # here, because it takes a third of a second, which --help need not wait for
    try:
        # h5py locks a file that it opens itself, which some file systems refuse
        with open(path, 'rb') as opened, h5py.File(opened, 'r') as file:
            yield file
    except Exception as error:      # h5py and Keras raise nearly anything for a damaged or foreign file
        raise InputError('%s: not a model saved by this program (%s); give the sesemi.h5 of a result folder.'
                         % (path, describe_error(error))) from None


def read_metadata(path):
    """What is saved with a classifier: {'class_names': [...], 'fit': one of settings.FITS, ...}.

    Raises InputError if the file is not a model saved by this program.
    """
    with open_model(path) as file:
        metadata = json.loads(file.attrs['sesemi'])
        if not metadata['class_names'] or metadata['fit'] not in FITS:
            raise ValueError('it has no class names, or an unknown fit')
        read_description(file)
        return metadata


def read_description(file):
    """The layers as keras.Model.from_config takes them. Raises ValueError if one is not in LAYER_SETTINGS."""
    description = json.loads(file.attrs['model_config'])['config']
    for layer in description['layers']:
        kind, settings = layer['class_name'], layer['config']
        if kind not in LAYER_SETTINGS:
            raise ValueError('it has a layer of the kind %.40r' % (kind,))
        nodes = [[[source, 0, 0, {}] for source, *_ in node] for node in layer['inbound_nodes']]
        plain = {'class_name': kind, 'name': layer['name'], 'config': settings, 'inbound_nodes': nodes}
        if layer != plain or set(settings) != {*LAYER_SETTINGS[kind], 'name'}:
            raise ValueError('the layer %.40r has other settings' % layer['name'])
        # Keras turns a dict into an object of any class that it knows
        objects = [value for value in settings.values() if isinstance(value, dict)]
        if objects or settings.get('activation', 'linear') not in ACTIVATIONS:
            raise ValueError('the layer %.40r has an odd setting' % layer['name'])
    return description
