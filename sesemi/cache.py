"""What start-up computes from the files, kept for the next start: decoded images and whitening, in files that are whole or not there.

An entry's name holds a digest of all it depends on; one that is damaged, or that cannot be written, is computed as if there were
no cache. Decoded images that would not fit into memory stay in their entry and are read as they are drawn.
"""
import contextlib
import glob
import hashlib
import io
import itertools
import os
import sys
import tempfile
import zipfile
import zlib

import numpy as np
import PIL

from sesemi.errors import InputError, RunError, reason
from sesemi.run_folder import write_whole
from utils import decode_blocks, decode_images

FORMAT = 2              # part of every digest: to be raised when the same files give another entry
LIMIT = 16 << 30        # bytes of all entries together
PIECE = 16 << 20        # bytes read at a time to check an entry


def default_folder():
    """Below $SESEMI_CACHE, else where the system keeps what can be computed again."""
    place = os.environ.get('SESEMI_CACHE') or os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return os.path.join(place, 'sesemi')


class StoredImages:
    """uint8 images (n, s, s, 3) of an open file, which are read when indexed and not kept.

    A slice or a mask is a part of them, an index or an int array of indices gives an array; np.asarray reads them all.
    """

    def __init__(self, file, places, image_size):
        self.file, self.places = file, places       # int (n,): which of the file's images they are
        self.shape = (len(places), image_size, image_size, 3)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        places = self.places[index]
        if isinstance(index, slice) or np.asarray(index).dtype == bool:
            return StoredImages(self.file, places, self.shape[1])
        return self._read(np.ravel(places)).reshape(np.shape(index) + self.shape[1:])

    def __array__(self, dtype=None, copy=None):
        images = self._read(self.places)
        return images if dtype is None else images.astype(dtype)

    def _read(self, places):
        """The file's images at `places`, int (k,), those that follow each other at once."""
        images = np.empty((len(places),) + self.shape[1:], np.uint8)
        ends = [*np.flatnonzero(np.diff(places) != 1) + 1, len(places)] if len(places) else []
        for first, end in zip([0, *ends], ends):
            self._fill(images[first:end], int(places[first]))
        return images

    def _fill(self, images, first):
        """Read into a contiguous array from the file's image `first` on; preadv, because threads share the file's position."""
        view = memoryview(images).cast('B')
        offset, done = first * int(np.prod(self.shape[1:])), 0
        while done < len(view):         # the system reads at most 2 GB at once
            count = os.preadv(self.file.fileno(), [view[done:]], offset + done)
            if not count:
                raise RunError('%s: has become shorter while it was read; start again with --resume.' % self.file.name)
            done += count


class Cache:
    """The entries in `folder`, or no cache when that is None.

    memory_limit: GB that a set of images may take; by default half of all memory, shared by so many `processes`.
    """

    def __init__(self, folder, memory_limit=None, processes=1):
        self.folder = folder
        half = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2
        self.memory_limit = 1e9 * memory_limit if memory_limit else half / processes

    def has_room(self, images, image_size):
        """Whether so many images are to be held in memory, as bytes and as float32."""
        return images * image_size ** 2 * 3 * (1 + 4) <= self.memory_limit

    def decode_images(self, paths, image_size=32, fit='stretch'):
        """What utils.decode_images gives, in memory or, beyond the limit, as StoredImages.

        Depends on each file's path, size and times of change, and on Pillow. Raises InputError naming an unreadable image.
        """
        if self.folder is None:
            return decode_images(paths, image_size, fit, self.memory_limit)
        try:
            key = digest(itertools.chain(('images', image_size, fit, PIL.__version__), map(_identity, paths)))
        except OSError:         # a file is missing, which reading it says better
            return decode_images(paths, image_size, fit, self.memory_limit)
        images = self._stored(key, len(paths), image_size)
        if images is None:
            try:
                self._store(key, decode_blocks(paths, image_size, fit, self.memory_limit))
            except OSError as error:
                print('%s: the images cannot be kept there (%s); the run goes on without.' % (self.folder, reason(error)), file=sys.stderr)
            images = self._stored(key, len(paths), image_size)
        if images is None:
            return decode_images(paths, image_size, fit, self.memory_limit)
        return np.asarray(images) if self.has_room(len(paths), image_size) else images

    def whitener(self, kind, facts, fit):
        """fit(), a `kind` (utils.Whitener or utils.ChannelStandardizer), or what it gave for these facts before."""
        if self.folder is None:
            return fit()
        path = os.path.join(self.folder, 'whitening-%s.npz' % digest([kind.__name__, facts]))
        try:
            with np.load(path) as file:         # reading checks each array's CRC
                whitener = kind(**{name: file[name] for name in kind._fields})
            os.utime(path)
            return whitener
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            pass
        whitener, memory = fit(), io.BytesIO()
        np.savez(memory, **whitener._asdict())
        try:
            os.makedirs(self.folder, exist_ok=True)
            write_whole(path, memory.getvalue())
            self._trim(path)
        except (OSError, InputError) as error:
            print('%s: the whitening cannot be kept there (%s); the run goes on without.' % (self.folder, reason(error)), file=sys.stderr)
        return whitener

    def _stored(self, key, count, image_size):
        """The images of an entry, or None if there is none that is whole. Its name ends in its CRC."""
        for path in glob.glob(os.path.join(glob.escape(self.folder), 'images-%s-*' % key)):
            try:
                file = open(path, 'rb')
                crc, size = 0, 0
                for piece in iter(lambda: file.read(PIECE), b''):
                    crc, size = zlib.crc32(piece, crc), size + len(piece)
                if size == count * image_size ** 2 * 3 and path.endswith('-%08x' % crc):
                    os.utime(path)
                    return StoredImages(file, np.arange(count), image_size)
                os.remove(path)
            except OSError:         # removed by another process, or not to be read
                continue
        return None

    def _store(self, key, blocks):
        """Write an entry block by block, whole or not at all. Raises OSError."""
        os.makedirs(self.folder, exist_ok=True)
        crc = 0
        handle, beside = tempfile.mkstemp(prefix='images-', suffix='.part', dir=self.folder)
        try:
            with open(handle, 'wb') as file:
                for block in blocks:
                    crc = zlib.crc32(block, crc)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            path = os.path.join(self.folder, 'images-%s-%08x' % (key, crc))
            os.replace(beside, path)
        except BaseException:       # also Ctrl-C, for the file may be of gigabytes
            with contextlib.suppress(OSError):
                os.remove(beside)
            raise
        self._trim(path)

    def _trim(self, kept):
        """Remove the entries not used for the longest time, but `kept`, until all take at most LIMIT bytes."""
        entries = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):          # another process may have removed it
                entries.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total > LIMIT and path != kept:
                total -= size
                with contextlib.suppress(OSError):
                    os.remove(path)


def digest(facts):
    """Hexadecimal digits that stand for an iterable of facts."""
    whole = hashlib.sha256()
    for fact in itertools.chain([FORMAT], facts):
        whole.update(repr(fact).encode('utf-8', 'surrogateescape') + b'\n')
    return whole.hexdigest()[:32]


def _identity(path):
    """What changes when a file does: its time of change tells more than that of its content, which programs set."""
    status = os.stat(path)
    return os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns
