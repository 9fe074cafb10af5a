"""Makes report.html, the page of a run: one file that needs no other, for light and dark and any screen size.

render() puts it together; each function below it makes the HTML of one part, from top to bottom. Its frame
and style are in page.html.
"""
import base64
import html
import io
import os
import string
import time

import numpy as np
from PIL import Image

from sesemi.errors import escape_controls
from sesemi.record import plots
from sesemi.record.run_folder import data_name

FRAME = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page.html')
NUMBERED_CLASSES = 30       # with more classes the confusion matrix is a picture, not a table of numbers
CONFUSIONS = 15             # pairs of classes listed below such a picture
MISTAKES = 24               # most images shown
SAMPLES, SAMPLED_CLASSES = 8, 40    # labeled images shown: most per class, of so many classes


def render(report, rows, curves, result=None, probabilities=None):
    """The page as text.

    report: a live.Report; rows: a dict for each epoch so far; curves: <svg> elements, none if they could not
    be drawn. Of a finished run result: as run_folder.Run.result returns it; probabilities: float
    (n, classes) of the test images.
    """
    flags, dataset, labeled = report.record['flags'], report.dataset, report.labeled
    sections = [('Curves', '<div class="curves">%s</div>' % ''.join(curves) if curves else
                 '<p>Not drawn; standard error says why. The numbers are in log.csv.</p>')]
    matrix = None
    if result:
        matrix = np.array(result['confusion_matrix'])
        sections += [('Confusion matrix', confusion_section(matrix, dataset.class_names)),
                     ('Most confident mistakes', mistakes_section(dataset, probabilities))]
    sections += [('Data', data_section(dataset, labeled, flags, matrix)), ('Labeled images', report.samples),
                 ('The run', run_section(report.record, result))]
    return fill_frame(title(flags, labeled), 'Finished' if result else 'Not finished yet; as of',
                      key_figures(rows, report.epochs, flags, result), sections)


def fill_frame(title, state, top, sections):
    """A page as text. state: the words before the time; top: HTML; sections: (heading, content), HTML."""
    with open(FRAME, encoding='utf-8') as file:
        frame = string.Template(file.read())
    return frame.substitute(
        title=escape(title), state=escape('%s %s' % (state, time.strftime('%Y-%m-%d %H:%M:%S %z'))),
        body=top + ''.join('<section>\n<h2>%s</h2>\n%s\n</section>\n' % section for section in sections))


def title(flags, labeled):
    """A run's title, as in 'asl on flowers: nin, 300 labels'."""
    return '%s on %s: %s, %s labels' % (flags['method'], data_name(flags), flags['network'],
                                        number(len(labeled)))


def key_figures(rows, epochs, flags, result):
    """HTML of the key figures: the errors of a finished run, or how far a running one has come."""
    last, seconds = rows[-1], sum(row['seconds'] for row in rows)
    if result:
        figures = [
            ('Error rate', '%.4f' % result['classification_error_rate'],
             '95 %% interval %.3f to %.3f; mean of %d views'
             % (*result['error_rate_interval'], 8 if flags['flip'] else 4)),
            ('Balanced error', '%.4f' % result['balanced_error_rate'], 'mean over the classes'),
            ('Error, 1 view', '%.4f' % result['classification_error_rate_1_view'], 'the image itself'),
            ('Error, labeled', '%.4f' % result['labeled_error_rate'],
             'of the images trained on, without augmentation')]
        if result.get('validation_error_rate') is not None:
            figures.append(('Validation error', '%.4f' % result['validation_error_rate'],
                            'of the saved weights, those of epoch %s' % number(result['saved_epoch'])))
        return tiles(figures + [
            ('Epochs', number(last['epoch']), '%s steps' % number(last['step'])),
            ('Training', duration(seconds), '%s images/s' % number(round(result['images_per_second'])))])
    figures = [('Epochs done', '%d of %d' % (last['epoch'], epochs), '%s steps' % number(last['step'])),
               ('Training', duration(seconds),
                '%s to go' % duration(seconds / len(rows) * (epochs - last['epoch'])))]
    for column, name in (('validation_error', 'Validation error'), ('error', 'Error rate')):
        measured = [row for row in rows if column in row]
        if measured:
            least = min(measured, key=lambda row: row[column])
            figures.append((name, '%.4f' % measured[-1][column], 'after epoch %d' % measured[-1]['epoch'] + (
                '; least %.4f after epoch %d' % (least[column], least['epoch'])
                if least[column] < measured[-1][column] else '')))
    for column, name in (('super_clf_acc', 'Accuracy, labeled batch'),
                         ('self_clf_acc', 'Accuracy, proxy task')):
        if column in last:
            figures.append((name, '%.4f' % last[column], 'mean of epoch %d' % last['epoch']))
    progress = '<progress value="%d" max="%d" aria-label="Epochs done"></progress>\n'
    return progress % (last['epoch'], epochs) + tiles(figures)


def confusion_section(matrix, names):
    """HTML of the confusion matrix, int (n, n): numbers, or for many classes a picture and a list.

    The list has the most frequent confusions.
    """
    legend = ('<p>Rows are true classes, columns predicted ones. <span class="swatch blue"></span> right, '
              '<span class="swatch vermillion"></span> wrong. The stronger the color, the larger the share '
              'of the true class.</p>\n')
    colours = plots.confusion_colours(matrix)
    if len(names) <= NUMBERED_CLASSES:
        rows = [[name] + [(count,
                           ' style="background:rgba(%d,%d,%d,%.2f)"' % (*colour[:3], colour[3] / 255 * 0.6)
                           if count
                           else ' class="muted"') for count, colour in zip(counts, row)]
                for name, counts, row in zip(names, matrix.tolist(), colours)]
        upright = ' upright' if max(map(len, names)) > 3 else ''
        return legend + table('Confusion matrix', ['true \\ predicted'] + names, rows, 'confusion' + upright)
    wrong = matrix * (1 - np.eye(len(names), dtype=int))
    pairs = zip(*np.unravel_index(np.argsort(-wrong, axis=None, kind='stable')[:CONFUSIONS], wrong.shape))
    rows = [[names[i], names[j], int(wrong[i, j]), int(matrix[i].sum())] for i, j in pairs if wrong[i, j]]
    width = len(names) * max(1, 560 // len(names))      # whole pixels a class
    return (legend + box('Confusion matrix', '<img src="%s" width="%d" alt="Confusion matrix of %d classes; '
                                             'the most frequent '
                         'confusions are in the table below">' % (picture(colours), width, len(names)))
            + '<h3>Most frequent confusions</h3>\n'
            + table('Most frequent confusions', ['True class', 'Predicted class', 'Images',
                                                  'Images of the true class'], rows, 'words'))


def mistakes_section(dataset, probabilities):
    """HTML of the test images whose wrong class got the highest probability, the most confident first."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != dataset.test_labels)
    if not len(wrong):
        return '<p>None: every test image was classified correctly.</p>'
    wrong = wrong[np.argsort(-confidence[wrong], kind='stable')][:MISTAKES]
    figures = []
    for i in wrong:
        name, true, taken_for = map(escape,
                                    (dataset.test_names[i], dataset.class_names[dataset.test_labels[i]],
                                     dataset.class_names[predicted[i]]))
        figures.append('<figure><img src="%s" alt="test image %s"><figcaption><b>%s</b> taken for <b>%s</b> '
                       '%.3f<small>%s</small>'
                       '</figcaption></figure>\n'
                       % (picture(dataset.test_images[i]), name, true, taken_for, confidence[i], name))
    return '<div class="images mistakes">\n%s</div>' % ''.join(figures)


def data_section(dataset, labeled, flags, matrix):
    """HTML of the numbers of images, in total and per class, and of each class's error if matrix is given.

    dataset: a datasets.Dataset; labeled: int (labels,), indices of its labeled training images; flags: a
    dict; matrix: the confusion matrix, int (n, n), or None.
    """
    names = dataset.class_names
    extra = len(dataset.unlabeled_images) - len(dataset.train_images)
    drawn_from = {'ssl': (number(len(dataset.unlabeled_images)), 'all images, without labels'),
                  'asl': (number(len(labeled)), 'the labeled images')}.get(flags['method'], ('none', ''))
    figures = tiles([('Classes', number(len(names)), ''),
                     ('Training images', number(len(dataset.train_images)),
                      'and %s without a class' % number(extra) if extra else ''),
                     ('Labeled', number(len(labeled)), 'listed in labeled.csv'),
                     ('Self branch draws from', *drawn_from),
                     ('Test images', number(len(dataset.test_images)), '')]
                    + [('Validation images', number(len(dataset.valid_images)),
                        '')] * bool(len(dataset.valid_images)))
    parts = {'Training': dataset.train_labels, 'Labeled': dataset.train_labels[labeled],
             'Test': dataset.test_labels}
    if len(dataset.valid_labels):
        parts['Validation'] = dataset.valid_labels
    rows = [list(row)
            for row in zip(names,
                           *(np.bincount(labels, minlength=len(names)).tolist()
                             for labels in parts.values()))]
    header = ['Class', *parts]
    if matrix is not None:
        header.insert(1, 'Error rate')
        for row, right, count in zip(rows, matrix.diagonal(), matrix.sum(axis=1)):
            error = 1 - right / max(count, 1)
            row.insert(1, ('%.4f' % error, ' class="bar" style="--share:%.1f%%"' % (100 * error)) if count
                       else '')
    return figures + table('Classes', header, rows)


def samples_section(dataset, labeled):
    """HTML of some labeled images of each class, one strip per class."""
    names, labels = dataset.class_names, dataset.train_labels[labeled]
    note = ''
    if len(names) > SAMPLED_CLASSES:
        note = '<p>The first %d of %s classes.</p>\n' % (SAMPLED_CLASSES, number(len(names)))
    figures = []
    for label, name in enumerate(names[:SAMPLED_CLASSES]):
        images = dataset.train_images[labeled[labels == label][:SAMPLES]]
        if len(images):
            # transparent where a class has fewer images
            strip = np.zeros((images.shape[1], SAMPLES * images.shape[2], 4), np.uint8)
            width = len(images) * images.shape[2]
            strip[:, :width, :3], strip[:, :width, 3] = np.hstack(images), 255
            figures.append('<figure><img src="%s" alt="%d labeled images of class '
                           '%s"><figcaption>%s</figcaption></figure>\n'
                           % (picture(strip), len(images), escape(name), escape(name)))
    return note + '<div class="images samples">\n%s</div>' % ''.join(figures)


def run_section(record, result):
    """HTML of the command, the times, the versions and all flags."""
    parts = [box('Command', '<pre><code>%s</code></pre>' % escape(record['command']))]
    if result:
        times = [(name, duration(seconds)) for name, seconds in result['seconds'].items()]
        times.append(('a step of %d images' % result['images_per_step'],
                      '%.0f ms' % (1000 * result['seconds_per_step'])))
        parts += ['<h3>Times</h3>', table('Times', ['Part', 'Time'], times, 'words'),
                  '<h3>Versions</h3>', table('Versions', ['What', 'Version'], [
                      *result['versions'].items(),
                      ('git revision', result['git_revision'] or 'not in a checkout')], 'words')]
    flags = table('Flags', ['Flag', 'Value'], [(name, str(value)) for name, value in record['flags'].items()],
                  'words')
    return '\n'.join(parts) + '<details>\n<summary>All flags</summary>\n%s</details>' % flags


def tiles(figures):
    """HTML of a row of tiles. figures: (name, value, note) of each."""
    return '<dl class="tiles">\n%s</dl>\n' % ''.join(
        '<div><dt>%s</dt><dd>%s</dd>%s</div>\n' % (name, value, note and '<dd class="note">%s</dd>' % note)
        for name, value, note in figures)


def table(name, header, rows, css_class=''):
    """HTML of a table in a scrolling box.

    rows: lists of cells, each a str or int, or a tuple of one of these and a str of HTML attributes.
    """
    def cell(value):
        value, attributes = value if isinstance(value, tuple) else (value, '')
        return '<td%s>%s</td>' % (attributes, number(value) if isinstance(value, int) else escape(value))
    return box(name, '<table class="%s">\n<thead><tr>%s</tr></thead>\n<tbody>\n%s</tbody>\n</table>' % (
        css_class, ''.join('<th scope="col"><span>%s</span></th>' % escape(title) for title in header),
        ''.join('<tr><th scope="row">%s</th>%s</tr>\n' % (escape(row[0]), ''.join(map(cell, row[1:])))
                for row in rows)))


def box(name, content):
    """HTML of a part that scrolls by itself, so the page does not. tabindex lets a keyboard scroll it."""
    return '<div class="scroll" role="region" aria-label="%s" tabindex="0">%s</div>\n' % (name, content)


def picture(pixels):
    """A data URI of an image, uint8 (h, w, 3) or with opacity (h, w, 4)."""
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, 'PNG')
    return data_uri('png', memory.getvalue())


def data_uri(kind, data):
    return 'data:image/%s;base64,%s' % (kind, base64.b64encode(data).decode())


def escape(text):
    """Text from elsewhere as HTML."""
    return html.escape(escape_controls(text))


def number(value):
    return '{:,}'.format(value)


def duration(seconds):
    """Seconds in words, as in 1 h 5 min, 5 min 3 s or 3.2 s."""
    if seconds < 60:
        return '%.1f s' % seconds
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return '%d h %d min' % (hours, minutes) if hours else '%d min %d s' % (minutes, seconds)
