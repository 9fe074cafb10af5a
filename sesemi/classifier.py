"""The saved model: one h5 file that takes images as a user has them and gives class probabilities.

Contrast normalisation and whitening travel inside as standard layers: layer normalisation over the whole image, and a dense
layer. The model is flat and its stored description is cut down to what every Keras understands, so that a plain
`keras.models.load_model(path)` opens it, be it the Keras of TensorFlow 1.15 or Keras 3.
"""
import io
import json

import h5py
import numpy as np

from networks import TRUNKS
from networks.sesemi import head
from sesemi.run_folder import write_whole
from sesemi.runtime import keras
from sesemi.settings import CONTRAST_SCALE
from utils import ChannelStandardizer, Whitener

# The settings each layer needs at inference, under the names that every Keras reads. All others (initialisers, regularisers,
# dtypes) are spelled differently from version to version.
SETTINGS = {
    'InputLayer': ('batch_input_shape',), 'Flatten': (), 'LayerNormalization': ('epsilon', 'center', 'scale'),
    'Dense': ('units', 'activation', 'use_bias'), 'Reshape': ('target_shape',),
    'Conv2D': ('filters', 'kernel_size', 'padding', 'use_bias'), 'BatchNormalization': ('momentum', 'epsilon'),
    'LeakyReLU': ('alpha',), 'MaxPooling2D': ('pool_size', 'strides'), 'GlobalAveragePooling2D': (), 'Add': (),
}


def build_classifier(network, inference_model, whitener=None, scale=CONTRAST_SCALE):
    """The inference model with its preprocessing in front: (n, s, s, 3) values 0-255 -> (n, classes) probabilities.

    whitener: a utils.Whitener or ChannelStandardizer, or None for a data set that is only contrast normalised. The layer
    `whitened` gives what the trunk is fed; every layer behind it has the name and weights it has in the inference model.
    """
    shape = tuple(int(side) for side in inference_model.input_shape[1:])
    classes, size = int(inference_model.output_shape[-1]), int(np.prod(shape))
    image = keras.layers.Input(shape, name='image')
    x = keras.layers.Flatten(name='flat')(image)
    gain = np.float32(scale / np.sqrt(size))    # layer normalisation divides by the deviation, not by the L2 norm
    contrast = keras.layers.LayerNormalization(center=False, epsilon=1e-8, name='contrast')
    x = contrast(x)
    contrast.set_weights([np.full(size, gain)])
    if isinstance(whitener, Whitener):
        whiten = keras.layers.Dense(size, name='whiten')
        x = whiten(x)
        whiten.set_weights([whitener.matrix, -(whitener.mean @ whitener.matrix)])
    if isinstance(whitener, ChannelStandardizer):
        standardize = keras.layers.Conv2D(shape[-1], 1, name='whitened')
        x = standardize(keras.layers.Reshape(shape, name='contrasted')(x))
        standardize.set_weights([np.diag(1 / whitener.deviation)[None, None], -whitener.mean / whitener.deviation])
    else:
        x = keras.layers.Reshape(shape, name='whitened')(x)
    model = keras.Model(image, head('super', classes)(TRUNKS[network]()(x)))
    for layer in inference_model.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return model


def save_classifier(path, model, class_names, fit='stretch'):
    """Write the classifier, its class names and the utils.FITS key of its images to the h5 file `path`, whole or not at all.

    The file is made in memory first: Keras writing to a full disk crashes the interpreter. Raises InputError as write_whole.
    """
    memory = io.BytesIO()
    with h5py.File(memory, 'w') as file:
        model.save(file, include_optimizer=False)
        file.attrs['model_config'] = json.dumps(portable_config(json.loads(file.attrs['model_config']))).encode()
        file.attrs['keras_version'] = b'2.2.4-tf'
        file.attrs['sesemi'] = json.dumps({'class_names': class_names, 'fit': fit}).encode()
    write_whole(path, memory.getvalue())


def portable_config(config):
    """Cut a functional model's stored description down to the settings in SETTINGS."""
    layers = [{
        'class_name': layer['class_name'], 'name': layer['name'], 'inbound_nodes': layer['inbound_nodes'],
        'config': dict({key: layer['config'][key] for key in SETTINGS[layer['class_name']]}, name=layer['name']),
    } for layer in config['config']['layers']]
    return {'class_name': 'Model', 'config': {
        'name': 'sesemi', 'layers': layers,
        'input_layers': config['config']['input_layers'], 'output_layers': config['config']['output_layers']}}
