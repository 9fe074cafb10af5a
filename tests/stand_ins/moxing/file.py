"""The functions of moxing.file that the project uses.

The first $MOXING_FAILS_IN copies from OBS and the first $MOXING_FAILS_OUT copies to it fail, with an error
message that holds a secret.
"""
import os
import shutil

_fails = {direction: int(os.environ.get('MOXING_FAILS_' + direction) or 0) for direction in ('IN', 'OUT')}


def exists(url):
    return os.path.exists(_path(url))


def is_directory(url):
    return os.path.isdir(_path(url))


def list_directory(url, recursive=False):
    if not recursive:
        return os.listdir(_path(url))
    return sorted(os.path.relpath(os.path.join(folder, name), _path(url))
                  for folder, folders, files in os.walk(_path(url)) for name in folders + files)


def make_dirs(url):
    os.makedirs(_path(url), exist_ok=True)


def copy(src_url, dst_url):
    _fail_if_due(dst_url)
    os.makedirs(os.path.dirname(_path(dst_url)), exist_ok=True)
    shutil.copy(_path(src_url), _path(dst_url))


def copy_parallel(src_url, dst_url):
    _fail_if_due(dst_url)
    for folder, _, files in os.walk(_path(src_url), onerror=_raise):
        below = os.path.join(_path(dst_url), os.path.relpath(folder, _path(src_url)))
        os.makedirs(below, exist_ok=True)
        for name in files:
            shutil.copy(os.path.join(folder, name), below)


def shift(*arguments):
    raise AssertionError('moxing.file.shift patches os for the whole process')


def _path(url):
    scheme, found, path = url.partition('://')
    assert not found or '//' not in path, path + ' names another object than with one slash'
    return os.path.join(os.environ['MOXING_ROOT'], path.rstrip('/')) if found else url


def _fail_if_due(dst_url):
    direction = 'OUT' if '://' in dst_url else 'IN'
    if _fails[direction]:
        _fails[direction] -= 1
        raise RuntimeError('403\nfor https://key:SECRET@obs.example/bucket?AccessKeyId=SECRET today')


def _raise(error):
    raise error
