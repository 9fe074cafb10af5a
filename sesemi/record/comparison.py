"""Several finished runs side by side, as a table and as a plot."""
import glob
import json
import os

import numpy as np

from sesemi.device import precision
from sesemi.errors import InputError
from sesemi.flags import IDENTITY_FLAGS
from sesemi.record import page, plots
from sesemi.record.live import print_once
from sesemi.record.run_folder import data_name, stored_result
from sesemi.system.files import write_atomic

# always have a column; other settings if they differ between runs on a data set
SHOWN = ('method', 'data', 'network', 'labels')
STARTED_WITH = dict(IDENTITY_FLAGS, ranks=1)              # where a run's record has not yet the flag
SETTINGS = sorted({*STARTED_WITH, 'flip'} - {'seed', 'no_flip'})


def summary(errors):
    """The line that a program reads: the error rate, or of several runs its mean and sample standard
    deviation.
    """
    return 'classification error rate: ' + mean_and_deviation(errors)


def mean_and_deviation(values):
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
            mean_and_deviation(of('classification_error_rate')),
            mean_and_deviation(of('classification_error_rate_1_view')),
            mean_and_deviation(of('balanced_error_rate')),
            str(runs[0]['flags']['epochs']),
            page.duration(np.mean(of('steps')) * np.mean(of('seconds_per_step'))),
            '%.0f' % np.mean(of('images_per_second'))])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                     for line in lines)


def load_results(folders):
    """What result.json holds of each run in `folders`, every run once."""
    found = []
    for folder in folders:
        inside = [os.path.dirname(path)
                  for path in sorted(glob.glob(os.path.join(glob.escape(folder), '*', 'args.json')))]
        finished = [run for run in inside if os.path.exists(os.path.join(run, 'result.json'))]
        for run in sorted(set(inside) - set(finished)):
            print_once('%s: not finished; left out.' % run)
        found += finished or [folder]
    results = []
    for run in {os.path.realpath(run): run for run in found}.values():
        result = stored_result(run)
        if result is None:
            raise InputError('%s: holds no result.json of a finished run; finish the run by --resume or '
                             'leave it out.' % run)
        results.append(result)
    return results


def setting(result):
    """What makes a run comparable to others: its flags but for the seed, and its images. Older runs lack
    newer flags.
    """
    mode = result.get('precision_mode', result['flags'].get('precision_mode'))
    return dict({name: result['flags'].get(name, STARTED_WITH.get(name)) for name in SETTINGS},
                data=data_name(result['flags']),
                precision_mode=precision.describe(result.get('device'), mode),
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
    return sorted({name for one in settings for other in settings
                   if all(one[name] == other[name] for name in same)
                   for name in one if one[name] != other[name]})


def plot(folders, path):
    """Draw the errors by method and labels to a PNG file. Raises InputError without matplotlib, and as
    compare does.
    """
    if plots.import_error():
        raise InputError('--plot %s: matplotlib cannot be imported (%s); pip install matplotlib.'
                         % (path, plots.import_error()))
    groups = group(load_results(folders))
    naming = [name for name in ('method', 'data', 'network') if name == 'method'
              or name in differences(groups, [])]
    besides = differences(groups, SHOWN)
    series = {}
    for runs in groups:
        values = setting(runs[0])
        name = ', '.join([values[name] for name in naming]
                         + ['%s %s' % (name, values[name]) for name in besides])
        series.setdefault(name, {})[values['labels']] = [run['classification_error_rate'] for run in runs]
    names = {setting(runs[0])['data'] for runs in groups}
    write_atomic(path, plots.comparison_png(series, names.pop() if len(names) == 1 else ''))
