"""The session, its precision, the optimizer and the step counter, on a CPU, GPU or Ascend NPU."""
import contextlib
import os
import sys
from typing import NamedTuple, Optional

from sesemi.device import npu
from sesemi.device.backend import keras, tf

_STEP = 'sesemi/step'    # a collection of a graph: the step counter
PROFILED_STEP = 10      # on a CPU or GPU; the steps before it build and place the graph


class Options(NamedTuple):
    """What the device flags ask for. Folders are absolute paths, made by open_session; None means off."""
    precision_mode: Optional[str] = None
    over_dump: Optional[str] = None         # folder for the NPU's overflow detection
    data_dump: Optional[str] = None         # folder for the NPU's dump of operator inputs and outputs
    data_dump_step: str = '0'               # '0', '0|5|10-20'
    profiling: Optional[str] = None         # folder
    autotune: bool = False


@contextlib.contextmanager
def open_session(device, options=Options(), ranks=None):
    """Open a session on a new graph, which Keras uses within the block; it is closed at the end of the block.

    On the NPU it has the NpuOptimizer, and everything in the block, training or prediction, must run in it.
    options: an Options; ranks: a collective.Ranks whose server the session uses, or None for one process.
    """
    keras.backend.clear_session()
    for folder in filter(None, (options.over_dump, options.data_dump, options.profiling)):
        os.makedirs(folder, exist_ok=True)
    if device == 'npu':
        config = npu.configure(tf.ConfigProto(), options)
    else:
        config = gpu_config() if device == 'gpu' else tf.ConfigProto(device_count={'GPU': 0})
    served = ranks and not ranks.alone and device != 'npu'
    # before the rewrites are set, or the server would apply them a second time
    target = ranks.start_server(config) if served else ''
    rewrite = config.graph_options.rewrite_options
    if device == 'gpu' and options.precision_mode == 'mixed':
        rewrite.auto_mixed_precision = rewrite.ON
    if device == 'cpu' and options.precision_mode == 'mixed':
        rewrite.auto_mixed_precision_onednn_bfloat16 = rewrite.ON
        # The server refuses convolutions in bfloat16 that remapping has fused with their bias.
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
    """A session's ConfigProto on a GPU, which takes memory as it needs it."""
    return tf.ConfigProto(gpu_options=tf.GPUOptions(allow_growth=True))


def optimizer(device, learning_rate, momentum, options=Options(), ranks=None):
    """Keras' SGD with Nesterov momentum for the device.

    learning_rate: a number. Its `lr` is a scalar tensor, so that a step can be fed another.

    With several ranks it averages the gradients over them: on the NPU by the adapter's wrapper, which reads
    RANK_SIZE, else by TensorFlow's collective operations. With precision 'mixed' on a GPU, that is float16,
    it scales the loss, because small gradients would become zero. bfloat16 on a CPU has the range of float32.
    """
    rate = tf.placeholder_with_default(learning_rate, (), 'rate')
    sgd = keras.optimizers.SGD(learning_rate=rate, momentum=momentum, nesterov=True)
    if device == 'npu':
        return npu.import_adapter().npu_distributed_optimizer_wrapper(sgd)
    if device == 'gpu' and options.precision_mode == 'mixed':
        sgd = tf.train.experimental.enable_mixed_precision_graph_rewrite(sgd)
    return ranks.average(sgd) if ranks and not ranks.alone else sgd


def profiler_callbacks(device, options, model, steps):
    """Keras callbacks that trace step PROFILED_STEP of training `model` for TensorBoard.

    None on the NPU, whose session profiles by itself. If the run has fewer `steps`, that is said on standard
    error.
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
    """The current graph's counter of steps done: an int32 scalar variable. No h5 file holds it."""
    found = tf.get_collection_ref(_STEP)
    if not found:
        found.append(keras.backend.variable(0, dtype='int32', name='step'))
    return found[0]


def batch_number(rank=0, ranks=1):
    """The number of this rank's batch among those of all ranks and steps: an int32 scalar tensor.

    rank: with several ranks an int32 scalar tensor that training feeds, so that all have the same graph.
    """
    return step_variable() * ranks + rank
