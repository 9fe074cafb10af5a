import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import PROJECT, NoDoubles
from programs import run
from scipy import ndimage

from sesemi.data.batches import TwoBranchBatches, make_proxy_views, shift_images
from sesemi.data.batches import make_test_views as views_of
from sesemi.settings import PROXY_CLASSES

# Augmenting


SHIFTS = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]


@pytest.mark.parametrize('height, width', [(32, 32), (6, 5), (2, 3)])
def test_shift_equals_scipy(height, width):
    images = np.random.RandomState(0).standard_normal((25, height, width, 3)).astype(np.float32)
    dy, dx = np.array(SHIFTS).T
    before = images.copy()
    shifted = shift_images(images, dy, dx)
    np.testing.assert_array_equal(images, before)
    assert shifted.dtype == np.float32
    for image, y, x, result in zip(images, dy, dx, shifted):
        np.testing.assert_array_equal(result, ndimage.shift(image, (y, x, 0), order=0, mode='reflect'))
        if min(height, width) > 4:
            for channel in range(3):
                np.testing.assert_array_equal(result[..., channel], ndimage.affine_transform(
                    image[..., channel], np.eye(2), (-y, -x), order=1, mode='reflect'))


def test_proxy_views():
    image = np.arange(4 * 4 * 3).reshape(4, 4, 3)
    images = np.stack([image, image + 100])
    views, labels = make_proxy_views(images)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert len(views) == 2 * PROXY_CLASSES
    expected = [image, np.rot90(image), np.rot90(image, 2), np.rot90(image, 3), np.fliplr(image),
                np.flipud(image)]
    np.testing.assert_array_equal(views[::2], expected)
    np.testing.assert_array_equal(views[1::2], np.add(expected, 100))
    # counter-clockwise: the top right corner moves to the top left
    assert views[2, 0, 0].tolist() == image[0, 3].tolist()
    assert len(np.unique(views, axis=0)) == 12


# Batches


SIZE = 8
STEP = 4        # between two values: far more than the noise


def coded_images(n):
    """Images in which each value encodes its image, row and column."""
    numbers = STEP * np.arange(n * SIZE * SIZE, dtype=np.float32).reshape(n, SIZE, SIZE, 1)
    return numbers.repeat(3, axis=-1)


class Decoded:
    """How coded images were drawn: indices, shifts, flips and noise. Fails if they were changed otherwise."""

    def __init__(self, images):
        numbers = np.round(images / STEP).astype(int)
        self.noise = images - STEP * numbers.astype(np.float32)
        sources, rows, columns = np.unravel_index(numbers, (10000, SIZE, SIZE))
        self.indices = sources[:, 0, 0, 0]
        middle = SIZE // 2
        self.flipped = columns[:, middle, middle, 0] > columns[:, middle, middle + 1, 0]
        self.dy = middle - rows[:, middle, middle, 0]
        unflipped = np.where(self.flipped[:, None, None, None], columns[:, :, ::-1], columns)
        self.dx = middle - unflipped[:, middle, middle, 0]
        mirrored = np.pad(np.arange(SIZE), SIZE, mode='symmetric')
        for k in range(len(images)):
            assert (sources[k] == self.indices[k]).all()
            assert (rows[k] == mirrored[SIZE - self.dy[k]:][:SIZE, None, None]).all()
            assert (unflipped[k] == mirrored[SIZE - self.dx[k]:][:SIZE, None]).all()


def coded_batches(labeled=50, unlabeled=90, **options):
    options.setdefault('batch_size', 4)
    labels = np.eye(7, dtype=np.float32)[np.arange(labeled) % 7]
    return TwoBranchBatches(coded_images(labeled), labels,
                            None if unlabeled is None else coded_images(unlabeled), **options)


def decoded(batches, branch, steps):
    """The Decoded images of a branch over these steps; of the self branch the upright views."""
    key, size = ('super_data', None) if branch == 'super' else ('self_data', batches.batch_size)
    return Decoded(np.concatenate([batches[t][0][key][:size] for t in steps]))


def arrays(batch):
    return [part[key] for part in batch for key in sorted(part)]


def same_batch(one, other):
    return all(a.tobytes() == b.tobytes() for a, b in zip(arrays(one), arrays(other)))


def test_batch_shapes_and_targets():
    inputs, targets = coded_batches()[3]
    shape = 24, 8, 8, 3
    assert {name: x.shape for name, x in inputs.items()} == {'self_data': shape, 'super_data': shape}
    assert {name: y.shape for name, y in targets.items()} == {'self_clf': (24, 6), 'super_clf': (24, 7)}
    assert {x.dtype for x in arrays((inputs, targets))} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(targets['self_clf'], np.eye(6).repeat(4, axis=0))
    np.testing.assert_array_equal(targets['super_clf'], np.eye(7)[Decoded(inputs['super_data']).indices % 7])


@pytest.mark.parametrize('oversample', [True, False])
@pytest.mark.parametrize('batch_size', [5, 16])
def test_batch_sizes(batch_size, oversample):
    batches = coded_batches(batch_size=batch_size, oversample=oversample)
    inputs, _ = batches[0]
    assert len(inputs['super_data']) == len(inputs['self_data']) == 6 * batch_size
    assert batches.images_per_step == 12 * batch_size


def test_without_oversampling_each_labeled_image_is_augmented_six_times():
    batches = coded_batches(50, 90, oversample=False)
    seen = decoded(batches, 'super', range(100))
    np.testing.assert_array_equal(seen.indices.reshape(-1, 6), seen.indices[::6, None].repeat(6, axis=1))
    passes = seen.indices[::6].reshape(-1, 50)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(50), (8, 1)))
    noise = seen.noise.reshape(-1, 6, SIZE, SIZE, 3)
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < .0005
    for drawn in seen.dy, seen.dx, seen.flipped:
        assert (drawn.reshape(-1, 6) != drawn[::6, None]).any(axis=0)[1:].all()
    np.testing.assert_array_equal(batches[7][1]['super_clf'],
                                  np.eye(7)[Decoded(batches[7][0]['super_data']).indices % 7])
    np.testing.assert_array_equal(batches[7][0]['self_data'], coded_batches(50, 90)[7][0]['self_data'])


def test_batch_depends_on_its_step_alone():
    batches, steps = coded_batches(), [0, 3, 17, 1000000007]
    asked_first = {t: batches[t] for t in steps}
    for t in reversed(steps):
        assert same_batch(batches[t], asked_first[t])
        assert same_batch(coded_batches()[t], asked_first[t])
    steps = steps * 25
    with ThreadPoolExecutor(8) as pool:
        for t, batch in zip(steps, pool.map(batches.__getitem__, steps)):
            assert same_batch(batch, asked_first[t])


def test_batch_is_the_same_in_another_process():
    program = ('import hashlib, test_batches\n'
               'batch = test_batches.coded_batches()[17]\n'
               'print(hashlib.sha256(b"".join(x.tobytes() for x in test_batches.arrays(batch))).hexdigest())')
    expected = hashlib.sha256(b''.join(x.tobytes() for x in arrays(coded_batches()[17]))).hexdigest()
    path = os.pathsep.join(filter(None, [str(PROJECT / 'tests'), os.environ.get('PYTHONPATH')]))
    hash_seed = '2' if os.environ.get('PYTHONHASHSEED') == '1' else '1'
    done = run(sys.executable, '-c', program, PYTHONHASHSEED=hash_seed, PYTHONPATH=path)
    assert done == (0, expected + '\n', '')


def test_batches_leave_the_images_and_the_global_generator_alone():
    batches = coded_batches()
    np.random.seed(5)
    batches[0], batches[1]
    assert np.random.rand() == np.random.RandomState(5).rand()
    np.testing.assert_array_equal(batches.labeled_images, coded_images(50))
    np.testing.assert_array_equal(batches.unlabeled_images, coded_images(90))


@pytest.mark.parametrize('labeled, unlabeled', [(50, 90), (48, 96), (10, 3), (24, 4), (1, 2)])
def test_every_image_comes_once_before_any_comes_twice(labeled, unlabeled):
    batches = coded_batches(labeled, unlabeled)
    for branch, n in ('super', labeled), ('self', unlabeled):
        passes = decoded(batches, branch, range(100)).indices
        passes = passes[:len(passes) // n * n].reshape(-1, n)
        np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(n), (len(passes), 1)))
        if n > 20:
            assert len(np.unique(passes, axis=0)) == len(passes)
            assert abs(passes[:, 0].mean() - (n - 1) / 2) < 4 * n / np.sqrt(12 * len(passes))


def test_self_views_share_shift_and_noise():
    views = coded_batches()[5][0]['self_data'].reshape(6, 4, SIZE, SIZE, 3)
    undone = [views[0], np.rot90(views[1], -1, (1, 2)), np.rot90(views[2], -2, (1, 2)),
              np.rot90(views[3], -3, (1, 2)), views[4][:, :, ::-1], views[5][:, ::-1]]
    for view in undone[1:]:
        np.testing.assert_array_equal(view, views[0])


def test_flips():
    assert abs(decoded(coded_batches(), 'super', range(50)).flipped.mean() - .5) < .05
    assert not decoded(coded_batches(flip=False), 'super', range(50)).flipped.any()
    for flip in True, False:
        assert not decoded(coded_batches(flip=flip), 'self', range(50)).flipped.any()


@pytest.mark.parametrize('branch', ['super', 'self'])
def test_noise_and_shifts(branch):
    seen = decoded(coded_batches(), branch, range(250))
    assert abs(seen.noise.std() - .15) < .001 and abs(seen.noise.mean()) < .001
    noise = seen.noise
    neighbours = noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1], noise[..., 1:] * noise[..., :-1]
    assert max(abs(product.mean()) for product in neighbours) < .0005       # .0225 if they were equal
    # the part of a Gaussian beyond two sigma
    assert abs((abs(seen.noise) > .3).mean() - .0455) < .003
    counts = np.array([[((seen.dy == dy) & (seen.dx == dx)).sum() for dx in range(-2, 3)]
                       for dy in range(-2, 3)])
    assert counts.sum() == len(seen.dy)
    expected = len(seen.dy) / 25
    # chi-squared, 24 degrees of freedom: 99 %
    assert ((counts - expected) ** 2 / expected).sum() < 43


def test_steps_seeds_ranks_and_branches_draw_differently():
    draws = {}
    for name, t, options in [('step 0', 0, {}), ('step 1', 1, {}), ('seed 1', 0, {'seed': 1}),
                             ('rank 1', 1, {'rank': 1, 'ranks': 2})]:
        inputs, _ = coded_batches(500, 500, batch_size=16, **options)[t]
        draws[name, 'super'] = Decoded(inputs['super_data'][:16])
        draws[name, 'self'] = Decoded(inputs['self_data'][:16])
    for i, one in enumerate(draws):
        for other in list(draws)[:i]:
            assert abs((draws[one].noise * draws[other].noise).mean()) < .003, (one, other)
            assert (draws[one].indices == draws[other].indices).sum() < 6, (one, other)
            assert (draws[one].dy == draws[other].dy).sum() < 11, (one, other)
            assert (draws[one].dx == draws[other].dx).sum() < 11, (one, other)


@pytest.mark.parametrize('ranks', [2, 3])
def test_ranks_share_a_pass(ranks):
    n = 24 * ranks
    of_ranks = [coded_batches(n, n, ranks=ranks, rank=rank) for rank in range(ranks)]
    for branch, steps in ('super', 1), ('self', 6):
        for first in 0, steps:      # the first pass and the second
            drawn = [decoded(batches, branch, range(first, first + steps)).indices for batches in of_ranks]
            np.testing.assert_array_equal(np.sort(np.ravel(drawn)), np.arange(n))


def test_supervised_draws_the_super_branch_of_asl():
    asl, supervised = coded_batches(50, 50), coded_batches(50, None)
    for t in 0, 9:
        inputs, targets = supervised[t]
        assert set(inputs) == {'super_data'} and set(targets) == {'super_clf'}
        assert supervised.images_per_step == 24
        assert inputs['super_data'].tobytes() == asl[t][0]['super_data'].tobytes()
        assert targets['super_clf'].tobytes() == asl[t][1]['super_clf'].tobytes()


def test_batches_and_views_are_computed_in_float32():
    guarded = coded_batches()
    guarded.labeled_images = guarded.labeled_images.view(NoDoubles)
    guarded.unlabeled_images = guarded.unlabeled_images.view(NoDoubles)
    assert same_batch(guarded[2], coded_batches()[2])
    for view in views_of(coded_images(5).view(NoDoubles), 0, 0):
        assert view.dtype == np.float32


# Test views


def views(first=0, last=12, seed=0, flip=True):
    return list(views_of(coded_images(12)[first:last], first, seed, flip))


def test_views_in_order():
    images, every = coded_images(12), views()
    assert len(every) == 8 and len(views(flip=False)) == 4
    assert {(view.shape, view.dtype) for view in every} == {(images.shape, np.dtype(np.float32))}
    np.testing.assert_array_equal(every[0], images)
    seen = [Decoded(view) for view in every]
    assert all((view.indices == range(12)).all() for view in seen)
    assert [view.flipped.all() for view in seen] == 4 * [False] + 4 * [True]
    assert [view.flipped.any() for view in seen] == 4 * [False] + 4 * [True]
    assert [view.noise.any() for view in seen] == 2 * [False, False, True, True]
    for k, view in enumerate(seen):
        np.testing.assert_array_equal(view.dy, seen[1].dy if k % 2 else 0)
        np.testing.assert_array_equal(view.dx, seen[1].dx if k % 2 else 0)
    noises = [view.noise for view in seen if view.noise.any()]
    for i, noise in enumerate(noises):
        assert abs(noise.std() - .15) < .01
        for other in noises[:i]:
            assert abs((noise * other).mean()) < .002 and abs((noise * other[:, :, ::-1]).mean()) < .002
        assert abs((noise[1:] * noise[:-1]).mean()) < .002


def test_view_shifts_are_never_zero():
    images = coded_images(1).repeat(1000, axis=0)
    shifted = Decoded(list(views_of(images, 0, 0, flip=False))[1])
    counts = np.array([[((shifted.dy == dy) & (shifted.dx == dx)).sum() for dx in (-2, -1, 1, 2)]
                       for dy in (-2, -1, 1, 2)])
    assert counts.sum() == 1000
    assert ((counts - 62.5) ** 2 / 62.5).sum() < 30     # chi-squared, 15 degrees of freedom: 99 %


def test_views_depend_on_seed_and_image_alone():
    every = views()
    for again, part, whole in zip(views(), views(5, 9), every):
        np.testing.assert_array_equal(again, whole)
        np.testing.assert_array_equal(part, whole[5:9])
    assert (Decoded(views(seed=1)[1]).dy != Decoded(every[1]).dy).any()
    assert abs((Decoded(views(seed=1)[2]).noise * Decoded(every[2]).noise).mean()) < .002
