"""Which device a run is on, CPU, GPU or Ascend NPU, why that one, and whether it has what the flags ask
for.
"""
import os
import sys

from sesemi.device import npu, nvidia, precision
from sesemi.device.backend import tf
from sesemi.device.runtime import Options, gpu_config
from sesemi.device.step_memory import check_memory
from sesemi.errors import InputError


def choose_for_run(args, info):
    """(device, Options, why that device) for the flags of a run. Raises InputError when the device has not
    what they ask for.
    """
    device, why = choose_device(args.device)
    check_ranks(device, info)
    if device == 'cpu':
        check_memory(args.network, args.method, args.batch_size, args.image_size, info.local_size)
    return device, device_options(device, args, info.rank), why


def choose_device(requested='auto'):
    """('cpu' | 'gpu' | 'npu', why). Raises InputError when the requested device cannot be used.

    'auto' takes the NPU only where both the adapter and a device node are: run_1p.sh sets the Ascend
    variables everywhere. When it leaves an NVIDIA card that is there unused, a line on standard error says
    why.
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
    unused = _explain_unused_card()
    if unused:
        print('This run is on the CPU: ' + unused, file=sys.stderr)
    why += '; TensorFlow finds no GPU'
    if tf.__version__ < '2':
        why += '; TensorFlow 2, on Python 3.9 to 3.13, takes half to two thirds of the time'
    return 'cpu', why


def device_options(device, args, rank=0):
    """The Options that the device flags ask for; what they leave lies in args.result.

    On CPUs and GPUs rank 0 alone is profiled. Raises InputError when the device has not what they ask for.
    """
    precision.check(device, args.precision_mode, tf.__version__)
    for flag, on in (('--over-dump', args.over_dump), ('--data-dump', args.data_dump),
                     ('--autotune', args.autotune)):
        if on and device != 'npu':
            raise InputError('%s: only the npu has it, and this run is on the %s; leave the flag out.'
                             % (flag, device))

    def below(name, on):
        return os.path.join(os.path.abspath(args.result), name) if on else None
    return Options(precision.resolve(device, args.precision_mode), below('over_dump', args.over_dump),
                   below('data_dump', args.data_dump), args.data_dump_step or '0',
                   below('profiling', args.profiling and (device == 'npu' or not rank)), args.autotune)


def check_ranks(device, info):
    """Raises InputError when the device's engine cannot bring the ranks of `info`, a ranks.RankInfo,
    together.
    """
    if device == 'npu' and info.world_size != int(os.environ.get('RANK_SIZE') or 1):
        raise InputError('--workers: on the npu every process needs RANK_ID and RANK_SIZE too; start them by '
                         'run_8p.sh.')
    if device != 'npu' and info.world_size != max(1, len(info.workers)):
        raise InputError('RANK_SIZE=%d: on the %s the processes need --workers and --rank; start them by '
                         'run_local.sh, or unset it.'
                         % (info.world_size, device))


def list_gpus():
    """The GPUs that a session has: a driver that is too old is noticed only when one is opened."""
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
