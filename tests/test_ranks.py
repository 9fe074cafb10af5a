"""Two real worker processes on loopback, the tiny trunk."""
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from conftest import PROJECT
from ranks import Place, find_place
from utils import InputError

# The program as a user starts it, which leaves its rank's trainable weights when it has trained.
PROGRAM = '''
import sys
sys.path[:0] = [{0!r}, {0!r} + '/tests']
import numpy as np
import tiny_trunk, training, train_evaluate_sesemi
from runtime import keras
tiny_trunk.sesemi.TRUNKS['nin'] = tiny_trunk.trunk
train = training.train
def train_and_keep(model, *arguments, **named):
    progress = train(model, *arguments, **named)
    if sys.argv[1]:
        np.savez(sys.argv[1], *map(keras.backend.get_value, model.trainable_weights))
    return progress
training.train = train_and_keep
sys.exit(train_evaluate_sesemi.main(sys.argv[2:]))
'''.format(str(PROJECT))


def addresses():
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(('127.0.0.1', 0))
        return ','.join('127.0.0.1:%d' % free.getsockname()[1] for free in (one, other))


def start(workers, rank, result, *flags, keep=''):
    environment = {name: value for name, value in os.environ.items() if name not in ('TF_CONFIG', 'RANK_ID', 'RANK_SIZE')}
    return subprocess.Popen(
        [sys.executable, '-u', '-c', PROGRAM, str(keep), '--data', 'digits', '--network', 'nin', '--labels', '100', '--image-size', '16',
         '--device', 'cpu', '--epochs', '2', '--result', str(result), '--workers', workers, '--rank', str(rank), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=environment)


def test_both_ranks_end_with_the_same_weights_and_one_of_them_prints(tmp_path):
    workers = addresses()
    both = [start(workers, rank, tmp_path / 'run', keep=tmp_path / ('%d.npz' % rank)) for rank in (0, 1)]
    (out, err), (other_out, other_err) = (process.communicate(timeout=200) for process in both)
    assert [process.returncode for process in both] == [0, 0], err + other_err
    assert len(re.findall('^classification error rate', out, re.MULTILINE)) == 1 and other_out == ''
    with np.load(str(tmp_path / '0.npz')) as one, np.load(str(tmp_path / '1.npz')) as other:
        assert one.files and all(np.array_equal(one[name], other[name]) for name in one.files)


@pytest.mark.parametrize('killed', [0, 1])
def test_a_rank_that_is_killed_is_named_and_the_run_goes_on(tmp_path, killed):
    workers = addresses()
    flags = '--epochs', '20', '--checkpoint-minutes', '0.0001'
    both = [start(workers, rank, tmp_path / 'run', *flags) for rank in (0, 1)]
    seen = ''
    while 'Epoch 2/20' not in seen:
        character = both[0].stdout.read(1)
        assert character, seen
        seen += character
    both[killed].kill()
    _, err = both[1 - killed].communicate(timeout=200)
    both[killed].communicate()
    assert both[1 - killed].returncode == 1
    assert err.splitlines()[-1].startswith('Rank %d (%s) is gone' % (killed, workers.split(',')[killed]))
    assert os.listdir(str(tmp_path / 'run' / 'checkpoints'))
    workers = addresses()
    both = [start(workers, rank, tmp_path / 'run', '--resume', *flags) for rank in (0, 1)]
    (out, err), _ = (process.communicate(timeout=200) for process in both)
    assert [process.returncode for process in both] == [0, 0], err
    assert 'Epoch 20/20' in out and 'classification error rate' in out


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
    cluster = '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'
    assert find_place(None, None, {'TF_CONFIG': cluster}) == Place(1, 2, ('a:1', 'b:2'))
    for workers, rank, environment in [('a:1,b', 0, {}), ('a:1,a:1', 0, {}), ('a:1,b:2', 2, {}), (None, 1, {}), (None, None, {'TF_CONFIG': '{}'})]:
        with pytest.raises(InputError):
            find_place(workers, rank, environment)


def test_run_local_starts_them_all(tmp_path):
    done = subprocess.run(
        ['bash', str(PROJECT / 'run_local.sh'), '2', '--data', 'digits', '--network', 'nin', '--labels', '10', '--batch-size', '1',
         '--image-size', '16', '--epochs', '1', '--result', str(tmp_path / 'run')],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env={**os.environ, 'PYTHON': sys.executable})
    assert done.returncode == 0, done.stderr
    assert len(re.findall('^classification error rate', done.stdout, re.MULTILINE)) == 1 and '; 2 x cpu' in done.stdout


def test_a_signal_to_run_local_saves_and_ends_them_all(tmp_path):
    process = subprocess.Popen(
        ['bash', str(PROJECT / 'run_local.sh'), '2', '--data', 'digits', '--network', 'nin', '--labels', '10', '--batch-size', '1',
         '--image-size', '16', '--epochs', '1000', '--result', str(tmp_path / 'run')],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env={**os.environ, 'PYTHON': sys.executable})
    seen = ''
    while 'Epoch 2/' not in seen:
        character = process.stdout.read(1)
        assert character, seen
        seen += character
    process.terminate()
    _, err = process.communicate(timeout=200)       # which waits for all who have the pipe, so for both ranks
    assert process.returncode == 143 and '--resume' in err
    assert os.listdir(str(tmp_path / 'run' / 'checkpoints'))


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
    environment = {name: value for name, value in os.environ.items() if name not in ('RANK_SIZE', 'JOB_ID')}

    def start_8p(**variables):
        return subprocess.run(['bash', str(PROJECT / 'run_8p.sh'), '--data', 'digits'], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True, timeout=200, env={**environment, 'PYTHON': str(python), **variables})
    done = start_8p(RANK_TABLE_FILE=str(tmp_path / 'table.json'))
    assert done.returncode == 7
    assert set(done.stdout.splitlines()) <= {'%d 8 %d 10087 --data digits' % (rank, rank) for rank in range(8)}
    assert '5 8 5 10087 --data digits' in done.stdout
    done = start_8p(RANK_TABLE_FILE='')
    assert done.returncode == 2 and 'RANK_TABLE_FILE' in done.stderr
