"""How good the weights are, and which are kept: the mean softmax over an image's test views, under the
statistics that fit the weights.
"""
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

EVALUATION_BATCH = 250      # images at most, of 32 pixels a side; of larger ones as many fewer


class Evaluation:
    """The errors of a run: during training as --eval-every asks for, at its end those of the weights that
    --keep keeps.

    evaluators: Evaluators of `dataset`, of which the images `labeled` are; statistics: a function that gives
    the block within which the model has the statistics to evaluate with; checkpoints: Checkpoints, which keep
    the best weights; args: the flags, resolved.
    """

    def __init__(self, evaluators, dataset, labeled, statistics, checkpoints, args):
        self.dataset, self.labels = dataset, dataset.train_labels[labeled]
        self.checkpoints, self.args = checkpoints, args
        (self._test, self._valid, self._labeled), self._statistics = evaluators, statistics

    def after_epoch(self, rows):
        """Add the error of the weights as they are to the last of a run's rows if it is time, and note
        whether they are the best.
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
        """The block within which the model has the weights that --keep keeps, with the statistics to evaluate
        and save them; gives their epoch's row. The best ones it has also afterwards.
        """
        if self.args.keep == 'best':
            self.checkpoints.load_best()        # with the statistics they were evaluated with
            yield best_row(rows)
        else:
            with self._statistics():
                yield rows[-1]

    def test(self):
        """(The mean softmax over each test image's views, float32 (n, classes); the metrics that follow from
        it, a dict).
        """
        dense, one_view = self._test()
        return dense, {**test_metrics(dense, one_view, self.dataset.test_labels, self.dataset.class_names),
                       'labeled_error_rate': error_rate(self._labeled.predict_one_view(), self.labels)}


def best_row(rows):
    """The row of the least validation error, the first of equals; None if none has one."""
    return min((row for row in rows if 'validation_error' in row), key=lambda row: row['validation_error'],
               default=None)


class Evaluators(NamedTuple):
    """The DenseEvaluators of a run's images."""
    test: 'DenseEvaluator'
    valid: 'DenseEvaluator'
    labeled: 'DenseEvaluator'


def make_evaluators(model, images, args, stop, ranks):
    """The Evaluators of an inference model. images: batches.Images; args: the flags; stop:
    training.StopSignals; ranks: collective.Ranks.
    """
    counts = [ranks.per_rank(len(part)) for part in (images.test, images.valid) if len(part)]
    size = evaluation_batch(*counts, image_size=args.image_size)

    def views(part, first):
        return make_test_views(part, first, args.seed, args.flip)
    return Evaluators(*(DenseEvaluator(model, part, views, stop, ranks, size)
                        for part in (images.test, images.valid, images.labeled)))


def evaluation_statistics(model, batches, steps, ranks, recompute):
    """A function that gives the block within which a model has the statistics to evaluate with: measured
    anew, or training's averages.

    batches, steps: those of the training; ranks: collective.Ranks.
    """
    if ranks.alone and not recompute:
        return contextlib.nullcontext
    statistics = NormStatistics(model, batches, steps, ranks)
    return statistics.use_measured if recompute else statistics.use_rank_0


class NormStatistics:
    """The statistics that batch normalisation uses at inference, which are rank 0's on all `ranks`
    (collective.Ranks).

    Within the block of a method the model has them, behind it training's own averages again.
    """

    def __init__(self, model, batches, steps, ranks):
        (self.averages, values), self.ranks = zip(*batch_statistics(model)), ranks
        inputs = [model.get_layer('super_data').output, keras.backend.learning_phase()]
        self.measure = keras.backend.function(inputs, list(values))
        self.super_data = lambda i: batches[steps + i][0]['super_data']

    def use_rank_0(self):
        """Rank 0's averages of training."""
        return self._in_use(read_variables(self.averages))

    def use_measured(self):
        """Measured anew for the weights as they are, because averages lag behind the weights: a short run is
        over before they have come near. The mean over NORM_BATCHES training batches of the super branch,
        always the same ones, which no step trains on. As PyTorch's `swa_utils.update_bn` does it, and
        fvcore's PreciseBN.
        """
        found = [self.measure([data, True]) for data in prefetch(self.super_data, range(NORM_BATCHES))]
        return self._in_use([np.mean(values, axis=0) for values in zip(*found)])

    @contextlib.contextmanager
    def _in_use(self, statistics):
        own = read_variables(self.averages)
        assign_variables(self.averages, self.ranks.broadcast_arrays(statistics))
        try:
            yield
        finally:
            assign_variables(self.averages, own)


def evaluation_batch(*counts, image_size=32):
    """One batch size for sets of so many images, as each size is another graph on an NPU: it fits the
    smallest set, but is at least 32 where the largest has as many.
    """
    most = max(1, EVALUATION_BATCH * 32 ** 2 // max(32, image_size) ** 2)
    fits = [math.ceil(count / math.ceil(count / most)) for count in sorted(counts)]
    return max(fits[0], min(32, fits[-1]))


class DenseEvaluator:
    """A model's probabilities for images, in batches of one size, by default what fits them best. Each of the
    ranks takes some of the images.

    images: normalised float32 (n, s, s, 3); views(images, first): the views of images number first, first +
    1, ..., the first of them the images themselves; stop: training.StopSignals; ranks: collective.Ranks.
    """

    def __init__(self, model, images, views, stop, ranks, size=None):
        self.model, self.images, self.views, self.stop, self.ranks = model, images, views, stop, ranks
        self.own = self.ranks.per_rank(len(images))        # images
        self.size = size or evaluation_batch(self.own, image_size=images.shape[1])

    def __call__(self):
        """Two float32 arrays (n, classes): the mean softmax over all views, and that of the view that is the
        image itself.
        """
        dense, one_view = [], []
        for views in self._batches(self.views):
            outputs = [self.model.predict_on_batch(view) for view in views]
            dense.append(np.mean(outputs, axis=0))
            one_view.append(outputs[0])
        return self._joined(dense), self._joined(one_view)

    def predict_one_view(self):
        """The softmax of the images themselves: float32 (n, classes)."""
        return self._joined([self.model.predict_on_batch(view)
                             for view, in self._batches(lambda images, first: [images])])

    def _batches(self, make_views):
        """Yield the views of one batch of this rank's images after another, of as many on all ranks; raises
        Interrupted behind each.

        The last ones are padded with zeros, for another size would be another graph.
        """
        begin = self.ranks.rank * self.own

        def padded(start):
            first = min(start, len(self.images) - 1)        # of a batch behind the last image nothing is kept
            images = self.images[first:min(start + self.size, begin + self.own)]
            padding = [(0, self.size - len(images))] + [(0, 0)] * 3
            return [np.pad(view, padding, mode='constant') for view in make_views(images, first)]
        for views in prefetch(padded, range(begin, begin + self.own, self.size)):
            yield views
            self.stop.check()

    def _joined(self, outputs):
        return self.ranks.gather(np.concatenate(outputs)[:self.own], len(self.images))
