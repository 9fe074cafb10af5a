"""The checksum that identifies a data set."""
import hashlib
import json

import numpy as np

from utils import chunks


def data_checksum(dataset, image_digests=None):
    """SHA-256 of all images, all labels and the class names of a datasets.Dataset, in hexadecimal digits.

    image_digests: a list to which four arrays S16 (n,) are appended, for the training, test, other unlabeled
    and validation images: the first half of each image's SHA-256.
    """
    digest = hashlib.sha256(json.dumps(dataset.class_names).encode())
    extra = dataset.unlabeled_images[len(dataset.train_images):]
    for images, labels in ((dataset.train_images, dataset.train_labels),
                           (dataset.test_images, dataset.test_labels), (extra, ()),
                           (dataset.valid_images, dataset.valid_labels)):
        digests = bytearray()
        for part in map(np.ascontiguousarray, chunks(images)):
            digest.update(part)
            if image_digests is not None:
                for image in part:
                    digests += hashlib.sha256(image).digest()[:16]
        digest.update(np.ascontiguousarray(labels))
        if image_digests is not None:
            image_digests.append(np.frombuffer(digests, 'S16'))
    return digest.hexdigest()
