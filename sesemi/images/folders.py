"""What lies in a folder of images: the image files at any depth, and what is passed over, so that nothing is
left out in silence.
"""
import os
from collections import Counter

from sesemi.errors import InputError, escape_controls, join_names
from sesemi.images.decoding import find_formats

JUNK_FOLDERS = ('__MACOSX', '__pycache__')      # folders that programs leave
# of files that Pillow may not read
NEEDED_PACKAGES = {'.heic': 'pillow-heif', '.heif': 'pillow-heif', '.avif': 'a newer Pillow'}


class PassedOver:
    """What of a data folder is not read: files, a Counter of reasons; folders, {path: reason or ''}. Its text
    is one sentence, or ''.
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
    """(folders, files) of a directory, os.DirEntry by name. Raises InputError when it cannot be listed."""
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
    """Why a file, an os.DirEntry, is passed over; '' for an image."""
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
    """Whether a folder, an os.DirEntry, is hidden or one that programs leave."""
    return folder.name.startswith('.') or folder.name in JUNK_FOLDERS


def find_images(directory, passed_over):
    """The image files of a folder and of those below it, sorted. Links to folders below it are not followed:
    they may form a ring.

    passed_over: a PassedOver that gets all else. Raises InputError when a folder cannot be listed.
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
