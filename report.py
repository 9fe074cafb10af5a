"""The report of a run, kept up to date while it goes on: report.html, curves.png, confusion.png. And several runs side by side:

    python report.py compare RESULT... [--plot FILE.png]
"""
import functools
import glob
import json
import os
import sys
import time

import numpy as np

from sesemi.command_line import Parser, program
from sesemi.errors import InputError, RunError
from sesemi.reporting import page, plots
from sesemi.run_folder import IDENTITY_FLAGS, data_name, stored_record, write_whole

REFRESH_SECONDS = 30        # an epoch on an accelerator lasts seconds: not every one is worth a drawing


class Report:
    """The report of the run in `folder`, which run_folder.Run has started.

    dataset: a datasets.Dataset; labeled: int (labels,) indices of its labeled training images; epochs: those of the whole run;
    clock: seconds. Without matplotlib the page has no curves, which is said once on standard error.
    """

    def __init__(self, folder, dataset, labeled, epochs, clock=time.monotonic):
        self.folder, self.dataset, self.labeled, self.epochs, self.clock = folder, dataset, labeled, epochs, clock
        self.record = stored_record(folder)
        self.samples = page.samples_section(dataset, labeled)
        if plots.missing():
            say_once('No curves.png and no confusion.png: matplotlib cannot be imported (%s); pip install matplotlib.'
                     % plots.missing())
        self.drawn = float('-inf')

    def refresh(self, rows):
        """Bring curves.png and report.html up to date, if the last time was 30 s ago. rows: a dict an epoch, as in log.csv.

        Raises InputError when a file cannot be written.
        """
        if self.clock() - self.drawn >= REFRESH_SECONDS:
            self._draw(rows)
            self.drawn = self.clock()

    def finish(self, rows, probabilities, result):
        """Write the whole report. probabilities: float (n, classes) of the test images, in their order; result: that of run_folder.Run.

        Raises InputError when a file cannot be written.
        """
        self._draw(rows, result, probabilities)

    def _draw(self, rows, result=None, probabilities=None):
        try:
            for name, content in self._files(rows, result, probabilities):
                write_whole(os.path.join(self.folder, name), content)
        except RunError:
            raise
        except Exception as error:      # a run of days must not end for a picture, whatever a plotting library does
            say_once('%s: the report could not be drawn (%s: %s); the run goes on.' % (self.folder, type(error).__name__, error))

    def _files(self, rows, result, probabilities):
        """Yield (name, bytes) of each file."""
        curves, title = [], page.title(self.record['flags'], self.labeled)
        if not plots.missing():
            yield 'curves.png', plots.curves_png(rows, title)
            curves = list(plots.curves_svg(rows))
        if result and not plots.missing():
            names = self.dataset.class_names
            yield 'confusion.png', plots.confusion_png(np.array(result['confusion_matrix']), names, len(names) <= page.NUMBERED, title)
        text = page.render(self.record, self.dataset, self.labeled, self.epochs, rows, curves, self.samples, result, probabilities)
        yield 'report.html', text.encode('utf-8', 'replace')    # a file's name may hold bytes that are no text


@functools.lru_cache(maxsize=None)
def say_once(sentence):
    """Print a sentence on standard error, the first time it is to be said."""
    print(sentence, file=sys.stderr)


# Several runs side by side ------------------------------------------------------------------------------------------------

SHOWN = ('method', 'data', 'network', 'labels')     # always have a column; other settings if they differ between runs on a data set
STARTED_WITH = dict(IDENTITY_FLAGS, ranks=1)              # where a run's record has not yet the flag
SETTINGS = sorted({*STARTED_WITH, 'flip', 'precision_mode'} - {'seed', 'no_flip'})


def summary(errors):
    """The line that a program reads: the error rate, or of several runs its mean and sample standard deviation."""
    return 'classification error rate: ' + spread(errors)


def spread(values):
    """'0.2944', or of several '0.2944 +/- 0.0024 (5 runs)'."""
    if len(values) == 1:
        return '%.4f' % values[0]
    return '%.4f +/- %.4f (%d runs)' % (np.mean(values), np.std(values, ddof=1), len(values))


def compare(folders):
    """Finished runs as a text table, a line for those that differ in their seed alone.

    folders: of runs, or of folders of runs. Raises InputError naming a folder without a finished run.
    """
    groups = group(load_results(folders))
    columns = [*SHOWN, *(name for name in differences(groups, ['data']) if name not in SHOWN + ('epochs',))]
    lines = [columns + ['seed', 'error', 'error, 1 view', 'balanced error', 'epochs', 'training', 'images/s']]
    for runs in groups:
        def of(key):
            return [run[key] for run in runs]
        lines.append([str(setting(runs[0])[name]) for name in columns] + [
            ','.join(str(run['flags']['seed']) for run in runs),
            spread(of('classification_error_rate')),
            spread(of('classification_error_rate_1_view')),
            spread(of('balanced_error_rate')),
            str(runs[0]['flags']['epochs']),
            page.duration(np.mean(of('steps')) * np.mean(of('seconds_per_step'))),
            '%.0f' % np.mean(of('images_per_second'))])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def load_results(folders):
    """What result.json holds of each run in `folders`, every run once."""
    found = []
    for folder in folders:
        inside = [os.path.dirname(path) for path in sorted(glob.glob(os.path.join(glob.escape(folder), '*', 'args.json')))]
        finished = [run for run in inside if os.path.exists(os.path.join(run, 'result.json'))]
        for run in sorted(set(inside) - set(finished)):
            say_once('%s: not finished; left out.' % run)
        found += finished or [folder]
    results = []
    for run in {os.path.realpath(run): run for run in found}.values():
        try:
            with open(os.path.join(run, 'result.json')) as file:
                results.append(json.load(file))
        except (OSError, ValueError) as error:
            raise InputError('%s: holds no result.json of a finished run (%s); finish the run by --resume or leave it out.'
                             % (run, getattr(error, 'strerror', None) or error)) from None
    return results


def setting(result):
    """What makes a run comparable to others: its flags but for the seed, and its images. Older runs lack newer flags."""
    return dict({name: result['flags'].get(name, STARTED_WITH.get(name)) for name in SETTINGS}, data=data_name(result['flags']),
                images=result['data_checksum'][:8])


def group(results):
    """Lists of the runs with the same setting, by seed."""
    groups = {}
    for result in results:
        groups.setdefault(json.dumps(setting(result), sort_keys=True), []).append(result)
    return [sorted(runs, key=lambda run: run['flags']['seed']) for runs in groups.values()]


def differences(groups, same):
    """The names of the settings in which groups differ that have the settings `same` in common."""
    settings = [setting(runs[0]) for runs in groups]
    return sorted({name for one in settings for other in settings if all(one[name] == other[name] for name in same)
                   for name in one if one[name] != other[name]})


def plot(folders, path):
    """Draw the errors by method and labels to a PNG file. Raises InputError without matplotlib, and as compare does."""
    if plots.missing():
        raise InputError('--plot %s: matplotlib cannot be imported (%s); pip install matplotlib.' % (path, plots.missing()))
    groups = group(load_results(folders))
    naming = [name for name in ('method', 'data', 'network') if name == 'method' or name in differences(groups, [])]
    besides = differences(groups, SHOWN)
    series = {}
    for runs in groups:
        values = setting(runs[0])
        name = ', '.join([values[name] for name in naming] + ['%s %s' % (name, values[name]) for name in besides])
        series.setdefault(name, {})[values['labels']] = [run['classification_error_rate'] for run in runs]
    names = {setting(runs[0])['data'] for runs in groups}
    write_whole(path, plots.comparison_png(series, names.pop() if len(names) == 1 else ''))


@program
def main(argv):
    """Run the program; returns its exit status."""
    parser = Parser(prog='report.py', description='Results of several runs side by side.')
    commands = parser.add_subparsers(metavar='compare', dest='command')
    commands.required = True
    command = commands.add_parser('compare', help='results of several runs side by side')
    command.add_argument('results', nargs='+', metavar='RESULT', help='folder of a run, or a folder of such folders')
    command.add_argument('--plot', metavar='FILE.png', help='also draw the errors, a dot a run')
    args = parser.parse_args(argv)
    print(compare(args.results))
    if args.plot:
        plot(args.results, args.plot)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
