"""What start-up computes from the files, kept for the next start: decoded images and whitening, in files that
are whole or not there.

An entry's name holds a digest of all it depends on; one that was cut off, or that cannot be written, is
computed as if there were no cache. Decoded images that would not fit into memory stay in their entry, or
without a cache in a temporary file, and are read as they are drawn.
"""
import contextlib
import hashlib
import io
import itertools
import os
import sys
import tempfile
import time
import zipfile

import numpy as np
import PIL

from sesemi.errors import InputError, describe_error
from sesemi.system import signals
from sesemi.system.files import WAIT_SECONDS, hold_lock
from sesemi.system.machine import get_memory_size
from utils import decode_blocks, decode_images

FORMAT_VERSION = 2              # part of every digest: to be raised when the same files give another entry
MAX_BYTES = 16 << 30        # bytes of all entries together
LOCK_SUFFIX = '.lock'          # behind the name of the entry that is being made
STALE_SECONDS = 86400   # since the last block of an entry that nobody can still be writing


def default_folder():
    """Below $SESEMI_CACHE, else where the system keeps what can be computed again; None for a user without a
    home.
    """
    place = (os.environ.get('SESEMI_CACHE') or os.environ.get('XDG_CACHE_HOME')
             or os.path.join(os.path.expanduser('~'), '.cache'))
    return None if place.startswith('~') else os.path.join(place, 'sesemi')


class StoredImages:
    """uint8 images (n, s, s, 3) of an open file, which are read when indexed and not kept.

    A slice or a mask gives a part of them, an index or an int array of indices an array; np.asarray reads
    them all.
    """

    def __init__(self, file, indices, image_size):
        self.file, self.indices = file, indices       # int (n,): which of the file's images they are
        self.shape = (len(indices), image_size, image_size, 3)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        indices = self.indices[index]
        if isinstance(index, slice) or np.asarray(index).dtype == bool:
            return StoredImages(self.file, indices, self.shape[1])
        return self._read(indices)

    def __array__(self, dtype=None, copy=None):
        images = self._read(self.indices)
        return images if dtype is None else images.astype(dtype)

    def _read(self, indices):
        """A copy of the file's images at these places. Mapped anew each time: what stays mapped counts as the
        process's memory.
        """
        mapped = np.asarray(np.memmap(self.file, np.uint8, 'r'))
        return mapped.reshape(-1, *self.shape[1:]).take(indices, axis=0)


class Cache:
    """The entries in `folder`, or no cache when that is None.

    memory_limit: GB that a set of images may take; by default half of machine.memory(), shared by so many
    `processes`. An entry is made by one process; the others wait for it, at most so many seconds.
    """

    def __init__(self, folder, memory_limit=None, processes=1, seconds=None):
        self.folder, self.seconds = folder, seconds or WAIT_SECONDS
        self.memory_limit = 1e9 * memory_limit if memory_limit else get_memory_size() / 2 / processes

    def fits_in_memory(self, images, image_size):
        """Whether so many images are to be held in memory, as bytes and as float32."""
        return images * image_size ** 2 * 3 * (1 + 4) <= self.memory_limit

    def decode_images(self, paths, image_size=32, fit='stretch'):
        """What utils.decode_images gives, in memory or, beyond the limit, as StoredImages.

        Depends on each file's path, size and times of change, and on Pillow. Raises InputError naming an
        unreadable image.
        """
        fits_in_memory = self.fits_in_memory(len(paths), image_size)
        images = self._load_or_decode(paths, image_size, fit) if self.folder is not None else None
        if images is not None:
            return np.asarray(images) if fits_in_memory else images
        if fits_in_memory:
            return decode_images(paths, image_size, fit, self.memory_limit)
        return self._decode_to_temporary_file(paths, image_size, fit)

    def _load_or_decode(self, paths, image_size, fit):
        """The StoredImages of an entry, which is made if there is none; None if it cannot be."""
        try:
            key = hash_key(itertools.chain(('images', image_size, fit, PIL.__version__),
                                           map(_describe_file, paths)))
        except OSError:         # a file is missing, which reading it says better
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
        """The StoredImages of a temporary file, which goes with the process."""
        try:
            file = tempfile.TemporaryFile()
            file.writelines(decode_blocks(paths, image_size, fit, self.memory_limit))
            file.flush()
        except OSError as error:
            raise InputError('%s: has no room for the images beyond the memory limit (%s); set TMPDIR to a '
                             'folder that has, raise --memory-limit, or use the cache.'
                             % (tempfile.tempdir or 'The temporary folder', describe_error(error))) from None
        return StoredImages(file, np.arange(len(paths)), image_size)

    def whitener(self, kind, key, fit):
        """fit(), a `kind` (utils.Whitener or utils.ChannelStandardizer), or what it gave for this key
        before.
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
        """Write an entry block by block, whole or not at all, and remove old ones; when it cannot be, say
        so.
        """
        try:
            os.makedirs(self.folder, exist_ok=True)
            handle, beside = tempfile.mkstemp(prefix='new-', suffix='.part', dir=self.folder)
            # it may be of gigabytes
            with signals.remove_if_unfinished(beside), open(handle, 'wb') as file:
                file.writelines(blocks)
                file.flush()
                os.fsync(file.fileno())
                os.replace(beside, path)
            self._remove_old_entries(path)
        except OSError as error:
            print('%s: the %s cannot be kept there (%s); the run goes on without.'
                  % (self.folder, what, describe_error(error)), file=sys.stderr)

    def _remove_old_entries(self, kept):
        """Remove the entries not used for the longest time, but `kept`, until all take at most LIMIT bytes.

        What other processes are writing stays, unless they were killed, and so do the locks.
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
    """What load() gives of an entry, or None where there is none that is whole."""
    try:
        stored = load()
    except Exception:       # numpy and zipfile raise nine types for damaged files
        return None
    with contextlib.suppress(OSError):      # another user's
        os.utime(path)
    return stored


def hash_key(key):
    """Hexadecimal digits that stand for a key, an iterable of values."""
    whole = hashlib.sha256()
    for value in itertools.chain([FORMAT_VERSION], key):
        whole.update(repr(value).encode('utf-8', 'surrogateescape') + b'\n')
    return whole.hexdigest()[:32]


def _describe_file(path):
    """What changes when a file does: its time of change tells more than that of its content, which programs
    set.
    """
    status = os.stat(path)
    return os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns
