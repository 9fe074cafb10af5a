"""The names of TensorFlow and Keras. The only file that imports them.

`tf` is the graph-mode API of TensorFlow 1.15, which TensorFlow 2 still carries, and `keras` the Keras inside
it. The Ascend adapter sets its session on that Keras; the stand-alone package would train on the host CPU
unnoticed.
"""
import contextlib
import importlib.util
import os
import platform
import subprocess
import sys
import warnings

from sesemi.device import npu
from sesemi.errors import InputError

# TensorFlow 2.16 and later: without it keras is Keras 3, which trains nothing here
os.environ['TF_USE_LEGACY_KERAS'] = '1'
if not npu.find()[0]:   # there the adapter's errors and its proof would be hidden
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    # TensorFlow 2 does so by itself on newer processors only; on others it saves a fifth of a step
    if platform.machine() == 'x86_64':
        os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
VERBOSE = os.environ.get('TF_CPP_MIN_LOG_LEVEL') == '0'
# TensorFlow 1.15 raises dozens at import
warnings.filterwarnings('ignore', category=FutureWarning)
# on h5 files and graph mode, which are the point here
warnings.filterwarnings('ignore', category=UserWarning, module='tf_keras')

# What TensorFlow 2 writes when imported, to no one's use and at any log level, which it heeds only later.
EARLY_LINES = ('^I[0-9]{4} |^To enable the following instructions: |^WARNING: All log messages before '
               'absl::InitializeLog|'
               'Unable to register cu[A-Za-z]+ factory|computation placer already registered')


@contextlib.contextmanager
def without_early_lines():
    """Within the block standard error goes through sed, which has the last words of a process that TensorFlow
    aborts, too.
    """
    try:
        sed = subprocess.Popen(['sed', '-E', '/%s/d' % EARLY_LINES], stdin=subprocess.PIPE, stdout=2)
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


with contextlib.ExitStack() if VERBOSE else without_early_lines():
    import tensorflow.compat.v1 as tf

if tuple(map(int, tf.__version__.split('.')[:2])) >= (2, 16) and not importlib.util.find_spec('tf_keras'):
    raise InputError('TensorFlow %s needs the package tf_keras: pip install -r requirements.txt.'
                     % tf.__version__)
tf.logging.set_verbosity(tf.logging.INFO if VERBOSE else tf.logging.ERROR)
tf.disable_v2_behavior()
from tensorflow.compat.v1 import keras  # noqa: E402, F401
