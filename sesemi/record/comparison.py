"""Compares finished runs in a table and in a plot."""
import glob
import json
import os

import numpy as np

from sesemi.device import precision
from sesemi.errors import InputError, escape_controls
from sesemi.flags import IDENTITY_FLAGS
from sesemi.record import page, plots
from sesemi.record.live import print_once
from sesemi.record.run_folder import data_name, stored_result
from sesemi.system.files import write_atomic

# always a column of the table; other settings only if runs on one data set differ in them
ALWAYS_SHOWN = ('method', 'data', 'network', 'labels')
DEFAULT_SETTINGS = dict(IDENTITY_FLAGS, ranks=1)        # of runs that were recorded before the flag existed
SETTINGS = sorted({*DEFAULT_SETTINGS, 'flip'} - {'seed', 'no_flip'})


def summary(errors):
    """The line for other programs: the error rate, or the mean and sample deviation of several runs."""
    return 'classification error rate: ' + mean_and_deviation(errors)


def mean_and_deviation(values):
    """'0.2944', or for several values '0.2944 +/- 0.0024 (5 runs)'."""
    if len(values) == 1:
        return '%.4f' % values[0]
    return '%.4f +/- %.4f (%d runs)' % (np.mean(values), np.std(values, ddof=1), len(values))


def compare(folders):
    """A text table of finished runs. Runs that differ only in their seed share a line.

    folders: of runs, or folders that contain such. Raises InputError naming a folder without a finished run.
    """
    groups = group_by_setting(load_results(folders))
    columns = [*ALWAYS_SHOWN, *(name for name in differing_settings(groups, ['data'])
                                if name not in ALWAYS_SHOWN + ('epochs',))]
    lines = [columns + ['seed', 'error', 'error, 1 view', 'balanced error', 'epochs', 'training', 'images/s']]
    for runs in groups:
        def values(key):
            return [run[key] for run in runs]
        lines.append([escape_controls(str(setting_of(runs[0])[name])) for name in columns] + [
            ','.join(str(run['flags']['seed']) for run in runs),
            mean_and_deviation(values('classification_error_rate')),
            mean_and_deviation(values('classification_error_rate_1_view')),
            mean_and_deviation(values('balanced_error_rate')),
            str(runs[0]['flags']['epochs']),
            page.duration(np.mean(values('steps')) * np.mean(values('seconds_per_step'))),
            '%.0f' % np.mean(values('images_per_second'))])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                     for line in lines)


def load_results(folders):
    """The content of result.json for each run in `folders`, each run once. Raises InputError as compare."""
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


def setting_of(result):
    """What runs must have in common to share a line: the images, the precision, and all flags but the seed.

    result: the content of result.json. Flags that an older run does not have get their defaults.
    """
    mode = result.get('precision_mode', result['flags'].get('precision_mode'))
    return dict({name: result['flags'].get(name, DEFAULT_SETTINGS.get(name)) for name in SETTINGS},
                data=data_name(result['flags']),
                init=str(result['flags'].get('init'))[:15],
                precision_mode=precision.describe(result.get('device'), mode),
                images=result['data_checksum'][:8])


def group_by_setting(results):
    """Lists of the runs with the same setting, sorted by seed."""
    groups = {}
    for result in results:
        groups.setdefault(json.dumps(setting_of(result), sort_keys=True), []).append(result)
    return [sorted(runs, key=lambda run: run['flags']['seed']) for runs in groups.values()]


def differing_settings(groups, same):
    """The settings in which groups differ, of groups that have equal values of the settings `same`."""
    settings = [setting_of(runs[0]) for runs in groups]
    return sorted({name for one in settings for other in settings
                   if all(one[name] == other[name] for name in same)
                   for name in one if one[name] != other[name]})


def plot(folders, path):
    """Draw the errors by method and labels to the PNG file `path`.

    Raises InputError without matplotlib, and as compare.
    """
    if plots.import_error():
        raise InputError('--plot %s: matplotlib cannot be imported (%s); pip install matplotlib.'
                         % (path, plots.import_error()))
    groups = group_by_setting(load_results(folders))
    named = [name for name in ('method', 'data', 'network') if name == 'method'
             or name in differing_settings(groups, [])]
    others = differing_settings(groups, ALWAYS_SHOWN)
    series = {}
    for runs in groups:
        values = setting_of(runs[0])
        name = ', '.join([values[name] for name in named]
                         + ['%s %s' % (name, values[name]) for name in others])
        series.setdefault(name, {})[values['labels']] = [run['classification_error_rate'] for run in runs]
    names = {setting_of(runs[0])['data'] for runs in groups}
    write_atomic(path, plots.comparison_png(series, names.pop() if len(names) == 1 else ''))
