"""Fixtures and helpers of several test files. Importing it puts the project on sys.path."""
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
    os.environ['SESEMI_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture
def no_tensorflow(tmp_path):
    """A PYTHONPATH with which a process that imports TensorFlow ends with status 1."""
    packages = tmp_path / 'packages'
    packages.mkdir()
    (packages / 'tensorflow.py').write_text("raise SystemExit('TensorFlow is imported')")
    (packages / 'tf_keras.py').write_text('')
    return str(packages)


@pytest.fixture
def no_tensorflow_here(monkeypatch):
    """Importing sesemi.device.runtime, and so TensorFlow, raises ModuleNotFoundError in this process."""
    monkeypatch.delattr('sesemi.device.runtime', raising=False)
    monkeypatch.setitem(sys.modules, 'sesemi.device.runtime', None)


@pytest.fixture
def train(capsys):
    """train(*flags) trains the tiny trunk in this process, which saves TensorFlow's start, to a Result."""
    import tiny_trunk
    from programs import Result

    def train(*flags):
        capsys.readouterr()
        status = tiny_trunk.main(list(map(str, flags)))
        return Result(status, *capsys.readouterr())
    return train


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(str(path))


def write_classes(folder, counts, size=32):
    """Write random images, no two alike. counts: class name -> number. Returns the arrays, classes sorted."""
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (sum(counts.values()), size, size, 3)).astype(np.uint8)
    names = ['{}/{:03d}.png'.format(name, i) for name in sorted(counts) for i in range(counts[name])]
    for name, image in zip(names, images):
        write_image(folder / name, image)
    return images


class NoDoubles(np.ndarray):
    """An array whose computations fail if a float64 array goes in or comes out."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [x.view(np.ndarray) if isinstance(x, NoDoubles) else x for x in inputs]
        options['out'] = tuple(x.view(np.ndarray) for x in options.get('out') or ()) or None
        result = getattr(ufunc, method)(*plain, **options)
        assert all(np.asarray(x).dtype != np.float64 for x in plain + [result] if np.ndim(x))
        return result.view(NoDoubles) if isinstance(result, np.ndarray) else result
