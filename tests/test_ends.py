"""How a run ends: a second start in its folder, signals, and output that is closed or full.

The processes are real. All but one of them import a small module in place of TensorFlow, which waits.
"""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from unittest import mock

import programs
import pytest
from conftest import PROJECT, write_classes

from sesemi.record import lock
from sesemi.system import output, signals

FULL = output.STDOUT_FAILED % 'No space left on device' + '\n'
WAITS = '''
import signal
print('ready', flush=True)
signal.pause()
'''
FORKS = '''
import os
if not os.fork():       # like a decoding process, this one outlives a kill for a moment
    os.execlp('sleep', 'sleep', '1000')
''' + WAITS
SWALLOWS = '''
import numpy
print('ready', flush=True)
matrix = numpy.ones((1000, 1000))
while True:
    try:
        numpy.linalg.eigh(matrix)
    except BaseException:
        pass
'''


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    write_classes(folder, {'cat': 12, 'dog': 12}, size=16)
    return folder


@pytest.fixture
def start(images, tmp_path):
    """start(tensorflow, prefix) runs the program with this code as TensorFlow, after this bash code."""
    running = []

    def start(tensorflow, prefix=''):
        for name in 'tensorflow', 'tf_keras':
            (tmp_path / 'packages' / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / 'packages' / name / '__init__.py').write_text(tensorflow)
        running.append(programs.start(
            'bash', '-c', prefix + 'exec "$@"', 'bash', sys.executable,
            '-u', PROJECT / 'train_evaluate_sesemi.py', '--data', 'folder', '--dataset', images,
            '--labels', '4', '--result', tmp_path / 'result', PYTHONPATH=str(tmp_path / 'packages')))
        return running[-1]

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)      # with what it started
        process.communicate()


def test_a_folder_has_one_run_at_a_time(start, tmp_path):
    first = start(FORKS)
    programs.read_until(first, 'ready')
    second = programs.result(start("raise SystemExit('imported')"))
    assert second.status == 2 and second.err.count('\n') == 1 and 'process %d on ' % first.pid in second.err
    assert os.listdir(str(tmp_path / 'result')) == ['.lock']
    (tmp_path / 'result/log.csv.0123abcd.part').write_text('of a run that was killed')
    first.kill()
    first.wait()        # the process that it started still has its files open
    third = start(WAITS)
    programs.read_until(third, 'ready')
    assert os.listdir(str(tmp_path / 'result')) == ['.lock']
    third.terminate()
    assert programs.result(third)[::2] == (143, 'Stopped by SIGTERM.\n')


def test_a_signal_before_the_training_ends_the_program_in_one_sentence(start):
    for number in signals.STOP_SIGNALS:
        process = start(SWALLOWS)
        programs.read_until(process, 'ready')
        process.send_signal(number)
        assert programs.result(process)[::2] == (128 + number, 'Stopped by %s.\n' % number.name)
    process = start(WAITS, prefix="trap '' HUP USR1 XCPU; ")      # as nohup does
    programs.read_until(process, 'ready')
    for number in signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU:
        process.send_signal(number)
    process.send_signal(signal.SIGINT)
    assert programs.result(process)[::2] == (130, 'Stopped by SIGINT.\n')


def test_a_full_standard_output_does_not_end_a_run(images, tmp_path):
    done = programs.run(
        'bash', '-c', 'unset HOME; exec "$@" >/dev/full', 'bash', sys.executable, PROJECT / programs.TINY,
        '--data', 'folder', '--dataset', images, '--network', 'nin', '--image-size', '16',
        '--batch-size', '4', '--epochs', '1', '--labels', '10', '--result', tmp_path / 'result')
    assert done.status == 0 and done.err.count(FULL) == 1 and 'Traceback' not in done.err
    result = json.loads((tmp_path / 'result/result.json').read_text())
    assert result['steps'] == 2 and (tmp_path / 'result/log.csv').read_text().count('\n') == 2


PRINTS = '''
import os, sys
sys.path.insert(0, sys.argv[1])
from sesemi.system import output
output.tolerate_write_errors()
with open(sys.argv[2], 'w') as file:
    print('a line', flush=True)
    os.write(1, b'another')
    print('caf\\udce9', file=sys.stderr)
sys.exit(7)
'''


ODD_TEXT = 'caf\\udce9\n'


@pytest.mark.parametrize('redirection, said', [
    ('>&-', output.STDOUT_FAILED % 'closed' + '\n' + ODD_TEXT), ('>&- 2>&-', ''),
    ('>/dev/full', ODD_TEXT + FULL)])
def test_output_that_is_closed_or_full(tmp_path, redirection, said):
    done = subprocess.run(
        ['bash', '-c', '"$@" ' + redirection, 'bash', sys.executable, '-c', PRINTS, str(PROJECT),
         str(tmp_path / 'file')],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True)
    assert (done.returncode, sorted(done.stderr.splitlines())) == (7, sorted(said.splitlines()))
    assert (tmp_path / 'file').read_text() == ''


def test_a_closed_pipe_is_reported_once(capsys):
    reader, writer = os.pipe()
    with open(writer, 'w') as stream:
        patient = output.TolerantStream(stream, output.STDOUT_FAILED)
        os.close(reader)
        for _ in range(3):
            print('a line', file=patient, flush=True)
        assert not patient.isatty()
    assert capsys.readouterr().err == output.STDOUT_FAILED % 'Broken pipe' + '\n'


# The lock, taken in this process, which the system lets lock a file twice


def test_a_lock_is_lost_when_its_folder_is_removed(tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    folder.mkdir()
    held = lock.lock(str(folder))
    monkeypatch.setattr(lock.os, 'stat', mock.Mock(side_effect=OSError(lock.errno.EIO, 'Input/output error')))
    assert lock.is_held(held)       # a network disk that stalls does not tell
    monkeypatch.undo()
    shutil.rmtree(str(folder))
    assert not lock.is_held(held)
    folder.mkdir()
    again = lock.lock(str(folder))
    assert lock.is_held(again) and not lock.is_held(held)


def test_a_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(lock.errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(lock.fcntl, 'lockf', refuse)
    assert lock.lock(str(tmp_path))
    assert capsys.readouterr().err == (
        '%s: its file system has no locks (No locks available); start no second run there.\n' % tmp_path)


# Signals in training


TAKES = '''
import sys, threading
sys.path.insert(0, sys.argv[1])
from sesemi.system import signals
signals.REPEAT_SECONDS = float(sys.argv[3])
signals.watch()
with signals.handle_with(lambda number: print('taken', int(number), flush=True)), \\
        signals.remove_if_unfinished(sys.argv[2]):
    open(sys.argv[2], 'w').close()
    print('ready', flush=True)
    threading.Event().wait()
'''


def test_the_same_signal_again_ends_the_process_unless_it_comes_at_once(tmp_path):
    """timeout(1) sends each signal twice at once."""
    def start(echo):
        process = programs.start(sys.executable, '-c', TAKES, PROJECT, tmp_path / 'unfinished', echo)
        programs.read_until(process, 'ready')
        process.terminate()
        programs.read_until(process, 'taken %d' % signal.SIGTERM)
        process.terminate()
        return process
    assert programs.result(start(0))[::2] == (143, 'Stopped by SIGTERM.\n')
    assert not (tmp_path / 'unfinished').exists()
    patient = start(1000)
    patient.send_signal(signal.SIGINT)
    programs.read_until(patient, 'taken %d' % signal.SIGINT)
    assert patient.poll() is None
    patient.kill()
    patient.communicate()


NOTICED = '''
import os, sys, time
sys.path.insert(0, sys.argv[1])
from sesemi.system import pools, signals
signals.REPEAT_SECONDS = 0
signals.watch()
def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.1)
seen = []
with signals.handle_with(seen.append):
    for number in 2 * signals.NOTICES:
        send(number)
send(signals.NOTICES[0])        # between two of several runs, or while the process ends
with signals.handle_with(seen.append):
    send(signals.NOTICES[1])
with pools.make_process_pool(2) as pool:        # which leaves them to its parent
    for number in signals.NOTICES:
        os.kill(pool.submit(os.getpid).result(), number)
    time.sleep(0.1)
    print(seen == 2 * list(signals.NOTICES), pool.submit(os.getppid).result() == os.getpid())
'''


def test_repeated_notices_end_nothing_and_one_that_was_late_stops_the_next_run():
    done = programs.run(sys.executable, '-c', NOTICED, PROJECT)
    assert done == (0, 'True True\n', '')


PRINTS_AND_WAITS = '''
import os, sys, threading
sys.path.insert(0, sys.argv[1])
from sesemi.system import signals
signals.watch()
print('Seed 0: error rate 0.5')       # stays in Python's buffer
if sys.argv[2:]:
    sys.stdout = None       # as if standard output had been closed from the start
os.write(1, b'ready')
threading.Event().wait()
'''


@pytest.mark.parametrize('closed, printed', [([], 'Seed 0: error rate 0.5\n'), (['closed'], '')])
def test_what_was_printed_before_a_signal_is_not_lost(closed, printed):
    process = programs.start(sys.executable, '-c', PRINTS_AND_WAITS, PROJECT, *closed)
    programs.read_until(process, 'ready')
    process.terminate()
    assert programs.result(process) == (143, printed, 'Stopped by SIGTERM.\n')


def test_a_python_program_that_calls_this_one_keeps_its_handlers():
    before = signal.getsignal(signal.SIGTERM)
    with signals.handle_with(print):
        assert signal.getsignal(signal.SIGTERM) is before
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
