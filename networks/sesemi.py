"""A trunk with two heads: one for the classes and one, self-supervised, for the six proxy labels."""
from networks import convnet, nin, wrn
from networks.layers import Dropout, chain, layer_seed
from sesemi.device.backend import keras
from sesemi.settings import L2, PROXY_CLASSES, SUPER_DROPOUT

TRUNKS = {'convnet': convnet.trunk, 'nin': nin.trunk, 'wrn': wrn.trunk}


def build_sesemi(  # noqa: PLR0913, a public signature
        network, input_shape, num_classes, in_network_dropout=0.0, super_dropout=SUPER_DROPOUT, seed=0,
        batch_number=None):
    """Build the model to train and the inference model, which share the trunk and the supervised head.

    network: a key of TRUNKS. input_shape: (h, w, 3). batch_number: an int32 scalar tensor that changes the
    dropout masks; None means 0. Returns (sesemi_model, inference_model), uncompiled:
    {'self_data', 'super_data'} -> ['self_clf', 'super_clf'] and 'super_data' -> 'super_clf', softmax outputs
    (n, 6) and (n, num_classes). The trunk is called on the super branch first, because the averages of batch
    normalisation follow the first call.
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
    """Build the model of the supervised method, which has no self branch; parameters as in build_sesemi.

    Returns (model, model), because the inference model is the one to train.
    """
    trunk = TRUNKS[network](in_network_dropout, seed, batch_number)
    model = keras.Model(*_super_branch(trunk, head('super', num_classes, super_dropout, seed, batch_number),
                                       input_shape))
    return model, model


def _super_branch(trunk, super_head, input_shape):
    super_data = keras.layers.Input(input_shape, name='super_data')
    return super_data, super_head(trunk(super_data))


def head(branch, num_classes, dropout=0.0, seed=0, batch_number=None):
    """A function from features to probabilities: global average pooling, dropout, dense softmax.

    The kernel's initial weights are Glorot uniform.
    """
    name = branch + '_clf'
    return chain(
        keras.layers.GlobalAveragePooling2D(name=branch + '_gap'),
        Dropout(dropout, seed, batch_number, name=branch + '_dropout') if dropout else chain(),
        keras.layers.Dense(num_classes, activation='softmax', name=name,
                           kernel_regularizer=keras.regularizers.l2(L2),
                           kernel_initializer=keras.initializers.glorot_uniform(seed=layer_seed(seed, name))))
