"""Evaluates weights by the mean softmax over an image's test views, and chooses which weights are kept."""
import contextlib
import math
from typing import NamedTuple

import numpy as np

from sesemi.data.batches import make_test_views
from sesemi.device.backend import keras
from sesemi.settings import NORM_BATCHES
from sesemi.system.pools import prefetch
from sesemi.training.metrics import error_rate, test_metrics
from sesemi.training.training import assign_variables, batch_statistics, read_variables

EVALUATION_BATCH = 250      # most images of 32 pixels a side; of larger ones as many pixels


class Evaluation:
    """Measures the errors of a run: during training as --eval-every says, at its end for the kept weights.

    evaluators: the Evaluators; dataset: a datasets.Dataset; labeled: int (labels,), indices of its labeled
    training images; statistics: a function that returns a context manager, as evaluation_statistics gives it;
    checkpoints: the Checkpoints, which keep the best weights; args: the flags, resolved.
    """

    def __init__(self, evaluators, dataset, labeled, statistics, checkpoints, args):
        self.dataset, self.labels = dataset, dataset.train_labels[labeled]
        self.checkpoints, self.args = checkpoints, args
        (self._test, self._valid, self._labeled), self._statistics = evaluators, statistics

    def after_epoch(self, rows):
        """Evaluate if --eval-every says so: adds the error to the last row, and stores the weights if best.

        rows: a dict for each epoch so far.
        """
        row, args = rows[-1], self.args
        due = args.eval_every and row['epoch'] % args.eval_every == 0
        if len(self.dataset.valid_labels) and (due or row['epoch'] == args.epochs):
            with self._statistics():
                row['validation_error'] = error_rate(self._valid()[0], self.dataset.valid_labels)
                if args.keep == 'best' and best_row(rows) is row:
                    self.checkpoints.store_best()
        elif due:
            with self._statistics():
                row['error'] = error_rate(self._test()[0], self.dataset.test_labels)

    @contextlib.contextmanager
    def kept_weights(self, rows):
        """Give the model the weights that --keep keeps, and their statistics, within the block.

        Yields the row of their epoch. The best weights stay in the model after the block.
        """
        if self.args.keep == 'best':
            self.checkpoints.load_best()        # with the statistics they were evaluated with
            yield best_row(rows)
        else:
            with self._statistics():
                yield rows[-1]

    def test(self):
        """(The mean softmax over the views of each test image, float32 (n, classes); a dict of metrics)."""
        dense, one_view = self._test()
        return dense, {**test_metrics(dense, one_view, self.dataset.test_labels, self.dataset.class_names),
                       'labeled_error_rate': error_rate(self._labeled.predict_one_view(), self.labels)}


def best_row(rows):
    """The row with the lowest validation error, the first of equals; None if no row has one."""
    return min((row for row in rows if 'validation_error' in row), key=lambda row: row['validation_error'],
               default=None)


class Evaluators(NamedTuple):
    """The DenseEvaluators of a run's images."""
    test: 'DenseEvaluator'
    valid: 'DenseEvaluator'
    labeled: 'DenseEvaluator'


def make_evaluators(model, images, args, stop, ranks):
    """The Evaluators of an inference model.

    images: a batches.Images; args: the flags; stop: a training.StopSignals; ranks: a collective.Ranks.
    """
    counts = [ranks.per_rank(len(part)) for part in (images.test, images.valid) if len(part)]
    size = evaluation_batch(*counts, image_size=args.image_size)

    def views(part, first):
        return make_test_views(part, first, args.seed, args.flip)
    return Evaluators(*(DenseEvaluator(model, part, views, stop, ranks, size)
                        for part in (images.test, images.valid, images.labeled)))


def evaluation_statistics(model, batches, steps, ranks, recompute):
    """Returns a function for `with` that gives the model the batch-norm statistics to evaluate with.

    These are measured anew if `recompute`, else training's averages. batches, steps: those of the training;
    ranks: a collective.Ranks.
    """
    if ranks.alone and not recompute:
        return contextlib.nullcontext
    statistics = NormStatistics(model, batches, steps, ranks)
    return statistics.use_measured if recompute else statistics.use_rank_0


class NormStatistics:
    """Replaces the averages of batch normalisation within a block, and restores them after it.

    All ranks get the same ones. batches, steps: those of the training; ranks: a collective.Ranks.
    """

    def __init__(self, model, batches, steps, ranks):
        (self.averages, values), self.ranks = zip(*batch_statistics(model)), ranks
        inputs = [model.get_layer('super_data').output, keras.backend.learning_phase()]
        self.measure = keras.backend.function(inputs, list(values))
        self.super_data = lambda i: batches[steps + i][0]['super_data']

    def use_rank_0(self):
        """Use rank 0's averages of training within the block."""
        return self._use(read_variables(self.averages))

    def use_measured(self):
        """Use statistics measured anew for the current weights within the block.

        Training's averages lag behind the weights, and in a short run never come near. Measured is the mean
        over NORM_BATCHES super batches, the same each time, that no step trains on. PyTorch's
        `swa_utils.update_bn` and fvcore's PreciseBN do the same.
        """
        measured = [self.measure([data, True]) for data in prefetch(self.super_data, range(NORM_BATCHES))]
        return self._use([np.mean(values, axis=0) for values in zip(*measured)])

    @contextlib.contextmanager
    def _use(self, statistics):
        averages = read_variables(self.averages)
        assign_variables(self.averages, self.ranks.broadcast_arrays(statistics))
        try:
            yield
        finally:
            assign_variables(self.averages, averages)


def evaluation_batch(*counts, image_size=32):
    """One batch size for sets of `counts` images, because an NPU compiles a graph for each size.

    It fits the smallest set, but is at least 32 if the largest set has that many. image_size: pixels.
    """
    most = max(1, EVALUATION_BATCH * 32 ** 2 // max(32, image_size) ** 2)
    sizes = [math.ceil(count / math.ceil(count / most)) for count in sorted(counts)]
    return max(sizes[0], min(32, sizes[-1]))


class DenseEvaluator:
    """Computes a model's probabilities for images, in batches of one size. Each rank takes some images.

    images: normalised float32 (n, s, s, 3); views(images, first): a function that returns the views of images
    number first, first + 1, ..., beginning with the images themselves; stop: a training.StopSignals; ranks: a
    collective.Ranks; size: images in a batch, None for what fits best.
    """

    def __init__(self, model, images, views, stop, ranks, size=None):
        self.model, self.images, self.views, self.stop, self.ranks = model, images, views, stop, ranks
        self.per_rank = self.ranks.per_rank(len(images))
        self.size = size or evaluation_batch(self.per_rank, image_size=images.shape[1])

    def __call__(self):
        """(The mean softmax over all views, that of the image itself): float32 (n, classes) each.

        Raises Interrupted after a signal.
        """
        dense, one_view = [], []
        for views in self._batches(self.views):
            outputs = [self.model.predict_on_batch(view) for view in views]
            dense.append(np.mean(outputs, axis=0))
            one_view.append(outputs[0])
        return self._gather(dense), self._gather(one_view)

    def predict_one_view(self):
        """The softmax of the images themselves, float32 (n, classes). Raises Interrupted after a signal."""
        return self._gather([self.model.predict_on_batch(view)
                             for view, in self._batches(lambda images, first: [images])])

    def _batches(self, make_views):
        """Yield the views of each batch of this rank's images. All ranks have the same number of batches.

        Incomplete batches are padded with zeros, because another size would be another graph. Raises
        Interrupted after a batch if a signal has come.
        """
        begin = self.ranks.rank * self.per_rank

        def make_batch(start):
            # a batch beyond the last image repeats that one; _gather drops it
            first = min(start, len(self.images) - 1)
            images = self.images[first:min(start + self.size, begin + self.per_rank)]
            padding = [(0, self.size - len(images))] + [(0, 0)] * 3
            return [np.pad(view, padding, mode='constant') for view in make_views(images, first)]
        for views in prefetch(make_batch, range(begin, begin + self.per_rank, self.size)):
            yield views
            self.stop.check()

    def _gather(self, outputs):
        return self.ranks.gather(np.concatenate(outputs)[:self.per_rank], len(self.images))
