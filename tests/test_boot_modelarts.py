"""boot_modelarts.py as ModelArts starts it: a process in another folder, tests/stand_ins/moxing as OBS.

In most tests the run_1p.sh beside it trains nothing; in one it is that of the whole program.
"""
import os
import shutil
import signal
import sys

import pytest
from conftest import PROJECT
from programs import STAND_INS, copy_project, result, run, start, write_run_1p

import help_modelarts

TRAINING = '''
printf '%s\\n' "$@" >"$result/flags"
touch "$result/sesemi.h5" "$result/result.json"
echo 'an epoch'
echo 'a warning' >&2
'''
PRODUCTS = {'sesemi.h5', 'result.json', 'train.log'}


class Job:
    """A job: a code folder whose name has a space, with a run_1p.sh, a bucket and a local disk."""

    def __init__(self, root):
        self.root, self.code = root, root / 'user code'
        self.bucket, self.disk = root / 'obs/bucket', root / 'disk'
        self.elsewhere = root / 'elsewhere'
        for folder in self.code, self.bucket, self.elsewhere:
            folder.mkdir(parents=True)
        shutil.copy(str(PROJECT / 'boot_modelarts.py'), str(self.code))
        (self.code / 'help_modelarts.py').write_text(
            (PROJECT / 'help_modelarts.py').read_text() + '\n\nPAUSES = 0, 0, 0\n')
        self.set_training()

    def set_training(self, script=TRAINING):
        write_run_1p(self.code, script)

    def start(self, *arguments, moxing=True, **environment):
        if moxing:
            environment['PYTHONPATH'] = str(STAND_INS)
        return start(sys.executable, self.code / 'boot_modelarts.py', *arguments, cwd=self.elsewhere,
                     SESEMI_CACHE=str(self.disk), MOXING_ROOT=str(self.root / 'obs'),
                     SECRET_ACCESS_KEY='SECRET', **environment)

    def run(self, *arguments, **options):
        status, out, err = result(self.start(*arguments, **options))
        assert 'SECRET' not in out + err
        return status, out, err

    def flags(self, folder):
        return (folder / 'flags').read_text().split('\n')[:-1]


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def names(folder):
    return {path.name for path in folder.iterdir()}


def assert_refused(outcome, *parts):
    """Wrong input ends with status 2 and one sentence that holds the parts."""
    status, out, err = outcome
    assert (status, err.count('\n')) == (2, 1), err
    assert all(part in err for part in parts), err
    assert 'an epoch' not in out


# Local folders and URLs


def test_local_folders_are_used_in_place(job):
    status, out, err = job.run('--data_url', 'data', '--train_url', 'out', '--labels', '2000',
                               '--method', 'ssl', moxing=False)
    assert (status, err) == (0, '')
    assert names(job.elsewhere / 'out') == PRODUCTS | {'flags'}
    assert job.flags(job.elsewhere / 'out') == [
        '--result', 'out', '--resume', 'auto', '--dataset', 'data', '--labels', '2000', '--method', 'ssl']
    assert out == (job.elsewhere / 'out/train.log').read_text() == 'an epoch\na warning\n'
    assert not job.disk.exists()


@pytest.mark.parametrize('scheme', ['obs', 's3'])
def test_urls_are_copied_in_and_out(job, scheme):
    (job.bucket / 'data/train').mkdir(parents=True)
    (job.bucket / 'data/train/cat').write_text('meow')
    job.set_training(TRAINING + 'cat "${args[-1]}/train/cat"\necho " from ${args[-1]}"\n')
    status, out, err = job.run('--data_url={}://bucket/data/'.format(scheme),
                               '--train_url={}://bucket/out/'.format(scheme))
    assert (status, err) == (0, '')
    assert names(job.bucket / 'out') == PRODUCTS | {'flags'}
    assert (job.bucket / 'out/train.log').read_text() == out
    assert out.splitlines()[-1].startswith('meow from {}/'.format(job.disk))
    assert job.flags(job.bucket / 'out')[-2] == '--dataset'


def test_url_of_a_file(job):
    (job.bucket / 'data.tar.gz').write_text('whole')
    job.set_training(TRAINING + 'echo "${args[-1]##*/} is $(cat "${args[-1]}")"\n')
    _, out, _ = job.run('--data_url', 'obs://bucket/data.tar.gz', '--train_url', 'out')
    assert out.endswith('data.tar.gz is whole\n')


def test_whole_program(tmp_path):
    """Results go to OBS, as in docs/ascend.md. A run on a CPU does not import the adapter."""
    code = copy_project(tmp_path / 'code')
    status, out, err = run(
        sys.executable, code / 'boot_modelarts.py', '--data_url', './dataset',
        '--train_url', 'obs://bucket/out', '--data', 'digits', '--network', 'nin', '--epochs', '1',
        '--labels', '10', '--batch_size', '1', '--image_size', '16', '--device', 'cpu', cwd=tmp_path,
        PYTHONPATH=str(STAND_INS), MOXING_ROOT=str(tmp_path), SESEMI_CACHE=str(tmp_path / 'disk'),
        NPU_BRIDGE_RECORD=str(tmp_path / 'record'))
    assert status == 0, out + err
    assert PRODUCTS < names(tmp_path / 'bucket/out')
    assert (tmp_path / 'bucket/out/sesemi.h5').stat().st_size > 1000
    assert 'classification error rate: 0.' in (tmp_path / 'bucket/out/train.log').read_text().splitlines()[-1]
    assert not (tmp_path / 'record').exists()


# Arguments


def test_unknown_arguments_go_through_untouched(job):
    given = ['--lables=20', 'two words', '', '*', '$HOME', '--data', 'a=b', '--no_flip']
    job.run('--num_gpus', '8', *given[:3], '--init_method=tcp://host:6666', '--train_url', 'out', *given[3:],
            '--rank', '3')
    assert job.flags(job.elsewhere / 'out')[4:] == given
    job.run('--train_url', 'out', '--workers', 'a:1,b:2', '--rank', '1')
    assert job.flags(job.elsewhere / 'out')[4:] == ['--workers', 'a:1,b:2', '--rank', '1']


def test_arguments_of_the_model_zoo(job):
    unused = '--output_path --train_steps --bind_core --conda_name --more_path1 --ckpt_path'
    _, out, _ = job.run('--train_url', 'out', *['%s=x y' % name for name in unused.split()])
    assert out.splitlines()[0] == 'Not used: ' + unused
    assert job.flags(job.elsewhere / 'out')[4:] == []
    for given in ['--train_epochs', '7'], ['--train_epochs=7']:
        _, out, _ = job.run('--train_url', 'out', *given, '--bind_core', '1', '--conda_name', '--labels',
                            '20', '--train_epoch=8', '--bind_cores=1', 'ckpt_path')
        assert out.splitlines()[0] == 'Not used: --bind_core --conda_name'
        assert job.flags(job.elsewhere / 'out')[4:] == [
            '--labels', '20', '--train_epoch=8', '--bind_cores=1', 'ckpt_path', '--epochs=7']


@pytest.mark.parametrize('given', [
    ['--dataset', 'mine'], ['--dataset=mine'], ['--resume'], ['--resume=auto', '--dataset=mine']])
def test_flags_of_the_user_go_first(job, given):
    job.run('--train_url', 'out', '--data_url', 'data' if given == ['--resume'] else 'obs://bucket/none',
            *given)
    flags = job.flags(job.elsewhere / 'out')
    assert [word.split('=')[0] for word in flags].count('--dataset') == 1
    assert [word.split('=')[0] for word in flags].count('--resume') == 1
    assert flags[-len(given):] == given


@pytest.mark.parametrize('arguments, parts', [
    (['--data_url', 'data'], ['--train_url is missing']),
    (['--train_url'], ['--train_url', 'expected one argument']),
    (['--train_url', 'out', '--result', 'mine'], ['--result: ', 'leave the flag out']),
    (['--train_url', os.devnull + '/out'], ['--train_url /dev/null/out: cannot be made']),
    (['--train_url', 'out', '--data_url', 'obs://key:SECRET@bucket/none?token=SECRET'],
     ['obs://bucket/none: nothing is']),
])
def test_wrong_arguments(job, arguments, parts):
    assert_refused(job.run(*arguments), *parts)


def test_help(job):
    status, out, _ = job.run('--help')
    assert status == 0 and '--data_url' in out and '--train_url' in out and '--num_gpus' not in out


@pytest.mark.parametrize('arguments', [
    ['--data_url', 'data', '--train_url', 'obs://bucket/out'],
    ['--data_url', 's3://bucket/data', '--train_url', 'out']])
def test_url_without_moxing(job, arguments):
    assert_refused(job.run(*arguments, moxing=False), "No module named 'moxing'", 'give a local folder')


def test_cache_that_cannot_be_made(job):
    job.disk.write_text('')
    assert_refused(job.run('--train_url', 'obs://bucket/out'), str(job.disk), 'set SESEMI_CACHE')


def test_each_rank_has_its_own_results(job):
    for rank in '0', '1', '7':
        assert job.run('--train_url', 'out', RANK_ID=rank)[0] == 0
        assert job.run('--train_url', 'obs://bucket/out', RANK_ID=rank)[0] == 0
    for out in job.elsewhere / 'out', job.bucket / 'out':
        assert names(out) == PRODUCTS | {'flags', 'rank-1', 'rank-7'}
        assert names(out / 'rank-1') == PRODUCTS | {'flags'}


# A training that fails, is stopped, or is started again


@pytest.mark.parametrize('end, expected', [('exit 7', 7), ('kill -KILL $$', 137)])
@pytest.mark.parametrize('train_url, out', [('out', 'elsewhere/out'), ('obs://bucket/out', 'obs/bucket/out')])
def test_failed_training_leaves_its_log_and_its_status(job, end, expected, train_url, out):
    job.set_training('echo "a checkpoint" >"$result/step-1.npz"\necho "the reason" >&2\n' + end)
    status, _, _ = job.run('--train_url', train_url)
    assert status == expected
    assert names(job.root / out) == {'step-1.npz', 'train.log'}
    assert (job.root / out / 'train.log').read_text() == 'the reason\n'


@pytest.mark.parametrize('number, expected', [
    (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGXCPU, 152)])
def test_signals_reach_the_training_and_results_are_still_copied(job, number, expected):
    job.set_training('trap \'kill $! 2>/dev/null || :; echo saved; touch "$result/step-9.npz"; exit %d\' %s\n'
               'sleep 600 & echo ready; wait' % (expected, number.name))
    process = job.start('--train_url', 'obs://bucket/out')
    assert process.stdout.readline() == 'ready\n'
    log, = job.disk.glob('*/train.log')
    assert log.read_text() == 'ready\n'     # it comes as the training writes it
    process.send_signal(number)
    status, out, err = result(process)
    assert (status, out, err) == (expected, 'saved\n', '')
    assert names(job.bucket / 'out') == {'step-9.npz', 'train.log'}


def test_it_ends_with_the_training_even_if_a_child_holds_the_output(job):
    # the child sleeps longer than the time limit of `run`
    job.set_training('sleep 600 & echo $! >"$result/left"; echo gone; exit 7')
    status, out, _ = job.run('--train_url', 'out')
    os.kill(int((job.elsewhere / 'out/left').read_text()), signal.SIGKILL)
    assert (status, out) == (7, 'gone\n')


def test_results_are_copied_even_if_the_training_cannot_be_started(job):
    status, _, err = job.run('--train_url', 'obs://bucket/out', PATH=str(job.elsewhere))
    assert (status, err.count('\n')) == (1, 1) and "'bash'" in err
    assert names(job.bucket / 'out') == {'train.log'}


@pytest.mark.parametrize('train_url', ['out', 'obs://bucket/out'])
def test_a_job_that_is_started_again_goes_on(job, train_url):
    job.set_training('cat "$result/step-1.npz" 2>/dev/null || echo "from the start"\n'
               'echo hello >"$result/step-1.npz"\nexit 9')
    for expected in ['from the start'], ['from the start', 'hello']:
        assert job.run('--train_url', train_url)[0] == 9
        log = (job.elsewhere / 'out' if train_url == 'out' else job.bucket / 'out') / 'train.log'
        assert log.read_text().splitlines() == expected


# Copies that fail


@pytest.mark.parametrize('fails, end, expected, arrived', [
    (3, 0, 0, True), (4, 0, 1, False), (3, 7, 7, True), (4, 7, 7, False)])
def test_copies_out_are_tried_again(job, fails, end, expected, arrived):
    job.set_training(TRAINING + 'exit %d' % end)
    status, out, err = job.run('--train_url', 'obs://bucket/out', MOXING_FAILS_OUT=str(fails))
    assert status == expected
    assert (job.bucket / 'out/train.log').exists() == arrived
    assert out.count('; next try in ') == 3
    said = 'cannot be copied to (RuntimeError: 403 for https://obs.example/bucket today); next try in 0 s.'
    assert said in out
    if arrived:
        assert err == ''
    else:
        assert err.count('\n') == 1 and 'obs://bucket/out: cannot be copied to' in err
        kept = err.split(':')[0].replace('The results are still in ', '')
        assert PRODUCTS < set(os.listdir(kept))


@pytest.mark.parametrize('fails', [3, 4])
def test_copies_in_are_tried_again(job, fails):
    (job.bucket / 'data').mkdir()
    outcome = job.run('--data_url', 'obs://bucket/data', '--train_url', 'obs://bucket/out',
                      MOXING_FAILS_IN=str(fails))
    if fails == 3:
        assert outcome[0] == 0 and 'an epoch' in outcome[1]
    else:
        assert_refused(outcome, 'obs://bucket/data: cannot be copied here', 'tried 4 times')


def test_pauses_grow(monkeypatch, tmp_path):
    pauses = []
    monkeypatch.setattr(help_modelarts.time, 'sleep', pauses.append)
    monkeypatch.syspath_prepend(str(STAND_INS))
    monkeypatch.setenv('MOXING_ROOT', str(tmp_path))
    monkeypatch.setenv('MOXING_FAILS_OUT', '9')
    with pytest.raises(help_modelarts.ModelArtsError, match='tried 4 times'):
        try:
            help_modelarts.copy_out(str(tmp_path), 'obs://bucket/out')
        finally:
            for name in 'moxing', 'moxing.file':
                sys.modules.pop(name)
    assert len(pauses) == 3 and pauses == sorted(set(pauses)) and pauses[0] >= 1


# Names of the platform


@pytest.mark.parametrize('word, only', [
    ('npu_bridge', 'sesemi/device/npu.py'), ('npu_device', 'sesemi/device/npu.py'),
    ('moxing', 'help_modelarts.py')])
def test_only_one_file_names_the_platform_module(word, only):
    naming = []
    for folder, folders, files in os.walk(str(PROJECT)):
        folders[:] = [name for name in folders
                      if name not in ('tests', 'dataset', 'result') and not name.startswith('.')]
        for name in files:
            if name.endswith(('.py', '.sh')):
                with open(os.path.join(folder, name), encoding='utf-8') as file:
                    if word in file.read():
                        naming.append(os.path.relpath(os.path.join(folder, name), str(PROJECT)))
    assert naming == [only]
