"""Writes the report of a run while it trains: report.html, curves.png and confusion.png."""
import functools
import os
import sys
import time

import numpy as np

from sesemi.errors import escape_controls
from sesemi.record import page, plots
from sesemi.record.run_folder import stored_record
from sesemi.system.files import try_to_write, write_atomic

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
        """Write curves.png and report.html, unless both were written in the last REFRESH_SECONDS.

        rows: a dict for each epoch so far, as in log.csv.
        """
        if self.clock() - self.drawn_at >= REFRESH_SECONDS and self._draw(rows):
            self.drawn_at = self.clock()

    def finish(self, rows, probabilities, result):
        """Write the complete report.

        probabilities: float (n, classes) of the test images, in their order; result: as run_folder.Run.result
        returns it.
        """
        self._draw(rows, result, probabilities)

    def _draw(self, rows, result=None, probabilities=None):
        """Write each file, if that is possible; returns whether all were written."""
        title, curves = page.title(self.record['flags'], self.labeled), []

        def write_curves(path):
            png, elements = plots.curves(rows, title)
            curves.extend(elements)
            write_atomic(path, png)

        def write_confusion(path):
            names = self.dataset.class_names
            write_atomic(path, plots.confusion_png(np.array(result['confusion_matrix']), names,
                                                   len(names) <= page.NUMBERED_CLASSES, title))

        def write_page(path):
            write_atomic(path, page.render(self, rows, curves, result, probabilities).encode())
        pictures = [('curves.png', write_curves), ('confusion.png', write_confusion)][:2 if result else 1]
        files = [*([] if plots.import_error() else pictures), ('report.html', write_page)]
        return all([try_to_write(write, os.path.join(self.folder, name)) for name, write in files])


@functools.lru_cache(maxsize=None)
def print_once(sentence):
    """Print a sentence on standard error, but only the first time this is called with it."""
    print(escape_controls(sentence), file=sys.stderr)
