"""NVIDIA cards: whether one is here, the CUDA libraries that TensorFlow does not find, and why it cannot use the card. No TensorFlow."""
import contextlib
import ctypes
import functools
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
    """Load the libraries that TensorFlow does not find in its CUDA packages, though it asks for these packages itself: cuSOLVER in
    2.21, without which it uses no GPU, and NCCL in 2.20. What is loaded is found.
    """
    packages = importlib.util.find_spec('nvidia')
    for folder in getattr(packages, 'submodule_search_locations', None) or ():
        for name in 'cusolver', 'nccl':
            for path in glob.glob('{}/{}/lib/lib{}.so.*'.format(glob.escape(folder), name, name)):
                with contextlib.suppress(OSError):      # TensorFlow will say it
                    ctypes.CDLL(path)


@functools.lru_cache(maxsize=None)      # the runs of --runs are on the same card
def unused_card(tensorflow, built_with_cuda):
    """Why TensorFlow cannot use the NVIDIA card of this machine, and the remedy: a sentence. None without a card.

    tensorflow: its version. The cause is in TensorFlow's log, which is off in this process: a second one tells it.
    """
    if not has_card():
        return None
    code = 'import sys; sys.path.insert(0, sys.argv[1]); from sesemi import nvidia, runtime; nvidia.load_cuda(); runtime.tf.Session()'
    asked = subprocess.run([sys.executable, '-c', code, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))],
                           env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL='0', TF_CPP_VMODULE='dso_loader=1'),
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return 'TensorFlow %s cannot use the NVIDIA card: %s, or say --device cpu.' % (tensorflow, reason_in(
        asked.stderr.decode(errors='replace'), os.environ.get('CUDA_VISIBLE_DEVICES'), tensorflow, built_with_cuda))


def reason_in(log, visible, tensorflow, built_with_cuda):
    """The cause and the remedy, by the log of a TensorFlow that tells what it loads.

    visible: CUDA_VISIBLE_DEVICES, None if unset; tensorflow: its version.
    """
    missing = list(dict.fromkeys(re.findall(r"Could not load dynamic library '([^']+)'", log)))
    of_driver = [name for name in missing if name.startswith(('libcuda.', 'libnvidia-ml.'))]
    of_cuda = ', '.join(name for name in missing if name not in of_driver and not name.startswith('libnvinfer'))    # TensorRT
    least = re.search(r'minimum required Cuda capability is (\d+\.\d+)', log)
    refused = re.search(r'(?<=cuInit: )CUDA_ERROR_\w+|(?<=\(\) failed. Status: ).+', log)
    if not built_with_cuda:
        return 'it is built for CPUs alone; set PYTHON to an interpreter with a build for CUDA'
    if visible is not None and (visible.split(',')[0].strip() in ('', '-1') or 'CUDA_ERROR_NO_DEVICE' in log):
        return "CUDA_VISIBLE_DEVICES is '%s', which names none; unset it" % visible
    if of_driver:
        return "%s of the driver is missing; install NVIDIA's driver, in a container its runtime" % ' and '.join(of_driver)
    if refused:
        return 'the driver says %s; update it, until nvidia-smi lists the card' % refused.group(0)
    if of_cuda and tensorflow < '2':
        return 'CUDA is missing (%s); start with PYTHON= TENSORFLOW=2 bash run_1p.sh' % of_cuda
    if of_cuda:
        return 'CUDA is missing (%s); run %s -m pip install -r requirements-gpu.txt' % (of_cuda, sys.executable)
    if least:
        return 'it needs one of compute capability %s; put in another' % least.group(1)
    return 'its log names no cause; read it with --verbose'
