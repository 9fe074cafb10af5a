"""Classify new images with a saved model: python predict.py result/sesemi.h5 FILE|FOLDER...

Prints a line for each image with its path and its most probable classes. Or writes these to a CSV file, shows
the images on a page, or sorts them into a folder for each class. With --evaluate it measures the error on a
folder that holds a folder of images for each class; the last line is `classification error rate: 0.xxxx`.
Exit status 1: some images could not be read, the others were classified; 2: wrong input.
"""
import functools
import math
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

if __name__ == '__main__':
    from sesemi.system import command_line, signals
    command_line.keep_docstrings()
    command_line.report_import_errors()
    signals.watch()     # before the slow imports, so that a signal during them is handled too

import numpy as np

from sesemi.device import precision
from sesemi.device.npu import tensorflow_version
from sesemi.errors import InputError, RunError, escape_controls
from sesemi.flags import PRECISION_HELP
from sesemi.images import sorting
from sesemi.images.decoding import compute_max_pixels, decode_image, make_thumbnail
from sesemi.images.folders import PassedOver, find_images, find_places
from sesemi.record import gallery
from sesemi.system import files
from sesemi.system.command_line import Parser, fraction, report_run_errors, whole_number
from sesemi.system.machine import count_cores, get_memory_size
from sesemi.system.pools import prefetch, show_progress
from sesemi.training import metrics, model_file
from utils import list_image_folder

UNKNOWN = 'unknown'         # named instead of a class whose probability is below --threshold
# pixels a batch, 256 images of 32 x 32; a limit for the network's activations, which take the most memory
BATCH_PIXELS = 2 ** 18


def predict(args):
    """Classify the images named by `args`, of parse_args, and print or write the classes; returns the status.

    The exit status is 1 if an image could not be read, else 0. Raises RunError.
    """
    metadata = model_file.read_metadata(args.model)
    class_names = metadata['class_names']
    passed_over = PassedOver()
    if args.evaluate:
        paths, labels, labeled_classes = list_image_folder(args.evaluate, passed_over, least=1)
    else:
        paths, labels, labeled_classes = list_images(args.paths, passed_over), None, ()
    if str(passed_over):
        print(passed_over, file=sys.stderr)
    places = find_places(labeled_classes, class_names)
    if -1 in places:
        raise InputError('%s: the model has no class of this name, only %s; rename or remove the folder.' % (
            os.path.join(args.evaluate, labeled_classes[places.index(-1)]), ', '.join(class_names)))

    if args.sort_into:
        used = [path for path in (*args.paths, args.csv, args.html) if path]
        sorting.prepare(args.sort_into, class_names, used, args.copy)
    probabilities, unreadable = classify(paths, args.model, metadata['fit'], args.device, args.precision_mode)
    for error in unreadable.values():
        print(error, file=sys.stderr)
    # the index of each image's class; one more if below --threshold, two more if unreadable
    groups = np.where(probabilities.max(axis=1) >= args.threshold, probabilities.argmax(axis=1),
                      len(class_names))
    groups[list(unreadable)] = len(class_names) + 1
    ranked = [[] if i in unreadable else rank(row, class_names, args.top, groups[i] == len(class_names))
              for i, row in enumerate(probabilities)]
    margins = compute_margins(probabilities)
    rows = make_table(paths, ranked, margins)
    if args.sort_into:
        folders = [*class_names, 'unlabeled', '']
        targets = sorting.sort_files(paths, [folders[group] for group in groups], args.sort_into, args.copy)
        rows = [dict(row, sorted_to=target) for row, target in zip(rows, targets)]
        print('%s: %d images.' % (args.sort_into, len(paths) - len(unreadable)))
    if args.csv:
        files.write_table(args.csv, rows)
        print('%s: %d images.' % (args.csv, len(paths)))
    if args.html:
        captions = [unreadable[i].args[-1] if i in unreadable else
                    '%s %.4f' % (class_names[row.argmax()], row.max()) for i, row in enumerate(probabilities)]
        write_page(args, class_names, list(map(gallery.Prediction, paths, groups, margins, captions)))
        print('%s: %d images.' % (args.html, len(paths)))
    if args.csv or args.html or args.sort_into:
        for name, count in Counter(best[0][0] if best else 'unreadable' for best in ranked).most_common():
            print('%8d  %s' % (count, escape_controls(name)))
    if args.evaluate:
        labels = np.array(places)[labels]
        readable = [i for i in range(len(paths)) if i not in unreadable]
        print_evaluation(probabilities[readable], labels[readable], class_names, args.threshold)
    elif not (args.csv or args.html or args.sort_into):
        for path, best in zip(paths, ranked):
            print('\t'.join(map(escape_controls,
                                [path] + (['%s %.4f' % pair for pair in best] or ['unreadable']))))
    return 1 if unreadable else 0


def compute_margins(probabilities):
    """The difference between the two highest probabilities of each row, float32 (n,)."""
    ordered = np.sort(np.pad(probabilities, ((0, 0), (1, 0)), 'constant'))      # a model may have one class
    return ordered[:, -1] - ordered[:, -2]


def make_table(paths, ranked, margins):
    """The rows of the CSV file, dicts with the same keys. ranked: for each image a list of rank(), or []."""
    rows = [table_row(path, best) for path, best in zip(paths, ranked)]
    columns = dict.fromkeys((key for row in rows for key in row), '')
    return [{**columns, **row, 'margin': '%.6f' % margin if best else ''}
            for row, best, margin in zip(rows, ranked, margins)]


def list_images(paths, passed_over):
    """The files in `paths`, whatever their names, and the images below each folder in `paths`, sorted.

    passed_over: a folders.PassedOver, which collects what is not read. Raises InputError naming a path that
    is missing or a folder without images.
    """
    found = []
    for path in paths:
        images = [path] if os.path.isfile(path) else []
        if os.path.isdir(path):
            images = find_images(path, passed_over)
        if not images:
            raise InputError('%s: %s; give image files or folders of them.' % (
                path, 'holds no images' if os.path.isdir(path) else 'no such file or folder'))
        found += images
    return found


def classify(paths, model_path, fit, device, precision_mode=None):
    """Classify image files: (probabilities float32 (n, classes), {index of an unreadable file: InputError}).

    fit: one of settings.FITS; precision_mode: None for the device's default. Ignore the rows of unreadable
    files. Raises InputError when the device cannot be used.
    """
    # imported late: these load TensorFlow, and wrong input is reported before that
    from sesemi.device import devices, runtime
    from sesemi.training import classifier
    device, _ = devices.choose_device(device)
    precision.check(device, precision_mode, runtime.tf.__version__)
    with runtime.open_session(device, runtime.Options(precision_mode)):
        model = classifier.load_classifier(model_path)
        image_size = int(model.input_shape[1])
        count = math.ceil(len(paths) / max(1, BATCH_PIXELS // image_size ** 2))
        batches = decode_batches(paths, image_size, fit, math.ceil(len(paths) / count))
        outputs, unreadable = [], {}
        for images, errors in show_progress(batches, count,
                                            'Classifying %d images (%s)' % (len(paths), device)):
            outputs.append(model.predict_on_batch(images))
            unreadable.update(errors)
    return np.concatenate(outputs)[:len(paths)], unreadable


def decode_batches(paths, image_size, fit, size):
    """Yield batches: (images float32 (size, s, s, 3), {index of an unreadable file: InputError}).

    Values are 0-255. The next batches are decoded meanwhile. Unreadable images are black, and black images
    fill up the last batch, because an NPU compiles a graph for each batch size.
    """
    def decode(path, max_pixels):
        try:
            return decode_image(path, image_size, fit, max_pixels)
        except InputError as error:
            return error

    decoded = enumerate(decode_all(decode, paths, size))
    for _ in range(0, len(paths), size):
        images, errors = np.zeros((size, image_size, image_size, 3), np.float32), {}
        for row, (i, image) in zip(range(size), decoded):
            if isinstance(image, InputError):
                errors[i] = image
            else:
                images[row] = image
        yield images, errors


def decode_all(decode, paths, ahead=0):
    """Yield decode(path, max_pixels) of each path, computed on all cores."""
    max_pixels = compute_max_pixels(get_memory_size() / 2, count_cores())
    return prefetch(lambda path: decode(path, max_pixels), paths, ThreadPoolExecutor(count_cores()),
                    ahead + count_cores())


# Reports

def rank(probabilities, class_names, top, unknown=False):
    """The `top` most probable classes as (name, probability), the most probable one first.

    If `unknown` is true, 'unknown' comes first, with the same probability.
    """
    best = [(class_names[i], probabilities[i]) for i in np.argsort(-probabilities, kind='stable')[:top]]
    if unknown:
        best.insert(0, (UNKNOWN, best[0][1]))
    return best[:top]


def table_row(path, best):
    """The CSV row of a file: {'file', 'class', 'probability', 'class_2', 'probability_2', ...}."""
    row = {'file': path, 'class': 'unreadable', 'probability': ''}
    for number, (name, probability) in enumerate(best, 1):
        suffix = '_%d' % number if number > 1 else ''
        row['class' + suffix], row['probability' + suffix] = name, '%.6f' % probability
    return row


def write_page(args, class_names, predictions):
    """Write the page of --html. predictions: a gallery.Prediction for each image."""
    headings = [*class_names, 'Below --threshold %g' % args.threshold, 'Unreadable']
    text = gallery.render(args.model, predictions, headings, args.per_class,
                          functools.partial(decode_all, make_thumbnail))
    # file names may hold bytes that are not UTF-8
    files.write_atomic(args.html, text.encode(errors='backslashreplace'))


def print_evaluation(probabilities, labels, class_names, threshold=0.0):
    """Print each class's error and its row of the confusion matrix, then the error rate of all images.

    With a threshold, also print how many images are below it and the error rate of the others.
    probabilities: float32 (n, classes), of one view of each image; labels: int64 (n,). Raises RunError when
    there are no images.
    """
    if not len(labels):
        raise RunError('No image could be read, so there is nothing to evaluate.')
    confusion = metrics.confusion_matrix(probabilities.argmax(axis=1), labels, len(class_names))
    table = [['class', 'images', 'error', *map(escape_controls, class_names)]]
    for label in np.unique(labels):
        counts = confusion[label]
        table.append([escape_controls(class_names[label]), str(counts.sum()),
                      '%.4f' % (1 - counts[label] / counts.sum()), *map(str, counts)])
    widths = [max(map(len, column)) for column in zip(*table)]
    print('Each row shows how many images of that class were classified as each class:')
    for name, *cells in table:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        print('  '.join([name.ljust(widths[0])] + cells))
    if threshold:
        known = probabilities.max(axis=1) >= threshold
        print('%d of %d images are %s below --threshold %g%s.' % (
            (~known).sum(), len(known), UNKNOWN, threshold,
            '; the error rate of the others is %.4f' % metrics.error_rate(probabilities[known], labels[known])
            if known.any() else ''))
    print('classification error rate: %.4f' % metrics.error_rate(probabilities, labels))


# Flags

def parse_args(argv):
    """The flags as a Namespace. Raises InputError."""
    parser = Parser(prog='predict.py', description='Classify new images with a saved model.')
    parser.add_argument('model', metavar='MODEL', help='the sesemi.h5 of a result folder')
    parser.add_argument('paths', metavar='FILE|FOLDER', nargs='*',
                        help='images, and folders to look for images in, at any depth')
    parser.add_argument('--top', type=whole_number(1), default=3, metavar='N',
                        help='how many classes to name for an image (default: 3)')
    parser.add_argument('--threshold', type=fraction(1), default=0.0, metavar='P',
                        help='call an image unknown if its most probable class '
                        'has less than this probability, such as 0.8')
    parser.add_argument('--csv', metavar='FILE',
                        help='write the classes to this CSV file, and print only how many images each has')
    parser.add_argument('--html', metavar='FILE',
                        help='write a page that shows the images by class, the least certain first')
    parser.add_argument('--per-class', type=whole_number(1), default=60, metavar='N',
                        help='how many images of a class --html shows (default: 60)')
    parser.add_argument('--sort-into', metavar='DIR',
                        help='make links to the images in DIR/CLASS/, a new or empty folder, and to those '
                        'below --threshold in DIR/unlabeled/')
    parser.add_argument('--copy', action='store_true', help='with --sort-into: make copies and no links')
    parser.add_argument('--evaluate', metavar='DIR',
                        help='measure the error on the images DIR/CLASS/*; give no other images then')
    parser.add_argument('--device', choices=['auto', 'cpu', 'gpu', 'npu'], default='auto',
                        help='(default: auto)')
    parser.add_argument('--precision-mode', metavar='MODE', help=PRECISION_HELP)
    args = parser.parse_intermixed_args(argv)       # allows flags between the paths
    if bool(args.paths) == bool(args.evaluate):
        parser.error('give either images to classify or --evaluate DIR')
    if args.evaluate and args.sort_into or args.copy and not args.sort_into:
        parser.error('--sort-into goes with images to classify, not with --evaluate; --copy goes with it')
    for flag, path in (('--csv', args.csv), ('--html', args.html)):
        if path:
            files.check_writable(path, '%s %s' % (flag, path))
    precision.check(precision.known_device(args.device), args.precision_mode, tensorflow_version())
    return args


@report_run_errors
def main(argv):
    """Run the program; returns its exit status."""
    try:
        sys.stdout.reconfigure(errors='backslashreplace')   # file names may hold bytes that are not text
        status = predict(parse_args(argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # the reader, such as `| head`, has closed the pipe; keep Python's flush at exit from failing too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
