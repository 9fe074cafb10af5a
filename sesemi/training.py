"""The training loop and what happens around a step: learning rate, progress line, checkpoints, evaluation."""
import math
import signal
import time
from typing import List, NamedTuple

import numpy as np

from networks.layers import step_variable
from sesemi.batches import test_views
from sesemi.errors import RunError
from sesemi.pools import prefetch
from sesemi.runtime import keras
from sesemi.settings import DECAY_POWER

EVALUATION_BATCH = 250      # images at most


class Diverged(RunError):
    """The loss or a weight is no longer a finite number."""
    status = 3

    def __init__(self, where):
        super().__init__('Training diverged: %s; start again with a lower --lr. Checkpoints made before are whole.' % where)


class Interrupted(RunError):
    """SIGTERM or Ctrl-C arrived."""

    def __init__(self, number):
        super().__init__('Stopped by %s; go on with --resume.' % signal.Signals(number).name)
        self.status = 128 + number


class Progress(NamedTuple):
    """How far a run has come: all that a checkpoint holds beside the weights."""
    step: int = 0               # steps done
    totals: dict = {}           # sums over the steps of the unfinished epoch, figure by figure
    rows: List[dict] = []       # a row of figures for each finished epoch


def learning_rate(base, t, steps):
    """The rate of step t of `steps`, before its update: base * (1 - t / steps) ** 0.5 (METHOD)."""
    return base * (1 - t / steps) ** DECAY_POWER


def compile_model(model, optimizer):
    """The loss is the plain sum of the outputs' cross-entropies, plus the L2 terms of the kernels."""
    one_output = len(model.outputs) == 1        # Keras then has no loss of its own without L2
    model.compile(optimizer, loss='categorical_crossentropy',
                  metrics=['categorical_crossentropy', 'accuracy'] if one_output else ['accuracy'])


def figure_names(model):
    """What train_on_batch returns, in the same words for every method and Keras."""
    if len(model.outputs) == 1:
        return ['loss', 'super_clf_loss', 'super_clf_acc']
    return ['loss', 'self_clf_loss', 'super_clf_loss', 'self_clf_acc', 'super_clf_acc']


def train(model, batches, steps_per_epoch, epochs, base_rate, progress, after_step, after_epoch, stop, callbacks=(),
          verbose=True):
    """Run every step from progress.step on with train_on_batch, and Keras' progress line for each epoch.

    batches[t] is step t's (inputs, targets) and batches.number(t) what its dropout masks are drawn for. after_epoch(rows) gets
    a row of means for each finished epoch and may add to the last; after_step(progress, stopping) may save. Keras callbacks are
    told of the start of training and of each step.
    What a step uses follows from its number alone, so that a run goes on exactly where another stopped.
    Returns the last Progress. Raises Diverged, and Interrupted after `stop` received a signal.
    """
    names, last = figure_names(model), steps_per_epoch * epochs

    def close_epoch(progress):
        row = dict(epoch=progress.step // steps_per_epoch, step=progress.step,
                   learning_rate=learning_rate(base_rate, progress.step - 1, last), seconds=progress.totals['seconds'],
                   **{name: progress.totals[name] / steps_per_epoch for name in names})
        rows = progress.rows + [row]
        try:
            after_epoch(rows)
        except Interrupted:
            after_step(progress, True)
            raise
        return progress._replace(totals={}, rows=rows)

    for callback in callbacks:
        callback.set_model(model)
        callback.on_train_begin()
    if progress.totals and progress.step % steps_per_epoch == 0:    # stopped between an epoch's last step and its row
        progress = close_epoch(progress)
    upcoming = prefetch(batches.__getitem__, range(progress.step, last))
    while progress.step < last:
        epoch, done = divmod(progress.step, steps_per_epoch)
        bar = keras.utils.Progbar(steps_per_epoch, verbose=int(verbose))
        if verbose:
            print('Epoch %d/%d' % (epoch + 1, epochs))
        if done:
            bar.update(done, [(name, progress.totals[name] / done) for name in names])
        for t in range(progress.step, (epoch + 1) * steps_per_epoch):
            started, rate = time.perf_counter(), learning_rate(base_rate, t, last)
            keras.backend.set_value(model.optimizer.lr, rate)
            keras.backend.set_value(step_variable(), batches.number(t))
            for callback in callbacks:
                callback.on_train_batch_begin(t)
            figures = dict(zip(names, map(float, model.train_on_batch(*next(upcoming)))))
            for callback in callbacks:
                callback.on_train_batch_end(t)
            if not np.isfinite(figures['loss']):
                raise Diverged('at step %d the loss is %s' % (t, figures['loss']))
            bar.update(t + 1 - epoch * steps_per_epoch, figures.items())
            figures['seconds'] = time.perf_counter() - started
            progress = progress._replace(step=t + 1, totals={
                name: progress.totals.get(name, 0) + value for name, value in figures.items()})
            if progress.step % steps_per_epoch == 0:
                progress = close_epoch(progress)
            stopping = stop.number is not None      # asked once: a signal that comes later waits for the next step
            after_step(progress, stopping)
            if stopping:
                stop.check()
    return progress


def epoch_line(row, epochs, images_per_step, steps_per_epoch):
    """A finished epoch's row in words, with the time that the epochs left will take."""
    words = ['Epoch %d/%d: loss %.3f' % (row['epoch'], epochs, row['loss']), 'super %.3f' % row['super_clf_loss']]
    if 'self_clf_loss' in row:
        words += ['self %.3f' % row['self_clf_loss'], 'proxy accuracy %.3f' % row['self_clf_acc']]
    words += ['labeled accuracy %.3f' % row['super_clf_acc'], 'rate %.4f' % row['learning_rate'],
              '%.0f images/s' % (images_per_step * steps_per_epoch / row['seconds'])]
    if 'error' in row:
        words.append('error rate %.4f' % row['error'])
    return ', '.join(words) + ', %.0f minutes left' % (row['seconds'] * (epochs - row['epoch']) / 60)


class StopSignals:
    """Within the block SIGTERM and Ctrl-C are noted instead of ending the process; a second one of the same ends it at once.

    pass_on: called with the signal's number in place of noting it, by a rank that does not decide on its own.
    """

    def __init__(self, pass_on=None):
        self.number, self.pass_on = None, pass_on

    def __enter__(self):
        self._before = {number: signal.signal(number, self._received) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self, number):
        """The run is to stop for this signal."""
        self.number = number

    def _received(self, number, frame):
        signal.signal(number, signal.SIG_DFL)
        (self.pass_on or self.note)(number)

    def check(self):
        """Raises Interrupted if a signal has come."""
        if self.number is not None:
            raise Interrupted(self.number)


class DenseEvaluator:
    """A model's probabilities for the test images: the mean softmax over their views, and the softmax of the first view alone.

    images: normalised float32 (n, s, s, 3). The views depend on (seed, image), so every evaluation sees the same ones.
    """

    def __init__(self, model, images, seed, flip, stop):
        self.model, self.images, self.seed, self.flip, self.stop = model, images, seed, flip, stop

    def __call__(self):
        """Two float32 arrays (n, classes): the mean over all views, and the view that is the image itself."""
        size = math.ceil(len(self.images) / math.ceil(len(self.images) / EVALUATION_BATCH))
        dense, plain = [], []
        for views in prefetch(lambda i: self._views(i, size), range(0, len(self.images), size)):
            outputs = []
            for view in views:
                outputs.append(self.model.predict_on_batch(view))
                self.stop.check()
            dense.append(np.mean(outputs, axis=0))
            plain.append(outputs[0])
        return np.concatenate(dense)[:len(self.images)], np.concatenate(plain)[:len(self.images)]

    def _views(self, first, size):
        """The views of `size` images; the last ones are padded with zeros, for a batch of another size is another graph on an NPU."""
        images = self.images[first:first + size]
        padding = [(0, size - len(images))] + [(0, 0)] * 3
        return [np.pad(view, padding, mode='constant') for view in test_views(images, first, self.seed, self.flip)]
