"""The functions that npu_bridge and npu_device share and the project uses, with the CPU in place of the NPU.

Like newer releases of the adapter, importing it patches every TensorFlow session. A session whose config has
the NpuOptimizer is an NPU session: it runs on the CPU, and what it runs is recorded. Every other session is a
host session. The record is written to the JSON file $NPU_BRIDGE_RECORD, with several ranks to that name and
-RANK_ID, whenever an NPU session is closed and when the process ends:

    host_sessions   how many there were
    npu_sessions    for each one:
        parameters      those in force
        off             the graph rewrites that are off
        closed          whether the program closed it
        functions       for each function that Keras made of a model: `images`, the names of its image inputs,
                        and `batches`, their different shapes; an NPU compiles a graph for each shape
        runs            {what was fed and fetched: how many times}; an NPU compiles a graph for each key
        order           the positions in `runs` of the graphs, in the order in which they ran
    wrapped         how many times npu_distributed_optimizer_wrapper was called
    reductions      how many times gradients passed through it while a graph was built

The processes of several ranks average gradients at the address $NPU_BRIDGE_ALL_REDUCE, host:port.
"""
import atexit
import json
import os
import re
import threading
import time
from multiprocessing.connection import Client, Listener

import tensorflow.compat.v1 as tf
from tensorflow.compat.v1 import keras
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

SWITCH = 'b', 'True|False'
# the parameters that the project may need: the field of each and a regular expression of its values
PARAMETERS = {
    'use_off_line': SWITCH, 'hcom_parallel': SWITCH, 'enable_dump': SWITCH, 'enable_dump_debug': SWITCH,
    'profiling_mode': SWITCH, 'profiling_options': ('s', '{.*}'), 'dump_path': ('s', '/.*'),
    'dump_step': ('s', r'\d+(-\d+)?(\|\d+(-\d+)?)*'), 'dump_mode': ('s', 'input|output|all'),
    'dump_debug_mode': ('s', 'aicore_overflow|atomic_overflow|all'), 'aoe_mode': ('s', '[1-4]'),
    'graph_run_mode': ('i', '[01]'), 'iterations_per_loop': ('i', '[1-9][0-9]*'),
    'precision_mode': ('s', 'force_fp(16|32)|cube_fp16in_fp32out|must_keep_origin_dtype|'
                            'allow_fp32_to_[bf][pf]16|allow_mix_precision(_[bf][pf]16)?')}
RANK = '-' + os.environ['RANK_ID'] if os.environ.get('RANK_SIZE', '1') != '1' else ''
NOT_ON_THE_DEVICE = tf.float64, tf.complex64, tf.complex128

record = {'npu_sessions': [], 'host_sessions': 0, 'wrapped': 0, 'reductions': 0}


def npu_config_proto(config_proto=None):
    return config_proto if isinstance(config_proto, tf.ConfigProto) else tf.ConfigProto()


def npu_distributed_optimizer_wrapper(optimizer):
    rank_size = int(os.environ.get('RANK_SIZE') or 1)
    if rank_size > 1 and not os.environ.get('JOB_ID'):
        raise RuntimeError('JOB_ID is not set')
    record['wrapped'] += 1
    reduce = AllReduce(rank_size) if rank_size > 1 else None
    for name in ('compute_gradients', '_compute_gradients', 'get_gradients'):
        if hasattr(optimizer, name):
            setattr(optimizer, name, _reducing(getattr(optimizer, name), reduce))
    return optimizer


def npu_callbacks_append(callbacks_list=None):
    callbacks_list = callbacks_list if isinstance(callbacks_list, list) else []
    callbacks_list.append(NPUBroadcastGlobalVariablesCallback(0))
    return callbacks_list


class NPUBroadcastGlobalVariablesCallback(keras.callbacks.Callback):
    def __init__(self, root_rank):
        super().__init__()
        self.root_rank = root_rank


def close_session(session):
    session.close()


def _missing(*arguments, **named):
    raise NotImplementedError('the stand-in for npu_bridge lacks this function')


set_keras_session_npu_config = init_resource = shutdown_resource = _missing


class AllReduce:
    """Sums an array over the ranks: rank 0 gathers the parts and sends the sum back.

    As in the real one, a rank hangs if another one does not take part. Each operation of a graph has its own
    connections, because two may run at once; its number is sent first on each.
    """
    listener, waiting, made, lock = None, {}, 0, threading.Lock()

    def __init__(self, ranks):
        host, port = os.environ['NPU_BRIDGE_ALL_REDUCE'].split(':')
        self.address, self.ranks, self.links, self.number = (host, int(port)), ranks, [], AllReduce.made
        AllReduce.made += 1
        if os.environ['RANK_ID'] == '0' and not AllReduce.listener:
            AllReduce.listener = Listener(self.address, backlog=64)

    def __call__(self, array):
        if self.listener:
            others = self._links()
            total = array + sum(link.recv() for link in others)
            for link in others:
                link.send(total)
            return total
        if not self.links:
            self.links = [_connect(self.address)]
            self.links[0].send(self.number)
        self.links[0].send(array)
        return self.links[0].recv()

    def _links(self):
        with self.lock:
            while len(self.waiting.setdefault(self.number, [])) < self.ranks - 1:
                link = self.listener.accept()
                self.waiting.setdefault(link.recv(), []).append(link)
            return self.waiting[self.number]


def allreduce(tensor, reduction, fusion=1, fusion_id=-1, group='hccl_world_group'):
    """The sum of int32 values over the ranks, the only collective operation that the project uses."""
    assert (tensor.dtype, reduction, fusion) == (tf.int32, 'sum', 0) and 'Variable' not in tensor.op.type
    total = tf.py_func(AllReduce(int(os.environ['RANK_SIZE'])), [tensor], tensor.dtype)
    total.set_shape(tensor.shape)
    return total


def _connect(address):
    while True:
        try:
            return Client(address)
        except ConnectionRefusedError:      # rank 0 is not there yet
            time.sleep(0.05)


def _reducing(compute, reduce):
    """The gradient method, followed by an all-reduce if there are several ranks."""
    def reduced(*arguments, **named):
        gradients = compute(*arguments, **named)
        record['reductions'] += 1
        if not reduce:
            return gradients
        assert {gradient.dtype for gradient in gradients} <= {tf.float32, tf.float16}, gradients
        flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
        total = tf.py_func(reduce, [flat], flat.dtype)
        mean = tf.split(total / reduce.ranks, [tf.size(gradient) for gradient in gradients])
        return [tf.reshape(part, tf.shape(gradient)) for part, gradient in zip(mean, gradients)]
    return reduced


def _parameters(custom):
    """The parameters as a dict. The real one ignores a wrong one in silence, which is refused here."""
    values = {}
    for key, parameter in custom.parameter_map.items():
        kind = parameter.WhichOneof('value')
        value = getattr(parameter, kind)
        values[key] = value.decode() if isinstance(value, bytes) else value
        field, allowed = PARAMETERS.get(key, ('', ''))
        if kind != field or not re.fullmatch(allowed, str(values[key])):
            raise ValueError('the adapter does not know %s = %r' % (key, values[key]))
    folders = [values['dump_path']] if 'dump_path' in values else []
    if values.get('profiling_mode'):
        folders.append(json.loads(values['profiling_options'])['output'])
    for folder in folders:
        assert os.access(folder, os.W_OK), folder + ' does not exist or cannot be written'
    return values


# The patches. Keras makes and runs sessions in several ways, but always through these methods.

_Session = tf.Session.__mro__[1]    # the class that every session of TensorFlow inherits from


def _replace(name):
    """The decorated function replaces this method of every session; the real one is its first argument."""
    def decorate(function):
        real = getattr(_Session, name)
        setattr(_Session, name, lambda *arguments, **named: function(real, *arguments, **named))
        return function
    return decorate


@_replace('__init__')
def _open(real, session, target='', graph=None, config=None):
    session._seen, session._checked = None, 0
    rewrites = config.graph_options.rewrite_options if config else RewriterConfig()
    for custom in rewrites.custom_optimizers:
        if custom.name == 'NpuOptimizer':
            off = [name for name in ('remapping', 'memory_optimization')
                   if getattr(rewrites, name) == RewriterConfig.OFF]
            session._seen = {'parameters': _parameters(custom), 'closed': False, 'functions': [], 'runs': {},
                             'order': [], 'off': off}
            record['npu_sessions'].append(session._seen)
            config = _without_custom_optimizers(config)
            break
    else:
        record['host_sessions'] += 1
    real(session, target, graph, config)


@_replace('run')
def _run(real, session, fetches, feed_dict=None, *arguments, **named):
    _check_graph(session)
    _count_run(session, tf.nest.flatten(fetches), feed_dict or ())
    return real(session, fetches, feed_dict, *arguments, **named)


@_replace('_make_callable_from_options')
def _make_function(real, session, options):
    _check_graph(session)
    function = real(session, options)
    if session._seen is None:
        return function
    images = [i for i, name in enumerate(options.feed)
              if session.graph.get_tensor_by_name(name).shape.ndims == 4]
    seen = {'images': [options.feed[i].split(':')[0] for i in images], 'batches': []}
    session._seen['functions'].append(seen)

    def call(*arrays, **named):
        shapes = [list(arrays[i].shape) for i in images]
        if shapes not in seen['batches']:
            seen['batches'].append(shapes)
        _count_run(session, [*options.fetch, *options.target], options.feed)
        return function(*arrays, **named)
    return call


@_replace('close')
def _close(real, session):
    if session._seen is not None:
        session._seen['closed'] = True
        _write()
    real(session)


@_replace('__del__')
def _forget(real, session):
    session._seen = None        # garbage collection closes it, not the program
    real(session)


def _count_run(session, fetched, fed):
    if session._seen is not None:
        outputs, inputs = (sorted(getattr(item, 'name', item) for item in items) for items in (fetched, fed))
        graph = ' '.join(outputs + ['<-'] + inputs)
        runs = session._seen['runs']
        runs[graph] = runs.get(graph, 0) + 1
        session._seen['order'].append(list(runs).index(graph))


def _check_graph(session):
    if session._seen is None:
        return
    operations = session.graph.get_operations()
    for operation in operations[session._checked:]:
        for output in operation.outputs:
            if output.dtype.base_dtype in NOT_ON_THE_DEVICE:
                raise TypeError('the NPU has no %s: %s' % (output.dtype.name, operation.name))
    session._checked = len(operations)


def _without_custom_optimizers(config):
    config = tf.ConfigProto.FromString(config.SerializeToString())
    del config.graph_options.rewrite_options.custom_optimizers[:]
    return config


@atexit.register
def _write():
    if os.environ.get('NPU_BRIDGE_RECORD'):
        with open(os.environ['NPU_BRIDGE_RECORD'] + RANK, 'w') as file:
            json.dump(record, file)
