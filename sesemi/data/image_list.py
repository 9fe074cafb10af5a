"""Lists the images of a table such as list.csv, which has the columns path, label and split."""
import csv
import io
import os
import unicodedata

import numpy as np

from sesemi.data.image_folders import VALIDATION_NAMES
from sesemi.errors import InputError, describe_error
from sesemi.images.folders import find_places, unite_names

NO_LABEL = {'', 'nan', 'NaN', '<NA>'}       # pandas writes a missing value so


def list_table(path, with_unlabeled):
    """List the images of a CSV file, whose cells are set apart by commas, semicolons, tabs or |.

    path: relative to the file's folder; label: empty for an unlabeled image; split: train (the default),
    valid or test. Returns (class names, (paths, labels) of the training, test and validation images, paths of
    the unlabeled images). Raises InputError.
    """
    rows = _read_rows(path)
    no_label = _find_missing(rows)
    parts = {'train': [], 'test': [], 'valid': [], 'unlabeled': []}
    for line, (name, label, part) in enumerate(rows, 2):
        if not name or '\0' in name:        # Python 3.11's csv lets \0 through
            raise InputError('%s, line %d: has no path, or one that no file can have; correct or remove the '
                             'line.' % (path, line))
        part = part.lower() or 'train'
        part = 'valid' if part in VALIDATION_NAMES else part
        if part not in ('train', 'valid', 'test'):
            raise InputError('%s, line %d: split is %.40r; it must be train, valid or test.'
                             % (path, line, part))
        if part != 'train' and label in no_label:
            raise InputError('%s, line %d: the label %r counts as none, but a %s image needs one.'
                             % (path, line, label, part))
        slashed = name.replace('\\', '/')
        spellings = name, slashed, *(unicodedata.normalize(form, slashed) for form in ('NFC', 'NFD'))
        files = [os.path.join(os.path.dirname(path), spelling) for spelling in spellings]
        found = next(filter(os.path.exists, files), None)
        if not found:
            raise InputError('%s, line %d: %s: no such file; correct the path, which counts from the folder '
                             'of the list, or remove the line.'
                             % (path, line, files[0]))
        parts['unlabeled' if label in no_label else part].append((found, label))
    unlabeled = [file for file, _ in parts.pop('unlabeled')]
    class_names, listed = unite_names(label for _, label in parts['train']), []
    if len(class_names) < 2:
        raise InputError('%s: needs training images of at least two classes.' % path)
    for part in parts.values():
        numbers = find_places((label for _, label in part), class_names)
        if -1 in numbers:
            raise InputError('%s: the class %s has no training images; add some.'
                             % (path, part[numbers.index(-1)][1]))
        listed.append(([file for file, _ in part], np.array(numbers, np.int64)))
    if unlabeled and not with_unlabeled:
        print('%d unlabeled images passed over (for --method ssl).' % len(unlabeled))
    return class_names, listed, unlabeled if with_unlabeled else []


def _read_rows(path):
    """Read the path, label and split of each row of a table, '' for what is missing. Raises InputError."""
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            text = file.read()
        for delimiter in ',;\t|':
            reader = csv.DictReader(io.StringIO(text, ''), delimiter=delimiter, skipinitialspace=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            if {'path', 'label'} <= set(reader.fieldnames):
                rows = [[(row.get(name) or '').strip() for name in ('path', 'label', 'split')]
                        for row in reader]
                if rows:
                    return rows
    except (OSError, ValueError, csv.Error) as error:
        raise InputError('%s: cannot be read as a CSV file (%s); save it as UTF-8 text.'
                         % (path, describe_error(error))) from None
    raise InputError('%s: needs a header with the columns path, label and split, set apart by commas, '
                     'semicolons, tabs or |, and a line for each image.' % path)


def _find_missing(rows):
    """Find the labels that stand for no label, and say so of those that are not empty.

    -1, as scikit-learn has it, is one of them if the other labels are at least two whole numbers and no test
    or validation image has it; else it is a class.
    """
    others = {label for _, label, _ in rows} - NO_LABEL - {'-1'}
    numbered = len(others) > 1 and all(map(str.isdecimal, others))
    trained = all(part.lower() in ('', 'train') for _, label, part in rows if label == '-1')
    missing = NO_LABEL | {'-1'} if numbered and trained else NO_LABEL
    marked = [label for _, label, _ in rows if label in missing - {''}]
    if marked:
        print('%d images labeled %s count as unlabeled; to train them as a class, give it another name, such '
              'as minus1.' % (len(marked), ' or '.join(sorted(set(marked)))))
    return missing
