"""Keeps decoded images and the fitted whitening in files, so that the next run starts faster.

Each is an entry: one file, whose name holds a hash of everything the content depends on. If an entry is cut
off or cannot be written, its content is computed as without a cache. Images that do not fit in memory stay in
their entry, or without a cache in a temporary file, and are read from there batch by batch.
"""
import contextlib
import hashlib
import io
import itertools
import os
import secrets
import sys
import tempfile
import time
import zipfile

import numpy as np
import PIL

from sesemi.errors import InputError, describe_error
from sesemi.system import signals
from sesemi.system.files import PARTIAL_NAME, WAIT_SECONDS, flush_to_disk, hold_lock
from sesemi.system.machine import get_memory_size
from utils import decode_blocks, decode_images

FORMAT_VERSION = 3      # part of every hash; increase it when the same files give another entry
MAX_BYTES = 16 << 30    # of all entries together
LOCK_SUFFIX = '.lock'   # added to the name of an entry while it is being made
STALE_SECONDS = 86400   # an unfinished entry not written to for this long is abandoned


def default_folder():
    """The folder `sesemi` in $SESEMI_CACHE, $XDG_CACHE_HOME or ~/.cache; None if there is no home folder."""
    folder = (os.environ.get('SESEMI_CACHE') or os.environ.get('XDG_CACHE_HOME')
              or os.path.join(os.path.expanduser('~'), '.cache'))
    return None if folder.startswith('~') else os.path.join(folder, 'sesemi')


class StoredImages:
    """uint8 images (n, s, s, 3) in an open file, read each time they are indexed.

    file: an open file of images; indices: int (n,), the images of the file to use. A slice or a mask gives
    StoredImages, an index or an int array of indices gives an array, and np.asarray reads all images.
    """

    def __init__(self, file, indices, image_size):
        self.file, self.indices = file, indices
        self.shape = (len(indices), image_size, image_size, 3)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        chosen = self.indices[index]
        if isinstance(index, slice) or np.asarray(index).dtype == bool:
            return StoredImages(self.file, chosen, self.shape[1])
        return self._read(chosen)

    def __array__(self, dtype=None, copy=None):
        images = self._read(self.indices)
        return images if dtype is None else images.astype(dtype)

    def _read(self, indices):
        """Read images of the file, mapped anew each time: mapped pages count as the process's memory."""
        mapped = np.asarray(np.memmap(self.file, np.uint8, 'r'))
        return mapped.reshape(-1, *self.shape[1:]).take(indices, axis=0)


class Cache:
    """A cache in `folder`, or no cache if that is None.

    memory_limit: GB that a set of images may take in memory; by default half of machine.get_memory_size(),
    divided by `processes`. One process makes an entry; the others wait for it, at most `seconds`.
    """

    def __init__(self, folder, memory_limit=None, processes=1, seconds=None):
        self.folder, self.seconds = folder, seconds or WAIT_SECONDS
        self.memory_limit = 1e9 * memory_limit if memory_limit else get_memory_size() / 2 / processes

    def fits_in_memory(self, images, image_size):
        """Whether so many images, as uint8 and as float32, fit within the memory limit."""
        return images * image_size ** 2 * 3 * (1 + 4) <= self.memory_limit

    def decode_images(self, paths, image_size=32, fit='stretch'):
        """Decode as utils.decode_images does: returns an array, or StoredImages beyond the memory limit.

        An entry is used again while each file's path, size and times of change and Pillow's version stay the
        same. Raises InputError naming an unreadable image.
        """
        fits_in_memory = self.fits_in_memory(len(paths), image_size)
        images = self._load_or_decode(paths, image_size, fit) if self.folder is not None else None
        if images is not None:
            return np.asarray(images) if fits_in_memory else images
        if fits_in_memory:
            return decode_images(paths, image_size, fit, self.memory_limit)
        return self._decode_to_temporary_file(paths, image_size, fit)

    def _load_or_decode(self, paths, image_size, fit):
        """The StoredImages of an entry, which is made if it is missing; None if that fails."""
        try:
            key = hash_key(itertools.chain(('images', image_size, fit, PIL.__version__),
                                           map(_describe_file, paths)))
        except OSError:         # a file is missing: decoding it reports that better
            return None
        path, size = os.path.join(self.folder, 'images-%s.uint8' % key), len(paths) * image_size ** 2 * 3

        def load():
            if os.path.getsize(path) != size:
                raise ValueError('it was cut off')
            return StoredImages(open(path, 'rb'), np.arange(len(paths)), image_size)
        images = _load_entry(path, load)
        if images is None:
            with hold_lock(path + LOCK_SUFFIX, self.seconds):
                images = _load_entry(path, load)        # another process may have made it meanwhile
                if images is None:
                    blocks = decode_blocks(paths, image_size, fit, self.memory_limit)
                    self._write_entry(path, blocks, 'images')
                    images = _load_entry(path, load)
        return images

    def _decode_to_temporary_file(self, paths, image_size, fit):
        """Decode into a temporary file that ends with the process: returns its StoredImages."""
        try:
            file = tempfile.TemporaryFile()
            file.writelines(decode_blocks(paths, image_size, fit, self.memory_limit))
            file.flush()
        except OSError as error:
            raise InputError('%s: has no room for the images beyond the memory limit (%s); set TMPDIR to a '
                             'folder that has, raise --memory-limit, or use the cache.'
                             % (tempfile.tempdir or 'The temporary folder', describe_error(error))) from None
        return StoredImages(file, np.arange(len(paths)), image_size)

    def get_whitener(self, kind, key, fit):
        """Return fit(), or what it returned for this key before.

        kind: the class of the result, utils.Whitener or utils.ChannelStandardizer; key: all that the result
        depends on.
        """
        if self.folder is None:
            return fit()
        path = os.path.join(self.folder, 'whitening-%s.npz' % hash_key([kind.__name__, key]))

        def load():
            if not zipfile.is_zipfile(path):    # numpy 1.18 would print a traceback
                raise ValueError('it was cut off')
            with np.load(path) as fields:
                return kind(**fields)
        whitener = _load_entry(path, load)
        if whitener is None:
            with hold_lock(path + LOCK_SUFFIX, self.seconds):
                whitener = _load_entry(path, load)
                if whitener is None:
                    whitener, content = fit(), io.BytesIO()
                    np.savez(content, **whitener._asdict())
                    self._write_entry(path, [content.getbuffer()], 'whitening')
        return whitener

    def _write_entry(self, path, blocks, what):
        """Write an entry from blocks of bytes and remove old entries; print why if it cannot be written."""
        try:
            os.makedirs(self.folder, exist_ok=True)
            # not mkstemp, whose files no other user can read
            temporary = PARTIAL_NAME % (path, secrets.token_hex(4))
            with signals.remove_if_unfinished(temporary), open(temporary, 'xb') as file:
                file.writelines(blocks)
                flush_to_disk(file)
                os.replace(temporary, path)
            self._remove_old_entries(path)
        except OSError as error:
            print('%s: the %s cannot be kept there (%s); the run goes on without.'
                  % (self.folder, what, describe_error(error)), file=sys.stderr)

    def _remove_old_entries(self, kept):
        """Remove the least recently used entries, except `kept`, until all take at most MAX_BYTES.

        Locks and entries that other processes are writing stay; abandoned ones are removed.
        """
        entries = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):          # another process may have removed it
                status = entry.stat(follow_symlinks=False)
                if not entry.name.endswith(('.part', LOCK_SUFFIX)):
                    entries.append((status.st_mtime, status.st_size, entry.path))
                elif entry.name.endswith('.part') and time.time() - status.st_mtime > STALE_SECONDS:
                    os.remove(entry.path)
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total > MAX_BYTES and path != kept:
                total -= size
                with contextlib.suppress(OSError):
                    os.remove(path)


def _load_entry(path, load):
    """Return load(), or None if the entry is missing or damaged; marks the entry as used."""
    try:
        stored = load()
    except Exception:       # numpy and zipfile raise nine types for damaged files
        return None
    with contextlib.suppress(OSError):      # the entry of another user
        os.utime(path)
    return stored


def hash_key(key):
    """Hash a key, an iterable of values, to 32 hexadecimal digits."""
    checksum = hashlib.sha256()
    for value in itertools.chain([FORMAT_VERSION], key):
        checksum.update(repr(value).encode('utf-8', 'surrogateescape') + b'\n')
    return checksum.hexdigest()[:32]


def _describe_file(path):
    """A file's path, size and times: these change with its content.

    st_ctime is among them because programs can set st_mtime back.
    """
    status = os.stat(path)
    return os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns
