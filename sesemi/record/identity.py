"""What identifies a run: its flags, images, code and versions."""
import hashlib
import os
import pathlib
import platform
import subprocess
import sys

import numpy as np
import PIL

from sesemi.device.npu import tensorflow_version
from sesemi.flags import IDENTITY_FLAGS, spell_flag

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run_identity(args, checksum, labeled):
    """What must be the same on every rank of a run: {name for a message: JSON value}.

    args: the flags; checksum: that of the images; labeled: int (labels,), indices of the labeled images.
    """
    names = *IDENTITY_FLAGS, 'precision_mode', 'eval_every', 'runs'
    return {**{spell_flag(name): getattr(args, name) for name in names}, 'the images': checksum,
            'the choice of labeled images': hashlib.sha256(np.ascontiguousarray(labeled)).hexdigest(),
            'the code': code_checksum(),
            'Python': '%d.%d' % sys.version_info[:2], 'numpy': np.__version__,
            'TensorFlow': tensorflow_version()}


def code_checksum():
    """SHA-256 of all Python files of this program."""
    digest = hashlib.sha256()
    for pattern in '*.py', 'networks/**/*.py', 'sesemi/**/*.py':
        for path in sorted(pathlib.Path(PROJECT).glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def git_revision():
    """The git revision, with -dirty if files differ from it; None if PROJECT is not itself a checkout."""
    # such variables, which git sets for a hook, may name another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    try:
        return subprocess.run(['git', '--git-dir', os.path.join(PROJECT, '.git'), '--work-tree', PROJECT,
                               'describe', '--always', '--dirty', '--abbrev=40', '--exclude', '*'],
                              env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              check=True).stdout.decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def list_versions():
    """The versions that can change a result, by name."""
    return {'python': platform.python_version(), 'tensorflow': tensorflow_version(), 'numpy': np.__version__,
            'pillow': PIL.__version__, 'platform': platform.platform()}
