"""The pictures of the report, drawn by matplotlib: curves, the confusion matrix, the errors of several runs.

They use matplotlib's Figure, not pyplot, which keeps figures and a backend for the whole process.
"""
import functools
import html
import io
import os
import re
import warnings

import numpy as np

from sesemi.errors import escape_controls

INK, MUTED, LINE = '#1b1f24', '#57606a', '#d3d9df'
# the palette of Okabe and Ito, for the colour-blind
BLUE, VERMILLION, GREEN = '#0072b2', '#d55e00', '#009e73'
SKY, ORANGE, PURPLE = '#56b4e9', '#e69f00', '#cc79a7'
# In report.html each colour is a CSS variable, with another value in the dark theme.
PAGE_COLOURS = {INK: 'ink', MUTED: 'muted', LINE: 'line', BLUE: 'blue', VERMILLION: 'vermillion',
                GREEN: 'green'}

# column of log.csv: (name, colour, line style)
CURVES = {
    'loss': ('sum + L2', INK, '-'),
    'super_clf_loss': ('super', BLUE, '--'),
    'self_clf_loss': ('self', VERMILLION, '-.'),
    'super_clf_acc': ('labeled batch', BLUE, '--'),
    'self_clf_acc': ('proxy task', VERMILLION, '-.'),
    'validation_error': ('validation images', GREEN, '-'),
    'error': ('classification error rate', GREEN, '-'),
    'learning_rate': ('learning rate', MUTED, '-'),
}
PANELS = (
    ('Loss', ('loss', 'super_clf_loss', 'self_clf_loss')),
    ('Accuracy', ('super_clf_acc', 'self_clf_acc')),
    ('Classification error rate', ('validation_error', 'error')),
    ('Learning rate', ('learning_rate',)),
)


@functools.lru_cache(maxsize=None)
def import_error():
    """The exception with which matplotlib cannot be imported; None if it can."""
    # the user's own backend and settings, which may not work here
    os.environ.update(MPLBACKEND='agg', MATPLOTLIBRC=os.devnull)
    try:
        import matplotlib.figure  # noqa: F401
    except Exception as error:      # a broken installation raises other types than ImportError too
        return error
    # class names may be in scripts that matplotlib's font lacks
    warnings.filterwarnings('ignore', message='Glyph .* missing')
    return None


def _in_default_style(draw):
    """Decorate a function to use matplotlib's own settings, whatever file of settings was read."""
    @functools.wraps(draw)
    def wrapped(*arguments):
        import matplotlib
        with matplotlib.rc_context(matplotlib.rcParamsDefault):
            return draw(*arguments)
    return wrapped


@_in_default_style
def curves(rows, title):
    """The curves of a run: (PNG bytes of all panels, a list of <svg> elements for HTML, one for each panel).

    rows: a dict for each epoch, with some of the columns of CURVES; title: the picture's. Margins are fixed,
    because matplotlib's automatic layout doubles the time.
    """
    from matplotlib.transforms import Bbox
    present = {column for row in rows for column in row}
    panels = [(name, columns) for name, columns in PANELS if present.intersection(columns)]
    width, height, down = 4.5, 3, -(-len(panels) // 2)      # a panel's in inches; panels from top to bottom
    total = down + 0.12     # height of the picture with its title, in panels
    figure = _figure(2 * width, total * height, None)
    elements = []
    for number, (name, columns) in enumerate(panels):
        y, x = divmod(number, 2)
        axes = figure.add_axes([(x + 0.12) / 2, (down - y - 0.84) / total, 0.85 / 2, 0.73 / total])
        last = _draw_panel(axes, rows, name, [column for column in columns if column in present])
        box = Bbox.from_bounds(x * width, (down - y - 1) * height, width, height)
        elements.append(_svg(figure, box, '%s by epoch; last: %s' % (name, last)))
        axes.set_visible(False)     # so that the elements of the other panels do not contain it
    for axes in figure.axes:
        axes.set_visible(True)
    figure.text(0.06, 1 - 0.05 / total, _escape(title, 80), color=INK, fontsize=12.5, va='top')
    return _png(figure), elements


def confusion_colours(matrix):
    """A confusion matrix, int (n, n), as a picture with opacity, uint8 (n, n, 4).

    Right is blue, wrong vermillion. The opacity is the square root of the share of the true class, so that
    rare mistakes are visible too.
    """
    fraction = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    colours = np.empty(matrix.shape + (4,), np.uint8)
    colours[..., :3] = tuple(bytes.fromhex(VERMILLION[1:]))
    colours[np.arange(len(matrix)), np.arange(len(matrix)), :3] = tuple(bytes.fromhex(BLUE[1:]))
    colours[..., 3] = 255 * np.sqrt(fraction)
    return colours


@_in_default_style
def confusion_png(matrix, class_names, numbered, title):
    """The confusion matrix, int (n, n), as PNG bytes. It has class names if there are at most 100.

    numbered: whether to write the numbers of images into it.
    """
    n = len(matrix)
    side = min(10, 2.5 + 0.45 * n)
    figure = _figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(confusion_colours(matrix), alpha=0.6 if numbered else None,
                interpolation='nearest' if n <= 100 else None)
    for (i, j), count in np.ndenumerate(matrix if numbered else np.empty((0, 0))):
        if count:
            axes.text(j, i, count, ha='center', va='center', fontsize=8, color=INK, in_layout=False)
    if n <= 100:
        names, size = [_escape(name, 24) for name in class_names], min(10, 480 / n)
        axes.set_xticks(range(n))
        axes.set_yticks(range(n))
        axes.set_xticklabels(names, rotation=90, fontsize=size)
        axes.set_yticklabels(names, fontsize=size)
    axes.set(xlabel='predicted class', ylabel='true class')
    axes.set_title(_escape(title, 80), color=INK, fontsize=10, wrap=True)
    return _png(figure)


@_in_default_style
def comparison_png(series, title):
    """Errors by the number of labels, as PNG bytes: a line through the means, and a dot for each run.

    series: {name: {labels: [error of each run]}}, where labels is a number or 'all'; title: the picture's.
    """
    figure = _figure(7.5, 4.8)
    axes = figure.add_subplot()
    ticks = sorted({labels for points in series.values() for labels in points},
                   key=lambda labels: (labels == 'all', labels))
    for i, (name, points) in enumerate(series.items()):
        colour = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)[i % 7]
        offset = 0.3 * ((i + 0.5) / len(series) - 0.5)      # so that series do not cover each other
        found = [labels for labels in ticks if labels in points]
        axes.plot([ticks.index(labels) + offset for labels in found],
                  [np.mean(points[labels]) for labels in found],
                  color=colour, linestyle=('-', '--', '-.', ':')[i % 4], marker='_', markersize=16,
                  label=_escape(name, 60))
        axes.plot([ticks.index(labels) + offset for labels in found for _ in points[labels]],
                  [error for labels in found for error in points[labels]],
                  color=colour, linestyle='', marker='os^Dv'[i % 5], markersize=5, alpha=0.7)
    axes.set_xticks(range(len(ticks)))
    axes.set_xticklabels(ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_ylim(0)
    axes.set(xlabel='labeled images', ylabel='classification error rate')
    axes.set_title(_escape(title, 60), loc='left', color=INK, fontsize=11.5)
    _style(axes)
    axes.legend(frameon=False)
    return _png(figure)


def _draw_panel(axes, rows, title, columns):
    """Draw columns of the rows by epoch; returns the last value of each, in words."""
    last = []
    for column in columns:
        name, colour, line = CURVES[column]
        epochs, values = zip(*((row['epoch'], row[column]) for row in rows if column in row))
        axes.plot(epochs, values, color=colour, linestyle=line, linewidth=1.6, label=name,
                  marker='o' if len(epochs) <= 40 else None, markersize=3)
        last.append('%s %.4g' % (name, values[-1]))
    _scale(axes, title)
    _style(axes)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)      # 1: for a single epoch
    axes.set_title(title, loc='left', color=INK, fontsize=11.5)
    axes.set_xlabel('epoch', color=MUTED)
    if CURVES[columns[0]][0] != title.lower():
        axes.legend(frameon=False, labelcolor=INK, fontsize=9.5, ncol=len(columns), columnspacing=1.2,
                    borderpad=0, loc='lower right', bbox_to_anchor=(1, 1.02), borderaxespad=0)
    return ', '.join(last)


def _scale(axes, title):
    if title == 'Loss':
        from matplotlib.ticker import LogLocator, NullFormatter
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter('{x:g}')     # 0.01; matplotlib's powers of ten are formulas, and slow
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.05 * (1 if title == 'Accuracy' else axes.dataLim.ymax or 1))


def _style(axes):
    axes.set_facecolor('none')
    axes.grid(color=LINE, linewidth=0.6)
    axes.tick_params(which='both', color=LINE, labelcolor=MUTED)
    for side, spine in axes.spines.items():
        spine.set_color(LINE)
        spine.set_visible(side in ('left', 'bottom'))


def _figure(width, height, layout='constrained'):
    from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout=layout)


def _png(figure):
    memory = io.BytesIO()
    figure.savefig(memory, format='png', dpi=120, facecolor='white')
    return memory.getvalue()


def _svg(figure, box, description):
    """A part of a figure as an <svg> element with the page's colours. box: a Bbox in inches."""
    import matplotlib
    text = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none'}):       # keeps text as text, in the reader's font
        figure.savefig(text, format='svg', transparent=True, bbox_inches=box,
                       metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')))
    svg = text.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', svg).group()
    # without ids, as the other elements of the page have the same ones
    content = re.sub(r' id="[\w.]+_\d+"', '', svg[svg.index('>', svg.index('<svg')) + 1:])
    for colour, name in PAGE_COLOURS.items():
        content = content.replace(colour, 'var(--%s)' % name)
    return '<svg role="img" %s aria-label="%s">%s' % (view_box, html.escape(description), content)


def _escape(name, length):
    """A name for matplotlib, shortened to `length`, with $ escaped, which would start a formula."""
    name = escape_controls(name)
    name = name if len(name) <= length else name[:length - 1] + '…'
    return name.replace('$', r'\$')
