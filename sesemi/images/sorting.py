"""Sorts image files into a folder for each class, as links or copies."""
import os
import shutil

from sesemi.errors import InputError
from sesemi.images.folders import JUNK_FOLDERS

MAX_NAME = 255      # bytes of a name, on Linux


def prepare(directory, class_names, used, copy):
    """Make the folder to sort into, unless it is there and empty.

    used: paths that may be neither in it nor around it. Raises InputError for these, for class names that a
    folder cannot have or that mean something else in a data set, and where links are impossible, unless
    `copy` is true.
    """
    for name in class_names:
        if not is_class_folder(name):
            raise InputError('--sort-into %s: the model has a class %.40r, and no class folder can have this '
                             'name; use --csv.' % (directory, name))
    folder = os.path.realpath(directory)
    for path in used:
        if os.path.commonpath([folder, os.path.realpath(path)]) in (folder, os.path.realpath(path)):
            raise InputError('--sort-into %s: lies in %s or around it; give a folder elsewhere.'
                             % (directory, path))
    try:
        os.makedirs(folder, exist_ok=True)
        if os.listdir(folder):
            raise InputError('--sort-into %s: is not empty; give a new or an empty folder.' % directory)
        if not copy:
            link = os.path.join(folder, 'link')
            os.symlink(folder, link)
            os.remove(link)
    except OSError as error:
        raise InputError('--sort-into %s: no %s can be made there (%s); give another folder%s.' % (
            directory, 'files' if copy else 'links', error.strerror, '' if copy else ' or --copy')) from None


def is_class_folder(name):
    """Whether a folder of this name, from any file, is read as a class of its parent folder."""
    try:
        size = len(os.fsencode(name))
    except (TypeError, UnicodeError):
        return False
    return (0 < size <= MAX_NAME and not name.startswith('.') and not set(name) & {'/', '\0'}
            and name not in JUNK_FOLDERS and name.lower() not in ('train', 'test', 'unlabeled'))


def sort_files(paths, folders, directory, copy):
    """Link or copy each file into directory/folder; returns the new paths.

    folders: a name for each file; '' leaves it out, and its new path is ''. A name that is taken gets a
    number. Raises InputError.
    """
    targets, numbers = [], {}
    for path, folder in zip(paths, folders):
        first = target = folder and os.path.join(directory, folder, os.path.basename(path))
        while target in numbers:
            numbers[first] += 1
            target = ('_%d' % numbers[first]).join(os.path.splitext(first))
        targets.append(target)
        if not folder:
            continue
        numbers[target] = 1
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if copy:
                shutil.copyfile(path, target)
            else:
                os.symlink(os.path.realpath(path), target)
        except OSError as error:
            raise InputError('%s: cannot be made (%s); remove the folder and make room.'
                             % (target, error.strerror)) from None
    return targets
