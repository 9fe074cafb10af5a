"""Copies between OBS, ModelArts' object storage, and local folders. The only file that names moxing.

moxing exists on ModelArts alone: it is imported when a URL is to be copied, so that everything else runs on
any machine.
"""
import os
import re
import time

PAUSES = 5, 20, 60      # seconds before a failed access is tried again


class ModelArtsError(Exception):
    """What stops a job, as one plain sentence."""


def is_url(place):
    """Whether `place` lies in OBS; everything else is a local path."""
    return place.startswith(('obs://', 's3://'))


def below(place, name):
    """`name` below a URL or a folder."""
    return place.rstrip('/') + '/' + name


def exists(url):
    """Whether there is something at the URL. Raises ModelArtsError when that cannot be told."""
    return _retried(url, 'looked for', lambda storage: storage.exists(url))


def copy_in(url, folder):
    """Copy the folder or file at the URL into `folder`, which need not exist; returns the copy's path.

    Raises ModelArtsError when nothing is there or copying fails.
    """
    if not exists(url):
        raise ModelArtsError('%s: nothing is there; give the URL of an existing folder.'
                             % without_secrets(url))
    os.makedirs(folder, exist_ok=True)
    if _retried(url, 'looked at', lambda storage: storage.is_directory(url)):
        _retried(url, 'copied here', lambda storage: storage.copy_parallel(url, folder))
        return folder
    path = os.path.join(folder, os.path.basename(without_secrets(url)))
    _retried(url, 'copied here', lambda storage: storage.copy(url, path))
    return path


def copy_out(folder, url):
    """Copy what is in `folder` into the folder at the URL. Raises ModelArtsError when that fails."""
    _retried(url, 'copied to', lambda storage: storage.copy_parallel(folder, url))


def without_secrets(text):
    """The text with the URLs in it cut down to what may be shown: a query or a user part can hold an access
    key.
    """
    return re.sub(r'\?\S*', '', re.sub(r'//[^/\s]*@', '//', text))


def _retried(url, deed, access):
    """access(moxing.file), tried again after each of PAUSES."""
    try:
        import moxing
    except Exception as error:      # it imports much, and a broken installation raises more than ImportError
        raise ModelArtsError('%s: cannot be %s, because moxing cannot be imported (%s: %s); it comes with '
                             'ModelArts, elsewhere give a local folder.'
                             % (without_secrets(url), deed, type(error).__name__, error)) from None
    for pause in PAUSES + (None,):
        try:
            return access(moxing.file)
        except Exception as error:  # the storage client has types of its own
            why = without_secrets(' '.join(str(error).split()))
            problem = '%s: cannot be %s (%s: %s)' % (without_secrets(url), deed, type(error).__name__, why)
        if pause is None:
            raise ModelArtsError('%s; tried %d times.' % (problem, len(PAUSES) + 1))
        print('%s; next try in %d s.' % (problem, pause), flush=True)
        time.sleep(pause)
