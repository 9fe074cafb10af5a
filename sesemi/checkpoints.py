"""Checkpoints: the weights, the optimizer's state and the progress of a run, in files that are whole or not there."""
import contextlib
import glob
import io
import json
import math
import os
import sys
import time
import zipfile

import numpy as np

from sesemi.errors import InputError, reason
from sesemi.files import open_regular, read_array, write_atomic
from sesemi.process_group import ProcessGroup
from sesemi.runtime import step_variable
from sesemi.training import Diverged, Progress, assign, read

KEPT = 2                # the last one, and the one before it in case the last is damaged
EPOCH_SECONDS = 30      # an epoch on an accelerator lasts seconds: not every one is worth a checkpoint


class Checkpoints:
    """The checkpoints of one run, in `folder`; `minutes` is the longest time between two.

    optimizer: the model's, after training.training_function has made its variables. A checkpoint holds the best weights so far
    too, where there are any: they are always those of the steps it counts, whenever a process is killed.
    """

    def __init__(self, folder, model, optimizer, steps_per_epoch, minutes):
        self.folder, self.model, self.steps_per_epoch, self.minutes = folder, model, steps_per_epoch, minutes
        # Loss scaling wraps the optimizer and has no weights on TensorFlow 1.15; a resumed run finds its scale anew.
        self.variables = model.weights + getattr(optimizer, '_optimizer', optimizer).weights
        self.best = []          # the arrays of model.weights when store_best was last called
        self.saved = time.monotonic()

    def store_best(self):
        """The weights as they are, batch-norm statistics with them, are the best so far."""
        self.best = read(self.model.weights)

    def load_best(self):
        """Set the model to its best weights, if there are any."""
        assign(self.model.weights[:len(self.best)], self.best)

    def after_step(self, progress, stopping):
        """Save when the run is stopping, at the end of an epoch if the last checkpoint is 30 s old, and every `minutes`."""
        age = time.monotonic() - self.saved
        ended = progress.step % self.steps_per_epoch == 0
        if stopping or age > 60 * self.minutes or ended and age > EPOCH_SECONDS:
            self.save(progress)

    def save(self, progress):
        """Write a checkpoint and remove all but the last two. Raises Diverged rather than keep weights that are not finite."""
        data = self.pack(progress)
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise InputError('%s: cannot be made (%s); what was saved before is whole.' % (self.folder, error.strerror)) from None
        path = os.path.join(self.folder, 'step-%09d.npz' % progress.step)
        write_atomic(path, data)
        paths = self._paths()
        newest = paths.index(path)      # those of later steps were damaged, or counted the steps of fewer ranks
        for other in paths[:max(0, newest + 1 - KEPT)] + paths[newest + 1:]:
            with contextlib.suppress(OSError):
                os.remove(other)
        self.saved = time.monotonic()

    def restore(self, group=ProcessGroup()):
        """Set all variables to the newest whole checkpoint; returns its Progress, a fresh one if there is none.

        A checkpoint that is damaged, or of another model, is named on standard error and the one before it is used. With several
        ranks rank 0's checkpoint, or its first weights, go to all.
        """
        progress = None if group.rank else self._restore()
        if group.world_size > 1:
            progress = self.unpack(group.broadcast(b'' if group.rank else self.pack(progress)))
        return progress

    def _restore(self):
        paths = self._paths()
        for path in reversed(paths):
            try:
                with open_regular(path) as file:
                    content = self._read(file)
            except Exception as error:      # a damaged file raises nearly anything
                print('%s: damaged (%s); %s.' % (path, reason(error), 'the run starts again from its first step' if path == paths[0]
                                                 else 'the checkpoint before it is used'), file=sys.stderr)
                continue
            return self._set(*content)
        return Progress()

    def pack(self, progress):
        """A checkpoint as bytes, an .npz. Raises Diverged when a weight is not finite."""
        arrays = read(self.variables)
        if not all(np.isfinite(array).all() for array in arrays):
            raise Diverged('after step %d a weight is not finite' % (progress.step - 1))
        memory = io.BytesIO()
        np.savez(memory, progress=np.frombuffer(json.dumps(progress._asdict()).encode(), np.uint8), steps_per_epoch=self.steps_per_epoch,
                 **{'variable_%d' % i: array for i, array in enumerate(arrays)}, **{'best_%d' % i: array for i, array in enumerate(self.best)})
        return memory.getvalue()

    def unpack(self, data):
        """Set all variables to what pack gave, here or on another rank; returns its Progress."""
        return self._set(*self._read(io.BytesIO(data)))

    def _read(self, file):
        """(Progress, steps an epoch, the variables' arrays, the best) of a checkpoint. Raises whatever a damaged one makes zipfile raise."""
        with zipfile.ZipFile(file) as archive:      # reading checks each array's CRC
            progress = Progress(**json.loads(read_array(archive, 'progress', np.uint8, None).tobytes().decode()))
            steps_per_epoch = int(read_array(archive, 'steps_per_epoch', np.int64, ()))
            kinds = [(variable.dtype.base_dtype.as_numpy_dtype, variable.shape.as_list()) for variable in self.variables]
            arrays = [read_array(archive, 'variable_%d' % i, *kind) for i, kind in enumerate(kinds)]
            best = []       # the variables begin with the model's weights
            if len(archive.namelist()) > 2 + len(arrays):       # not by their names, which have no CRC
                best = [read_array(archive, 'best_%d' % i, *kind) for i, kind in enumerate(kinds[:len(self.model.weights)])]
        if not _is_whole(progress, steps_per_epoch):
            raise ValueError('its progress is none')
        if not all(np.isfinite(array).all() for array in arrays + best):
            raise ValueError('its weights are not finite')
        return progress, steps_per_epoch, arrays, best

    def _set(self, progress, steps_per_epoch, arrays, best):
        progress = rescale(progress, steps_per_epoch, self.steps_per_epoch)
        assign(self.variables + [step_variable()], arrays + [progress.step])
        self.best = best
        return progress

    def _paths(self):
        return sorted(glob.glob(os.path.join(glob.escape(self.folder), 'step-*.npz')))


def _is_whole(progress, steps_per_epoch):
    """Whether the parts of a Progress are of the right kinds and of one run: a row for each epoch, totals for the steps behind them."""
    step, totals, rows = progress
    if not (type(step) is int and steps_per_epoch > 0 and isinstance(rows, list) and all(map(_are_numbers, [totals] + rows))):
        return False
    done = step - steps_per_epoch * len(rows)
    return (0 < done <= steps_per_epoch if totals else done == 0) and all(
        row.get('epoch') == epoch and 'step' in row and row.get('seconds', 0) > 0 for epoch, row in enumerate(rows, 1))


def _are_numbers(row):
    return isinstance(row, dict) and all(type(value) in (int, float) and math.isfinite(value) for value in row.values())


def rescale(progress, before, now):
    """The Progress of a run with `before` steps an epoch, where another number of ranks makes them `now`.

    It is in the same epoch, at the same share of it, rounded down to a step.
    """
    if before == now:
        return progress
    done = (progress.step - 1) % before + 1 if progress.totals else 0
    kept = done * now // before
    totals = {name: total * kept / done for name, total in progress.totals.items()} if kept else {}
    return Progress((progress.step - done) // before * now + kept, totals, [dict(row, step=row['epoch'] * now) for row in progress.rows])
