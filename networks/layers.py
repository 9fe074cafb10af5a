"""The layers the trunks are made of, and the two of them that this method needs otherwise than Keras has them."""
import zlib

from sesemi.runtime import keras, tf
from sesemi.settings import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, L2


def chain(*functions):
    """The functions one after the other. Layers are such functions; calling a chain twice shares its weights."""
    def call(x):
        for function in functions:
            x = function(x)
        return x
    return call


def residual(branch, shortcut=lambda x: x):
    """branch(x) + shortcut(x)."""
    add = keras.layers.Add()
    return lambda x: add([branch(x), shortcut(x)])


class Layers:
    """Makes the layers of one network, numbering them: a layer's name and initial weights follow from its number and the seed.

    slope: of the LeakyReLU (0 is ReLU). use_bias: whether convolutions have a bias.
    """

    def __init__(self, slope, use_bias, seed=0):
        self.slope, self.use_bias, self.seed, self.count = slope, use_bias, seed, 0

    def conv(self, filters, size, padding='same'):
        """Convolution, stride 1, He normal."""
        name = self._name('conv')
        return keras.layers.Conv2D(
            filters, size, padding=padding, use_bias=self.use_bias, name=name, kernel_regularizer=keras.regularizers.l2(L2),
            kernel_initializer=keras.initializers.he_normal(seed=stream(self.seed, name)))

    def norm(self):
        """Batch normalisation, then LeakyReLU."""
        return chain(BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, name=self._name('norm')),
                     keras.layers.LeakyReLU(self.slope, name=self._name('relu')))

    def conv_norm(self, filters, size, padding='same'):
        """Convolution, batch normalisation, LeakyReLU."""
        return chain(self.conv(filters, size, padding), self.norm())

    def pool(self):
        """2 x 2 max-pooling, stride 2."""
        return keras.layers.MaxPooling2D(2, 2, name=self._name('pool'))

    def dropout(self, rate):
        """Dropout, or nothing when rate is 0."""
        return Dropout(rate, self.seed, name=self._name('dropout')) if rate else chain()

    def _name(self, kind):
        self.count += 1
        return '%s_%d' % (kind, self.count)


def stream(seed, name):
    """A 31-bit seed that depends on the run's seed and on a layer's name."""
    return zlib.crc32(('%d/%s' % (seed, name)).encode()) & 0x7fffffff


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalisation, with one order of updates when a layer is called twice in a model.

    Keras lets the two calls of a shared layer read and assign its moving averages in whatever order the threads come to, so
    two equal runs differ. Here every call starts from the averages before the step and assigns after the call before it.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._updates_by_name = {}

    def _assign_moving_average(self, variable, value, momentum, inputs_size):
        old, before = self._updates_by_name.get(variable.name) or (variable.read_value(), [])
        with tf.control_dependencies(before):
            update = tf.assign_sub(variable, (old - value) * (1 - momentum))
        self._updates_by_name[variable.name] = old, [update.op]
        return update


class Dropout(keras.layers.Layer):
    """Dropout whose mask is a pure function of (seed, step, layer, call), so that an interrupted run can go on with the same masks.

    The step is the value of step_variable(), which the training loop sets. Inactive outside training.
    """

    def __init__(self, rate, seed, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seed, self.calls = rate, seed, 0

    def call(self, inputs, training=None):
        key = stream(self.seed, '%s/%d' % (self.name, self.calls))
        self.calls += 1

        def dropped():
            draw = tf.random.stateless_uniform(tf.shape(inputs), seed=tf.stack([key, step_variable()]))
            return tf.where(draw < self.rate, tf.zeros_like(inputs), inputs / (1 - self.rate))
        return keras.backend.in_train_phase(dropped, inputs, training=training)

    def get_config(self):
        return dict(super().get_config(), rate=self.rate, seed=self.seed)


def step_variable():
    """The int32 scalar variable of the current graph that holds the number of the step. No layer owns it, so no h5 holds it."""
    variables = tf.get_collection_ref('sesemi/step')
    if not variables:
        variables.append(keras.backend.variable(0, dtype='int32', name='step'))
    return variables[0]
