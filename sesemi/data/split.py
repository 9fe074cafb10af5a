"""Which training images are labeled, and which of these are taken out for validation."""
import numpy as np

from sesemi.errors import InputError
from utils import hold_out, stratified_sample


def choose_labeled(dataset, labels, split_seed):
    """The indices of the labeled training images: `labels` // classes of each class, or 'all' of them.

    Raises InputError when there are not as many, or fewer than one a class.
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


def split_validation(dataset, labeled, share):
    """Take `share` of the labeled images of each class, at least one, out of all that is trained on.

    labeled: int (labels,) indices of training images. Returns (the Dataset with them as its valid images, the
    indices in it of the labeled images left); without a `share` what it was given. Raises InputError when
    there are valid images already or none of a class would be left.
    """
    if not share:
        return dataset, labeled
    if len(dataset.valid_labels):
        raise InputError('--validation %g: the data set has validation images of its own; leave the flag out.'
                         % share)
    labels = dataset.train_labels[labeled]
    held = hold_out(labels, share)
    for label in np.unique(labels):
        if held[labels == label].all():
            raise InputError('--validation %g: class %s has one labeled image; raise --labels or leave the '
                             'flag out.'
                             % (share, dataset.class_names[label]))
    taken, kept = labeled[held], np.ones(len(dataset.unlabeled_images), bool)
    kept[taken] = False
    trained = kept[:len(dataset.train_labels)]
    unlabeled = dataset.unlabeled_images[kept]
    names = dataset.train_names
    return dataset._replace(
        train_images=unlabeled[:trained.sum()], train_labels=dataset.train_labels[trained],
        train_names=[name for name, stays in zip(names, trained) if stays], unlabeled_images=unlabeled,
        valid_images=dataset.train_images[taken], valid_labels=dataset.train_labels[taken],
        valid_names=[names[i] for i in taken],
    ), (np.cumsum(trained) - 1)[labeled[~held]]
