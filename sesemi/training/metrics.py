"""Error rates and the confusion matrix, from probabilities and labels."""
import math

import numpy as np


def error_rate(probabilities, labels):
    """The share of images whose most probable class is not their label.

    probabilities: float (n, classes); labels: int (n,).
    """
    return float(np.mean(probabilities.argmax(axis=1) != labels))


def wilson_interval(errors, images, z=1.96):
    """[low, high]: the 95 % interval of an error rate counted on so many images (Wilson 1927)."""
    rate = errors / images
    middle = rate + z * z / (2 * images)
    half = z * math.sqrt(rate * (1 - rate) / images + (z / (2 * images)) ** 2)
    return [max(0.0, (middle - half) / (1 + z * z / images)),
            min(1.0, (middle + half) / (1 + z * z / images))]


def test_metrics(dense, one_view, labels, class_names):
    """The metrics of the test images that result.json holds, as a dict.

    dense: float (n, classes), the mean probabilities over all views; one_view: those of the image itself;
    labels: int (n,).
    """
    confusion = confusion_matrix(dense.argmax(axis=1), labels, len(class_names))
    counts = confusion.sum(axis=1)
    per_class = {name: float(1 - right / count) for name, right,
                 count in zip(class_names, confusion.diagonal(), counts) if count}
    return {
        'classification_error_rate': error_rate(dense, labels),
        'error_rate_interval': wilson_interval(int(counts.sum() - confusion.trace()), len(labels)),
        'classification_error_rate_1_view': error_rate(one_view, labels),
        'balanced_error_rate': float(np.mean(list(per_class.values()))),
        'per_class_error_rate': per_class,
        'confusion_matrix': confusion.tolist(),
    }


def confusion_matrix(predicted, labels, classes):
    """int64 (classes, classes): how many images of the row's class were predicted as the column's."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix
