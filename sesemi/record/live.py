"""The report of a run, kept up to date while it goes on: report.html, curves.png, confusion.png."""
import functools
import os
import sys
import time

import numpy as np

from sesemi.errors import RunError
from sesemi.record import page, plots
from sesemi.record.run_folder import stored_record
from sesemi.system.files import write_atomic

REFRESH_SECONDS = 30        # an epoch on an accelerator lasts seconds: not every one is worth a drawing


class Report:
    """The report of the run in `folder`, which run_folder.Run has started.

    dataset: a datasets.Dataset; labeled: int (labels,) indices of its labeled training images; epochs: those
    of the whole run; clock: seconds. Without matplotlib the page has no curves, which is said once on
    standard error.
    """

    def __init__(self, folder, dataset, labeled, epochs, clock=time.monotonic):
        self.folder, self.dataset, self.labeled, self.epochs = folder, dataset, labeled, epochs
        self.clock = clock
        self.record = stored_record(folder)
        self.samples = page.samples_section(dataset, labeled)
        if plots.import_error():
            print_once('No curves.png and no confusion.png: matplotlib cannot be imported (%s); pip install '
                     'matplotlib.'
                     % plots.import_error())
        self.drawn = float('-inf')

    def refresh(self, rows):
        """Bring curves.png and report.html up to date, if the last time was 30 s ago. rows: a dict an epoch,
        as in log.csv.

        Raises InputError when a file cannot be written.
        """
        if self.clock() - self.drawn >= REFRESH_SECONDS:
            self._draw(rows)
            self.drawn = self.clock()

    def finish(self, rows, probabilities, result):
        """Write the whole report. probabilities: float (n, classes) of the test images, in their order;
        result: that of run_folder.Run.

        Raises InputError when a file cannot be written.
        """
        self._draw(rows, result, probabilities)

    def _draw(self, rows, result=None, probabilities=None):
        try:
            for name, content in self._files(rows, result, probabilities):
                write_atomic(os.path.join(self.folder, name), content)
        except RunError:
            raise
        except Exception as error:
            # a run of days must not end for a picture, whatever a plotting library does
            print_once('%s: the report could not be drawn (%s: %s); the run goes on.'
                     % (self.folder, type(error).__name__, error))

    def _files(self, rows, result, probabilities):
        """Yield (name, bytes) of each file."""
        curves, title = [], page.title(self.record['flags'], self.labeled)
        if not plots.import_error():
            png, curves = plots.curves(rows, title)
            yield 'curves.png', png
        if result and not plots.import_error():
            names = self.dataset.class_names
            matrix = np.array(result['confusion_matrix'])
            yield 'confusion.png', plots.confusion_png(matrix, names, len(names) <= page.NUMBERED, title)
        text = page.render(self, rows, curves, result, probabilities)
        # a file's name may hold bytes that are no text
        yield 'report.html', text.encode('utf-8', 'replace')


@functools.lru_cache(maxsize=None)
def print_once(sentence):
    """Print a sentence on standard error, the first time it is to be said."""
    print(sentence, file=sys.stderr)
