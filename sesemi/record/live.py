"""Writes the report of a run while it trains: report.html, curves.png and confusion.png."""
import functools
import os
import sys
import time

import numpy as np

from sesemi.errors import RunError
from sesemi.record import page, plots
from sesemi.record.run_folder import stored_record
from sesemi.system.files import write_atomic

REFRESH_SECONDS = 30        # an epoch on an accelerator may last seconds: too short for a drawing each


class Report:
    """The report of the run in `folder`, after run_folder.Run.start.

    dataset: a datasets.Dataset; labeled: int (labels,), indices of its labeled training images; epochs: of
    the whole run; clock: a function that returns seconds. Without matplotlib the page has no curves; standard
    error says so once.
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
        self.drawn_at = float('-inf')

    def refresh(self, rows):
        """Write curves.png and report.html, unless that was done in the last REFRESH_SECONDS.

        rows: a dict for each epoch so far, as in log.csv. Raises InputError if a file cannot be written.
        """
        if self.clock() - self.drawn_at >= REFRESH_SECONDS:
            self._draw(rows)
            self.drawn_at = self.clock()

    def finish(self, rows, probabilities, result):
        """Write the complete report.

        probabilities: float (n, classes) of the test images, in their order; result: as run_folder.Run.result
        returns it. Raises InputError if a file cannot be written.
        """
        self._draw(rows, result, probabilities)

    def _draw(self, rows, result=None, probabilities=None):
        try:
            for name, content in self._files(rows, result, probabilities):
                write_atomic(os.path.join(self.folder, name), content)
        except RunError:
            raise
        except Exception as error:
            # whatever a plotting library does, a picture must not end a run of days
            print_once('%s: the report could not be drawn (%s: %s); the run goes on.'
                     % (self.folder, type(error).__name__, error))

    def _files(self, rows, result, probabilities):
        """Yield (name, content in bytes) of each file."""
        curves, title = [], page.title(self.record['flags'], self.labeled)
        if not plots.import_error():
            png, curves = plots.curves(rows, title)
            yield 'curves.png', png
        if result and not plots.import_error():
            names = self.dataset.class_names
            matrix = np.array(result['confusion_matrix'])
            yield 'confusion.png', plots.confusion_png(matrix, names, len(names) <= page.NUMBERED_CLASSES,
                                                       title)
        text = page.render(self, rows, curves, result, probabilities)
        # file names may contain bytes that are not text
        yield 'report.html', text.encode('utf-8', 'replace')


@functools.lru_cache(maxsize=None)
def print_once(sentence):
    """Print a sentence on standard error, but only the first time this is called with it."""
    print(sentence, file=sys.stderr)
