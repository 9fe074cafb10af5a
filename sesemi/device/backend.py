"""The names `tf` and `keras`. The only file that imports TensorFlow.

`tf` is the graph-mode API of TensorFlow 1.15, which TensorFlow 2 still has, and `keras` is the Keras inside
it. The Ascend adapter sets its session on that Keras. The stand-alone package would train on the host CPU
without a warning.
"""
import contextlib
import importlib.util
import os
import platform
import subprocess
import sys
import warnings

from sesemi.device import npu
from sesemi.errors import CANNOT_IMPORT, InputError, describe_error

# From TensorFlow 2.16 on, keras is otherwise Keras 3, which this program cannot use.
os.environ['TF_USE_LEGACY_KERAS'] = '1'
# Keras reads its settings from keras.json in this folder: a user's own would change the numbers of a run.
os.environ['KERAS_HOME'] = os.devnull
# Not on an NPU, where this would hide the adapter's errors and its message that the model was compiled.
if not npu.find()[0]:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    # TensorFlow 2 does this by itself only on newer processors. On others it saves a fifth of a step.
    # In TensorFlow 2.6 a convolution ends the process with SIGFPE.
    if platform.machine() == 'x86_64' and not (npu.tensorflow_version() or '').startswith('2.6.'):
        os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
VERBOSE = os.environ.get('TF_CPP_MIN_LOG_LEVEL') == '0'
# TensorFlow 1.15 gives dozens of these when imported.
warnings.filterwarnings('ignore', category=FutureWarning)
# Keras warns of h5 files and of graph mode, and this program uses both on purpose.
warnings.filterwarnings('ignore', category=UserWarning, module='tf_keras')

# Useless lines that TensorFlow 2 prints when imported, before it applies the log level.
IMPORT_MESSAGES = ('^I[0-9]{4} |^To enable the following instructions: |'
                   '^WARNING: All log messages before absl::InitializeLog|'
                   'Unable to register cu[A-Za-z]+ factory|computation placer already registered')


@contextlib.contextmanager
def filtered_stderr():
    """Send standard error through sed within the block, to drop IMPORT_MESSAGES.

    Being another process, sed still prints the last message if TensorFlow aborts this one.
    """
    try:
        sed = subprocess.Popen(['sed', '-E', '/%s/d' % IMPORT_MESSAGES], stdin=subprocess.PIPE, stdout=2)
    except OSError:     # there is no sed, or no standard error
        yield
        return
    stderr = os.dup(2)
    os.dup2(sed.stdin.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        sed.stdin.close()
        sed.wait()


try:
    with contextlib.ExitStack() if VERBOSE else filtered_stderr():
        import tensorflow.compat.v1 as tf
    if tuple(map(int, tf.__version__.split('.')[:2])) >= (2, 16) and not importlib.util.find_spec('tf_keras'):
        raise ImportError('TensorFlow %s needs the package tf_keras' % tf.__version__)
    tf.logging.set_verbosity(tf.logging.INFO if VERBOSE else tf.logging.ERROR)
    tf.disable_v2_behavior()
    from tensorflow.compat.v1 import keras
    keras.backend.floatx()      # TensorFlow 2 imports its Keras only now
except Exception as error:      # packages that do not fit each other raise other types than ImportError too
    raise InputError(CANNOT_IMPORT % (sys.executable, describe_error(error))) from None
