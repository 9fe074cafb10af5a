"""What the tests share: the project folder on sys.path, and writers of small images."""
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(str(path))


def write_classes(folder, counts, size=32):
    """counts: class name -> images, random and different from each other. Returns the files in sorted order."""
    paths = []
    for name in sorted(counts):
        for i in range(counts[name]):
            paths.append(folder / name / '{:03d}.png'.format(i))
            rng = np.random.RandomState(len(paths))
            write_image(paths[-1], rng.randint(0, 256, (size, size, 3)))
    return paths


@pytest.fixture
def project():
    return PROJECT
