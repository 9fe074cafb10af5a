"""Error rates, from probabilities and labels."""
import math

import numpy as np


def error_rate(probabilities, labels):
    """The share of images whose most probable class is not their label."""
    return float(np.mean(probabilities.argmax(axis=1) != labels))


def wilson_interval(errors, images, z=1.96):
    """[low, high]: the 95 % interval of an error rate that was counted on so many images (Wilson 1927)."""
    rate = errors / images
    middle, half = rate + z * z / (2 * images), z * math.sqrt(rate * (1 - rate) / images + (z / (2 * images)) ** 2)
    return [max(0.0, (middle - half) / (1 + z * z / images)), min(1.0, (middle + half) / (1 + z * z / images))]


def confusion_matrix(predicted, labels, classes):
    """int64 (classes, classes): how many images of each class (row) were taken for each class (column)."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix
