"""The training loop and what a step needs: the update, learning rate, progress line and signals."""
import contextlib
import itertools
import signal
import time
from typing import Callable, List, NamedTuple, Sequence

import numpy as np

from networks.layers import BatchNormalization
from sesemi.device.backend import keras, tf
from sesemi.device.runtime import step_variable
from sesemi.errors import RunError
from sesemi.settings import BATCH_NORM_MOMENTUM, DECAY_POWER
from sesemi.system import signals
from sesemi.system.pools import prefetch

SIGNALS = signals.STOP_SIGNALS
# How many int32 values each rank adds to a sum in every step: a 1 for each kind of signal that it has
# received, and a 1 if a checkpoint is due.
VOTES = len(SIGNALS) + 1


class Diverged(RunError):
    """The loss or a weight is no longer a finite number."""
    status = 3

    def __init__(self, where):
        super().__init__('Training diverged: %s; start again with a lower --lr. Checkpoints made before are '
                         'whole.' % where)


class Interrupted(RunError):
    """One of SIGNALS arrived."""

    def __init__(self, number):
        super().__init__('Stopped by %s; go on with --resume.' % signal.Signals(number).name)
        self.status = 128 + number


class Progress(NamedTuple):
    """How far a run has come. A checkpoint holds this and the weights."""
    step: int = 0               # steps done
    totals: dict = {}           # {metric: sum over the steps of the unfinished epoch}
    rows: List[dict] = []       # a row of metrics for each finished epoch


def training_function(model, optimizer, class_weights=None, ranks=None, schedule=None):
    """Returns a function that trains one step: (inputs, targets) -> metrics, a dict of floats.

    inputs, targets: dicts of arrays, as batches[t] has them. Each call is one run of the session: it updates
    the weights, then the batch-norm averages, and counts the step (step_variable). The loss is the plain sum
    of the outputs' cross-entropies and the kernels' L2. class_weights, float32 (classes,): an image's
    cross-entropy in the super branch is multiplied by the weight of its class. schedule: a Schedule; None
    means that the rate is always the optimizer's. The function also takes `t`, the number of the step; by
    default the calls are counted from 0.

    ranks: a collective.Ranks, or None for one process. With several ranks the function takes a third
    argument, a function that returns this rank's VOTES values, and adds 'votes' to the metrics: the int32
    sums of these over all ranks, then how many ranks have a loss that is not finite.
    """
    targets = [keras.backend.placeholder(output.shape.as_list(), name=name + '_target')
               for name, output in zip(model.output_names, model.outputs)]
    entropies = [keras.losses.categorical_crossentropy(target, output)
                 for target, output in zip(targets, model.outputs)]
    if class_weights is not None:       # [-1] is the super branch
        entropies[-1] *= tf.reduce_sum(targets[-1] * class_weights, axis=-1)
    losses = [tf.reduce_mean(entropy) for entropy in entropies]
    accuracies = [tf.reduce_mean(tf.cast(tf.equal(tf.argmax(target, axis=-1), tf.argmax(output, axis=-1)),
                                         tf.float32))
                  for target, output in zip(targets, model.outputs)]
    loss = tf.add_n(losses + model.losses)
    # Fed, because an NPU in float16 cannot compute them from the number of the step.
    weight = keras.backend.placeholder((), name='average_weight')
    fed = {weight: average_weight, **({optimizer.lr: schedule.rate} if schedule else {})}
    updates = optimizer.get_updates(loss, model.trainable_weights) + [
        tf.assign_add(average, (value - average) * weight) for average, value in batch_statistics(model)]
    with tf.control_dependencies(updates):
        counted = tf.assign_add(step_variable(), 1)
    names = ['loss'] + [name + kind for kind in ('_loss', '_acc') for name in model.output_names]
    inputs = model.inputs + targets + [keras.backend.learning_phase(), *fed]
    outputs, options = [loss] + losses + accuracies, {}
    several = ranks and not ranks.alone
    if several:
        own_votes = keras.backend.placeholder((VOTES,), dtype='int32', name='votes')
        with tf.control_dependencies([counted]):        # after the gradients' all-reduce, on every rank
            diverged = tf.cast(tf.logical_not(tf.is_finite(loss)), tf.int32)
            votes = ranks.all_reduce(tf.concat([own_votes, [diverged]], axis=0))
        inputs, outputs = inputs + [own_votes, ranks.rank_input], outputs + [votes]
        options = {'options': ranks.run_options} if ranks.run_options else {}
    run, numbers = keras.backend.function(inputs, outputs, [counted], **options), itertools.count()

    def train_step(inputs, targets, get_votes=None, t=None):
        t = next(numbers) if t is None else t
        arrays = [*[inputs[name] for name in model.input_names],
                  *[targets[name] for name in model.output_names], True, *[at(t) for at in fed.values()]]
        if several:
            with ranks.waiting('step'):
                *values, summed = run(
                    arrays + [np.array(get_votes() if get_votes else [0] * VOTES), ranks.rank])
        else:
            values = run(arrays)
        metrics = dict(zip(names, map(float, values)))
        if several and get_votes:
            metrics['votes'] = summed
        return metrics
    return train_step


def balanced_weights(labels_one_hot):
    """Class weights by which all classes count the same: n / (classes * images of the class).

    labels_one_hot: float32 (n, classes). Returns float32 (classes,); the mean over all images is 1.
    """
    counts = labels_one_hot.sum(axis=0)
    return (len(labels_one_hot) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def average_weight(t):
    """The weight w of step t, counted from 0, in the batch-norm averages: m becomes m + (x - m) * w.

    0.01 / (1 - 0.99 ** (t + 1)): zero-debiased, so that the first step sets m to x, as in the published runs.
    """
    return (1 - BATCH_NORM_MOMENTUM) / (1 - BATCH_NORM_MOMENTUM ** (t + 1))


def batch_statistics(model):
    """The pairs of BatchNormalization.statistics of all layers of a model, in their order."""
    return [pair for layer in model.layers if isinstance(layer, BatchNormalization)
            for pair in layer.statistics()]


def read_variables(variables):
    """The values of variables, a list of arrays, in one run of the session."""
    return keras.backend.get_session().run(list(variables))


def assign_variables(variables, arrays):
    """Set variables to arrays of the same shapes in one run of the session.

    It runs their initialisers, fed with the arrays, so no operation is added to the graph.
    """
    keras.backend.get_session().run([variable.initializer for variable in variables], {
        variable.initializer.inputs[1]: array for variable, array in zip(variables, arrays)})


class Schedule(NamedTuple):
    """How long a run trains, and at which rate."""
    base_rate: float        # learning rate of the first step
    steps_per_epoch: int
    epochs: int

    @property
    def steps(self):
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def rate(self, t):
        """The learning rate of step t, counted from 0, as published."""
        return self.base_rate * ((self.steps - t) / self.steps) ** DECAY_POWER


class Hooks(NamedTuple):
    """What `train` calls beside the steps.

    save(progress) is called if is_due(step) is true on any rank, and when the run stops. after_epoch(rows)
    gets a row of means for each finished epoch and may add to the last. The Keras callbacks are called at the
    start of training and around each step. With one process, save is also called before an error in
    after_epoch or in making a batch ends the run.
    """
    is_due: Callable
    save: Callable
    after_epoch: Callable
    callbacks: Sequence = ()
    verbose: bool = True        # whether to print a progress line
    alone: bool = True          # whether there is one process


def train(train_step, batches, schedule, progress, stop, hooks):
    """Train from step progress.step to the end, with Keras' progress line; returns the last Progress.

    train_step: as training_function returns it; batches[t]: (inputs, targets) of step t; schedule: a
    Schedule; stop: a StopSignals; hooks: the Hooks. A step depends only on its number, so a resumed run goes
    on exactly where it stopped. Raises Diverged, and Interrupted after `stop` has received a signal.
    """
    last, steps_per_epoch, verbose = schedule.steps, schedule.steps_per_epoch, hooks.verbose

    def get_votes(step):
        return [*stop.received, hooks.is_due(step)]

    @contextlib.contextmanager
    def saving(progress):
        try:
            yield
        except Interrupted:
            hooks.save(progress)
            stop.check()        # waits until rank 0 has saved
            raise
        except Exception:
            if hooks.alone:     # else the other ranks would have to save too
                hooks.save(progress)
            raise

    def close_epoch(progress):
        row = dict(epoch=progress.step // steps_per_epoch, step=progress.step,
                   learning_rate=schedule.rate(progress.step - 1),
                   **{name: total / (1 if name == 'seconds' else steps_per_epoch)
                      for name, total in progress.totals.items()})
        rows = progress.rows + [row]
        with saving(progress):
            hooks.after_epoch(rows)
        return progress._replace(totals={}, rows=rows)

    for callback in hooks.callbacks:
        callback.on_train_begin()
    # the run was stopped between the last step of an epoch and its row
    if progress.totals and progress.step % steps_per_epoch == 0:
        progress = close_epoch(progress)
    upcoming = prefetch(batches.__getitem__, range(progress.step, last))
    while progress.step < last:
        epoch, done = divmod(progress.step, steps_per_epoch)
        bar = keras.utils.Progbar(steps_per_epoch, verbose=int(verbose))
        if verbose:
            print('Epoch %d/%d' % (epoch + 1, schedule.epochs))
        if done:
            bar.update(done,
                       [(name, total / done) for name, total in progress.totals.items() if name != 'seconds'])
        for t in range(progress.step, (epoch + 1) * steps_per_epoch):
            started = time.perf_counter()
            for callback in hooks.callbacks:
                callback.on_train_batch_begin(t)
            with saving(progress):
                batch = next(upcoming)
            metrics = train_step(*batch, lambda: get_votes(t + 1), t)
            for callback in hooks.callbacks:
                callback.on_train_batch_end(t)
            votes = metrics.pop('votes', None)      # None with one process, which asks get_votes below
            if not np.isfinite(metrics['loss']) or votes is not None and votes[-1]:
                raise Diverged('at step %d the loss is %s' % (t, metrics['loss']))
            bar.update(t + 1 - epoch * steps_per_epoch, metrics.items())
            metrics['seconds'] = time.perf_counter() - started
            progress = progress._replace(step=t + 1, totals={
                name: progress.totals.get(name, 0) + value for name, value in metrics.items()})
            if progress.step % steps_per_epoch == 0:
                progress = close_epoch(progress)
            *received, due = get_votes(t + 1) if votes is None else votes[:-1]
            if due or any(received):
                hooks.save(progress)
            if any(received):       # not stop.received: later signals must wait for the next step
                stop.check()        # waits until rank 0 has saved
    return progress


class StopSignals:
    """Within the block, remembers signals instead of letting them end the process.

    A second signal of the same kind ends it at once, except signals.NOTICES. sum_over_ranks:
    collective.Ranks.sum, so that a signal to one rank stops all.
    """

    def __init__(self, sum_over_ranks=lambda counts: counts):
        self.received = np.zeros(len(SIGNALS), np.int32)        # 1 for each kind that this process received
        self._sum, self._block = sum_over_ranks, signals.handle_with(self._note)

    def __enter__(self):
        self._block.__enter__()
        return self

    def __exit__(self, *error):
        return self._block.__exit__(*error)

    def _note(self, number):
        self.received[SIGNALS.index(number)] = 1

    def check(self):
        """Raises Interrupted if any rank has received a signal. All ranks must call it together."""
        received = self._sum(self.received)
        if received.any():
            raise Interrupted(SIGNALS[np.argmax(received)])
