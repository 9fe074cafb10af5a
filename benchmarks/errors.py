"""Draws the error rates of the runs in benchmarks/results/errors.csv, after adding those of finished runs:

    python benchmarks/errors.py [RESULT ...]

Left: digits by the number of labels. Right: CIFAR-10 with the convnet, 1000 labels, by the epochs trained.
"""
import csv
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import matplotlib.figure  # noqa: E402
import numpy as np  # noqa: E402

from sesemi.record.comparison import load_results  # noqa: E402
from sesemi.record.plots import BLUE, GREEN, MUTED, VERMILLION  # noqa: E402
from sesemi.system.files import write_table  # noqa: E402

TABLE, PICTURE = (os.path.join(HERE, 'results', name) for name in ('errors.csv', 'errors.png'))
FLAGS = 'data', 'network', 'method', 'labels', 'epochs', 'seed', 'precision_mode'
STYLES = {'supervised': (MUTED, 's', ':'), 'asl': (BLUE, 'o', '-'), 'ssl': (GREEN, '^', '--')}
PUBLISHED = 0.2944      # CIFAR-10, convnet, 1000 labels, asl, 300 epochs: the paper's


def row(result):
    """What errors.csv keeps of a result.json."""
    return {**{name: str(result['flags'][name]) for name in FLAGS},
            'error': '%.4f' % result['classification_error_rate'],
            'error_1_view': '%.4f' % result['classification_error_rate_1_view'],
            'tensorflow': result['versions']['tensorflow'], 'revision': result['git_revision']}


def draw_errors(axes, rows, column):
    """A dot a run and a line through the means of each method, by a column of whole numbers."""
    ticks = sorted({int(run[column]) for run in rows})
    for i, (method, (colour, marker, line)) in enumerate(STYLES.items()):
        points = [(ticks.index(int(run[column])), 100 * float(run['error']))
                  for run in rows if run['method'] == method]
        places = sorted({x for x, _ in points})
        means = [np.mean([y for x, y in points if x == place]) for place in places]
        aside = 0.1 * (i - 1)       # or the dots of three methods lie on each other
        if points:
            axes.plot([x + aside for x in places], means, color=colour, linestyle=line, label=method)
            axes.plot([x + aside for x, _ in points], [y for _, y in points], marker, color=colour,
                      markersize=5, alpha=0.7)
    axes.set_xticks(range(len(ticks)), map(str, ticks))
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_ylim(0)
    axes.set(xlabel=column, ylabel='error rate, %')
    axes.spines[['top', 'right']].set_visible(False)


def main(folders):
    """Returns the exit status."""
    rows = []
    if os.path.exists(TABLE):
        with open(TABLE, encoding='utf-8', newline='') as file:
            rows = list(csv.DictReader(file))
    for new in map(row, load_results(folders) if folders else ()):
        rows = [old for old in rows if any(old[name] != new[name] for name in FLAGS)] + [new]
    write_table(TABLE, rows)

    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout='constrained')
    left, right = figure.subplots(1, 2)
    draw_errors(left, [run for run in rows if run['data'] == 'digits'], 'labels')
    left.set_title('digits, nin', loc='left')
    draw_errors(right, [run for run in rows if run['network'] == 'convnet'], 'epochs')
    right.axhline(100 * PUBLISHED, color=VERMILLION, linewidth=1, label='asl, paper (300 epochs)')
    right.set_title('CIFAR-10, convnet, 1000 labels', loc='left')
    left.legend(frameon=False)
    right.legend(frameon=False)
    figure.savefig(PICTURE, dpi=110)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
