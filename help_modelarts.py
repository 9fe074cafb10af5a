"""Copy between OBS, the object storage of ModelArts, and local folders.

This is the only file that uses moxing, which exists on ModelArts alone. It is imported only when a URL is
used, so that everything else runs on any machine.
"""
import os
import re
import time

PAUSES = 5, 20, 60      # seconds to wait before each new try of a failed access


class ModelArtsError(Exception):
    """Stops a job; the message is one plain sentence."""


def is_url(location):
    """Whether a location is a URL in OBS; anything else is a local path."""
    return location.startswith(('obs://', 's3://'))


def join(location, name):
    """The URL or path of `name` in the folder at a location."""
    return location.rstrip('/') + '/' + name


def exists(url):
    """Whether there is something at the URL. Raises ModelArtsError when OBS cannot be asked."""
    return _retry(url, 'looked for', lambda storage: storage.exists(url))


def copy_in(url, folder):
    """Copy the folder or file at the URL into `folder`, which need not exist; returns the copy's path.

    Raises ModelArtsError when nothing is at the URL or copying fails.
    """
    if not exists(url):
        raise ModelArtsError('%s: nothing is there; give the URL of an existing folder.'
                             % without_secrets(url))
    os.makedirs(folder, exist_ok=True)
    if _retry(url, 'looked at', lambda storage: storage.is_directory(url)):
        _retry(url, 'copied here', lambda storage: storage.copy_parallel(url, folder))
        return folder
    path = os.path.join(folder, os.path.basename(without_secrets(url)))
    _retry(url, 'copied here', lambda storage: storage.copy(url, path))
    return path


def copy_out(folder, url):
    """Copy the contents of `folder` into the folder at the URL. Raises ModelArtsError when that fails."""
    _retry(url, 'copied to', lambda storage: storage.copy_parallel(folder, url))


def without_secrets(text):
    """Remove the query and the user part from the URLs in a text: they may hold an access key."""
    return re.sub(r'\?\S*', '', re.sub(r'//[^/\s]*@', '//', text))


def _retry(url, action, access):
    """Return access(moxing.file); if it fails, try again after each of PAUSES. action: for messages."""
    try:
        import moxing
    except Exception as error:      # a broken installation may raise more than ImportError
        raise ModelArtsError('%s: cannot be %s, because moxing cannot be imported (%s: %s); it comes with '
                             'ModelArts, elsewhere give a local folder.'
                             % (without_secrets(url), action, type(error).__name__, error)) from None
    for pause in PAUSES + (None,):
        try:
            return access(moxing.file)
        except Exception as error:  # moxing raises its own exception types
            why = without_secrets(' '.join(str(error).split()))
            problem = '%s: cannot be %s (%s: %s)' % (without_secrets(url), action, type(error).__name__, why)
        if pause is None:
            raise ModelArtsError('%s; tried %d times.' % (problem, len(PAUSES) + 1))
        print('%s; next try in %d s.' % (problem, pause), flush=True)
        time.sleep(pause)
