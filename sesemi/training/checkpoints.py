"""Checkpoints: the weights, the optimizer's state and the progress of a run, in files written atomically."""
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

KEPT = 2                # files kept: the newest, and the one before it in case the newest is damaged
EPOCH_SECONDS = 30      # an epoch on an accelerator may last seconds: too short for a checkpoint each


class Checkpoints:
    """The checkpoints of one run, in `folder`.

    optimizer: the model's, after training.training_function has made its variables; minutes: the longest time
    between two checkpoints; ranks: a collective.Ranks. All ranks call each method; only rank 0 reads and
    writes files. A checkpoint also holds the best weights so far, so these always match its steps.
    """

    def __init__(self, folder, model, optimizer, steps_per_epoch, minutes, ranks):
        self.folder, self.model, self.ranks = folder, model, ranks
        self.steps_per_epoch, self.minutes = steps_per_epoch, minutes
        # With loss scaling the optimizer is wrapped in one that has no weights on TensorFlow 1.15. The scale
        # is not saved; a resumed run finds it again.
        self.variables = model.weights + getattr(optimizer, '_optimizer', optimizer).weights
        self.best = []          # arrays of model.weights at the last store_best
        self.saved_at = time.monotonic()

    def store_best(self):
        """Keep the current weights, with the batch-norm statistics, as the best so far."""
        self.best = read_variables(self.model.weights)

    def load_best(self):
        """Set the model to its best weights, if there are any."""
        assign_variables(self.model.weights[:len(self.best)], self.best)

    def is_due(self, step):
        """Whether to save after `step` steps.

        It is time `minutes` after the last checkpoint, and at the end of an epoch if that is 30 s old.
        """
        age = time.monotonic() - self.saved_at
        return age > 60 * self.minutes or step % self.steps_per_epoch == 0 and age > EPOCH_SECONDS

    def save(self, progress):
        """Write a checkpoint and remove all but the last two. Raises Diverged if a weight is not finite."""
        data = self.pack(progress)
        if self.ranks.rank == 0:
            self._write(progress.step, data)
        self.saved_at = time.monotonic()

    def _write(self, step, data):
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise InputError('%s: cannot be made (%s); what was saved before is whole.'
                             % (self.folder, error.strerror)) from None
        path = os.path.join(self.folder, 'step-%09d.npz' % step)
        write_atomic(path, data)
        paths = self._paths()
        # those of later steps are damaged, or from another number of ranks
        newest = paths.index(path)
        for other in paths[:max(0, newest + 1 - KEPT)] + paths[newest + 1:]:
            with contextlib.suppress(OSError):
                os.remove(other)

    def restore(self):
        """Set all variables from the newest intact checkpoint; returns its Progress.

        If there is none, the variables stay, and the Progress is that of a start. A checkpoint that is
        damaged or of another model is reported on standard error, and the one before it is used. With several
        ranks all get rank 0's checkpoint, or its first weights.
        """
        newest = b'' if self.ranks.rank else self._newest()
        if self.ranks.alone:
            return self.unpack(newest) if newest else Progress()
        own = self.pack(Progress())
        return self.unpack(self.ranks.broadcast(newest or own))

    def _newest(self):
        """The bytes of the newest intact checkpoint; b'' if there is none."""
        paths = self._paths()
        for path in reversed(paths):
            try:
                with open(path, 'rb') as file:
                    data = file.read()
                self._parse(data)
                return data
            except Exception as error:      # a damaged file raises nearly anything
                print('%s: damaged (%s); %s.'
                      % (path, describe_error(error),
                         'the run starts again from its first step' if path == paths[0] else
                         'the checkpoint before it is used'), file=sys.stderr)
        return b''

    def pack(self, progress):
        """The current state as a checkpoint: bytes of an .npz. Raises Diverged if a weight is not finite."""
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
        """Set all variables from the bytes of a checkpoint; returns its Progress."""
        progress, steps_per_epoch, arrays, self.best = self._parse(data)
        progress = rescale(progress, steps_per_epoch, self.steps_per_epoch)
        assign_variables(self.variables + [step_variable()], arrays + [progress.step])
        return progress

    def _parse(self, data):
        """(Progress, steps per epoch, arrays of the variables, arrays of the best weights) from its bytes.

        Raises ValueError if it is of another model, and nearly any exception if it is damaged.
        """
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            progress = Progress(**json.loads(_array(archive, 'progress').tobytes().decode()))
            steps_per_epoch = int(_array(archive, 'steps_per_epoch'))
            arrays = [_array(archive, 'variable_%d' % i) for i in range(len(self.variables))]
            best = []
            # counted, because the names of an archive have no CRC
            if len(archive.namelist()) > 2 + len(arrays):
                best = [_array(archive, 'best_%d' % i) for i in range(len(self.model.weights))]
        for variable, array in zip(self.variables + self.model.weights, arrays + best):
            kind = variable.dtype.base_dtype.as_numpy_dtype
            if array.dtype != kind or list(array.shape) != variable.shape.as_list():
                raise ValueError('its %s is of another kind or shape' % variable.name)
        return progress, steps_per_epoch, arrays, best

    def _paths(self):
        return sorted(glob.glob(os.path.join(glob.escape(self.folder), 'step-*.npz')))


def _array(archive, name):
    """An array of an open .npz. np.load of numpy 1.18 would print a traceback for a truncated file."""
    with archive.open(name + '.npy') as member:     # read to the end, which checks the CRC
        return np.lib.format.read_array(member, allow_pickle=False)


def rescale(progress, before, now):
    """Convert a Progress from `before` steps per epoch to `now`, after the number of ranks has changed.

    The epoch and the fraction of it that is done stay the same, rounded down to a step.
    """
    if before == now:
        return progress
    done = (progress.step - 1) % before + 1 if progress.totals else 0
    kept = done * now // before
    totals = {name: total * kept / done for name, total in progress.totals.items()} if kept else {}
    return Progress((progress.step - done) // before * now + kept, totals,
                    [dict(row, step=row['epoch'] * now) for row in progress.rows])
