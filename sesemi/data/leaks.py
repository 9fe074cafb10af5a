"""Finds images in two parts of a data set or under two labels, and labels that look alike.

Each makes the error rate misleading although every file can be read.
"""
import unicodedata

import numpy as np

from sesemi.errors import join_names

# letters that show nothing, beside those of the category Cf
INVISIBLE = '\u034f\u115f\u1160\u2800\ufe0e\ufe0f'


def find_leaks(dataset, train, test, unlabeled, valid):
    """Return a one-line warning that counts the leaks and names the first ones; '' if there are none.

    dataset: a datasets.Dataset; train, test, unlabeled, valid: S16 (n,), digests of its images from
    checksum.data_checksum.
    """
    found = []
    for kind, part, names, inside, other, other_names in (
            ('test', test, dataset.test_names, 'train', train, dataset.train_names),
            ('validation', valid, dataset.valid_names, 'train', train, dataset.train_names),
            ('test', test, dataset.test_names, 'validation', valid, dataset.valid_names),
            ('test', test, dataset.test_names, 'unlabeled', unlabeled, None),
            ('validation', valid, dataset.valid_names, 'unlabeled', unlabeled, None)):
        twice = np.flatnonzero(np.isin(part, other))
        first = [names[i] + (' is ' + other_names[np.argmax(other == part[i])] if other_names else '')
                 for i in twice[:3]]
        found += _describe_leak(len(twice), kind, 'in %s too' % inside, first)
    names = [*dataset.train_names, *dataset.test_names, *dataset.valid_names]
    labels, digests = np.concatenate([dataset.train_labels, dataset.test_labels,
                                      dataset.valid_labels]), np.concatenate([train, test, valid])
    order = np.argsort(digests, kind='stable')
    differ = (digests[order[1:]] == digests[order[:-1]]) & (labels[order[1:]] != labels[order[:-1]])
    first = ['%s is %s' % (names[order[i]], names[order[i + 1]]) for i in np.flatnonzero(differ)[:3]]
    found += _describe_leak(len(np.unique(digests[order[1:]][differ])), 'labeled', 'under two labels', first)
    spellings = {}
    for name in dataset.class_names:
        seen = ''.join(letter for letter in unicodedata.normalize('NFKC', name).lower()
                       if not letter.isspace() and unicodedata.category(letter) != 'Cf'
                       and letter not in INVISIBLE)
        spellings.setdefault(seen, []).append(repr(name))
    alike = [' and '.join(names) for names in spellings.values() if len(names) > 1]
    found += ['labels that differ in spaces, capitals or look-alike letters only: %s'
              % join_names(alike)] if alike else []
    return 'Warning: %s.' % '; '.join(found) if found else ''


def _describe_leak(count, kind, what, first):
    """['3 test images are in train too (a.png is b.png, ... and 1 more)'], or [] if count is 0."""
    more = ' and %d more' % (count - len(first)) if count > len(first) else ''
    return ['%d %s image%s %s (%s%s)'
            % (count, kind, ' is' if count == 1 else 's are', what, join_names(first), more)] if count else []
