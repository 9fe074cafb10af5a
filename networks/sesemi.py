"""A trunk with its two heads: the supervised one on the classes, the self-supervised one on the six proxy
transforms.
"""
from networks import convnet, nin, wrn
from networks.layers import Dropout, chain, layer_seed
from sesemi.device.backend import keras
from sesemi.settings import L2, PROXY_CLASSES, SUPER_DROPOUT

TRUNKS = {'convnet': convnet.trunk, 'nin': nin.trunk, 'wrn': wrn.trunk}


def build_sesemi(  # noqa: PLR0913, a public signature
        network, input_shape, num_classes, in_network_dropout=0.0, super_dropout=SUPER_DROPOUT, seed=0,
        batch_number=None):
    """The model to train and the model to use, which share all weights of the trunk and the supervised head;
    uncompiled.

    network: a key of TRUNKS. input_shape: (h, w, 3). Returns (sesemi_model, inference_model):
    {'self_data', 'super_data'} -> ['self_clf', 'super_clf'] and 'super_data' -> 'super_clf', softmax outputs
    (n, 6) and (n, num_classes). The trunk is called on the super branch first: batch normalisation's averages
    are of that call. batch_number: an int32 scalar tensor, which the dropout masks follow from; None: always
    0.
    """
    trunk = TRUNKS[network](in_network_dropout, seed, batch_number)
    super_head = head('super', num_classes, super_dropout, seed, batch_number)
    super_data, super_clf = _super_branch(trunk, super_head, input_shape)
    self_data = keras.layers.Input(input_shape, name='self_data')
    self_clf = head('self', PROXY_CLASSES, seed=seed)(trunk(self_data))
    return keras.Model([self_data, super_data], [self_clf, super_clf]), keras.Model(super_data, super_clf)


def build_supervised(  # noqa: PLR0913, a public signature
        network, input_shape, num_classes, in_network_dropout=0.0, super_dropout=SUPER_DROPOUT, seed=0,
        batch_number=None):
    """The same pair for the supervised method, with no self branch in the graph: the inference model is the
    one to train.
    """
    trunk = TRUNKS[network](in_network_dropout, seed, batch_number)
    model = keras.Model(*_super_branch(trunk, head('super', num_classes, super_dropout, seed, batch_number),
                                       input_shape))
    return model, model


def _super_branch(trunk, super_head, input_shape):
    super_data = keras.layers.Input(input_shape, name='super_data')
    return super_data, super_head(trunk(super_data))


def head(branch, num_classes, dropout=0.0, seed=0, batch_number=None):
    """Global average pooling, dropout, dense softmax (Glorot uniform): a function from features to
    probabilities.
    """
    name = branch + '_clf'
    return chain(
        keras.layers.GlobalAveragePooling2D(name=branch + '_gap'),
        Dropout(dropout, seed, batch_number, name=branch + '_dropout') if dropout else chain(),
        keras.layers.Dense(num_classes, activation='softmax', name=name,
                           kernel_regularizer=keras.regularizers.l2(L2),
                           kernel_initializer=keras.initializers.glorot_uniform(seed=layer_seed(seed, name))))
