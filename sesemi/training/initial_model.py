"""The model that a run begins from: the file of --init."""
import hashlib
import os
import unicodedata

import numpy as np

from sesemi.errors import InputError
from sesemi.training import model_file
from utils import ChannelStandardizer, Whitener

OUTSIDE_TRUNK = 'contrast', 'whiten', 'whitened', 'super_clf'     # layers with weights


class InitialModel:
    """The content of a saved model. Raises InputError if the file `path` is another one or has changed.

    checksum: 'sha256:' and the file's SHA-256, compared with the parameter unless that is None; class_names:
    a list; image_size: pixels; whitening: a key of batches.WHITENINGS; weights: {'layer/kind:0': array}.
    """

    def __init__(self, path, checksum=None):
        self.path, self.class_names = path, model_file.read_metadata(path)['class_names']
        with model_file.open_model(path) as file:
            image, *_ = model_file.read_description(file)['layers']
            self.image_size = image['config']['batch_input_shape'][1]
            self.weights = {'%s/%s' % (layer, kind): array[()]
                            for layer, group in file['model_weights'].items()
                            for kind, array in group.get(layer, {}).items()}
        self.whitening = ('zca' if 'whiten/kernel:0' in self.weights else
                          'channel' if 'whitened/kernel:0' in self.weights else 'none')
        with open(path, 'rb') as file:
            self.checksum = 'sha256:' + hashlib.sha256(file.read()).hexdigest()
        if checksum not in (None, self.checksum):
            raise InputError('--init %s: has changed since the program was started; start it again.' % path)

    def whitener(self):
        """The whitening of the file: a utils.Whitener or ChannelStandardizer, or None."""
        if self.whitening == 'none':
            return None
        layer = 'whiten' if self.whitening == 'zca' else 'whitened'
        kernel, bias = self.weights[layer + '/kernel:0'], self.weights[layer + '/bias:0']
        if self.whitening == 'zca':     # the bias is -mean @ kernel
            mean = np.linalg.solve(kernel.T.astype(np.float64), -bias.astype(np.float64))
            return Whitener(mean.astype(np.float32), kernel)
        deviation = 1 / np.diag(kernel[0, 0])
        return ChannelStandardizer(-bias * deviation, deviation)

    def set_weights(self, model, class_names):
        """Set the trainable weights of an inference model to the file's; returns a sentence that says which.

        The class head is set only if the file has the same classes in the same order. Raises InputError if
        the trunk is of another network.
        """
        from sesemi.training.training import assign_variables  # loads TensorFlow
        variables = {'%s/%s:0' % (layer.name, variable.op.name.split('/')[-1]): variable
                     for layer in model.layers for variable in layer.weights}
        trunk, own_trunk = ({name: tuple(map(int, array.shape)) for name, array in weights.items()
                             if name.split('/')[0] not in OUTSIDE_TRUNK}
                            for weights in (self.weights, variables))
        if trunk != own_trunk:
            raise InputError('--init %s: is of another network; give the --network that it was trained with '
                             'or another model.' % self.path)
        stored_names, class_names = ([unicodedata.normalize('NFC', name) for name in names]
                                     for names in (self.class_names, class_names))
        same_classes = stored_names == class_names
        names = [name for name in variables
                 if '/moving_' not in name and (same_classes or name in own_trunk)]
        assign_variables([variables[name] for name in names], [self.weights[name] for name in names])
        return ('Initial weights: the trunk and the class head of %s.' if same_classes else
                'Initial weights: the trunk of %s; the class head begins anew, as the classes differ.'
                ) % self.path


def take_settings(args, given, recorded):
    """Check all flags, `args`, against the model of --init, and take its whitening.

    args['init'] changes from the file's path to its checksum, and the path goes to args['init_file']. given,
    recorded: as for flags.resolve. Raises InputError.
    """
    path = args['init']
    if path is None:
        return
    if recorded.get('init') and not os.path.isfile(path):
        path = recorded['init']     # the run's own copy
    model = InitialModel(path)
    args['init'], args['init_file'] = model.checksum, path
    if recorded:        # record.run_folder compares the flags
        return
    args['whitening'] = given.get('whitening', model.whitening)
    for flag, value, needed in (('--image-size', args['image_size'], model.image_size),
                                ('--whitening', args['whitening'], model.whitening)):
        if value != needed:
            raise InputError('%s %s: the model of --init has %s; give that or another model.'
                             % (flag, value, needed))
