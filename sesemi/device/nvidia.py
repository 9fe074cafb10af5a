"""NVIDIA cards: finds them, loads CUDA libraries that TensorFlow misses, explains a card it cannot use.

Does not import TensorFlow.
"""
import contextlib
import ctypes
import glob
import importlib.util
import os
import re
import subprocess
import sys

# Under WSL all makers' cards are /dev/dxg, but only NVIDIA's come with the driver's library.
GPU_NODES = ('/dev/nvidia[0-9]*', '/usr/lib/wsl/lib/libcuda.so.1')


def has_card():
    """Whether this machine has an NVIDIA card."""
    return any(map(glob.glob, GPU_NODES))


def load_cuda():
    """Load libraries of the CUDA packages that some versions of TensorFlow do not find by themselves.

    These are cuSOLVER for 2.21, which uses no GPU without it, and NCCL for 2.20. TensorFlow finds them once
    they are loaded.
    """
    packages = importlib.util.find_spec('nvidia')
    for folder in getattr(packages, 'submodule_search_locations', None) or ():
        for name in 'cusolver', 'nccl':
            for path in glob.glob('{}/{}/lib/lib{}.so.*'.format(glob.escape(folder), name, name)):
                with contextlib.suppress(OSError):      # TensorFlow will report it
                    ctypes.CDLL(path)


def explain_unused_card(tensorflow, built_with_cuda):
    """A sentence: why TensorFlow cannot use this machine's NVIDIA card, and the remedy. None without a card.

    tensorflow: its version. The cause is read from TensorFlow's log. That is off in this process, so another
    one is started to write it.
    """
    if not has_card():
        return None
    project = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    log = subprocess.run(
        [sys.executable, '-c',
         'from sesemi.device import nvidia, runtime; nvidia.load_cuda(); runtime.tf.Session()'],
        cwd=project, env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL='0', TF_CPP_VMODULE='dso_loader=1'),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, errors='replace').stderr
    return 'TensorFlow %s cannot use the NVIDIA card: %s, or say --device cpu.' % (
        tensorflow, find_cause(log, tensorflow, built_with_cuda))


def find_cause(log, tensorflow, built_with_cuda):
    """The cause and the remedy in words.

    log: what TensorFlow printed, with the libraries it tried to load; tensorflow: its version.
    """
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    # Not TensorRT (libnvinfer), which training does not need, nor the driver's libnvidia-ml.
    missing = sorted(set(re.findall(r"Could not load dynamic library '(lib(?!nvi)[^']+)'", log)))
    named = ', '.join(missing)
    if not built_with_cuda:
        return 'it is built for CPUs alone; set PYTHON to an interpreter with a build for CUDA'
    if 'libcuda.so.1' in missing:
        return "libcuda.so.1 of the driver is missing; install NVIDIA's driver, in a container its runtime"
    if visible is not None and 'CUDA_ERROR_NO_DEVICE' in log:
        return "CUDA_VISIBLE_DEVICES is '%s', which names none; unset it" % visible
    if missing and tensorflow < '2':
        return 'CUDA is missing (%s); start with PYTHON= TENSORFLOW=2 bash run_1p.sh' % named
    if missing:
        return 'CUDA is missing (%s); run %s -m pip install -r requirements-gpu.txt' % (named, sys.executable)
    return 'its log tells the cause; read it with --verbose'
