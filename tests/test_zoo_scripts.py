"""train_full_1p.sh and train_performance_1p.sh, mostly with a run_1p.sh that only writes a record."""
import json
import os
import platform
import shutil

import pytest
from conftest import PROJECT
from programs import copy_project, run, write_run_1p

from sesemi.record.lock import lock

FULL, PERFORMANCE = 'train_full_1p.sh', 'train_performance_1p.sh'
RECORD = {'classification_error_rate': 0.2876, 'images_per_step': 192,
          'flags': {'network': 'convnet', 'batch_size': 16}}
LOG = ('epoch,step,learning_rate,seconds,loss\n'
       '1,62,0.05,100.0,6.5\n2,124,0.04,3.2,4.25\n3,186,0.03,3.372,3.125\n')
TRAINING = ('printf "%s\\n" "$@" ${RANK_SIZE-unset} $RANK_ID $JOB_ID $ASCEND_DEVICE_ID "$PWD"\n'
            'mkdir "$result"\n')


class Zoo:
    """A project with the scripts and a run_1p.sh that prints flags and environment and writes a record."""

    def __init__(self, root):
        self.root, self.tests = root / 'the project', root / 'the project/tests'
        self.tests.mkdir(parents=True)
        for folder in 'scripts', 'sesemi/record':
            (self.root / folder).mkdir(parents=True)
        for name in '__init__', 'errors', 'record/__init__', 'record/lock':
            shutil.copy(str(PROJECT / 'sesemi' / (name + '.py')), str(self.root / 'sesemi' / (name + '.py')))
        shutil.copy(str(PROJECT / 'scripts/setup_env.sh'), str(self.root / 'scripts'))
        (self.root / 'test').mkdir()
        for path in PROJECT.glob('test*/*.sh'):
            shutil.copy(str(path), str(self.root / path.relative_to(PROJECT)))
        self.set_training()

    def set_training(self, record=RECORD, log=LOG, end=''):
        (self.root / 'record').write_text(record if isinstance(record, str) else json.dumps(record))
        (self.root / 'log').write_text(log)
        copies = 'cp "{0}/record" "$result/result.json"\ncp "{0}/log" "$result/log.csv"\n'
        write_run_1p(self.root, TRAINING + copies.format(self.root) + end)

    def run(self, script, *options, cwd=None, **environment):
        return run('bash', script if cwd is None else self.tests / script, *options,
                   cwd=cwd or self.tests, **environment)

    def output(self, name, device='0'):
        return (self.tests / 'output' / device / name).read_text()


@pytest.fixture
def zoo(tmp_path):
    return Zoo(tmp_path)


def assert_failed(outcome, status, *parts):
    """The output is one sentence, without a number that could be taken for a result."""
    assert outcome[0] == status and outcome[2] == '', outcome
    assert outcome[1].startswith('[Error] ') and outcome[1].count('\n') == 1
    assert all(part in outcome[1] for part in parts), outcome[1]


@pytest.mark.parametrize('script, variant', [(FULL, 'acc'), (PERFORMANCE, 'perf')])
def test_numbers(zoo, script, variant):
    status, out, err = zoo.run(script, '--data_path=/data')
    assert (status, err) == (0, '')
    note, *final = out.splitlines()
    seconds = final.pop().split(' : ')
    assert final == ['------------------ Final result ------------------',
                     'Final Performance images/sec : 3622.64',
                     'Final Train Accuracy : 0.7124']
    assert seconds[0] == 'E2E Training Duration sec' and 0 <= int(seconds[1]) < 60
    assert note == ('images/sec: 192 images a step, those of both branches, in 0.0530 s, '
                    'the mean over 2 of 3 epochs, all but the first')
    case = 'convnet_bs16_1p_' + variant
    assert zoo.output(case + '.log').splitlines() == [
        'Network = convnet', 'RankSize = 1', 'BatchSize = 16', 'DeviceType = ' + platform.machine(),
        'CaseName = ' + case, 'ActualFPS = 3622.64', 'TrainingTime = 53.00', 'TrainAccuracy = 0.7124',
        'ActualLoss = 3.125000', 'E2ETrainingTime = ' + seconds[1]]
    losses = zoo.output('train_{}_loss.txt'.format(case)).splitlines()
    assert list(map(float, losses)) == [6.5, 4.25, 3.125]


def test_numbers_of_a_single_epoch(zoo):
    zoo.set_training(dict(RECORD, images_per_step=12), log='epoch,step,seconds,loss\n1,10,0.6,4.5\n')
    _, out, _ = zoo.run(FULL, '--data_path=/data')
    assert 'Final Performance images/sec : 200.00\n' in out
    assert out.startswith('images/sec: 12 images a step, those of both branches, in 0.0600 s, '
                          'the mean over 1 of 1 epochs\n')


@pytest.mark.parametrize('script, variant, of_its_own', [
    (FULL, 'acc', []), (PERFORMANCE, 'perf', ['--epochs=3'])])
def test_flags_and_environment(zoo, script, variant, of_its_own):
    options = ['--precision_mode=allow_mix_precision', '--over_dump=False', '--data_dump_step=0|5',
               '--profiling=True', '--epochs=7', '--network=two words', '--train_epoch=8', '--bind_cores=1']
    status, out, _ = zoo.run(script, *options, '--data_path=/the data', '--data_dump_flag=True',
                             '--train_epochs=8 9', cwd=zoo.root,
                             ASCEND_DEVICE_ID='5', RANK_SIZE='8', RANK_ID='3', JOB_ID='1')
    assert status == 0 and 'Not used' not in out
    assert zoo.output('train_5.log', device='5').splitlines() == [
        '--dataset=/the data', '--result={}/output/5/result_{}'.format(zoo.tests, variant), *of_its_own,
        *options, '--data_dump=True', '--epochs=8 9', '1', '0', '10087', '5', str(zoo.root)]


@pytest.mark.parametrize('script', [FULL, PERFORMANCE])
@pytest.mark.parametrize('options', [[], ['--data_path='], ['--labels=20']])
def test_data_path_is_mandatory(zoo, script, options):
    assert zoo.run(script, *options) == (1, '[Error] para "data_path" must be config\n', '')
    assert not (zoo.tests / 'output').exists()


@pytest.mark.parametrize('option, part', [
    ('--labels', 'not of the form --name=value'), ('x', 'not of the form --name=value'),
    ('--result=x', '--result: '), ('--resume=yes', '--resume: ')])
def test_wrong_options(zoo, option, part):
    assert_failed(zoo.run(FULL, '--data_path=/data', option), 1, part)


def test_unused_options_are_named_in_one_line(zoo):
    unused = '--output_path --train_steps --bind_core --conda_name --more_path1 --ckpt_path'
    status, out, _ = zoo.run(PERFORMANCE, '--data_path=/data', *[name + '=x y' for name in unused.split()])
    result = '%s/output/0/result_perf' % zoo.tests
    assert status == 0
    assert out.splitlines()[0] == 'Not used: %s; the result is left in %s.' % (unused, result)
    flags = zoo.output('train_0.log').splitlines()[:4]
    assert flags == ['--dataset=/data', '--result=' + result, '--epochs=3', '1']


def test_rank_size_is_not_set_beside_cm_worker_size(zoo):
    for given, rank_size in ('', '1'), ('1', 'unset'):
        assert zoo.run(FULL, '--data_path=/data', CM_WORKER_SIZE=given, RANK_SIZE='1')[0] == 0
        assert zoo.output('train_0.log').splitlines()[2] == rank_size


@pytest.mark.parametrize('script, variant', [(FULL, 'acc'), (PERFORMANCE, 'perf')])
def test_scripts_in_test_write_beside_themselves(zoo, script, variant):
    folder = zoo.root / 'test'
    for cwd, path in (folder, script), (zoo.root, 'test/' + script), (zoo.root.parent, folder / script):
        status, out, err = run('bash', path, '--data_path=/data', '--train_epochs=7', cwd=cwd)
        assert (status, err) == (0, '') and 'Final Train Accuracy : 0.7124\n' in out
        flags = (folder / 'output/0/train_0.log').read_text().splitlines()
        assert flags[1] == '--result=%s/output/0/result_%s' % (folder, variant) and '--epochs=7' in flags
        shutil.rmtree(str(folder / 'output'))
    assert not (zoo.tests / 'output').exists()


@pytest.mark.parametrize('script', [FULL, PERFORMANCE])
def test_help(zoo, script):
    status, out, err = zoo.run(script, '-h')
    assert (status, err) == (0, '') and not (zoo.tests / 'output').exists()
    for option in ('data_path', 'train_epochs', 'ckpt_path', 'precision_mode', 'over_dump', 'data_dump_flag',
                   'data_dump_step', 'profiling'):
        assert '\n--{}='.format(option) in out


@pytest.mark.parametrize('script, variant', [(FULL, 'acc'), (PERFORMANCE, 'perf')])
def test_a_crash_fails_the_script_and_earlier_numbers_are_removed(zoo, script, variant):
    for end, status in ('echo "the reason" >&2; exit 3', 3), ('echo "the reason"; kill -KILL $$', 137):
        zoo.set_training()
        assert zoo.run(script, '--data_path=/data')[0] == 0
        zoo.set_training(end=end)
        assert_failed(zoo.run(script, '--data_path=/data'), status, 'status %d' % status, "'the reason'",
                      'output/0/train_0.log')
        assert set(os.listdir(str(zoo.tests / 'output/0'))) == {'train_0.log', 'result_' + variant}


def test_the_folder_of_a_run_at_work_is_not_emptied(zoo):
    assert zoo.run(FULL, '--data_path=/data')[0] == 0
    result = zoo.tests / 'output/0/result_acc'
    before = sorted(os.listdir(str(zoo.tests / 'output/0')))
    held = lock(str(result))
    assert_failed(zoo.run(FULL, '--data_path=/data'), 1, str(result), 'process %d on ' % os.getpid())
    assert sorted(os.listdir(str(zoo.tests / 'output/0'))) == before and (result / 'result.json').exists()
    held.close()
    assert zoo.run(FULL, '--data_path=/data')[0] == 0


def without(key):
    return {name: value for name, value in RECORD.items() if name != key}


@pytest.mark.parametrize('record, log', [
    ({}, LOG), ('', LOG), (without('images_per_step'), LOG), (without('classification_error_rate'), LOG),
    (without('flags'), LOG), (dict(RECORD, classification_error_rate=None), LOG),
    (dict(RECORD, classification_error_rate=float('nan')), LOG), (RECORD, ''), (RECORD, LOG.split('\n')[0]),
    (RECORD, LOG.replace('loss', 'lost')), (RECORD, LOG.replace('3.372', '')),
    (RECORD, LOG.replace('3.125', 'nan')), (RECORD, LOG.replace('3.2,', '-3.372,'))])
def test_missing_number_fails_the_script(zoo, record, log):
    zoo.set_training(record, log)
    assert_failed(zoo.run(FULL, '--data_path=/data'), 1, 'output/0/result_acc is damaged or incomplete')
    assert set(os.listdir(str(zoo.tests / 'output/0'))) == {'train_0.log', 'result_acc'}


def test_missing_record_fails_the_script(zoo):
    zoo.set_training(end='rm "$result/result.json"')
    assert_failed(zoo.run(FULL, '--data_path=/data'), 1, 'result.json')


def test_scripts_leave_each_others_results_and_start_again(zoo):
    for script in FULL, PERFORMANCE, FULL, PERFORMANCE:
        assert zoo.run(script, '--data_path=/data')[0] == 0
    assert set(os.listdir(str(zoo.tests / 'output/0'))) == {'train_0.log'} | {
        name % variant for variant in ('acc', 'perf')
        for name in ('result_%s', 'convnet_bs16_1p_%s.log', 'train_convnet_bs16_1p_%s_loss.txt')}


def test_whole_program(tmp_path):
    tests = copy_project(tmp_path / 'code') / 'tests'
    status, out, err = run('bash', FULL, '--data_path=x', '--data=digits', '--network=nin', '--epochs=2',
                           '--labels=20', '--batch_size=2', '--image_size=16', '--device=cpu', cwd=tests)
    assert (status, err) == (0, ''), out + err
    output = tests / 'output/0'
    assert {'report.html', 'curves.png', 'confusion.png'} < set(os.listdir(str(output / 'result_acc')))
    record = json.loads((output / 'result_acc/result.json').read_text())
    fields = dict(line.split(' = ') for line in (output / 'nin_bs2_1p_acc.log').read_text().splitlines())
    assert len(fields) == 10
    assert fields['BatchSize'] == '2'
    assert fields['TrainAccuracy'] == '%.4f' % (1 - record['classification_error_rate'])
    assert abs(float(fields['ActualFPS']) * float(fields['TrainingTime']) / 1000 - 24) < .1
    losses = (output / 'train_nin_bs2_1p_acc_loss.txt').read_text().splitlines()
    assert len(losses) == 2 and losses[-1] == fields['ActualLoss']
    error = 'classification error rate: %.4f' % record['classification_error_rate']
    assert (output / 'train_0.log').read_text().splitlines()[-1] == error
    assert out.splitlines()[0].startswith('images/sec: 24 images a step')
