"""Measures start-up, memory and step time with ever more unlabeled images, up to more than fit into memory:

    python benchmarks/growth.py [--sizes 10000 100000 1000000] [--memory-limit GB] [--steps N]
                                [--plot FILE.png] [--json FILE]

It makes the images itself, random JPEG files of 32 x 32 pixels; a million take 4 GB of disk. It trains nin
with the method ssl.
"""
import argparse
import io
import os
import sys
import tempfile

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import startup  # noqa: E402

from sesemi.system.files import write_atomic, write_json  # noqa: E402


def make_images(folder, count):
    """Write JPEG files in folders of 1000. Each is an enlarged random patch of 8 x 8 pixels."""
    rng = np.random.RandomState(0)
    for first in range(0, count, 1000):
        os.makedirs(os.path.join(folder, '%04d' % (first // 1000)))
        for i, small in enumerate(rng.randint(0, 256, (min(1000, count - first), 8, 8, 3)).astype(np.uint8)):
            image = Image.fromarray(small).resize((32, 32), Image.BILINEAR)
            image.save(os.path.join(folder, '%04d' % (first // 1000), '%03d.jpg' % i))


def measure(size, memory_limit, steps):
    """Measure a run with `size` unlabeled images, with an empty cache (cold) and a filled one (warm).

    memory_limit: GB. Returns a dict: seconds of start-up, peak memory in GB, seconds of a step.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        for part, count in (('train', 100), ('test', 10)):
            for name in 'ab':
                make_images(os.path.join(folder, 'made'), count)
                os.makedirs(os.path.join(folder, part), exist_ok=True)
                os.rename(os.path.join(folder, 'made', '0000'), os.path.join(folder, part, name))
        make_images(os.path.join(folder, 'unlabeled'), size)
        flags = ['--data', 'folder', '--dataset', folder, '--labels', '100', '--network', 'nin',
                 '--method', 'ssl', '--memory-limit', str(memory_limit)]
        cold = startup.measure(flags, cache)
        warm = startup.measure(flags, cache, steps)
    return {'images': size, 'cold': cold['seconds'], 'cold_gb': cold['gb'], 'warm': warm['seconds'],
            'warm_gb': warm['gb'], 'gb_step': warm['gb_step'], 'step': warm['step']}


def plot(rows, path):
    """Draw start-up time and memory over the number of images to the PNG file `path`."""
    figure = Figure(figsize=(9, 3.5))
    sizes = [row['images'] for row in rows]
    for panel, unit, columns in ((1, 'seconds', {'cold': 'start-up, first', 'warm': 'start-up, later'}),
                                 (2, 'GB', {'cold_gb': 'until the first step, first start',
                                            'warm_gb': 'until the first step, later',
                                            'gb_step': 'with the steps'})):
        axes = figure.add_subplot(1, 2, panel)
        for marker, (column, label) in zip('os^', columns.items()):
            axes.plot(sizes, [row[column] for row in rows], marker=marker, label=label)
        axes.set(xscale='log', xlabel='unlabeled images', ylabel=unit)
        axes.set_ylim(bottom=0)
        axes.legend()
    axes.axhline(2, color='grey', linestyle=':')
    figure.tight_layout()
    memory = io.BytesIO()
    figure.savefig(memory, format='png', dpi=120, facecolor='white')
    write_atomic(path, memory.getvalue())


def main():
    """Measure each size in turn; print, store and draw the results."""
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0] + '.')
    parser.add_argument('--sizes', type=int, nargs='+', default=[10 ** 4, 10 ** 5, 10 ** 6], metavar='N')
    parser.add_argument('--memory-limit', type=float, default=0.5, metavar='GB')
    parser.add_argument('--steps', type=int, default=20, metavar='N')
    parser.add_argument('--plot', metavar='FILE.png')
    parser.add_argument('--json', metavar='FILE')
    args = parser.parse_args()
    rows = []
    for size in args.sizes:
        rows.append(measure(size, args.memory_limit, args.steps))
        print(', '.join('%s %s' % (name, value if name == 'images' else '%.2f' % value)
                        for name, value in rows[-1].items()), flush=True)
    if args.json:
        write_json(args.json, rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    main()
