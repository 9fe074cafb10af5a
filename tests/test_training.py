import io
import os
import signal

import numpy as np
import pytest
import tiny_trunk  # noqa: F401

import networks
from sesemi.data.batches import TwoBranchBatches
from sesemi.data.batches import make_test_views as views_of
from sesemi.device.backend import keras
from sesemi.device.collective import Ranks
from sesemi.device.runtime import batch_number, open_session, optimizer, step_variable
from sesemi.errors import InputError
from sesemi.settings import MOMENTUM
from sesemi.training import evaluation, training
from sesemi.training.checkpoints import Checkpoints

SHAPE, STEPS, EPOCHS = (16, 16, 3), 4, 3


def batches(method='asl'):
    rng = np.random.RandomState(0)
    images = rng.standard_normal((20,) + SHAPE).astype(np.float32)
    return TwoBranchBatches(images, np.eye(3)[np.arange(20) % 3],
                            images if method == 'asl' else None, batch_size=2)


class Run:
    """A tiny run in its own session, stopped after step `stop_after`."""

    def __init__(self, folder, stop_after=None, method='asl', lr=0.05, minutes=1e-9):
        self.folder, self.stop_after, self.rows = str(folder), stop_after, []
        with open_session('cpu'):
            build = networks.build_sesemi if method == 'asl' else networks.build_supervised
            self.model, _ = build('tiny', SHAPE, 3, in_network_dropout=0.3, batch_number=batch_number())
            sgd, schedule = optimizer('cpu', lr, MOMENTUM), training.Schedule(lr, STEPS, EPOCHS)
            train_step = training.training_function(self.model, sgd, schedule=schedule)
            self.checkpoints = Checkpoints(self.folder, self.model, sgd, STEPS, minutes, Ranks())
            start = self.checkpoints.restore()
            self.started_at = self.step = start.step

            def counted_step(*arguments):
                self.step += 1
                return train_step(*arguments)
            try:
                self.progress = training.train(
                    counted_step, batches(method), schedule, start, self,
                    training.Hooks(self.checkpoints.is_due, self.checkpoints.save, self.rows.extend,
                                   verbose=False))
            except training.Interrupted:
                pass
            self.weights = self.model.get_weights()

    @property
    def received(self):
        """As in training.StopSignals: the signals that have come, SIGTERM in step `stop_after`."""
        return np.array([0, self.step == self.stop_after, 0], np.int32)

    def check(self):
        raise training.Interrupted(signal.SIGTERM)


def test_the_rate_of_each_step_and_its_weight_in_the_averages():
    """Beside the values, what a step with them changes, as a fraction of what the first step changes."""
    schedule, changes = training.Schedule(0.05, 3125, 50), {}
    with open_session('cpu'):
        model, _ = networks.build_supervised('tiny', SHAPE, 3, super_dropout=0.0)
        sgd = optimizer('cpu', 1.0, MOMENTUM)
        train_step = training.training_function(model, sgd, schedule=schedule)
        changing = [model.get_layer('super_clf').kernel, training.batch_statistics(model)[0][0]]
        variables = changing + [variable for variable in model.weights + sgd.weights
                                if all(variable is not other for other in changing)]
        before = training.read_variables(variables)
        for t, rate, weight in ((0, 0.05, 1), (1, 0.05 * (156249 / 156250) ** 0.5, 0.01 / (1 - 0.99 ** 2)),
                                (60000, 0.05 * 0.616 ** 0.5, 0.01), (100000, 0.03, 0.01)):
            assert schedule.rate(t) == pytest.approx(rate, rel=1e-12)
            assert training.average_weight(t) == pytest.approx(weight, rel=1e-12)
            training.assign_variables(variables, before)
            train_step(*batches('supervised')[0], t=t)
            after = training.read_variables(changing)
            changes[t] = [np.linalg.norm(a - b) for a, b in zip(after, before)]
            assert changes[t] == pytest.approx(np.multiply([rate / 0.05, weight], changes[0]), rel=1e-4)


def test_the_step_counter_reaches_no_float_but_through_the_dropout_masks():
    """An NPU may compute in float16, which has no number above 65,504."""
    with open_session('cpu'):
        model, _ = networks.build_sesemi('tiny', SHAPE, 3, in_network_dropout=0.3,
                                         batch_number=batch_number())
        training.training_function(model, optimizer('cpu', 0.05, MOMENTUM),
                                   schedule=training.Schedule(0.05, STEPS, EPOCHS))
        reached, found = set(), [step_variable().op]
        while found:
            operation = found.pop()
            if operation not in reached and operation.type != 'StatelessRandomUniformInt':
                found += [user for output in operation.outputs for user in output.consumers()]
            reached.add(operation)
        assert [operation.type for operation in reached].count('StatelessRandomUniformInt') == 3
        assert [operation.name for operation in reached if operation.type != 'StatelessRandomUniformInt'
                for output in operation.outputs if output.dtype.base_dtype.is_floating] == []


@pytest.mark.parametrize('method', ['asl', 'supervised'])
@pytest.mark.parametrize('stop_after', [1, STEPS, STEPS + 3])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, stop_after, method):
    whole = Run(tmp_path / 'whole', method=method)
    Run(tmp_path / 'cut', stop_after, method)
    resumed = Run(tmp_path / 'cut', method=method)
    assert resumed.started_at == stop_after
    assert all(np.array_equal(a, b) for a, b in zip(whole.weights, resumed.weights))
    assert len(whole.progress.rows) == len(resumed.progress.rows) == EPOCHS
    for row, other in zip(whole.progress.rows, resumed.progress.rows):
        assert {**row, 'seconds': 0} == {**other, 'seconds': 0}


def test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(tmp_path, capsys):
    Run(tmp_path, stop_after=6)
    assert sorted(os.listdir(str(tmp_path))) == ['step-000000005.npz', 'step-000000006.npz']
    newest = tmp_path / 'step-000000006.npz'
    whole = newest.read_bytes()
    with np.load(str(newest)) as file:
        arrays = {name: file[name] for name in file.files}
    middle = len(whole) // 2

    def packed(arrays):
        memory = io.BytesIO()
        np.savez(memory, **arrays)
        return memory.getvalue()

    first = arrays['variable_0']
    turned = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1:]
    damaged = [b'', whole[:middle], whole[:-1], turned,
               packed({**arrays, 'variable_0': first[..., :1]}),
               packed({**arrays, 'variable_0': first.astype(np.float64)}),
               packed({name: arrays[name] for name in arrays if name != 'variable_2'}),
               packed({**arrays, 'variable_%d' % (len(arrays) - 2): first})]
    with open_session('cpu'):
        model, _ = networks.build_sesemi('tiny', SHAPE, 3, in_network_dropout=0.3)
        sgd = optimizer('cpu', 0.05, 0.9)
        training.training_function(model, sgd)
        checkpoints = Checkpoints(str(tmp_path), model, sgd, STEPS, 1, Ranks())
        for number, content in enumerate(damaged):
            newest.write_bytes(content)
            training.assign_variables([step_variable()], [0])
            assert checkpoints.restore().step == 5, number
            assert keras.backend.get_value(step_variable()) == 5
            said = capsys.readouterr().err
            assert said.startswith('%s: damaged (' % newest) and said.count('\n') == 1 and len(said) < 600
        newest.write_bytes(packed(arrays))
        assert checkpoints.restore().step == 6
        for path in tmp_path.iterdir():
            path.write_bytes(whole[:-1])
        assert checkpoints.restore().step == 0
        said = capsys.readouterr().err.splitlines()
        assert [line.rpartition('; ')[2] for line in said] == [
            'the checkpoint before it is used.', 'the run starts again from its first step.']


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'checkpoints').write_text('')
    with pytest.raises(InputError, match='checkpoints: cannot be made'):
        Run(tmp_path / 'checkpoints', stop_after=1)


@pytest.mark.parametrize('method', ['after_epoch', '__getitem__'])
@pytest.mark.parametrize('alone', [True, False])
def test_an_error_outside_of_a_step_saves_what_was_trained(tmp_path, monkeypatch, alone, method):
    def fail(*_):
        raise OSError('stale file')
    whole = Run(tmp_path / 'whole')
    with monkeypatch.context() as broken:
        hooks = training.Hooks
        after_epoch = {'after_epoch': fail} if method == 'after_epoch' else {}
        if not after_epoch:
            get = TwoBranchBatches.__getitem__
            broken.setattr(TwoBranchBatches, '__getitem__',
                           lambda batches, t: get(batches, t) if t < STEPS else fail())
        broken.setattr(training, 'Hooks', lambda *given, **named: hooks(*given, **named)._replace(
            alone=alone, is_due=lambda step: False, **after_epoch))
        with pytest.raises(OSError, match='stale file'):
            Run(tmp_path / 'cut')
    resumed = Run(tmp_path / 'cut')
    assert resumed.started_at == (STEPS if alone else 0)
    assert all(np.array_equal(a, b) for a, b in zip(whole.weights, resumed.weights))
    assert len(resumed.progress.rows) == EPOCHS


def test_no_checkpoint_sooner_than_asked(tmp_path):
    Run(tmp_path, minutes=60)
    assert not os.listdir(str(tmp_path))


def test_divergence_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(training.Diverged, match='step .*--lr'):
        Run(tmp_path, lr=1e30)
    assert os.listdir(str(tmp_path))
    for name in os.listdir(str(tmp_path)):
        with np.load(str(tmp_path / name)) as file:
            assert all(np.isfinite(file[key]).all() for key in file.files)


def test_prefetch_keeps_the_order_and_passes_errors_on():
    assert list(training.prefetch(lambda key: key * 2, range(50))) == list(range(0, 100, 2))
    assert list(training.prefetch(str, [])) == []
    results = training.prefetch(lambda key: 1 // (3 - key), range(9))
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize('flip', [True, False])
def test_evaluators_average_the_softmax_over_the_views_in_batches_of_one_size(flip):
    shapes = set()

    def softmax(x):
        exponentials = np.exp(x[:, :3, :3, 0].sum(axis=1))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    class Model:
        def predict_on_batch(self, x):
            shapes.add(x.shape)
            return softmax(x)
    sets = [np.random.RandomState(0).standard_normal((count,) + SHAPE).astype(np.float32)
            for count in (40, 301)]
    size = evaluation.evaluation_batch(*map(len, sets))
    for images in sets:
        evaluate = evaluation.DenseEvaluator(
            Model(), images, lambda images, first: views_of(images, first, 7, flip), training.StopSignals(),
            Ranks(), size)
        dense, plain = evaluate()
        outputs = [softmax(view) for view in views_of(images, 0, 7, flip)]
        np.testing.assert_allclose(dense, np.mean(outputs, axis=0), rtol=1e-5)
        for one_view in plain, evaluate.predict_one_view():
            np.testing.assert_array_equal(one_view, outputs[0])
    assert shapes == {(40,) + SHAPE}


@pytest.mark.parametrize('counts, image_size, size', [
    ((10000,), 32, 250), ((355,), 32, 178), ((7,), 32, 7), ((3, 10000), 32, 32), ((3, 20), 32, 20),
    ((600, 300), 32, 150), ((1000,), 16, 250), ((1000,), 48, 100), ((1000,), 128, 15)])
def test_the_size_of_evaluation_batches(counts, image_size, size):
    for given in counts, counts[::-1]:
        assert evaluation.evaluation_batch(*given, image_size=image_size) == size
