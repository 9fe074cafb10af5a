"""Whitening: its choice by the number of images, and each kind in training, in the cache and saved."""
import numpy as np
import pytest
from conftest import write_classes

import utils
from sesemi.data import batches, cache, datasets
from sesemi.data.batches import WHITENINGS, choose_whitening, prepare_images
from sesemi.settings import IMAGES_PER_WHITENED_VALUE
from sesemi.training import model_file


@pytest.mark.parametrize('whitening, images, image_size, chosen', [
    ('auto', IMAGES_PER_WHITENED_VALUE * 3 * 32 ** 2, 32, 'zca'),
    ('auto', IMAGES_PER_WHITENED_VALUE * 3 * 32 ** 2 - 1, 32, 'channel'), ('auto', 300, 16, 'channel'),
    ('auto', 10 ** 6, 48, 'zca'), ('auto', 10 ** 6, 52, 'channel'), ('zca', 10, 48, 'zca'),
    ('channel', 10 ** 6, 32, 'channel'), ('zca', 50000, 64, 'channel'), ('none', 10, 128, 'none')])
def test_choice(whitening, images, image_size, chosen):
    found, why_not_another = choose_whitening(whitening, images, image_size)
    assert found == chosen and bool(why_not_another) == (whitening == 'auto' or found != whitening)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    write_classes(folder, {'cat': 30, 'dog': 30}, size=8)
    return datasets.load_dataset('folder', str(folder), 8)


def test_the_cache_notices_a_changed_setting(dataset, tmp_path, monkeypatch):
    store = cache.Cache(str(tmp_path))

    def matrix():
        return prepare_images(dataset, 'checksum', np.arange(20), 'asl', 'zca', store).whitener.matrix
    before = matrix()
    assert np.array_equal(before, matrix())
    monkeypatch.setattr(batches, 'WHITENING_IDENTITY', 0.5)
    monkeypatch.setitem(batches.WHITENINGS, 'zca',
                        (utils.Whitener, lambda parts: utils.zca_whitener(parts, 0.5)))
    assert not np.allclose(before, matrix())


def test_labeled_images_beyond_the_memory_are_read_as_they_are_drawn(dataset, tmp_path):
    labeled = np.array([3, 0, 17])
    in_memory = prepare_images(dataset, 'checksum', labeled, 'asl', 'channel',
                               cache.Cache(str(tmp_path))).labeled
    stored = prepare_images(dataset, 'checksum', labeled, 'asl', 'channel',
                            cache.Cache(str(tmp_path), memory_limit=1e-9)).labeled
    assert isinstance(in_memory, np.ndarray) and stored.images is dataset.train_images
    assert stored.shape == in_memory.shape
    assert np.array_equal(stored[np.array([2, 0])], in_memory[[2, 0]])
    assert np.array_equal(stored[1:], in_memory[1:])


@pytest.mark.parametrize('kind', WHITENINGS)
def test_each_kind_in_training_in_the_cache_and_in_the_saved_model(dataset, tmp_path, kind):
    import tiny_trunk  # noqa: F401

    import networks
    from sesemi.device import runtime
    from sesemi.training.classifier import Classifier
    store, labeled = cache.Cache(str(tmp_path / 'cache')), np.arange(20)
    for other in WHITENINGS:        # the cache must not confuse them
        prepare_images(dataset, 'checksum', labeled, 'asl', other, store)
    for _ in range(2):
        images = prepare_images(dataset, 'checksum', labeled, 'asl', kind, store)
    contrast = utils.global_contrast_normalize(dataset.train_images)
    expected = {
        'zca': lambda: utils.zca_whitener(contrast)(contrast),
        'channel': lambda: (contrast - contrast.mean((0, 1, 2))) / contrast.std((0, 1, 2)),
        'none': lambda: contrast}[kind]()[labeled]
    np.testing.assert_allclose(images.labeled, expected, rtol=0, atol=1e-3)
    with runtime.open_session('cpu'):
        _, inference_model = networks.build_supervised('tiny', (8, 8, 3), 2)
        classifier = Classifier(inference_model, images.whitener, dataset.class_names, whitening=kind)
        classifier.save(str(tmp_path / 'sesemi.h5'))
    assert model_file.read_metadata(str(tmp_path / 'sesemi.h5'))['whitening'] == kind
    with runtime.open_session('cpu'):
        model = runtime.keras.models.load_model(str(tmp_path / 'sesemi.h5'), compile=False)
        whitened = runtime.keras.Model(model.input, model.get_layer('whitened').output)
        found = whitened.predict_on_batch(dataset.train_images[labeled].astype(np.float32))
    np.testing.assert_allclose(found, images.labeled, rtol=0, atol=1e-3)
