"""The versions of the software that a run uses."""
import contextlib
import platform
import sys


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


def list_versions():
    """The versions that can change a result, by name."""
    import numpy as np  # imported late: run_1p.sh loads this file when it looks for an interpreter
    import PIL
    return {'python': platform.python_version(), 'tensorflow': tensorflow_version(), 'numpy': np.__version__,
            'pillow': PIL.__version__,
            'platform': platform.platform()}
