"""On a CPU, GPU or Ascend NPU: the session, its precision, the optimizer, and which step a graph is at."""
import contextlib
import os
import sys
from typing import NamedTuple, Optional

from sesemi.device import npu
from sesemi.device.backend import keras, tf

_STEP = 'sesemi/step'    # a collection of a graph: the step's variable and its value
PROFILED_STEP = 10      # of a run on a CPU or GPU: the steps before it build and place the graph


class Options(NamedTuple):
    """What the device flags ask for. Folders are absolute paths, created when the session is opened; None is
    off.
    """
    precision_mode: Optional[str] = None
    over_dump: Optional[str] = None         # folder for the NPU's overflow detection
    data_dump: Optional[str] = None         # folder for the NPU's dump of operator inputs and outputs
    data_dump_step: str = '0'               # '0', '0|5|10-20'
    profiling: Optional[str] = None         # folder
    autotune: bool = False


@contextlib.contextmanager
def open_session(device, options=Options(), ranks=None):
    """A fresh graph and the session Keras uses on it until the end of the block; closed then, also after an
    error.

    On the NPU every computation of the block, training or prediction, runs in it, and it carries the
    NpuOptimizer. ranks: a collective.Ranks, with which TensorFlow then joins this process; None: alone.
    """
    keras.backend.clear_session()
    for folder in filter(None, (options.over_dump, options.data_dump, options.profiling)):
        os.makedirs(folder, exist_ok=True)
    if device == 'npu':
        config = npu.configure(tf.ConfigProto(), options)
    else:
        config = gpu_config() if device == 'gpu' else tf.ConfigProto(device_count={'GPU': 0})
    served = ranks and not ranks.alone and device != 'npu'
    # before the rewrites, which the server would make once more
    target = ranks.start_server(config) if served else ''
    rewrite = config.graph_options.rewrite_options
    if device == 'gpu' and options.precision_mode == 'mixed':
        rewrite.auto_mixed_precision = rewrite.ON
    if device == 'cpu' and options.precision_mode == 'mixed':
        rewrite.auto_mixed_precision_onednn_bfloat16 = rewrite.ON
        # TensorFlow's server refuses the bfloat16 convolution with its bias that remapping makes
        if served:
            rewrite.remapping = rewrite.OFF
    session = tf.Session(target, config=config)
    keras.backend.set_session(session)
    try:
        yield session
    finally:
        session.close()
        keras.backend.clear_session()


def gpu_config():
    """A session's ConfigProto on a GPU: memory is taken as it is needed."""
    return tf.ConfigProto(gpu_options=tf.GPUOptions(allow_growth=True))


def optimizer(device, learning_rate, momentum, options=Options(), ranks=None):
    """Keras' SGD with Nesterov momentum, for the device. learning_rate: a number or a scalar tensor.

    With several ranks it averages gradients over them: on the NPU by the adapter's wrapper, which reads
    RANK_SIZE, else by TensorFlow's collective operations.

    With precision 'mixed' on a GPU, which is float16 there, it scales the loss: small gradients would become
    zero. A CPU's bfloat16 has the range of float32.
    """
    sgd = keras.optimizers.SGD(learning_rate=learning_rate, momentum=momentum, nesterov=True)
    if device == 'npu':
        return npu.import_adapter().npu_distributed_optimizer_wrapper(sgd)
    if device == 'gpu' and options.precision_mode == 'mixed':
        sgd = tf.train.experimental.enable_mixed_precision_graph_rewrite(sgd)
    return ranks.average(sgd) if ranks and not ranks.alone else sgd


def profiler_callbacks(device, options, model, steps):
    """Keras callbacks that trace a step of training `model` for TensorBoard; none on the NPU, whose session
    profiles by itself.

    A run of `steps` that ends before that step says so on standard error.
    """
    if device == 'npu' or not options.profiling:
        return []
    if steps < PROFILED_STEP:
        print('--profiling: step %d is the one traced, and this run has %d; raise --epochs.'
              % (PROFILED_STEP, steps), file=sys.stderr)
        return []
    board = keras.callbacks.TensorBoard(options.profiling, write_graph=False, profile_batch=PROFILED_STEP)
    board.set_model(model)
    return [board]


def step_variable():
    """The int32 scalar variable of the current graph that counts the steps done. No layer owns it, so no h5
    holds it.
    """
    return _step()[0]


def step():
    """The steps done before the current one: an int32 scalar tensor, read once for all that follows from it
    in a step.
    """
    return _step()[1]


def batch_number(rank=0, ranks=1):
    """The number of a rank's batch of the current step among those of all ranks and steps: an int32 scalar
    tensor.

    rank: an int32 scalar tensor where there are several ranks, fed in training: all have the same graph.
    """
    return step() * ranks + rank


def _step():
    found = tf.get_collection_ref(_STEP)
    if not found:
        with tf.control_dependencies(None):     # outside of any condition within which it is first asked for
            variable = keras.backend.variable(0, dtype='int32', name='step')
            found.extend([variable, tf.identity(variable)])
    return found
