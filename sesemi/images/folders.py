"""Finds the image files in a folder, at any depth, and records what was passed over; compares names."""
import glob
import os
import unicodedata
from collections import Counter

from sesemi.errors import InputError, escape_controls, join_names
from sesemi.images.decoding import find_formats

JUNK_FOLDERS = ('__MACOSX', '__pycache__')      # left behind by other programs
RUN_FILES = 'args.json', '.lock'        # what lies in the folder of a run
# what reads a suffix that the installed Pillow may not read
NEEDED_PACKAGES = {'.heic': 'pillow-heif', '.heif': 'pillow-heif', '.avif': 'a newer Pillow'}


class PassedOver:
    """The part of a data folder that is not read; str() gives it as one sentence, '' if there is none.

    files: a Counter of the reasons; folders: {path: reason, or '' without one}.
    """

    def __init__(self):
        self.files, self.folders = Counter(), {}

    def __str__(self):
        count = sum(self.files.values())
        files = ', '.join('%d %s' % (count, why) for why, count in self.files.most_common())
        folders = join_names(os.path.basename(path) + (why and ' (%s)' % why)
                         for path, why in sorted(self.folders.items()))
        if folders:
            folders = '%solders passed over: %s.' % ('; f' if files else 'F', folders)
        return (files and '%d file%s passed over: %s'
                % (count, '' if count == 1 else 's', escape_controls(files))) + (folders or files and '.')


def list_entries(directory):
    """List (folders, files) of a directory as os.DirEntry, sorted by name. Raises InputError if it cannot."""
    try:
        with os.scandir(directory) as found:
            found = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError('%s: cannot be listed (%s); make it readable or remove it.'
                         % (directory, error.strerror)) from None
    folders = [os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir() for entry in found]
    return ([entry for entry, folder in zip(found, folders) if folder],
            [entry for entry, folder in zip(found, folders) if not folder])


def find_skip_reason(file):
    """Find out why a file, an os.DirEntry, is passed over; '' for an image."""
    if file.name.startswith('.'):
        return 'hidden'
    if file.is_symlink() and not os.path.exists(file.path):
        return 'links that lead nowhere'
    if not os.path.isfile(file.path) if file.is_symlink() else not file.is_file():
        return 'that are no regular files'
    suffix = os.path.splitext(file.name)[1].lower()
    if suffix in find_formats().suffixes:
        return ''
    reader = ' (%s reads them)' % NEEDED_PACKAGES[suffix] if suffix in NEEDED_PACKAGES else ''
    return (suffix or 'without a suffix') + reader


def is_junk(folder):
    """Whether a folder, an os.DirEntry, is hidden, one of JUNK_FOLDERS, or of one or several runs."""
    if folder.name.startswith('.') or folder.name in JUNK_FOLDERS:
        return True
    places = [folder.path, *glob.glob(os.path.join(glob.escape(folder.path), 'seed-*'))]
    return any(os.path.lexists(os.path.join(place, name)) for place in places for name in RUN_FILES)


def find_images(directory, passed_over):
    """Find the image files in a folder and in the folders below it: a sorted list of paths.

    passed_over: a PassedOver that records everything else. Links to folders are not followed, since they may
    form a circle. Raises InputError if a folder cannot be listed.
    """
    images, pending = [], [directory]
    while pending:
        folders, files = list_entries(pending.pop())
        for folder in folders:
            if is_junk(folder) or folder.is_symlink():
                passed_over.folders[folder.path] = '' if is_junk(folder) else 'a link'
            else:
                pending.append(folder.path)
        for file in files:
            why = find_skip_reason(file)
            if why:
                passed_over.files[why] += 1
            else:
                images.append(file.path)
    return sorted(images)


# Names. Those on the disk stay as they are, but é may be one letter there or e and an accent.

def unite_names(names):
    """Sort names, of those that are equal in Unicode's form NFC only the first one."""
    return sorted({unicodedata.normalize('NFC', name): name for name in reversed(list(names))}.values())


def find_places(names, known):
    """The index in `known` of each name, compared in Unicode's form NFC; -1 if it is not there."""
    places = {unicodedata.normalize('NFC', name): place for place, name in enumerate(known)}
    return [places.get(unicodedata.normalize('NFC', name), -1) for name in names]
