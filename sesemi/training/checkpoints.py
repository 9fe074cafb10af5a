"""Checkpoints: the weights, the optimizer's state and the progress of a run, in files that are whole or not
there.
"""
import contextlib
import glob
import io
import json
import os
import sys
import time
import zipfile

import numpy as np

from sesemi.device.runtime import step_variable
from sesemi.errors import InputError, describe_error
from sesemi.system.files import write_atomic
from sesemi.training.training import Diverged, Progress, assign_variables, read_variables

KEPT = 2                # the last one, and the one before it in case the last is damaged
EPOCH_SECONDS = 30      # an epoch on an accelerator lasts seconds: not every one is worth a checkpoint


class Checkpoints:
    """The checkpoints of one run, in `folder`; `minutes` is the longest time between two.

    optimizer: the model's, after training.training_function has made its variables. A checkpoint holds the
    best weights so far too, where there are any: they are always those of the steps it counts, whenever a
    process is killed. ranks: a collective.Ranks, all of which call each method; rank 0 alone reads and writes
    the files.
    """

    def __init__(self, folder, model, optimizer, steps_per_epoch, minutes, ranks):
        self.folder, self.model, self.ranks = folder, model, ranks
        self.steps_per_epoch, self.minutes = steps_per_epoch, minutes
        # Loss scaling wraps the optimizer and has no weights on TensorFlow 1.15; a resumed run finds its
        # scale anew.
        self.variables = model.weights + getattr(optimizer, '_optimizer', optimizer).weights
        self.best = []          # the arrays of model.weights when store_best was last called
        self.saved = time.monotonic()

    def store_best(self):
        """The weights as they are, batch-norm statistics with them, are the best so far."""
        self.best = read_variables(self.model.weights)

    def load_best(self):
        """Set the model to its best weights, if there are any."""
        assign_variables(self.model.weights[:len(self.best)], self.best)

    def is_due(self, step):
        """Whether it is time to save after so many steps: every `minutes`, and at the end of an epoch if the
        last one is 30 s old.
        """
        age = time.monotonic() - self.saved
        return age > 60 * self.minutes or step % self.steps_per_epoch == 0 and age > EPOCH_SECONDS

    def save(self, progress):
        """Write a checkpoint and remove all but the last two. Raises Diverged rather than keep weights that
        are not finite.
        """
        data = self.pack(progress)
        if self.ranks.rank == 0:
            self._write(progress.step, data)
        self.saved = time.monotonic()

    def _write(self, step, data):
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise InputError('%s: cannot be made (%s); what was saved before is whole.'
                             % (self.folder, error.strerror)) from None
        path = os.path.join(self.folder, 'step-%09d.npz' % step)
        write_atomic(path, data)
        paths = self._paths()
        # those of later steps were damaged, or counted the steps of fewer ranks
        newest = paths.index(path)
        for other in paths[:max(0, newest + 1 - KEPT)] + paths[newest + 1:]:
            with contextlib.suppress(OSError):
                os.remove(other)

    def restore(self):
        """Set all variables to the newest whole checkpoint; returns its Progress, a fresh one if there is
        none.

        A checkpoint that is damaged, or of another model, is named on standard error and the one before it is
        used. With several ranks rank 0's checkpoint, or its first weights, go to all.
        """
        newest = b'' if self.ranks.rank else self._newest()
        if self.ranks.alone:
            return self.unpack(newest) if newest else Progress()
        own = self.pack(Progress())
        return self.unpack(self.ranks.broadcast(newest or own))

    def _newest(self):
        """The bytes of the newest whole checkpoint; none if there is none."""
        paths = self._paths()
        for path in reversed(paths):
            try:
                with open(path, 'rb') as file:
                    data = file.read()
                self._read(data)
                return data
            except Exception as error:      # a damaged file raises nearly anything
                print('%s: damaged (%s); %s.'
                      % (path, describe_error(error),
                         'the run starts again from its first step' if path == paths[0] else
                         'the checkpoint before it is used'), file=sys.stderr)
        return b''

    def pack(self, progress):
        """A checkpoint as bytes, an .npz. Raises Diverged when a weight is not finite."""
        arrays = read_variables(self.variables)
        finite = all(np.isfinite(array).all() for array in arrays)
        if any(self.ranks.sum(np.array([not finite], np.int32))):
            raise Diverged('after step %d a weight is not finite' % (progress.step - 1))
        memory = io.BytesIO()
        np.savez(memory, progress=np.frombuffer(json.dumps(progress._asdict()).encode(), np.uint8),
                 steps_per_epoch=self.steps_per_epoch,
                 **{'variable_%d' % i: array for i, array in enumerate(arrays)},
                 **{'best_%d' % i: array for i, array in enumerate(self.best)})
        return memory.getvalue()

    def unpack(self, data):
        """Set all variables to what pack gave, here or on another rank; returns its Progress."""
        progress, steps_per_epoch, arrays, self.best = self._read(data)
        progress = rescale(progress, steps_per_epoch, self.steps_per_epoch)
        assign_variables(self.variables + [step_variable()], arrays + [progress.step])
        return progress

    def _read(self, data):
        """(Progress, steps an epoch, the variables' arrays, the best) of a checkpoint, its bytes.

        Raises ValueError when it is another model's, and nearly any exception when it is damaged.
        """
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            progress = Progress(**json.loads(_array(archive, 'progress').tobytes().decode()))
            steps_per_epoch = int(_array(archive, 'steps_per_epoch'))
            arrays = [_array(archive, 'variable_%d' % i) for i in range(len(self.variables))]
            best = []       # the variables begin with the model's weights
            if len(archive.namelist()) > 2 + len(arrays):       # not by their names, which have no CRC
                best = [_array(archive, 'best_%d' % i) for i in range(len(self.model.weights))]
        for variable, array in zip(self.variables + self.model.weights, arrays + best):
            kind = variable.dtype.base_dtype.as_numpy_dtype
            if array.dtype != kind or list(array.shape) != variable.shape.as_list():
                raise ValueError('its %s is of another kind or shape' % variable.name)
        return progress, steps_per_epoch, arrays, best

    def _paths(self):
        return sorted(glob.glob(os.path.join(glob.escape(self.folder), 'step-*.npz')))


def _array(archive, name):
    """An array of an open .npz. With numpy 1.18 np.load prints a traceback for a file that is cut off."""
    with archive.open(name + '.npy') as member:     # reading it to its end checks its CRC
        return np.lib.format.read_array(member, allow_pickle=False)


def rescale(progress, before, now):
    """The Progress of a run with `before` steps an epoch, where another number of ranks makes them `now`.

    It is in the same epoch, at the same share of it, rounded down to a step.
    """
    if before == now:
        return progress
    done = (progress.step - 1) % before + 1 if progress.totals else 0
    kept = done * now // before
    totals = {name: total * kept / done for name, total in progress.totals.items()} if kept else {}
    return Progress((progress.step - done) // before * now + kept, totals,
                    [dict(row, step=row['epoch'] * now) for row in progress.rows])
