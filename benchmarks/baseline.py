"""The baseline: the same done the usual way, image by image, with Keras' ImageDataGenerator and numpy."""
import numpy as np

from sesemi.device.backend import keras


def batches(labeled_images, labels_one_hot, unlabeled_images, batch_size=16):
    """Yield batches as batches.TwoBranchBatches has them, augmenting one image at a time."""
    def augment(image):
        return image + 0.15 * np.random.standard_normal(image.shape)
    settings = dict(width_shift_range=[-2, -1, 0, 1, 2], height_shift_range=[-2, -1, 0, 1, 2],
                    fill_mode='reflect', preprocessing_function=augment)
    labeled = keras.preprocessing.image.ImageDataGenerator(horizontal_flip=True, **settings).flow(
        labeled_images, labels_one_hot, 6 * batch_size)
    unlabeled = keras.preprocessing.image.ImageDataGenerator(**settings).flow(
        unlabeled_images, batch_size=batch_size)
    while True:
        (super_data, super_labels), images = _full(labeled, 6 * batch_size), _full(unlabeled, batch_size)
        views, proxy_labels = [], []
        for image in images:
            views += [np.rot90(image, k) for k in range(4)] + [np.fliplr(image), np.flipud(image)]
            proxy_labels += range(6)
        yield ({'self_data': np.stack(views), 'super_data': super_data},
               {'self_clf': keras.utils.to_categorical(proxy_labels, 6), 'super_clf': super_labels})


def _full(flow, size):
    """The next batch of full size. A short one, which ends a pass of ImageDataGenerator, is skipped."""
    while True:
        batch = next(flow)
        if len(batch[0] if isinstance(batch, tuple) else batch) == size:
            return batch


def global_contrast_normalize(images):
    """Contrast-normalise flat images (n, values), in float64."""
    images = images.astype(np.float64)
    images -= images.mean(axis=1, keepdims=True)
    return images * 55 / np.maximum(np.sqrt(np.square(images).sum(axis=1, keepdims=True)), 1e-10)


def zca(images):
    """(mean, matrix) of the whitening of flat images (n, values), in float64 by numpy's SVD."""
    u, s, _ = np.linalg.svd(np.cov(images, rowvar=False) + 0.1 * np.eye(images.shape[1]))
    return images.mean(axis=0), (u / np.sqrt(s + 1e-10)) @ u.T


def test_views(images):
    """All 8 views of all images, in memory: a list of arrays (n, s, s, 3)."""
    shifts = keras.preprocessing.image.ImageDataGenerator(
        width_shift_range=[-2, -1, 1, 2], height_shift_range=[-2, -1, 1, 2], fill_mode='reflect')
    shifted = np.stack([shifts.random_transform(image) for image in images])

    def noisy(views):
        return views + 0.15 * np.random.standard_normal(views.shape)
    four = [(images, shifted), (images[:, :, ::-1], shifted[:, :, ::-1])]
    return [view for plain, moved in four for view in (plain, moved, noisy(plain), noisy(moved))]
