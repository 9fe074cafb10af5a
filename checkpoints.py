"""Checkpoints: the weights, the optimizer's state and the progress of a run, in files that are whole or not there."""
import glob
import io
import json
import os
import sys
import time
import zipfile
import zlib

import numpy as np

from record import write_whole
from training import Diverged, Progress

KEPT = 2                # the last one, and the one before it in case the last is damaged
EPOCH_SECONDS = 30      # an epoch on an accelerator lasts seconds: not every one is worth a checkpoint


class Checkpoints:
    """The checkpoints of one run, in `folder`; `minutes` is the longest time between two."""

    def __init__(self, folder, model, steps_per_epoch, minutes):
        self.folder, self.model, self.steps_per_epoch, self.minutes = folder, model, steps_per_epoch, minutes
        self.saved = time.monotonic()
        # Loss scaling wraps the optimizer and has no weights on TensorFlow 1.15; a resumed run finds its scale anew.
        self.optimizer = getattr(model.optimizer, '_optimizer', model.optimizer)

    def after_step(self, progress, stopping):
        """Save when the run is stopping, at the end of an epoch if the last checkpoint is 30 s old, and every `minutes`."""
        age = time.monotonic() - self.saved
        ended = progress.step % self.steps_per_epoch == 0
        if stopping or age > 60 * self.minutes or ended and age > EPOCH_SECONDS:
            self.save(progress)

    def save(self, progress):
        """Write a checkpoint and remove all but the last two. Raises Diverged rather than keep weights that are not finite."""
        weights, state = self.model.get_weights(), self.optimizer.get_weights()
        if not all(np.isfinite(array).all() for array in weights):
            raise Diverged('after step %d a weight is not finite' % (progress.step - 1))
        memory = io.BytesIO()
        np.savez(memory, progress=np.frombuffer(json.dumps(progress._asdict()).encode(), np.uint8),
                 **{'weight_%d' % i: array for i, array in enumerate(weights)},
                 **{'optimizer_%d' % i: array for i, array in enumerate(state)})
        os.makedirs(self.folder, exist_ok=True)
        write_whole(os.path.join(self.folder, 'step-%09d.npz' % progress.step), memory.getvalue())
        for path in self._paths()[:-KEPT]:
            os.remove(path)
        self.saved = time.monotonic()

    def restore(self):
        """Set the model and the optimizer to the newest whole checkpoint; returns its Progress, a fresh one if there is none.

        A damaged checkpoint is named on standard error and the one before it is used.
        """
        for path in reversed(self._paths()):
            try:
                with np.load(path) as file:     # reading checks each array's CRC
                    arrays = {name: file[name] for name in file.files}
                progress = Progress(**json.loads(arrays.pop('progress').tobytes().decode()))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                print('%s: damaged (%s); the checkpoint before it is used.' % (path, error), file=sys.stderr)
                continue
            self.model._make_train_function()   # the optimizer's variables exist from here on
            for part, kind in ((self.model, 'weight'), (self.optimizer, 'optimizer')):
                part.set_weights([arrays['%s_%d' % (kind, i)] for i in range(sum(name.startswith(kind) for name in arrays))])
            return progress
        return Progress()

    def _paths(self):
        return sorted(glob.glob(os.path.join(glob.escape(self.folder), 'step-*.npz')))
