"""Runs of two real processes: by TensorFlow's collectives, and as NPUs by the stand-in's all-reduce."""
import contextlib
import glob
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny_trunk  # noqa: F401
from conftest import PROJECT
from programs import STAND_INS, TINY, read_until, result, run, same_weights
from programs import start as start_program

import utils
from networks import build_sesemi
from sesemi.data.batches import TwoBranchBatches
from sesemi.data.datasets import load_dataset
from sesemi.data.split import choose_labeled, split_validation
from sesemi.device import runtime
from sesemi.device.backend import keras, tf
from sesemi.device.ranks import RankInfo, find_gpus, find_rank
from sesemi.device.runtime import batch_number, open_session, step_variable
from sesemi.errors import InputError
from sesemi.training import training

FLAGS = ('--data', 'digits', '--network', 'nin', '--labels', '100', '--image-size', '16', '--epochs', '2')


def addresses():
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(('127.0.0.1', 0))
        return ','.join('127.0.0.1:%d' % free.getsockname()[1] for free in (one, other))


def start(workers, rank, folder, *flags, program=TINY, **environment):
    of_rank = ['--workers', workers, '--rank', rank] if workers else []
    return start_program(program, *FLAGS, '--device', 'cpu', '--result', folder,
                         *flags, *of_rank, **environment)


def initial_model(path):
    """Write a model of the tiny trunk for --init to `path`; returns the path."""
    path.write_bytes(gzip.decompress((PROJECT / 'tests/fixture/none/sesemi.h5.gz').read_bytes()))
    return path


@pytest.fixture(scope='module', params=['gpus', 'npu'] + ['mixed'] * ('SESEMI_BFLOAT16' in os.environ))
def recorded(request, tmp_path_factory):
    """A run started by the user's own commands: (what each rank recorded, the kind of run, its folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    python = folder / 'python'
    python.write_text(
        '#!/usr/bin/env bash\nif [[ $1 == -c ]]; then exec {0} "$@"; fi\nexec {0} -u {1} "${{@:3}}"\n'.format(
            sys.executable, PROJECT / 'tests/recording_rank.py'))
    python.chmod(0o755)
    flags = FLAGS + ('--result', folder / 'run', '--scale-lr', '--validation', '0.1', '--keep', 'best',
                     '--checkpoint-minutes', '1e-9')        # a checkpoint after every step
    if request.param != 'npu':      # --gpus names GPUs that are not there: the ranks run on the CPU
        script, environment = ['run_1p.sh', '--gpus', '5,7', '--device', 'cpu'], {}
        if request.param == 'mixed':
            script += ['--precision-mode', 'mixed']
            environment['TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_LOG_PATH'] = str(folder)
    else:
        table = {'server_list': [{'server_id': 'the.only.host', 'device': [
            {'rank_id': str(rank), 'device_id': str(rank)} for rank in (0, 1)]}]}
        (folder / 'table.json').write_text(json.dumps(table))
        script, environment = ['run_8p.sh', '--device', 'npu', '--profiling'], {
            'RANK_SIZE': '2', 'RANK_TABLE_FILE': str(folder / 'table.json'), 'PYTHONPATH': str(STAND_INS),
            'NPU_BRIDGE_ALL_REDUCE': addresses().split(',')[0], 'NPU_BRIDGE_RECORD': str(folder / 'record')}
    status, out, err = run('bash', PROJECT / script[0], *script[1:], *flags, cwd=folder,
                           RECORD_FOLDER=str(folder), PYTHON=str(python), **environment)
    assert status == 0, out + err
    assert '; 2 x %s (asked for)' % ('npu' if request.param == 'npu' else 'cpu') in out
    assert ('bfloat16).' in out) == (request.param == 'mixed')
    assert len(re.findall('^classification error rate', out, re.MULTILINE)) == 1
    found = []
    for rank in (0, 1):
        with np.load(str(folder / ('%d.npz' % rank))) as file:
            found.append({name: file[name] for name in file.files})
    return found, request.param, folder


def test_both_ranks_end_with_the_same_weights(recorded):
    (one, other), kind, folder = recorded
    for name in set(one) - {'losses', 'gpu'}:
        np.testing.assert_array_equal(one[name], other[name])
    assert len(one) > 4 and (one['losses'] != other['losses']).all()
    if kind == 'gpus':
        assert (one['gpu'], other['gpu']) == ('5', '7')
    # HCCL matches the all-reduces of the ranks by their order: all ranks must run the same graphs
    if kind == 'npu':
        (one,), (other,) = (json.loads((folder / ('record-%d' % rank)).read_text())['npu_sessions']
                            for rank in (0, 1))
        assert one['order'] == other['order'] and list(one['runs']) == list(other['runs'])
        assert len(one['order']) > 20
        # the sum, the step, six for evaluations, two of the first values, two of the best weights, and those
        # of recording_rank.py
        assert len(one['runs']) <= 16
    if kind == 'mixed':      # the gradients are averaged in float32
        types = {'Conv2D': set(), 'CollectiveReduce': set()}
        for path in folder.glob('graphdef_AutoMixedPrecision*.txt'):
            nodes = re.findall(r'op: "(Conv2D|CollectiveReduce)"(.*?)(?=\nnode)', path.read_text(), re.DOTALL)
            for operation, attributes in nodes:
                types[operation].update(re.findall(r'key: "T"\s+value \{\s+type: (\w+)', attributes))
        assert types == {'Conv2D': {'DT_BFLOAT16'}, 'CollectiveReduce': {'DT_FLOAT', 'DT_INT32'}}


def test_the_losses_are_those_of_one_process_that_averages_both_gradients(recorded):
    ranks, kind, _ = recorded
    losses = losses_of_one_process(len(ranks[0]['losses']))
    for found, expected in zip(ranks, losses.T):
        np.testing.assert_allclose(found['losses'], expected, rtol=1e-2 if kind == 'mixed' else 1e-5)


def losses_of_one_process(steps):
    """The losses of both ranks' batches, (steps, 2), computed by one process with the update in numpy."""
    dataset = load_dataset('digits', image_size=16)
    dataset, labeled = split_validation(dataset, choose_labeled(dataset, 100, 1), 0.1)
    images = utils.global_contrast_normalize(dataset.train_images[labeled])
    labels = np.eye(10, dtype=np.float32)[dataset.train_labels[labeled]]
    batches = [TwoBranchBatches(images, labels, images, 4, flip=False, rank=rank, ranks=2) for rank in (0, 1)]
    losses = []
    with open_session('cpu'):
        model, _ = build_sesemi('tiny', (16, 16, 3), 10, batch_number=batch_number())
        weights = model.trainable_weights
        targets = [keras.backend.placeholder(output.shape.as_list()) for output in model.outputs]
        losses_of_heads = map(keras.losses.categorical_crossentropy, targets, model.outputs)
        loss = sum(model.losses) + sum(map(keras.backend.mean, losses_of_heads))
        compute = keras.backend.function(
            model.inputs + targets + [keras.backend.learning_phase()],
            [loss] + keras.backend.gradients(loss, weights))
        velocity = [np.zeros(weight.shape.as_list(), np.float32) for weight in weights]
        for t in range(steps):
            computed = []
            for rank in (0, 1):
                inputs, targets = batches[rank][t]
                keras.backend.set_value(step_variable(), batches[rank].batch_number(t))
                computed.append(compute([inputs[name] for name in model.input_names]
                                       + [targets[name] for name in model.output_names] + [True]))
            losses.append([loss for loss, *_ in computed])
            rate = np.float32(training.Schedule(0.1, steps, 1).rate(t))
            for i, weight in enumerate(weights):
                gradient = (computed[0][1 + i] + computed[1][1 + i]) / 2
                velocity[i] = np.float32(0.9) * velocity[i] - rate * gradient
                nesterov = np.float32(0.9) * velocity[i] - rate * gradient
                keras.backend.set_value(weight, keras.backend.get_value(weight) + nesterov)
    return np.array(losses)


@pytest.mark.parametrize('lost, number, words', [
    (0, signal.SIGKILL, 'Another rank is lost (' if tf.__version__ >= '2' else 'Another rank '),
    (1, signal.SIGSTOP, 'Another rank has not answered for 3 seconds')])
def test_a_lost_rank_ends_the_other_and_the_run_can_be_resumed(tmp_path, lost, number, words):
    workers = addresses()
    flags = '--epochs', '20', '--checkpoint-minutes', '1e-9', '--peer-timeout', '3'
    both = [start(workers, rank, tmp_path / 'run', *flags) for rank in (0, 1)]
    read_until(both[0], 'Epoch 2/20')
    both[lost].send_signal(number)
    ended = result(both[1 - lost])
    both[lost].kill()
    result(both[lost])
    assert ended.status == 1 and ended.sentence().startswith(words)
    assert '--resume' in ended.sentence()
    assert list((tmp_path / 'run' / 'checkpoints').glob('*.npz'))
    workers = addresses() if lost else ''           # with both again, or one alone
    resumed = [start(workers, rank, tmp_path / 'run', '--resume', *flags) for rank in range(2 if lost else 1)]
    (_, out, err), *_ = ended = list(map(result, resumed))
    assert {each.status for each in ended} == {0}, err
    assert 'Epoch 1/20\n' not in out and 'Epoch 20/20' in out and 'classification error rate' in out


@pytest.mark.parametrize('rank', [0, 1])
def test_a_signal_to_either_rank_stops_both_after_one_step(tmp_path, rank):
    workers = addresses()
    both = [start(workers, number, tmp_path / 'run', '--epochs', '40') for number in (0, 1)]
    read_until(both[0], 'Epoch 2/40')
    both[rank].terminate()
    ends = [(each.status, each.sentence()) for each in map(result, both)]
    assert ends == 2 * [(143, 'Stopped by SIGTERM; go on with --resume.')]
    checkpoints = sorted((tmp_path / 'run/checkpoints').glob('*.npz'))
    workers = addresses()
    both = [start(workers, number, tmp_path / 'run', '--resume', '--epochs', '40') for number in (0, 1)]
    resumed = list(map(result, both))
    assert [each.status for each in resumed] == [0, 0], resumed[0].err
    assert len(checkpoints) == 1 and 'Epoch 1/40\n' not in resumed[0].out
    both = [start(workers, number, tmp_path / 'once', '--epochs', '40') for number in (0, 1)]
    once = list(map(result, both))
    assert [each.status for each in once] == [0, 0] and same_weights(tmp_path / 'run', tmp_path / 'once')


def test_both_ranks_name_what_differs(tmp_path):
    (tmp_path / 'tensorflow-9.8.7.dist-info').mkdir()
    (tmp_path / 'tensorflow-9.8.7.dist-info/METADATA').write_text(
        'Metadata-Version: 2.1\nName: tensorflow\nVersion: 9.8.7\n')
    workers, models = addresses(), [initial_model(tmp_path / name) for name in ('0.h5', '1.h5')]
    with models[1].open('ab') as file:
        file.write(b'other')
    both = [start(workers, rank, tmp_path / 'run', '--seed', rank, '--eval-every', rank, '--init',
                  models[rank], **path)
            for rank, path in enumerate([{}, {'PYTHONPATH': str(tmp_path)}])]
    for ended in map(result, both):
        assert ended.status == 2
        assert ('Rank 1 (%s) differs from rank 0 in --init, --seed (1, not 0), --eval-every (1, not 0), '
                'TensorFlow (9.8.7, not %s); '
                % (workers.split(',')[1], runtime.tf.__version__)) in ended.sentence()
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('missing', [0, 1])
def test_a_rank_waits_for_a_missing_one_until_the_join_timeout(tmp_path, missing):
    workers = addresses()
    ended = result(start(workers, 1 - missing, tmp_path / 'run', '--join-timeout', '1'))
    assert ended.status == 1 and '--join-timeout' in ended.sentence()
    assert workers.replace(',', ', ') in ended.sentence()
    assert not (tmp_path / 'run/args.json').exists()


SUMS = '''
import sys
import numpy as np
from sesemi.device import collective, ranks, runtime
joined = collective.Ranks(ranks.find_rank(sys.argv[1], int(sys.argv[2]), {}))
with runtime.open_session('cpu', ranks=joined):
    joined.join()
    # a float sum would change some of their bits
    odd = np.array([[-0.0, 1e-42], [np.inf, -1.5], [3e38, 0.1]], np.float32)
    part = joined.per_rank(3)
    shared = joined.gather(np.resize(odd[joined.rank * part:][:part], (part, 2)), 3)
    assert shared.tobytes() == odd.tobytes(), shared
    arrays = [odd, np.full((2, 1, 3), np.nan, np.float32), np.zeros((0, 4), np.float32)]
    given = joined.broadcast_arrays([array if joined.rank == 0 else np.zeros_like(array) for array in arrays])
    assert [array.shape for array in given] == [array.shape for array in arrays]
    assert [array.tobytes() for array in given] == [array.tobytes() for array in arrays]
    for data in b'', b'x', bytes(range(256)) * 5000:        # the last takes more than one sum
        assert joined.broadcast(data if joined.rank == 0 else b'') == data
    assert list(joined.sum(np.array([joined.rank, 1], np.int32))) == [1, 2]
'''


def test_sums_keep_every_bit(tmp_path):
    workers = addresses()
    both = [start_program(sys.executable, '-c', SUMS, workers, rank, cwd=PROJECT) for rank in (0, 1)]
    for ended in map(result, both):
        assert ended.status == 0, ended.err


def test_find_rank():
    assert find_rank(None, None, {'RANK_ID': '0', 'RANK_SIZE': '1'}) == RankInfo()
    assert find_rank(None, None, {'CM_WORKER_SIZE': '1'}) == RankInfo()
    assert find_rank('a:1,b:2', 1, {}) == RankInfo(1, 2, ('a:1', 'b:2'))
    assert find_rank('a:1,b:2,a:3', 2, {}).local_size == 2
    cluster = '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'
    assert find_rank(None, None, {'TF_CONFIG': cluster}) == RankInfo(1, 2, ('a:1', 'b:2'))
    for workers, rank, environment in [
            ('a:1,b', 0, {}), ('a..b:1,c:2', 1, {}), (64 * 'a' + ':1,c:2', 1, {}), ('a:1,a:1', 0, {}),
            ('a:1,b:' + 5000 * '1', 0, {}), ('a:1,b:2', 2, {}), (None, 1, {}),
            (None, None, {'TF_CONFIG': '{'}), (None, None, {'TF_CONFIG': '[1]'}),
            (None, None, {'CM_WORKER_SIZE': 'x'}),
            (None, None, {'TF_CONFIG': cluster.replace('"index": 1', '"index": 2')}),
            (None, None, {'TF_CONFIG': cluster.replace('"type": "worker"', '"type": "evaluator"')}),
            (None, None, {'TF_CONFIG': tf_config({'chief': ['a:1']}, 'evaluator')})]:
        with pytest.raises(InputError):
            find_rank(workers, rank, environment)
    for environment in {'CM_WORKER_SIZE': '8'}, {'CM_WORKER_SIZE': '2', 'RANK_SIZE': '2'}:
        with pytest.raises(InputError, match='^CM_WORKER_SIZE=[28]: .*run_8p.sh with RANK_TABLE_FILE'):
            find_rank(None, None, environment)


def tf_config(cluster, task):
    return json.dumps({'cluster': cluster, 'task': {'type': task, 'index': 0}})


@pytest.mark.parametrize('text', [
    '', '{}', 'null', '{"cluster": {}}', '{"cluster": null, "task": null}', '{"environment": "cloud"}',
    '{"task": {"type": "worker", "index": 0}}', '{"cluster": {"worker": ["localhost:2222"]}}',
    tf_config({}, 'master'), tf_config({'worker': []}, 'worker'), tf_config({'worker': ['a:1']}, 'worker'),
    tf_config({'chief': ['localhost']}, 'chief'), tf_config({'master': ['a:1']}, 'master')])
def test_a_tf_config_of_one_process_changes_nothing(tmp_path, text):
    assert find_rank(None, None, {'TF_CONFIG': text}) == RankInfo()
    table = tmp_path / 'table.json'
    table.write_text(json.dumps({'server_list': [{'device': [{'rank_id': '0'}, {'rank_id': '1'}]}]}))
    ascend = {'RANK_ID': '1', 'RANK_SIZE': '2', 'RANK_TABLE_FILE': str(table)}
    assert find_rank(None, None, dict(ascend, TF_CONFIG=text)) == RankInfo(1, 2, (), 2)


def test_several_runs_of_several_ranks(tmp_path):
    workers, model = addresses(), initial_model(tmp_path / 'a.h5')
    flags = '--runs', '2', '--epochs', '1', '--validation', '0.1', '--keep', 'best', '--init', model
    ended = list(map(result, [start(workers, rank, tmp_path / 'run', *flags) for rank in (0, 1)]))
    assert [each.status for each in ended] == [0, 0], ended
    assert re.findall('^Seed ([01]): error rate', ended[0].out, re.MULTILINE) == ['0', '1']
    assert ended[1].out == ''
    assert len(glob.glob(str(tmp_path / 'run/seed-[01]/sesemi.h5'))) == 2
    model.unlink()      # each run has a copy
    workers = addresses()
    ended = list(map(result, [start(workers, rank, tmp_path / 'run', *flags, '--resume') for rank in (0, 1)]))
    assert [each.status for each in ended] == [0, 0] and ended[0].out.count('holds the finished run') == 2


def test_a_signal_to_run_local_saves_and_ends_both_ranks(tmp_path):
    process = start_program(
        'bash', PROJECT / 'run_local.sh', '2', '--data', 'digits', '--network', 'nin', '--labels', '10',
        '--batch-size', '1', '--image-size', '16', '--epochs', '1000', '--result', tmp_path / 'run')
    read_until(process, 'Epoch 2/')
    process.terminate()
    ended = result(process)         # waits for all processes that hold the pipe, so for both ranks
    assert ended.status == 143 and '--resume' in ended.err
    assert list((tmp_path / 'run' / 'checkpoints').glob('*.npz'))


@pytest.mark.parametrize('number', [signal.SIGUSR1, signal.SIGXCPU])
def test_notices_reach_the_ranks_and_their_repeats_end_none(tmp_path, number):
    """With an interpreter that takes its time to save."""
    python = tmp_path / 'python'
    python.write_text("""#!/usr/bin/env bash
if [[ $1 == -c ]]; then exit 0; fi
trap 'noticed=1' %s
echo ready
for ((i = 0; i < 1000; i++)); do
    sleep 0.02
    if [[ ${noticed:-} ]]; then break; fi
done
if [[ $RANK_ID == 1 ]]; then sleep 0.5; fi
echo saved
exit %d
""" % (number.name[3:], 128 + number))
    python.chmod(0o755)
    (tmp_path / 'table.json').write_text('{}')
    process = start_program('bash', PROJECT / 'run_8p.sh', RANK_SIZE='2', PYTHON=str(python),
                            RANK_TABLE_FILE=str(tmp_path / 'table.json'))
    read_until(process, 'ready\nready\n')
    while process.poll() is None:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    ended = result(process)
    assert (ended.status, ended.out.count('saved')) == (128 + number, 2), ended


def test_how_many_ascend_ranks_share_a_host(tmp_path):
    def find(table, rank='1'):
        (tmp_path / 'table.json').write_text(json.dumps(table))
        return find_rank(None, None, {'RANK_ID': rank, 'RANK_SIZE': '5',
                                      'RANK_TABLE_FILE': str(tmp_path / 'table.json')})
    cards = [[{'device_id': '4', 'rank_id': '0'}, {'device_id': '5', 'rank_id': '1'}],
             [{'device_id': str(card), 'rank_id': str(2 + card)} for card in range(3)]]
    two = {'version': '1.0', 'server_list': [{'server_id': host, 'device': part}
                                             for host, part in zip(('10.0.0.2', '10.0.0.1'), cards)]}
    assert find(two) == RankInfo(1, 5, (), 2) and find(two, '4') == RankInfo(4, 5, (), 3)
    older = {'group_list': [{'instance_list': [{'devices': cards[1]}, {'devices': cards[0]}]}]}
    assert find(older) == RankInfo(1, 5, (), 3) and find(older, '4') == RankInfo(4, 5, (), 2)
    for table in ({}, [], {'server_list': []}, {'group_list': []},
                  {'server_list': [{'server_id': 'a', 'device': cards[1]}]}):
        with pytest.raises(InputError, match='RANK_TABLE_FILE=.*table.json: rank 1 is not found'):
            find(table)


def test_find_gpus(monkeypatch):
    assert find_gpus('3,1', {}) == ['3', '1']
    assert find_gpus('all', {'CUDA_VISIBLE_DEVICES': '2,GPU-8f'}) == ['2', 'GPU-8f']
    monkeypatch.setattr(glob, 'glob', lambda pattern: ['/dev/nvidia10', '/dev/nvidia2'])
    assert find_gpus('all', {}) == ['2', '10']
    monkeypatch.setattr(glob, 'glob', lambda pattern: [pattern] * ('wsl' in pattern))
    assert find_gpus('all', {}) == ['0']
    monkeypatch.setattr(glob, 'glob', lambda pattern: [])
    with pytest.raises(InputError, match='--gpus all: there is no /dev/nvidia0'):
        find_gpus('all', {})
    for none in ('', '-1', '-1,0'):
        with pytest.raises(InputError, match="--gpus all: CUDA_VISIBLE_DEVICES is '%s'" % none):
            find_gpus('all', {'CUDA_VISIBLE_DEVICES': none})


def test_run_8p_gives_each_rank_its_card_and_ends_all_ranks_if_one_fails(tmp_path):
    """The interpreter is a script that prints how it was started. Rank 5 fails when all have started; the
    others would run for ever, and rank 6 is stopped."""
    python = tmp_path / 'python'
    python.write_text("""#!/usr/bin/env bash
if [[ $1 == -c ]]; then exit 0; fi
echo "$RANK_ID $RANK_SIZE $ASCEND_DEVICE_ID $JOB_ID ${CM_WORKER_SIZE-}${CM_CHIEF_IP-}${*:3}"
touch "${0%/*}/started-$RANK_ID"
if [[ $RANK_ID == 5 ]]; then
    until [[ $(ls -d "${0%/*}"/started-* | wc -l) == 8 ]]; do :; done
    exit 7
fi
if [[ $RANK_ID == 6 ]]; then kill -STOP $$; fi
exec tail -f /dev/null
""")
    python.chmod(0o755)
    (tmp_path / 'table.json').write_text('{}')

    def run_8p(table):
        return run('bash', PROJECT / 'run_8p.sh', '--data', 'digits',
                   PYTHON=str(python), RANK_TABLE_FILE=table, CM_WORKER_SIZE='8', CM_CHIEF_IP='10.0.0.1')
    done = run_8p(str(tmp_path / 'table.json'))
    assert done.status == 7
    assert sorted(done.out.splitlines()) == ['%d 8 %d 10087 --data digits' % (rank, rank)
                                             for rank in range(8)]
    done = run_8p('')
    assert done.status == 2 and 'RANK_TABLE_FILE' in done.err
