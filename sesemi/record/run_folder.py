"""The folder of a run: its flags, labeled split, log and result, in files written atomically."""
import contextlib
import csv
import glob
import json
import os
import pathlib
import shlex
import sys
import time

import numpy as np

from sesemi.device import precision
from sesemi.errors import InputError, describe_error
from sesemi.flags import DEFAULTS, IDENTITY_FLAGS, RESUMED_FLAGS, parse_given, spell_flag
from sesemi.record.identity import git_revision, list_versions
from sesemi.record.lock import is_held, lock
from sesemi.settings import default_directory
from sesemi.system.files import PARTIAL_NAME, try_to_write, write_atomic, write_json, write_table

# keys that every args.json and result.json has
RECORD_KEYS = 'flags', 'data_checksum'
RESULT_KEYS = (*RECORD_KEYS, 'classification_error_rate', 'classification_error_rate_1_view',
               'balanced_error_rate', 'steps', 'seconds_per_step', 'images_per_second')
INITIAL_MODEL = 'init.h5'       # a run's copy of the file of --init
# Raised when the same flags train differently. 2: other averages and masks; 3: other whitening of folders.
# 4: other rounding of the learning rate and the averages.
FORMAT = 4


@contextlib.contextmanager
def open_run(folder, flags):
    """Make and lock the folder of a run for the block; yields its Run. Raises InputError as Run."""
    run = Run(folder, flags)
    with run.clean_up_on_error():
        yield run


class Run:
    """The folder of one run. It is made and locked at once, so that a wrong folder fails before the work.

    flags: a dict of all flags; resuming: whether the folder holds a run to go on with; error_rate: the run's
    if it is finished, else None. Raises InputError if the folder cannot be written, is in use, or holds a run
    that the flags do not resume or that was started with other flags.
    """

    def __init__(self, folder, flags):
        self.folder, self.flags, self.device, self._lock = folder, flags, None, None
        self._started = False       # until then an error removes what this run has made
        absolute = pathlib.Path(os.path.abspath(folder))
        paths = absolute / '.lock', absolute, *absolute.parents
        self._made = [path for path in paths if not os.path.exists(str(path))]
        with self.clean_up_on_error():
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as error:
                raise InputError('--result %s: cannot be made (%s); give another --result.'
                                 % (folder, error.strerror)) from None
            self._lock = lock(folder)
            self._check()
            result = stored_result(folder)
        self.error_rate = result['classification_error_rate'] if result else None
        unfinished = PARTIAL_NAME % ('*', 8 * '[0-9a-f]')
        for path in [*absolute.glob(unfinished), *absolute.glob('checkpoints/' + unfinished)]:
            with contextlib.suppress(OSError):      # open elsewhere
                path.unlink()       # left by a process that was killed while it wrote

    @contextlib.contextmanager
    def clean_up_on_error(self):
        """If the block raises before `start`, remove the lock file and the folders made for this run."""
        try:
            yield
        except BaseException:
            if self._lock and is_held(self._lock) and not self._started:
                with contextlib.suppress(OSError):      # the folder is not empty any more
                    for path in self._made:
                        remove = path.rmdir if path.is_dir() else path.unlink
                        remove()
            raise

    def _check(self):
        """Raises InputError if the flags do not fit what the folder holds."""
        folder, flags, stored = self.folder, self.flags, stored_record(self.folder)
        self.resuming = stored is not None
        if not self.resuming:
            path = pathlib.Path(folder)
            left = [*path.glob('result.json'), *path.glob('checkpoints/step-*.npz')]
            if left:        # would be mistaken for this run's
                raise InputError('--result %s: holds %s of a run, but not its args.json; give another '
                                 '--result.' % (folder, left[0].relative_to(path)))
            if flags['resume'] == 'yes':
                raise InputError('--resume: %s holds no run to go on with; leave the flag out to start one.'
                                 % folder)
            return
        if not flags['resume']:
            raise InputError('--result %s: holds a run already; go on with it by --resume, or give another '
                             '--result.' % folder)
        if stored.get('format') != FORMAT and not os.path.exists(self.path('result.json')):
            raise InputError('--resume: the run in %s was begun by another version of this program, which '
                             'trains otherwise; finish it with that version or give another --result.'
                             % folder)
        for name, default in IDENTITY_FLAGS.items():
            started = stored['flags'].get(name, default)
            if flags[name] not in (None, started):
                raise InputError('--resume: the run in %s was started with --%s %s, not %s%s; leave the flag '
                                 'out or give another '
                                 '--result.' % (folder, name.replace('_', '-'), started, flags[name],
                                                ', and the learning rate of every step depends on it'
                                                if name == 'epochs' else ''))

    def check_held(self):
        """Raises InputError if the folder is no longer this run's: writing might then damage another run."""
        if not is_held(self._lock):
            raise InputError('--result %s: was removed, moved or emptied while the run went on, which ends '
                             'here; start it again.' % self.folder)

    def path(self, name):
        """A file's path in the run's folder."""
        return os.path.join(self.folder, name)

    def start(self, flags, device, dataset, labeled, checksum, held_out=()):
        """Write args.json, labeled.csv and a copy of --init, unless resumed. Then the folder holds a run.

        flags: a dict of all flags; device: 'cpu', 'gpu' or 'npu'; dataset: the datasets.Dataset as read;
        labeled: int (labels,), indices of its labeled training images; checksum: of its images; held_out: the
        names of labeled images that --validation takes out.
        """
        self.check_held()
        self._started, self.flags, self.device = True, flags, device
        if self.resuming:
            self._print_precision_change()
            self._print_lost_epochs()
            return
        held_out = set(held_out)
        write_table(self.path('labeled.csv'), [
            {'index': int(i), 'file': dataset.train_names[i],
             'class': dataset.class_names[dataset.train_labels[i]],
             'split': 'valid' if dataset.train_names[i] in held_out else 'train'} for i in labeled])
        if self.flags['init']:      # a resumed run reads this copy
            write_atomic(self.path(INITIAL_MODEL), pathlib.Path(self.flags['init_file']).read_bytes())
        # absolute, so that a resumed run finds it from any folder
        flags = dict(self.flags, dataset=self.flags['dataset'] and os.path.abspath(self.flags['dataset']))
        write_json(self.path('args.json'), {
            'command': ' '.join(map(shlex.quote, sys.argv)), 'flags': flags, 'device': self.device,
            'data_checksum': checksum, 'format': FORMAT})

    def _print_precision_change(self):
        stored = stored_record(self.folder)
        mode = stored['flags'].get('precision_mode')
        now = precision.describe(self.device, self.flags['precision_mode'])
        # older records name no device
        before = precision.describe(stored.get('device', 'gpu' if mode == 'mixed' else self.device), mode)
        if before != now:
            print('Precision: %s from here on; the run began in %s.' % (now, before))

    def _print_lost_epochs(self):
        if any(pathlib.Path(self.folder).glob('checkpoints/step-*.npz')):
            return
        with contextlib.suppress(OSError), open(self.path('log.csv'), 'rb') as file:
            epochs = len(file.readlines()) - 1
            if epochs > 0:
                print('%s: no checkpoint of the %d epochs in log.csv is there; it starts again.'
                      % (self.folder, epochs), file=sys.stderr)

    def read_split(self, dataset, checksum):
        """The indices of the labeled images of the run to be resumed, from labeled.csv: int64 (labels,).

        Raises InputError if the file cannot be read or has another number of images than were chosen, or if
        the images have changed since the run was started.
        """
        if stored_record(self.folder)['data_checksum'] != checksum:
            raise InputError('--resume: the images are not those that the run in %s was started with; give '
                             'these by --dataset or another --result.' % self.folder)
        try:
            with open(self.path('labeled.csv'), encoding='utf-8', newline='') as file:
                labeled = [int(row['index']) for row in csv.DictReader(file)]
            chosen, images = self.flags['labels'], len(dataset.train_labels)
            chosen = images if chosen in ('all', images) else chosen - chosen % len(dataset.class_names)
            if len(labeled) != chosen:
                raise ValueError('it has %d images, not %d' % (len(labeled), chosen))
            return np.array(labeled)
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise InputError('%s: not the labeled images of a run (%s); give another --result.'
                             % (self.path('labeled.csv'), describe_error(error))) from None

    def log(self, rows):
        """Write log.csv, if that is possible. rows: a dict for each epoch so far.

        Raises InputError as check_held.
        """
        self.check_held()
        try_to_write(write_table, self.path('log.csv'), rows)

    def result(self, metrics, rows, images_per_step, laps):
        """The content of result.json: the metrics, times and versions, and the content of args.json.

        metrics: a dict; rows: a dict for each epoch; laps: {part of the run: seconds}.
        """
        seconds = sum(row['seconds'] for row in rows)
        return {
            **metrics,
            'steps': rows[-1]['step'],
            'images_per_step': images_per_step,
            'seconds_per_step': seconds / rows[-1]['step'],
            'images_per_second': images_per_step * rows[-1]['step'] / seconds,
            'seconds': laps,
            'versions': list_versions(),
            'git_revision': git_revision(),
            **stored_record(self.folder),
            'device': self.device,
            'precision_mode': self.flags['precision_mode'],
        }

    def finish(self, result):
        """Write result.json, the last file of a run, and set error_rate."""
        write_json(self.path('result.json'), result)
        self.error_rate = result['classification_error_rate']


class Clock:
    """Seconds spent in each part of a run."""

    def __init__(self):
        self.laps, self._since = {}, time.perf_counter()

    def lap(self, name):
        """Record the seconds since the last lap under `name`."""
        now = time.perf_counter()
        self.laps[name], self._since = now - self._since, now


def stored_record(folder):
    """The content of args.json in a run's folder, with the flags; None if the folder holds no run.

    Raises InputError if it is damaged.
    """
    path = os.path.join(folder, 'args.json')
    return read_json(path, RECORD_KEYS) if os.path.lexists(path) else None


def stored_result(folder):
    """The content of result.json in a run's folder; None if the run is not finished.

    Raises InputError if it is damaged.
    """
    path = os.path.join(folder, 'result.json')
    return read_json(path, RESULT_KEYS) if os.path.lexists(path) else None


def data_name(flags):
    """The name of a run's data set. Own images are named after their folder or list."""
    if flags['data'] == 'folder' and flags.get('dataset'):
        return os.path.basename(os.path.abspath(flags['dataset']))
    return flags['data']


def read_json(path, keys=()):
    """The object that a JSON file of a run holds. Raises InputError if it is damaged or lacks a key."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        missing = set(keys) - set(content)
        if missing:
            raise ValueError('it has no ' + min(missing))
        return content
    except (OSError, ValueError, TypeError) as error:
        raise InputError('%s: not the record of a run (%s); give another --result.'
                         % (path, describe_error(error))) from None


def recorded_flags(folder):
    """The flags of the run in `folder`, as a dict; {} if there is none.

    Raises InputError if this version does not accept one of them.
    """
    flags = (stored_record(folder) or {'flags': {}})['flags']
    known = set(DEFAULTS) - {'whitening'}       # earlier versions also had shrunk, in runs that Run refuses
    try:
        parse_given(['%s=%s' % (spell_flag(name), value)
                     for name, value in flags.items() if name in known and value is not None])
    except InputError as error:
        raise InputError('%s: begun by another version of this program (%s); finish the run with that one or '
                         'give another --result.'
                         % (os.path.join(folder, 'args.json'), str(error).split('; --help')[0])) from None
    if flags.get('init'):       # a checksum in the record, a file on the command line
        flags['init'] = os.path.join(folder, INITIAL_MODEL)
    return flags


def flags_to_resume(folder):
    """The flags that a resumed run takes from its record, as a dict; {} if `folder` holds no run.

    `folder` may also hold several runs, started by --runs; they share these flags.
    """
    flags, names = recorded_flags(folder), RESUMED_FLAGS
    for path in [] if flags else glob.glob(os.path.join(glob.escape(folder), 'seed-*', 'args.json')):
        found = recorded_flags(os.path.dirname(path))
        if not flags or found.get('seed', 0) < flags.get('seed', 0):      # the first run has the lowest seed
            flags, names = found, [*RESUMED_FLAGS, 'runs']
    default = default_directory(flags.get('data', 'folder')) if flags.get('dataset') else None
    if default and flags['dataset'].endswith(default) and not os.path.exists(flags['dataset']):
        flags['dataset'] = None     # it was in its default folder: look for it, or download it, again
    return {name: flags[name] for name in names if name in flags}
