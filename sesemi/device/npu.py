"""The Ascend NPU: finds it, imports its adapter and configures its sessions.

The only file that names its adapters, npu_bridge for TensorFlow 1 and npu_device for TensorFlow 2.
"""
import contextlib
import glob
import importlib.util
import json
import os
import sys

from sesemi.errors import InputError

NODES = '/dev/davinci[0-9]*'
PRECISION_MODES = (
    'force_fp32', 'force_fp16', 'cube_fp16in_fp32out', 'must_keep_origin_dtype', 'allow_fp32_to_fp16',
    'allow_mix_precision', 'allow_mix_precision_fp16', 'allow_mix_precision_bf16', 'allow_fp32_to_bf16')


def tensorflow_version():
    """TensorFlow's version, from the metadata of its package, without importing it; None if there is none."""
    with contextlib.suppress(ImportError):
        if sys.version_info >= (3, 8):
            from importlib.metadata import version
        else:
            from importlib_metadata import version  # TensorFlow 1.15 brings it
        for name in ('tensorflow', 'tensorflow-cpu', 'tensorflow-gpu', 'intel-tensorflow', 'tensorflow-rocm',
                     'tf-nightly'):
            with contextlib.suppress(ImportError):      # PackageNotFoundError is one
                return version(name)
    return None


def nodes():
    """The device nodes of this machine's NPUs."""
    return glob.glob(NODES)


def find_adapter():
    """(The name of the adapter for this machine's TensorFlow, whether it is installed). Imports nothing."""
    name = 'npu_device' if (tensorflow_version() or '') >= '2' else 'npu_bridge'
    return name, bool(importlib.util.find_spec(name))


def find():
    """(Whether this machine has both the adapter and a device node, that in words). Imports nothing."""
    (name, installed), found = find_adapter(), nodes()
    if not installed:
        return False, 'no ' + name
    return (True, '%s and %s are there' % (name, found[0])) if found else (False, '%s but no %s'
                                                                           % (name, NODES))


def explain_missing_adapter():
    """A sentence: that this TensorFlow lacks its adapter, and the remedy."""
    return ('TensorFlow %s cannot use the Ascend NPU: %s is not installed (npu_bridge fits TensorFlow 1, '
            'npu_device TensorFlow 2); set PYTHON to an interpreter that has TensorFlow and its adapter, or '
            'say --device cpu.' % (tensorflow_version(), find_adapter()[0]))


def import_adapter(module='npu_init'):
    """Import the adapter and return one of its modules. Raises InputError if that fails.

    Only for a run on an NPU: newer versions of the adapter patch every tf.Session when imported.
    """
    name, installed = find_adapter()
    if not installed:
        raise InputError('--device npu: ' + explain_missing_adapter())
    package = name
    try:
        if name == 'npu_device':
            importlib.import_module(name).compat.enable_v1()
            package += '.compat.v1'
        return importlib.import_module('%s.%s' % (package, module))
    except Exception as error:      # a broken installation raises other types than ImportError too
        raise InputError('--device npu: the Ascend adapter %s cannot be imported (%s: %s); install the one '
                         'for this TensorFlow or say --device cpu.'
                         % (name, type(error).__name__, error)) from None


def all_reduce(tensor):
    """The sum over the ranks of an int32 tensor. It must not be a variable."""
    return import_adapter('hccl.hccl_ops').allreduce(tensor, 'sum', fusion=0)


def set_timeouts(join_timeout, peer_timeout):
    """Set how long HCCL waits, in seconds, unless the user has set it.

    HCCL's own limits, 120 s to join and 1836 s for a peer, are the least.
    """
    os.environ.setdefault('HCCL_CONNECT_TIMEOUT', '%d' % min(max(120, join_timeout), 7200))
    # HCCL takes multiples of 68
    os.environ.setdefault('HCCL_EXEC_TIMEOUT', '%d' % max(1836, 68 * (peer_timeout // 68 + 1)))


def configure(config, options):
    """Add the NpuOptimizer to a session's ConfigProto; returns the ConfigProto that the adapter makes of it.

    options: a runtime.Options. The adapter ignores a value of the wrong type.
    """
    parameters = {
        'use_off_line': True,
        'graph_run_mode': 1,            # train
        'iterations_per_loop': 1,
    }
    if options.precision_mode:
        parameters['precision_mode'] = options.precision_mode
    if int(os.environ.get('RANK_SIZE') or 1) > 1:
        parameters['hcom_parallel'] = True
    if options.over_dump:
        parameters.update(enable_dump_debug=True, dump_path=options.over_dump, dump_debug_mode='all')
    if options.data_dump:
        parameters.update(enable_dump=True, dump_path=options.data_dump, dump_step=options.data_dump_step,
                          dump_mode='all')
    if options.profiling:
        parameters.update(profiling_mode=True, profiling_options=json.dumps({
            'output': options.profiling, 'training_trace': 'on', 'task_trace': 'on', 'fp_point': '',
            'bp_point': ''}))
    if options.autotune:
        parameters['aoe_mode'] = '2'    # tune the operators

    rewrite = config.graph_options.rewrite_options
    custom = rewrite.custom_optimizers.add()
    custom.name = 'NpuOptimizer'
    for key, value in parameters.items():
        if isinstance(value, bool):
            custom.parameter_map[key].b = value
        elif isinstance(value, int):
            custom.parameter_map[key].i = value
        else:
            custom.parameter_map[key].s = value.encode()
    rewrite.remapping = rewrite.memory_optimization = rewrite.OFF
    return import_adapter().npu_config_proto(config)
