"""Makes the two-branch batches and the test views from normalised images.

Everything random is a pure function of a seed and a number (of a step, a pass or an image), so nothing here
keeps state. numpy only.
"""
import functools
from typing import NamedTuple

import numpy as np

from sesemi.settings import (
    CONTRAST_EPSILON,
    CONTRAST_SCALE,
    IMAGES_PER_WHITENED_VALUE,
    MAX_WHITENED_SIZE,
    NOISE,
    SHIFTS,
    TEST_SHIFTS,
    WHITENING_EPSILON,
    WHITENING_IDENTITY,
)
from utils import (
    CHUNK,
    ChannelStandardizer,
    Whitener,
    chunks,
    fit_channel_standardizer,
    global_contrast_normalize,
    zca_whitener,
)

SELF, SUPER, TEST, PASS = range(4)  # purposes of random streams, part of their keys


# Normalised images

class NormalizedImages:
    """uint8 images that are contrast normalised and whitened when they are indexed.

    images: uint8 (n, s, s, 3), an array or cache.StoredImages; whitener: a utils.Whitener, a
    utils.ChannelStandardizer or None; indices: int (k,), the images to use, by default all.
    """

    def __init__(self, images, whitener=None, indices=None):
        self.images, self.whitener, self.indices = images, whitener, indices
        self.shape = (len(images) if indices is None else len(indices),) + images.shape[1:]

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        """index: a slice or an int array. Returns a new float32 (k, s, s, 3)."""
        index = index if self.indices is None else self.indices[index]
        images = global_contrast_normalize(self.images[index])
        return self.whitener(images) if self.whitener else images

    def __array__(self, dtype=None, copy=None):
        array = np.empty(self.shape, np.float32)
        for done in range(0, len(array), CHUNK):
            array[done:done + CHUNK] = self[done:done + CHUNK]
        return array


class Images(NamedTuple):
    """Normalised images (n, s, s, 3): float32 arrays, or NormalizedImages where these would be too large."""
    labeled: object
    unlabeled: object       # the images of the self branch; None without a self branch
    test: NormalizedImages
    valid: NormalizedImages
    whitener: object        # utils.Whitener, utils.ChannelStandardizer or None


# What follows contrast normalisation: its class, and the function that fits it to an iterable of parts of the
# training images.
WHITENINGS = {
    'zca': (Whitener, zca_whitener),
    'channel': (ChannelStandardizer, fit_channel_standardizer),
    'none': (None, None),
}


def choose_whitening(whitening, images, image_size):
    """Choose the whitening: returns a key of WHITENINGS, and the reason or '' if it is the one asked for.

    whitening: a key of WHITENINGS, or auto; images: the number of training images; image_size: their side in
    pixels. A covariance of few images says little about other images: see benchmarks/whitening.py.
    """
    if whitening in ('auto', 'zca') and image_size > MAX_WHITENED_SIZE:
        return 'channel', 'a matrix for images of more than %d pixels would be too large' % MAX_WHITENED_SIZE
    if whitening != 'auto':
        return whitening, ''
    enough = IMAGES_PER_WHITENED_VALUE * 3 * image_size ** 2
    return ('channel', '%d training images are fewer than %d' % (images, enough)) if images < enough else (
        'zca', '%d training images are at least %d' % (images, enough))


def prepare_images(dataset, checksum, labeled, method, whitening, cache):
    """Contrast normalise all images, and whiten them with statistics of all training images: returns Images.

    dataset: a datasets.Dataset; checksum: its checksum.data_checksum; labeled: int (labels,) indices of the
    labeled training images; whitening: a key of WHITENINGS, or the whitening itself as in Images; cache: a
    cache.Cache.
    """
    whitener = whitening
    if isinstance(whitening, str):
        kind, fit = WHITENINGS[whitening]
        parts = map(global_contrast_normalize, chunks(dataset.unlabeled_images))
        key = (whitening, checksum, CONTRAST_SCALE, CONTRAST_EPSILON, WHITENING_IDENTITY, WHITENING_EPSILON)
        whitener = kind and cache.get_whitener(kind, key, lambda: fit(parts))

    def prepare(images, indices=None):
        images = NormalizedImages(images, whitener, indices)
        return np.asarray(images) if cache.fits_in_memory(*images.shape[:2]) else images

    labeled_images = unlabeled_images = prepare(dataset.train_images, labeled)
    if method == 'ssl':
        unlabeled_images = prepare(dataset.unlabeled_images)
    return Images(labeled_images, None if method == 'supervised' else unlabeled_images,
                  NormalizedImages(dataset.test_images, whitener),
                  NormalizedImages(dataset.valid_images, whitener), whitener)


# Augmentation: random draws, and the deterministic functions that apply them

def make_generator(*key):
    """Make a generator that depends only on the integers in `key`. numpy's SFC64 draws normals fastest."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


def draw_shifts(rng, n, choices=SHIFTS):
    """Draw random shifts (dy, dx), each int (n,), in pixels downwards and to the right."""
    return rng.choice(choices, n), rng.choice(choices, n)


def shift_images(images, dy, dx, flipped=slice(0)):
    """Shift image k by dy[k], dx[k] pixels and fill its border by mirroring, edge pixel included.

    scipy calls this mode 'reflect'. images: (n, h, w, c). flipped: a mask (n,) or a slice of the images to
    flip left to right after the shift. Returns a new array.
    """
    n, h, w, c = images.shape
    rows, columns = _mirror_indices(h, dy), _mirror_indices(w, dx)
    columns[flipped] = columns[flipped, ::-1]
    pixels = (np.arange(n)[:, None, None] * h + rows[:, :, None]) * w + columns[:, None, :]
    return images.reshape(-1, c).take(pixels.ravel(), axis=0, mode='clip').reshape(n, h, w, c)


def _mirror_indices(size, shifts):
    """The source index of each pixel along a shifted axis: int (n, size)."""
    source = (np.arange(size) - shifts[:, None]) % (2 * size)
    return np.where(source < size, source, 2 * size - 1 - source)


def draw_noise(rng, shape):
    """Draw Gaussian noise with standard deviation NOISE: float32 of `shape`."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise *= np.float32(NOISE)
    return noise


def flip_left_right(images):
    """Mirror images (n, h, w, c) left to right; returns a view, not a copy."""
    return images[:, :, ::-1]


# The proxy task. A transform's index is its proxy label. Rotations are counter-clockwise.
PROXY_TRANSFORMS = (
    ('rotate by 0', lambda images: images),
    ('rotate by 90', lambda images: np.rot90(images, 1, axes=(1, 2))),
    ('rotate by 180', lambda images: np.rot90(images, 2, axes=(1, 2))),
    ('rotate by 270', lambda images: np.rot90(images, 3, axes=(1, 2))),
    ('flip left-right', flip_left_right),
    ('flip up-down', lambda images: images[:, ::-1]),
)


def make_proxy_views(images):
    """Apply the six transforms to square images (n, s, s, c): returns (views (6n, s, s, c), labels (6n,)).

    The n views of one transform come after those of the one before.
    """
    # a pixel is copied as one value, which is faster than color by color
    pixel = np.dtype((np.void, images.itemsize * images.shape[-1]))
    pixels = np.ascontiguousarray(images).view(pixel)[..., 0]
    views = np.concatenate([transform(pixels) for _, transform in PROXY_TRANSFORMS])
    return (views.view(images.dtype).reshape(-1, *images.shape[1:]),
            np.repeat(np.arange(len(PROXY_TRANSFORMS)), len(images)))


# Batches

class TwoBranchBatches:
    """batches[t] is the batch of step t: a pure function of (seed, t, rank), for any t >= 0, in any thread.

    labeled_images: normalised float32 (n, s, s, 3); labels_one_hot: (n, classes).
    unlabeled_images: normalised float32 (n, s, s, 3), the images of the self branch: for asl the labeled
    images again; None for the supervised method, which has no self branch.
    A step takes batch_size images for the self branch, six views of each, and as many labeled images as there
    are views. Without `oversample` it takes only batch_size labeled images and augments each six times.
    Each branch goes through all its images, in a new random order each time, before any image comes again.
    All ranks use the same orders: at each step, rank r of `ranks` takes the r-th slice.
    """

    def __init__(  # noqa: PLR0913, a public signature
            self, labeled_images, labels_one_hot, unlabeled_images, batch_size=16, flip=True, seed=0,
            rank=0, ranks=1, oversample=True):
        self.labeled_images, self.labels = labeled_images, np.asarray(labels_one_hot, np.float32)
        self.unlabeled_images = unlabeled_images
        self.batch_size, self.flip = batch_size, flip
        self.super_size = batch_size * len(PROXY_TRANSFORMS)
        self.copies = 1 if oversample else len(PROXY_TRANSFORMS)
        self.seed, self.rank, self.ranks = seed, rank, ranks
        # a long order is not drawn again at every step
        self._order = functools.lru_cache(maxsize=8)(self._draw_order)

    @property
    def images_per_step(self):
        """The number of images in a step: both branches, all ranks."""
        return self.ranks * self.super_size * (1 if self.unlabeled_images is None else 2)

    def batch_number(self, t):
        """This rank's batch of step t, counted over all ranks and steps from 0."""
        return t * self.ranks + self.rank

    def __getitem__(self, t):
        """Make step t's batch: (inputs, targets).

        inputs: 'super_data' and 'self_data', float32 (n, s, s, 3); targets: 'super_clf' and 'self_clf',
        one-hot float32 (n, classes). Without a self branch there is no 'self_data' and no 'self_clf'.
        """
        count = self.super_size // self.copies
        indices = np.repeat(self._next_indices(SUPER, len(self.labeled_images), count, t), self.copies)
        inputs = {'super_data': self._augment(SUPER, self.labeled_images[indices], t, self.flip)}
        targets = {'super_clf': self.labels[indices]}
        if self.unlabeled_images is not None:
            indices = self._next_indices(SELF, len(self.unlabeled_images), self.batch_size, t)
            augmented = self._augment(SELF, self.unlabeled_images[indices], t, flip=False)
            inputs['self_data'], proxy_labels = make_proxy_views(augmented)
            targets['self_clf'] = np.eye(len(PROXY_TRANSFORMS), dtype=np.float32)[proxy_labels]
        return inputs, targets

    def _next_indices(self, branch, n, count, t):
        """The indices of the `count` images that a branch with n images takes at step t."""
        passes, positions = np.divmod(self.batch_number(t) * count + np.arange(count), n)
        return np.concatenate([self._order(branch, n, number)[positions[passes == number]]
                               for number in range(passes[0], passes[-1] + 1)])

    def _augment(self, branch, images, t, flip):
        """Shift the images, with `flip` mirror each with probability 1/2, and add noise: a new array."""
        rng = make_generator(self.seed, branch, t, self.rank)
        dy, dx = draw_shifts(rng, len(images))
        images = shift_images(images, dy, dx, rng.integers(2, size=len(images)) == 1 if flip else slice(0))
        images += draw_noise(rng, images.shape)
        return images

    def _draw_order(self, branch, n, number):
        """Draw the order in which a branch goes through its n images for the `number`-th time."""
        return make_generator(self.seed, PASS, branch, number).permutation(n)


def make_test_views(images, first, seed, flip=True):
    """Yield the 8 views (4 without `flip`) of the test images, each view float32 (n, s, s, 3).

    images: normalised float32 (n, s, s, 3), the test images numbered first, first + 1, …
    The views are: the images, shifted, with noise, shifted with noise; then the left-right flips of these
    with fresh noise. They depend only on the seed and the image's number.
    """
    dy, dx = np.empty((2, len(images)), int)
    noise = np.empty((len(images), 4 if flip else 2) + images.shape[1:], np.float32)
    for i in range(len(images)):
        rng = make_generator(seed, TEST, first + i)
        dy[i:i + 1], dx[i:i + 1] = draw_shifts(rng, 1, TEST_SHIFTS)
        noise[i] = draw_noise(rng, noise.shape[1:])
    shifted = shift_images(images, dy, dx)
    yield from (images, shifted, images + noise[:, 0], shifted + noise[:, 1])
    if flip:
        mirrored, mirrored_shifted = flip_left_right(images), flip_left_right(shifted)
        yield from (mirrored, mirrored_shifted, mirrored + noise[:, 2], mirrored_shifted + noise[:, 3])
