"""Building blocks of the trunks; batch normalisation and dropout differ from those of Keras."""
import zlib

from sesemi.device.backend import keras, tf
from sesemi.settings import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, L2

MASK_VALUES = 1 << 24     # dropout draws integers below this


def chain(*functions):
    """A function that calls functions such as layers in order; all its calls share their weights."""
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
    """Makes the layers of one network and numbers them.

    A layer's number and the seed give its name and initial weights. slope: of the LeakyReLU (0 is ReLU).
    use_bias: whether convolutions have a bias. batch_number: as in Dropout.
    """

    def __init__(self, slope, use_bias, seed=0, batch_number=None):
        self.slope, self.use_bias, self.seed, self.batch_number = slope, use_bias, seed, batch_number
        self.count = 0

    def conv(self, filters, size, padding='same'):
        """Convolution, stride 1, initial weights He normal."""
        name = self._name('conv')
        return keras.layers.Conv2D(
            filters, size, padding=padding, use_bias=self.use_bias, name=name,
            kernel_regularizer=keras.regularizers.l2(L2),
            kernel_initializer=keras.initializers.he_normal(seed=layer_seed(self.seed, name)))

    def norm(self):
        """Batch normalisation, then LeakyReLU."""
        return chain(BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON,
                                        name=self._name('norm')),
                     keras.layers.LeakyReLU(self.slope, name=self._name('relu')))

    def conv_norm(self, filters, size, padding='same'):
        """Convolution, batch normalisation, LeakyReLU."""
        return chain(self.conv(filters, size, padding), self.norm())

    def pool(self):
        """2 x 2 max-pooling, stride 2."""
        return keras.layers.MaxPooling2D(2, 2, name=self._name('pool'))

    def dropout(self, rate):
        """Dropout, or nothing if rate is 0.

        It takes no number, so that the later layers have the same names and initial weights without it.
        """
        return Dropout(rate, self.seed, self.batch_number,
                       name='dropout_%d' % self.count) if rate else chain()

    def _name(self, kind):
        self.count += 1
        return '%s_%d' % (kind, self.count)


def layer_seed(seed, name):
    """A 31-bit seed that depends on the run's seed and on a layer's name."""
    return zlib.crc32(('%d/%s' % (seed, name)).encode()) & 0x7fffffff


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalisation, but the training updates the moving averages, from `statistics()`.

    The published results come from Keras 2.2.4, where the moving averages are zero-debiased and follow one
    call of a shared layer. Keras from 2.3 on starts them at (0, 1) without debiasing and updates them in both
    calls. Here they follow the first call, which is the super branch's.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._first_call = {}

    def _assign_moving_average(self, variable, value, momentum, inputs_size):
        self._first_call.setdefault(variable.name, value)
        return value        # Keras runs this as its update, so it updates nothing

    def statistics(self):
        """The first call's batch mean and unbiased variance: [(moving variable, statistic)].

        All are float32 (channels,). In learning phase 0 the statistics are the moving variables themselves.
        """
        return [(variable, self._first_call[variable.name])
                for variable in (self.moving_mean, self.moving_variance)]


class Dropout(keras.layers.Layer):
    """Dropout whose mask depends on (seed, batch_number, layer, call) alone; inactive outside training.

    So an interrupted run continues with the same masks. batch_number: an int32 scalar tensor; None means 0.
    The masks are drawn as integers, because an Ascend 910 has the operation for integers, but not the one for
    uniform float32 numbers.
    """

    def __init__(self, rate, seed, batch_number=None, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seed, self.batch_number, self.calls = rate, seed, batch_number, 0

    def call(self, inputs, training=None):
        key = tf.stack([layer_seed(self.seed, '%s/%d' % (self.name, self.calls)),
                        0 if self.batch_number is None else self.batch_number])
        self.calls += 1

        def dropped():
            draw = tf.raw_ops.StatelessRandomUniformInt(
                shape=tf.shape(inputs), seed=key, minval=0, maxval=MASK_VALUES)
            dropped = draw < round(self.rate * MASK_VALUES)
            return tf.where(dropped, tf.zeros_like(inputs), inputs / (1 - self.rate))
        return keras.backend.in_train_phase(dropped, inputs, training=training)

    def get_config(self):
        return dict(super().get_config(), rate=self.rate, seed=self.seed)
