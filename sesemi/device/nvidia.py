"""NVIDIA cards: whether one is here, the CUDA libraries that TensorFlow does not find, and why it cannot use
the card. No TensorFlow.
"""
import contextlib
import ctypes
import glob
import importlib.util
import os
import re
import subprocess
import sys

# Under WSL every maker's card is /dev/dxg, but the driver's library is there with NVIDIA's alone.
GPU_NODES = ('/dev/nvidia[0-9]*', '/usr/lib/wsl/lib/libcuda.so.1')


def has_card():
    """Whether this machine has an NVIDIA card."""
    return any(map(glob.glob, GPU_NODES))


def load_cuda():
    """Load the libraries that TensorFlow does not find in its CUDA packages, though it asks for these
    packages itself: cuSOLVER in 2.21, without which it uses no GPU, and NCCL in 2.20. What is loaded is
    found.
    """
    packages = importlib.util.find_spec('nvidia')
    for folder in getattr(packages, 'submodule_search_locations', None) or ():
        for name in 'cusolver', 'nccl':
            for path in glob.glob('{}/{}/lib/lib{}.so.*'.format(glob.escape(folder), name, name)):
                with contextlib.suppress(OSError):      # TensorFlow will say it
                    ctypes.CDLL(path)


def explain_unused_card(tensorflow, built_with_cuda):
    """Why TensorFlow cannot use the NVIDIA card of this machine, and the remedy: a sentence. None without a
    card.

    tensorflow: its version. The cause is in TensorFlow's log, which is off in this process: a second one
    tells it.
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
    """The cause and the remedy, by the log of a TensorFlow of this version that tells what it loads."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    # Not TensorRT (libnvinfer), which no training needs, and not the driver's libnvidia-ml.
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
