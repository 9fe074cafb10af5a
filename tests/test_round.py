"""The commands of "The round" in docs/own-images.md, in their order, on small images and a tiny trunk."""
import os
import re
import shlex

import numpy as np
from conftest import PROJECT, write_image
from programs import TINY, run

FLAGS = '--network=nin', '--image-size=16', '--batch-size=4', '--epochs=1', '--quiet'


def test_every_command_of_the_round(tmp_path):
    rng = np.random.RandomState(0)
    for i, place in enumerate(['train/ant', 'train/bee', 'test/ant', 'test/bee'] * 4 + ['unlabeled'] * 12):
        write_image(tmp_path / 'photos' / place / ('%02d.png' % i), rng.randint(0, 256, (16, 16, 3)))
    page = (PROJECT / 'docs/own-images.md').read_text(encoding='utf-8')
    block = re.search(r'\n## The round\n.*?\n```\n(.*?)```', page, re.DOTALL).group(1)
    if 'SESEMI_ONNX' not in os.environ:
        block = block.replace('.onnx', '.pb')
    printed = ''
    for line in block.splitlines():
        start, words = line.split()[0], shlex.split(line)
        if start == 'mv':       # which files there are depends on the model
            words = ['mv', *sorted(tmp_path.glob('sorted-1/*/*'))[:2], words[2].replace('cat', 'ant')]
        words = {'bash': [TINY, *words[2:], *FLAGS], 'python': words[1:]}.get(start, words)
        done = run(*words, cwd=tmp_path)
        assert done.status == 0, (line, done)
        printed += done.out

    assert 'ssl: 8 of 8 training images labeled' in printed
    assert 'sorted-1: 12 images.' in printed and (tmp_path / 'round-1.html').exists()
    assert 'ssl: 10 of 10 training images labeled' in printed
    assert 'Initial weights: the trunk and the class head of round-1/sesemi.h5.' in printed
    assert len(list(tmp_path.glob('model.*'))) == 1
