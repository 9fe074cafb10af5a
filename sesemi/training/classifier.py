"""The saved model: one h5 file that takes images of values 0-255 and returns class probabilities.

It contains contrast normalisation and whitening as standard layers: layer normalisation over the whole image,
and a dense layer. The model is flat, and its stored description is reduced to what every Keras understands,
so `keras.models.load_model(path)` opens it in the Keras of TensorFlow 1.15 and in Keras 3. The file is
written directly from the layers' settings and weights. Building the model in Keras would give an NPU more
graphs to compile.
"""
import io
import json

import h5py
import numpy as np

from sesemi.device.backend import keras
from sesemi.settings import CONTRAST_SCALE
from sesemi.system.files import write_atomic
from sesemi.training import model_file
from sesemi.training.training import assign_variables, read_variables
from utils import ChannelStandardizer, Whitener


class Classifier:
    """An inference model preceded by its preprocessing, to be saved.

    It takes images (n, s, s, 3) of values 0-255 and returns probabilities (n, classes).

    whitener: a utils.Whitener or ChannelStandardizer, or None if images are only contrast normalised. fit
    (one of settings.FITS) and whitening (a key of batches.WHITENINGS) are only stored in the file. The layer
    `whitened` is the trunk's input; all layers after it have the same names as in the inference model. All
    but the weights is prepared here, so that a model that cannot be saved fails before it is trained.
    """

    def __init__(self, inference_model, whitener, class_names, fit='stretch', whitening=None):
        shape = [int(side) for side in inference_model.input_shape[1:]]
        self.metadata = {'class_names': class_names, 'fit': fit, 'whitening': whitening}
        layers, self.preprocessing = _preprocessing(shape, whitener)
        replaced = {'super_data': 'whitened'}       # layer that is left out -> layer that replaces it
        for layer in inference_model.get_config()['layers']:
            name, kind = layer['name'], layer['class_name']
            if kind == 'InputLayer':
                continue
            nodes = [[[replaced.get(source, source), *rest] for source, *rest in node]
                     for node in layer['inbound_nodes']]
            if kind == 'Dropout':       # does nothing at inference, and is not Keras' own layer
                replaced[name] = nodes[0][0][0]
                continue
            layers.append({'class_name': kind, 'name': name, 'inbound_nodes': nodes,
                           'config': dict({key: layer['config'][key]
                                           for key in model_file.LAYER_SETTINGS[kind]}, name=name)})
        self.config = {'class_name': 'Model', 'config': {
            'name': 'sesemi', 'layers': layers, 'input_layers': [['image', 0, 0]],
            'output_layers': [[layers[-1]['name'], 0, 0]]}}
        self.variables = [(layer.name, variable) for layer in inference_model.layers
                          for variable in layer.weights]

    def read_weights(self):
        """The current weights of the inference model: a list of arrays."""
        return read_variables(variable for _, variable in self.variables)

    def save(self, path, arrays=None):
        """Write the classifier to the h5 file `path`, completely or not at all.

        arrays: the weights, as read_weights returns them; None: the current ones. Raises InputError if the
        file cannot be written. It is made in memory first, because HDF5 crashes the interpreter on a full
        disk.
        """
        weights = dict(self.preprocessing)
        for (layer, variable), array in zip(self.variables, arrays or self.read_weights()):
            weights.setdefault(layer, {})[variable.op.name.split('/')[-1]] = array
        memory = io.BytesIO()
        with h5py.File(memory, 'w') as file:
            file.attrs['model_config'] = json.dumps(self.config).encode()
            file.attrs['sesemi'] = json.dumps(self.metadata).encode()
            group = file.create_group('model_weights')
            for attributes in (file.attrs, group.attrs):
                attributes['keras_version'], attributes['backend'] = b'2.2.4-tf', b'tensorflow'
            names = [layer['name'] for layer in self.config['config']['layers']]
            group.attrs['layer_names'] = [name.encode() for name in names]
            for name in names:
                arrays = {'%s/%s:0' % (name, kind): array for kind, array in weights.get(name, {}).items()}
                layer = group.create_group(name)
                layer.attrs['weight_names'] = [weight.encode() for weight in arrays]
                for weight, array in arrays.items():
                    layer[weight] = array
        write_atomic(path, memory.getvalue())


def _preprocessing(shape, whitener):
    """(Descriptions of the layers from `image` to `whitened`, weights {layer: {name: float32 array}})."""
    size, channels = int(np.prod(shape)), shape[-1]
    layers, weights = [], {}

    def add(kind, name, **settings):
        inbound = [[[layers[-1]['name'], 0, 0, {}]]] if layers else []
        layers.append({'class_name': kind, 'name': name, 'inbound_nodes': inbound,
                       'config': dict(settings, name=name)})

    add('InputLayer', 'image', batch_input_shape=[None] + shape)
    add('Flatten', 'flat')
    add('LayerNormalization', 'contrast', epsilon=1e-8, center=False, scale=True)
    # the square root, because layer normalisation divides by the deviation, not by the L2 norm
    weights['contrast'] = {'gamma': np.full(size, CONTRAST_SCALE / np.sqrt(size), np.float32)}
    if isinstance(whitener, Whitener):
        add('Dense', 'whiten', units=size, activation='linear', use_bias=True)
        weights['whiten'] = {'kernel': whitener.matrix.reshape(size, size),
                             'bias': -(whitener.mean @ whitener.matrix)}
    if isinstance(whitener, ChannelStandardizer):
        add('Reshape', 'contrasted', target_shape=shape)
        add('Conv2D', 'whitened', filters=channels, kernel_size=[1, 1], padding='valid', use_bias=True)
        weights['whitened'] = {'kernel': np.diag(1 / whitener.deviation)[None, None].astype(np.float32),
                               'bias': -whitener.mean / whitener.deviation}
    else:
        add('Reshape', 'whitened', target_shape=shape)
    return layers, weights


def load_classifier(path):
    """Load what Classifier.save wrote as a Keras model in the current session.

    Raises InputError if the file holds anything else.
    """
    with model_file.open_model(path) as file:
        model = keras.Model.from_config(model_file.read_description(file))
        groups = [file['model_weights'][layer.name] for layer in model.layers]
        arrays = [group[name][()] for group in groups for name in group.attrs['weight_names']]
        variables = [variable for layer in model.layers for variable in layer.weights]
        same_shapes = ([tuple(variable.shape.as_list()) for variable in variables]
                       == [array.shape for array in arrays])
        if not same_shapes or not all(np.isfinite(array).all() for array in arrays):
            raise ValueError('its weights do not fit its layers or are not finite')
        assign_variables(variables, arrays)
    return model
