"""Lists the images of a folder of class folders; parts of a data set are not taken for classes."""
import itertools
import os
import re

import numpy as np

from sesemi.errors import InputError, join_names
from sesemi.images import folders
from sesemi.images.folders import find_skip_reason, list_entries
from utils import list_image_folder

VALIDATION_NAMES = 'valid', 'validation', 'val'     # accepted names of the folder or split for validation
# a folder of such a name that holds folders is no class, even alone
PART_NAMES = 'training', 'testing', 'tests', *VALIDATION_NAMES
# how a word begins in the name of training images, and of those for test or validation
TRAIN, TEST = 'train', 'test|valid|(val|dev|eval)$'


def list_folders(directory, with_unlabeled):
    """List train/CLASS/*, or without a train folder CLASS/*; and test/CLASS/*, valid/CLASS/*, unlabeled/*.

    The last three are optional; test and valid need a train folder. Returns (class names, (paths, labels) of
    the training, test and validation images, paths of the unlabeled images). Raises InputError.
    """
    if not os.path.isdir(directory):
        raise InputError('--dataset %s: neither a folder, nor a CIFAR .tar.gz archive, nor a .csv list; give '
                         'one of these.'
                         % directory)
    inside, files = list_entries(directory)
    named = {folder.name.lower(): folder.path for folder in inside if not folders.is_junk(folder)}
    train = named.get('train')
    test = train and named.get('test')
    valid = [named[name] for name in VALIDATION_NAMES if train and name in named]
    _check_parts(train, {*named.values()} - {train, test, *valid})
    if 'test' in named and not train:
        raise InputError('%s: has a test folder but no train folder; add train/CLASS/*.' % directory)
    if len(valid) > 1:
        raise InputError('%s: has %s for validation; keep one of them.'
                         % (directory, ' and '.join(map(os.path.basename, valid))))
    passed_over = folders.PassedOver()
    paths, labels, class_names = _list_classes(train or directory, passed_over)
    if train:
        passed_over.folders.update((folder.path, '') for folder in inside
                                   if folder.path not in (train, test, *valid))
        passed_over.files.update(find_skip_reason(file) or 'outside the class folders' for file in files)
    extra = []
    for unlabeled in sorted(path for path in passed_over.folders
                            if os.path.basename(path).lower() == 'unlabeled'):
        passed_over.folders[unlabeled] = 'for --method ssl'
        if with_unlabeled:
            del passed_over.folders[unlabeled]
            extra += folders.find_images(unlabeled, passed_over)
    parts = [_list_part(part, class_names, train, passed_over) for part in (test, *(valid or [None]))]
    if str(passed_over):
        print(passed_over)
    return class_names, ((paths, labels), *parts), extra


def _list_part(folder, class_names, train, passed_over):
    """List a part's paths and labels, numbered as the training classes; none if `folder` is None.

    Raises InputError for a class without training images.
    """
    if not folder:
        return [], np.zeros(0, np.int64)
    paths, labels, found = list_image_folder(folder, passed_over, least=1)
    numbers = folders.find_places(found, class_names)
    if -1 in numbers:
        raise InputError('%s: no such class in %s; add its training images or remove the folder.'
                         % (os.path.join(folder, found[numbers.index(-1)]), train))
    return paths, np.array(numbers)[labels]


# Parts of a data set that would be taken for classes: names are refused, structure is warned of

def _look_into(path):
    """The folder that `path` stands for, and the names of the folders in it; none if an image lies there.

    A folder with one folder and no image stands for that folder.
    """
    inside, files = list_entries(path)
    inside = [folder for folder in inside if not (folders.is_junk(folder) or folder.is_symlink())]
    if not all(map(find_skip_reason, files)):
        return path, set()
    return _look_into(inside[0].path) if len(inside) == 1 else (path, {folder.name for folder in inside})


def _says(begin, paths):
    """Whether a word in the name of one of the folders begins as the pattern `begin`, capitals aside.

    Words end where no letter is, and where a capital begins another, as in trainSet or CIFARTrain.
    """
    names = '\n'.join(map(os.path.basename, paths))
    split = re.sub('(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', ' ', names)
    return any(re.match(begin, word, re.I) for word in re.findall(r'[^\W\d_]+', names + '\n' + split))


def _check_parts(train, others):
    """Raise InputError for folders that are named like parts of a data set and are not read as such.

    train: the folder that is read as training images, or None; others: those that are not read as a part.
    """
    trains = {train} if train else {path for path in others if _says(TRAIN, [path])}
    tests = {path for path in others if _says(TEST, [path])}
    parts = trains | tests
    if not trains or not tests or len(parts) < 2:
        parts = {path for path in others if not train and os.path.basename(path).lower() in PART_NAMES}
    places = [_look_into(path) for path in sorted(parts)]
    if any(names for _, names in places):
        raise InputError('%s: named like parts of a data set, not like classes; call the parts train, test '
                         'and valid, with the class folders in each, or move away what is no part.'
                         % join_names(place for place, _ in places))


def _list_classes(directory, passed_over):
    """List a folder as list_image_folder does; warns of class folders that have the same folders in them.

    Raises InputError if those are parts of a data set, or if there is one class only.
    """
    paths, labels, class_names = list_image_folder(directory, passed_over, least=1)
    with_images = {os.path.dirname(path) for path in paths}
    inside = {name: _look_into(os.path.join(directory, name)) for name in class_names
              if os.path.join(directory, name) not in with_images}
    if len(class_names) < 2:
        place, names = inside.get(class_names[0], ('', ()))
        raise InputError('%s: holds one class only (%s); %s.' % (
            directory, class_names[0], 'if the folders in it are the classes, give ' + place if names
            else 'give at least two folders of images, one for each class'))
    for (place, names), (_, others) in itertools.combinations(inside.values(), 2):
        shared = names & others
        if len(shared) > 1:
            alike = [name for name in inside if len(inside[name][1] & shared) > 1]
            found = '%s hold the same folders (%s)' % (join_names(alike), join_names(sorted(shared)))
            if alike == class_names and _says(TRAIN, shared) and _says(TEST, shared):
                raise InputError('%s: %s, which seem to be parts of a data set; put these on top, as '
                                 'train/CLASS and test/CLASS, or give a list.csv.' % (directory, found))
            print('Warning: %s; if these are your classes, give %s or a list.csv.' % (found, place))
            break
    return paths, labels, class_names
