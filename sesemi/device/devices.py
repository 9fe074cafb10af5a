"""Chooses the device of a run, CPU, GPU or Ascend NPU, and checks that it supports what the flags ask for."""
import os
import sys

from sesemi.device import npu, nvidia, precision
from sesemi.device.backend import tf
from sesemi.device.runtime import Options, gpu_config
from sesemi.device.step_memory import check_memory
from sesemi.errors import InputError


def choose_for_run(args, info):
    """Returns (device, Options, why that device) for a run.

    args: the flags; info: a ranks.RankInfo. Raises InputError if the device does not support a flag, cannot
    connect the ranks, or has too little memory for a step.
    """
    device, why = choose_device(args.device)
    check_ranks(device, info)
    if device == 'cpu':
        check_memory(args.network, args.method, args.batch_size, args.image_size, info.local_size)
    return device, device_options(device, args, info.rank), why


def choose_device(requested='auto'):
    """Returns ('cpu', 'gpu' or 'npu', why). Raises InputError if the requested device cannot be used.

    'auto' takes the NPU only if it finds both the adapter and a device node, because run_1p.sh sets the
    Ascend variables everywhere. If it takes the CPU beside an NPU or an NVIDIA card, it says why on standard
    error.
    """
    if requested == 'npu':
        npu.import_adapter()
    if requested == 'gpu' and not list_gpus():
        raise InputError('--device gpu: '
                         + (_explain_unused_card() or 'there is no NVIDIA card here; say --device cpu.'))
    if requested != 'auto':
        return requested, 'asked for'
    found, why = npu.find()
    if found:
        npu.import_adapter()
        return 'npu', why
    if list_gpus():
        return 'gpu', why + '; TensorFlow finds a GPU'
    on_npu_host = npu.nodes()
    for unused in on_npu_host and npu.explain_missing_adapter(), _explain_unused_card():
        if unused:
            print('This run is on the CPU: ' + unused, file=sys.stderr)
    why += '; TensorFlow finds no GPU'
    if tf.__version__ < '2' and not on_npu_host:
        why += '; TensorFlow 2, on Python 3.9 to 3.13, takes half to two thirds of the time'
    return 'cpu', why


def device_options(device, args, rank=0):
    """Returns the Options that the device flags ask for, with folders in args.result.

    On CPUs and GPUs only rank 0 is profiled. Raises InputError if the device does not support a flag.
    """
    precision.check(device, args.precision_mode, tf.__version__)
    for flag, on in (('--over-dump', args.over_dump), ('--data-dump', args.data_dump),
                     ('--autotune', args.autotune)):
        if on and device != 'npu':
            raise InputError('%s: only the npu has it, and this run is on the %s; leave the flag out.'
                             % (flag, device))

    def folder(name, on):
        return os.path.join(os.path.abspath(args.result), name) if on else None
    return Options(precision.resolve(device, args.precision_mode), folder('over_dump', args.over_dump),
                   folder('data_dump', args.data_dump), args.data_dump_step or '0',
                   folder('profiling', args.profiling and (device == 'npu' or not rank)), args.autotune)


def check_ranks(device, info):
    """Raises InputError if the ranks of `info`, a ranks.RankInfo, cannot connect on this kind of device."""
    if device == 'npu' and info.world_size != int(os.environ.get('RANK_SIZE') or 1):
        raise InputError('--workers: on the npu every process needs RANK_ID and RANK_SIZE too; start them by '
                         'run_8p.sh.')
    if device != 'npu' and info.world_size != max(1, len(info.workers)):
        raise InputError('RANK_SIZE=%d: on the %s the processes need --workers and --rank; start them by '
                         'run_local.sh, or unset it.'
                         % (info.world_size, device))


def list_gpus():
    """The names of a session's GPUs. It opens a session: only that shows whether the driver is too old."""
    if nvidia.has_card():
        nvidia.load_cuda()
    if not tf.config.experimental.list_physical_devices('GPU'):
        return []
    try:
        with tf.Session(graph=tf.Graph(), config=gpu_config()) as session:
            return [device.name for device in session.list_devices() if device.device_type == 'GPU']
    except tf.errors.OpError:
        return []


def _explain_unused_card():
    return nvidia.explain_unused_card(tf.__version__, tf.test.is_built_with_cuda())
