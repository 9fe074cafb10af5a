"""Chooses the labeled training images, and those of them to hold out for validation."""
import numpy as np

from sesemi.errors import InputError
from utils import hold_out, stratified_sample


def choose_labeled(dataset, labels, split_seed):
    """Choose the labeled training images, as many of each class: returns their indices, int (labels,).

    labels: how many in all, rounded down to a multiple of the classes, or 'all'. Raises InputError if there
    are fewer images than labels, or fewer labels than classes.
    """
    images, classes = len(dataset.train_labels), len(dataset.class_names)
    if labels in ('all', images):
        return np.arange(images)
    if labels > images:
        raise InputError('--labels %d: there are only %d training images; lower it or say --labels all.'
                         % (labels, images))
    if labels < classes:
        raise InputError('--labels %d: %d classes need at least one label each; raise it.'
                         % (labels, classes))
    if labels % classes:
        print('--labels %d is no multiple of %d classes: %d labels of each class are used.'
              % (labels, classes, labels // classes))
    return stratified_sample(dataset.train_labels, labels // classes, split_seed, dataset.class_names)


def split_validation(dataset, labeled, fraction):
    """Move a fraction of each class's labeled images, at least one, from training to validation.

    labeled: int (labels,), indices of training images; fraction: None or 0 changes nothing. Returns the
    changed Dataset and the indices in it of the remaining labeled images. Raises InputError if the data set
    has validation images already, or if no labeled image of a class would remain.
    """
    if not fraction:
        return dataset, labeled
    if len(dataset.valid_labels):
        raise InputError('--validation %g: the data set has validation images of its own; leave the flag out.'
                         % fraction)
    labels = dataset.train_labels[labeled]
    held_out = hold_out(labels, fraction)
    for label in np.unique(labels):
        if held_out[labels == label].all():
            raise InputError('--validation %g: class %s has one labeled image; raise --labels or leave the '
                             'flag out.'
                             % (fraction, dataset.class_names[label]))
    moved, kept = labeled[held_out], np.ones(len(dataset.unlabeled_images), bool)
    kept[moved] = False
    trained = kept[:len(dataset.train_labels)]
    unlabeled = dataset.unlabeled_images[kept]
    names = dataset.train_names
    return dataset._replace(
        train_images=unlabeled[:trained.sum()], train_labels=dataset.train_labels[trained],
        train_names=[name for name, stays in zip(names, trained) if stays], unlabeled_images=unlabeled,
        valid_images=dataset.train_images[moved], valid_labels=dataset.train_labels[moved],
        valid_names=[names[i] for i in moved],
    ), (np.cumsum(trained) - 1)[labeled[~held_out]]
