"""How good the weights are, and which are kept: the mean softmax over an image's test views, under the statistics that fit the weights."""
import contextlib
import math

import numpy as np

from sesemi.batches import test_views
from sesemi.metrics import error_rate, test_metrics
from sesemi.pools import prefetch
from sesemi.runtime import keras
from sesemi.settings import NORM_BATCHES
from sesemi.training import assign, batch_statistics, read

EVALUATION_BATCH = 250      # images at most, of 32 pixels a side; of larger ones as many fewer


class Evaluation:
    """The errors of a run: during training as --eval-every asks for, at its end those of the weights that --keep keeps.

    images: batches.Images of `dataset`, of which the images `labeled` are; batches, steps: those of the training, for --recompute-norm;
    checkpoints: Checkpoints, which keep the best weights; args: the flags, resolved; stop: training.StopSignals.
    """

    def __init__(self, model, inference_model, images, dataset, labeled, batches, steps, checkpoints, args, stop):
        self.dataset, self.labels, self.checkpoints, self.args = dataset, dataset.train_labels[labeled], checkpoints, args
        size = evaluation_batch(*(len(part) for part in (images.test, images.valid) if len(part)), image_size=args.image_size)
        self._test, self._valid, self._labeled = (DenseEvaluator(inference_model, part, args.seed, args.flip, stop, size)
                                                  for part in (images.test, images.valid, images.labeled))
        self._statistics = NormStatistics(model, batches, steps).measured if args.recompute_norm else contextlib.nullcontext

    def after_epoch(self, rows):
        """Add the error of the weights as they are to the last of a run's rows if it is time, and note whether they are the best."""
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
        """The block within which the model has the weights that --keep keeps, with the statistics to evaluate and save them; gives their
        epoch's row. The best ones it has also afterwards.
        """
        if self.args.keep == 'best':
            self.checkpoints.load_best()        # with the statistics they were evaluated with
            yield best_row(rows)
        else:
            with self._statistics():
                yield rows[-1]

    def test(self):
        """(The mean softmax over each test image's views, float32 (n, classes); the metrics that follow from it, a dict)."""
        dense, one_view = self._test()
        return dense, {**test_metrics(dense, one_view, self.dataset.test_labels, self.dataset.class_names),
                       'labeled_error_rate': error_rate(self._labeled.one_view(), self.labels)}


def best_row(rows):
    """The row of the least validation error, the first of equals; None if none has one."""
    return min((row for row in rows if 'validation_error' in row), key=lambda row: row['validation_error'], default=None)


class NormStatistics:
    """The statistics that batch normalisation uses at inference, measured anew for the weights as they are.

    The averages lag behind the weights: a short run is over before they have come near. Within the block of `measured()` they are
    the mean over NORM_BATCHES training batches of the super branch, always the same ones, which no step trains on; behind it they
    are training's own again. As PyTorch's `swa_utils.update_bn` does it, and fvcore's PreciseBN.
    """

    def __init__(self, model, batches, steps):
        self.averages, values = zip(*batch_statistics(model))
        self.measure = keras.backend.function([model.get_layer('super_data').output, keras.backend.learning_phase()], list(values))
        self.super_data = lambda i: batches[steps + i][0]['super_data']

    @contextlib.contextmanager
    def measured(self):
        own = read(self.averages)
        found = [self.measure([data, True]) for data in prefetch(self.super_data, range(NORM_BATCHES))]
        assign(self.averages, [np.mean(values, axis=0) for values in zip(*found)])
        try:
            yield
        finally:
            assign(self.averages, own)


def evaluation_batch(*counts, image_size=32):
    """One batch size for sets of so many images, as each size is another graph on an NPU: it fits the smallest set, but is at least 32
    where the largest has as many.
    """
    most = max(1, EVALUATION_BATCH * 32 ** 2 // max(32, image_size) ** 2)
    fits = [math.ceil(count / math.ceil(count / most)) for count in sorted(counts)]
    return max(fits[0], min(32, fits[-1]))


class DenseEvaluator:
    """A model's probabilities for images, in batches of one size, by default what fits them best.

    images: normalised float32 (n, s, s, 3). The views depend on (seed, image), so every evaluation sees the same ones.
    """

    def __init__(self, model, images, seed, flip, stop, size=None):
        self.model, self.images, self.seed, self.flip, self.stop = model, images, seed, flip, stop
        self.size = size or evaluation_batch(len(images), image_size=images.shape[1])

    def __call__(self):
        """Two float32 arrays (n, classes): the mean softmax over all test views, and that of the view that is the image itself."""
        dense, one_view = [], []
        for views in self._batches(lambda images, first: test_views(images, first, self.seed, self.flip)):
            outputs = [self._predict(view) for view in views]
            dense.append(np.mean(outputs, axis=0))
            one_view.append(outputs[0])
        return self._joined(dense), self._joined(one_view)

    def one_view(self):
        """The softmax of the images themselves: float32 (n, classes)."""
        return self._joined([self._predict(view) for view, in self._batches(lambda images, first: [images])])

    def _batches(self, make_views):
        """The views of one batch after another; the last ones are padded with zeros, for another size would be another graph."""
        def padded(first):
            images = self.images[first:first + self.size]
            padding = [(0, self.size - len(images))] + [(0, 0)] * 3
            return [np.pad(view, padding, mode='constant') for view in make_views(images, first)]
        return prefetch(padded, range(0, len(self.images), self.size))

    def _predict(self, view):
        output = self.model.predict_on_batch(view)
        self.stop.check()
        return output

    def _joined(self, outputs):
        return np.concatenate(outputs)[:len(self.images)]
