"""Two real processes, the tiny trunk: over TensorFlow's collective operations, and as NPUs over the stand-in's all-reduce."""
import glob
import json
import os
import re
import socket
import sys

import numpy as np
import programs
import pytest
from conftest import PROJECT
from programs import STAND_INS, TINY, read_until, run

import tiny_trunk  # noqa: F401
import train_evaluate_sesemi
import utils
from networks import build_sesemi
from networks.layers import step_variable
from sesemi import training
from sesemi.batches import TwoBranchBatches
from sesemi.datasets import load_dataset
from sesemi.errors import InputError
from sesemi.process_group import ASCEND_PORT, Place, find_gpus, find_place
from sesemi.runtime import keras, open_session

FLAGS = ('--data', 'digits', '--network', 'nin', '--labels', '100', '--image-size', '16', '--epochs', '2')


def addresses():
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(('127.0.0.1', 0))
        return ','.join('127.0.0.1:%d' % free.getsockname()[1] for free in (one, other))


def start(workers, rank, result, *flags):
    return programs.start(TINY, *FLAGS, '--device', 'cpu', '--result', result, *flags,
                          *(['--workers', workers, '--rank', rank] if workers else []))


@pytest.fixture(scope='module', params=['gpus', 'npu'])
def kept(request, tmp_path_factory):
    """What both ranks of a whole run left (tests/kept_rank.py), started by the user's own commands."""
    folder = tmp_path_factory.mktemp(request.param)
    python = folder / 'python'
    python.write_text('#!/usr/bin/env bash\nif [[ $1 == -c ]]; then exec {0} "$@"; fi\nexec {0} -u {1} "${{@:3}}"\n'.format(
        sys.executable, PROJECT / 'tests/kept_rank.py'))
    python.chmod(0o755)
    flags = FLAGS + ('--result', folder / 'run', '--scale-lr')
    if request.param == 'gpus':     # of which there are none: the ranks run on the CPU
        script, environment = ['run_1p.sh', '--gpus', '5,7', '--device', 'cpu'], {}
    else:
        meeting, all_reduce = (int(address.rsplit(':')[-1]) for address in addresses().split(','))
        table = {'server_list': [{'server_id': 'the.only.host', 'device': [
            {'rank_id': str(rank), 'device_id': str(meeting - ASCEND_PORT + rank)} for rank in (0, 1)]}]}
        (folder / 'table.json').write_text(json.dumps(table))
        script, environment = ['run_8p.sh', '--device', 'npu'], {
            'RANK_SIZE': '2', 'RANK_TABLE_FILE': str(folder / 'table.json'), 'PYTHONPATH': str(STAND_INS),
            'NPU_BRIDGE_ALL_REDUCE': '127.0.0.1:%d' % all_reduce}
    status, out, err = run('bash', PROJECT / script[0], *script[1:], *flags, cwd=folder, KEEP=str(folder), PYTHON=str(python), **environment)
    assert status == 0, out + err
    assert '; 2 x %s (asked for)' % ('npu' if request.param == 'npu' else 'cpu') in out
    assert len(re.findall('^classification error rate', out, re.MULTILINE)) == 1
    found = []
    for rank in (0, 1):
        with np.load(str(folder / ('%d.npz' % rank))) as file:
            found.append({name: file[name] for name in file.files})
    return found, request.param


def test_both_ranks_end_with_the_same_weights(kept):
    one, other = kept[0]
    for name in set(one) - {'losses', 'gpu'}:
        np.testing.assert_array_equal(one[name], other[name])
    assert len(one) > 4 and (one['losses'] != other['losses']).all()
    if kept[1] == 'gpus':
        assert (one['gpu'], other['gpu']) == ('5', '7')


def test_the_losses_are_those_of_one_process_that_averages_both_gradients(kept):
    losses = losses_of_one_process(len(kept[0][0]['losses']))
    for rank in (0, 1):
        np.testing.assert_allclose(kept[0][rank]['losses'], losses[:, rank], rtol=1e-5)


def losses_of_one_process(steps):
    """(steps, 2): the losses of both ranks' batches, the update written out."""
    dataset = load_dataset('digits', image_size=16)
    labeled = train_evaluate_sesemi.choose_labeled(dataset, 100, 1)
    images = utils.global_contrast_normalize(dataset.train_images[labeled])
    labels = np.eye(10, dtype=np.float32)[dataset.train_labels[labeled]]
    batches = [TwoBranchBatches(images, labels, images, 4, flip=False, rank=rank, ranks=2) for rank in (0, 1)]
    losses = []
    with open_session('cpu'):
        model, _ = build_sesemi('tiny', (16, 16, 3), 10)
        weights = model.trainable_weights
        targets = [keras.backend.placeholder(output.shape.as_list()) for output in model.outputs]
        loss = sum(model.losses) + sum(map(keras.backend.mean, map(keras.losses.categorical_crossentropy, targets, model.outputs)))
        compute = keras.backend.function(
            model.inputs + targets + [keras.backend.learning_phase()], [loss] + keras.backend.gradients(loss, weights))
        velocity = [np.zeros(weight.shape.as_list(), np.float32) for weight in weights]
        for t in range(steps):
            computed = []
            for rank in (0, 1):
                inputs, targets = batches[rank][t]
                keras.backend.set_value(step_variable(), batches[rank].number(t))
                computed.append(compute([inputs[name] for name in model.input_names]
                                       + [targets[name] for name in model.output_names] + [True]))
            losses.append([loss for loss, *_ in computed])
            rate = np.float32(training.learning_rate(0.1, t, steps))
            for i, weight in enumerate(weights):
                gradient = (computed[0][1 + i] + computed[1][1 + i]) / 2
                velocity[i] = np.float32(0.9) * velocity[i] - rate * gradient
                keras.backend.set_value(weight, keras.backend.get_value(weight) + np.float32(0.9) * velocity[i] - rate * gradient)
    return np.array(losses)


@pytest.mark.parametrize('killed', [0, 1])
def test_a_rank_that_is_killed_is_named_and_the_run_goes_on(tmp_path, killed):
    workers = addresses()
    flags = '--epochs', '20', '--checkpoint-minutes', '0.0001'
    both = [start(workers, rank, tmp_path / 'run', *flags) for rank in (0, 1)]
    read_until(both[0], 'Epoch 2/20')
    both[killed].kill()
    _, err = both[1 - killed].communicate(timeout=200)
    both[killed].communicate()
    assert both[1 - killed].returncode == 1
    assert err.splitlines()[-1].startswith('Rank %d (%s) is gone' % (killed, workers.split(',')[killed]))
    assert os.listdir(str(tmp_path / 'run' / 'checkpoints'))
    workers = addresses() if killed else ''         # with both again, or one alone
    resumed = [start(workers, rank, tmp_path / 'run', '--resume', *flags) for rank in range(2 if killed else 1)]
    (out, err), *_ = [process.communicate(timeout=200) for process in resumed]
    assert {process.returncode for process in resumed} == {0}, err
    assert 'Epoch 1/20\n' not in out and 'Epoch 20/20' in out and 'classification error rate' in out


def test_another_seed_is_named(tmp_path):
    workers = addresses()
    both = [start(workers, rank, tmp_path / 'run', '--seed', str(rank)) for rank in (0, 1)]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert all('Rank 1 differs from rank 0 in --seed (1, not 0)' in error for error in errors)


def test_a_rank_that_never_comes_is_named(tmp_path):
    alone = start(addresses(), 0, tmp_path / 'run', '--join-timeout', '1')
    _, err = alone.communicate(timeout=200)
    assert alone.returncode == 1 and 'Rank 1 (127.0.0.1:' in err and '--join-timeout' in err


def test_who_a_process_is():
    assert find_place(None, None, {'RANK_ID': '0', 'RANK_SIZE': '1'}) == Place()
    assert find_place('a:1,b:2', 1, {}) == Place(1, 2, ('a:1', 'b:2'))
    assert find_place('a:1,b:2,a:3', 2, {}).on_host == 2
    cluster = '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'
    assert find_place(None, None, {'TF_CONFIG': cluster}) == Place(1, 2, ('a:1', 'b:2'))
    for workers, rank, environment in [('a:1,b', 0, {}), ('a:1,a:1', 0, {}), ('a:1,b:2', 2, {}), (None, 1, {}), (None, None, {'TF_CONFIG': '{}'})]:
        with pytest.raises(InputError):
            find_place(workers, rank, environment)


def test_several_runs_of_several_ranks(tmp_path):
    workers = addresses()
    both = [start(workers, rank, tmp_path / 'run', '--runs', '2', '--epochs', '1') for rank in (0, 1)]
    (out, err), _ = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], err
    assert re.findall('^Seed ([01]): error rate', out, re.MULTILINE) == ['0', '1']
    assert len(glob.glob(str(tmp_path / 'run/seed-[01]/sesemi.h5'))) == 2


def test_a_signal_to_run_local_saves_and_ends_them_all(tmp_path):
    process = programs.start(
        'bash', PROJECT / 'run_local.sh', '2', '--data', 'digits', '--network', 'nin', '--labels', '10', '--batch-size', '1',
        '--image-size', '16', '--epochs', '1000', '--result', tmp_path / 'run')
    read_until(process, 'Epoch 2/')
    process.terminate()
    _, err = process.communicate(timeout=200)       # which waits for all who have the pipe, so for both ranks
    assert process.returncode == 143 and '--resume' in err
    assert os.listdir(str(tmp_path / 'run' / 'checkpoints'))


def test_where_ascend_ranks_meet(tmp_path):
    def meet(table, rank='1'):
        (tmp_path / 'table.json').write_text(json.dumps(table))
        return find_place(None, None, {'RANK_ID': rank, 'RANK_SIZE': '4', 'RANK_TABLE_FILE': str(tmp_path / 'table.json')})
    cards = [[{'device_id': '4', 'rank_id': '0'}, {'device_id': '5', 'rank_id': '1'}], [{'device_id': '0', 'rank_id': '2'},
                                                                                         {'device_id': '1', 'rank_id': '3'}]]
    two = {'version': '1.0', 'server_list': [{'server_id': host, 'device': part} for host, part in zip(('10.0.0.2', '10.0.0.1'), cards)]}
    assert meet(two) == Place(1, 4, ('10.0.0.2:29404',), 2)
    one = {'server_list': [{'server_id': 'node-0', 'device': cards[1] + cards[0]}]}
    assert meet(one, '3') == Place(3, 4, ('127.0.0.1:29404',), 4)
    older = {'group_list': [{'instance_list': [{'server_id': '10.0.0.3', 'devices': cards[1]}, {'server_id': '10.0.0.2', 'devices': cards[0]}]}]}
    assert meet(older) == Place(1, 4, ('10.0.0.3:29400',), 2)
    for table in ({}, [], {'server_list': []}, {'group_list': []}, {'server_list': [{'server_id': 'a', 'device': cards[1]}]}):
        with pytest.raises(InputError, match='RANK_TABLE_FILE=.*table.json: where rank 0 is'):
            meet(table)


def test_which_gpus(monkeypatch):
    assert find_gpus('3,1', {}) == ['3', '1']
    assert find_gpus('all', {'CUDA_VISIBLE_DEVICES': '2,GPU-8f'}) == ['2', 'GPU-8f']
    monkeypatch.setattr(glob, 'glob', lambda pattern: ['/dev/nvidia10', '/dev/nvidia2'])
    assert find_gpus('all', {}) == ['2', '10']
    monkeypatch.setattr(glob, 'glob', lambda pattern: [])
    with pytest.raises(InputError, match='--gpus all: there is no /dev/nvidia0'):
        find_gpus('all', {})
    for none in ('', '-1', '-1,0'):
        with pytest.raises(InputError, match="--gpus all: CUDA_VISIBLE_DEVICES is '%s'" % none):
            find_gpus('all', {'CUDA_VISIBLE_DEVICES': none})


def test_run_8p_gives_each_rank_its_card_and_ends_them_all_when_one_fails(tmp_path):
    """With an interpreter that writes down what it is started with; every rank but the failing one would run for ever."""
    python = tmp_path / 'python'
    python.write_text("""#!/usr/bin/env bash
if [[ $1 == -c ]]; then exit 0; fi
echo "$RANK_ID $RANK_SIZE $ASCEND_DEVICE_ID $JOB_ID ${*:3}"
if [[ $RANK_ID == 5 ]]; then exit 7; fi
exec tail -f /dev/null
""")
    python.chmod(0o755)
    (tmp_path / 'table.json').write_text('{}')

    def start_8p(**variables):
        return run('bash', PROJECT / 'run_8p.sh', '--data', 'digits', PYTHON=str(python), **variables)
    done = start_8p(RANK_TABLE_FILE=str(tmp_path / 'table.json'))
    assert done.status == 7
    assert set(done.out.splitlines()) <= {'%d 8 %d 10087 --data digits' % (rank, rank) for rank in range(8)}
    assert '5 8 5 10087 --data digits' in done.out
    done = start_8p(RANK_TABLE_FILE='')
    assert done.status == 2 and 'RANK_TABLE_FILE' in done.err
