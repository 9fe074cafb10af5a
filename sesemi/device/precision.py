"""The precision of a run: the modes of each device, and what a CPU needs for mixed precision.

Does not import TensorFlow.
"""
import os
import platform
import re

from sesemi.device import npu, nvidia
from sesemi.errors import InputError

MODES = {'cpu': ('float32', 'mixed'), 'gpu': ('float32', 'mixed'), 'npu': npu.PRECISION_MODES}
CPUINFO = '/proc/cpuinfo'
BFLOAT16_FLAGS = 'amx_bf16', 'avx512_bf16'      # of processors that multiply bfloat16; the faster first
OLDEST_TENSORFLOW = 2, 15       # the oldest version whose graph rewrite to bfloat16 was tried


def known_device(requested):
    """The device that --device `requested` will mean; None if only TensorFlow can tell."""
    if requested != 'auto':
        return requested
    if npu.find()[0]:
        return 'npu'
    return None if npu.nodes() or nvidia.has_card() else 'cpu'


def check(device, mode, tensorflow):
    """Raises InputError if the device does not have the mode.

    device: None if not known yet; mode: a --precision-mode, None for the default; tensorflow: its version,
    None if it is not installed.
    """
    if None in (device, mode):
        return
    if mode not in MODES[device]:
        raise InputError('--precision-mode %s: the %s has %s; give one of these.'
                         % (mode, device, ', '.join(MODES[device])))
    missing = missing_for_bfloat16(tensorflow) if device == 'cpu' and mode == 'mixed' else None
    if missing:
        raise InputError('--precision-mode mixed: on a CPU it needs %s, or say --precision-mode float32.'
                         % missing)


def missing_for_bfloat16(tensorflow):
    """What mixed precision on this machine's CPU lacks, in words with the remedy; None if nothing.

    tensorflow: its version, None if it is not installed.
    """
    if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
        return 'Linux on x86-64'
    if not bfloat16_flag():
        return 'a processor with %s, which this one does not have' % ' or '.join(BFLOAT16_FLAGS)
    if tuple(map(int, re.findall(r'\d+', tensorflow or '0.0')[:2])) < OLDEST_TENSORFLOW:
        return 'TensorFlow %d.%d or newer; start with TENSORFLOW=2 bash run_1p.sh' % OLDEST_TENSORFLOW
    if os.environ.get('TF_ENABLE_ONEDNN_OPTS', '1').lower() in ('0', 'false'):
        return 'oneDNN; unset TF_ENABLE_ONEDNN_OPTS'
    return None


def bfloat16_flag():
    """The first of BFLOAT16_FLAGS that the processor has, else None."""
    try:
        with open(CPUINFO) as file:
            flags = set(re.findall(r'^flags\s*:(.*)$', file.read(), re.MULTILINE)[0].split())
    except (OSError, IndexError):
        return None
    return next((flag for flag in BFLOAT16_FLAGS if flag in flags), None)


def resolve(device, mode):
    """The mode, or the device's default if it is None: float32, on an NPU None, that of the platform."""
    return mode or (None if device == 'npu' else 'float32')


def describe(device, mode):
    """What a mode means on a device, in words. Two runs with the same words compute in the same precision."""
    if mode == 'mixed':
        return 'mixed (%s)' % ('bfloat16' if device == 'cpu' else 'float16')
    return resolve(device, mode) or 'the precision of the platform'


def opening_sentence(device, mode, tensorflow):
    """The precision of a run in words, for its first lines; '' if it is the default and there is no faster.

    tensorflow: its version.
    """
    if device == 'npu':
        return ' It computes in %s.' % describe(device, mode)
    if mode == 'mixed':
        return ' Precision: %s.' % describe(device, mode)
    if device == 'gpu' or missing_for_bfloat16(tensorflow):
        return ''
    return ' Precision: float32; --precision-mode mixed takes %s here.' % (
        'a quarter to a half of the time' if bfloat16_flag() == 'amx_bf16' else 'about half the time')
