"""The Ascend NPU: finds it, imports its adapter and configures its sessions.

The only file that names npu_bridge, the adapter.
"""
import glob
import importlib.util
import json
import os

from sesemi.errors import InputError

NODES = '/dev/davinci[0-9]*'
PRECISION_MODES = ('allow_fp32_to_fp16', 'force_fp16', 'must_keep_origin_dtype', 'allow_mix_precision')


def nodes():
    """The device nodes of this machine's NPUs."""
    return glob.glob(NODES)


def find():
    """(Whether this machine has both the adapter and a device node, that in words). Imports nothing."""
    if not importlib.util.find_spec('npu_bridge'):
        return False, 'no npu_bridge'
    found = nodes()
    return (True, 'npu_bridge and %s are there'
            % found[0]) if found else (False, 'npu_bridge but no %s' % NODES)


def import_adapter():
    """Import and return the adapter. Raises InputError if that fails.

    Only for a run on an NPU: newer versions of the adapter patch every tf.Session when imported.
    """
    try:
        import npu_bridge.npu_init
    except Exception as error:      # a broken installation raises other types than ImportError too
        raise InputError('--device npu: the Ascend adapter npu_bridge cannot be imported (%s: %s); install '
                         'the one for this TensorFlow '
                         'or say --device cpu.' % (type(error).__name__, error)) from None
    return npu_bridge.npu_init


def all_reduce(tensor):
    """The sum over the ranks of an int32 tensor. It must not be a variable."""
    import_adapter()
    from npu_bridge.hccl import hccl_ops
    return hccl_ops.allreduce(tensor, 'sum', fusion=0)


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
        'op_debug_level': 0,
        'graph_run_mode': 1,            # train
        'iterations_per_loop': 1,
        'precision_mode': options.precision_mode or 'allow_fp32_to_fp16',
    }
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
        parameters['auto_tune_mode'] = 'RL,GA'

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
