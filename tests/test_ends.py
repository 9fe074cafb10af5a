"""How a run ends, and how it does not: a second start, signals, output that nobody takes. Real processes up to TensorFlow's import,
in whose place something waits, except for one training.
"""
import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import PROJECT, write_classes

from sesemi import lock, output, signals
from sesemi.errors import InputError

FORKS = '''
import os, sys
if not os.fork():       # as a process that decodes images, it outlives a kill for a moment
    sys.stdin.read()
    os._exit(0)
print('ready', flush=True)
sys.stdin.read()
'''
WAITS = '''
import sys
print('ready', flush=True)
sys.stdin.read()
'''
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
    """Starts the program on two classes with `program` as its TensorFlow, and waits until that says that it is ready."""
    running = []

    def start(program, ready=True, **options):
        packages = tmp_path / 'packages'
        for name in 'tensorflow', 'tf_keras':
            (packages / name).mkdir(parents=True, exist_ok=True)
            (packages / name / '__init__.py').write_text(program)
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / 'train_evaluate_sesemi.py'), '--data', 'folder', '--dataset', str(images), '--labels', '4',
             '--result', str(tmp_path / 'result')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True, env=dict(os.environ, PYTHONPATH=str(packages), PYTHONUNBUFFERED='1'), **options)
        running.append(process)
        if ready:
            assert 'ready\n' in iter(process.stdout.readline, '')
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_folder_has_one_run_at_a_time(start, tmp_path):
    first = start(FORKS)
    before = sorted(os.listdir(str(tmp_path / 'result')))
    second = start(WAITS, ready=False)
    _, said = second.communicate()
    assert second.returncode == 2 and said.count('\n') == 1 and 'process %d on ' % first.pid in said and str(tmp_path / 'result') in said
    assert sorted(os.listdir(str(tmp_path / 'result'))) == before
    (tmp_path / 'result/log.csv.0123abcd.part').write_text('of a run that was killed')
    first.kill()
    first.wait()        # not what it started, which holds its files
    third = start(WAITS)
    assert third.poll() is None and os.listdir(str(tmp_path / 'result')) == ['.lock']
    third.terminate()
    assert third.communicate()[1] == 'Stopped by SIGTERM.\n' and third.returncode == 143
    assert os.listdir(str(tmp_path / 'result')) == []


def test_a_signal_ends_a_start_in_words_wherever_it_is(start, tmp_path):
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        process = start(SWALLOWS)
        process.send_signal(number)
        _, said = process.communicate(timeout=100)
        assert (process.returncode, said) == (128 + number, 'Stopped by %s.\n' % number.name)
    process = start(WAITS, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))       # nohup
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert (process.returncode, said) == (130, 'Stopped by SIGINT.\n')


def test_a_full_standard_output_does_not_end_a_run(images, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != 'HOME'}
    with open('/dev/full', 'w') as full:
        done = subprocess.run(
            [sys.executable, str(PROJECT / 'tests/tiny_trunk.py'), '--data', 'folder', '--dataset', str(images), '--network', 'nin',
             '--image-size', '16', '--batch-size', '4', '--epochs', '1', '--labels', '10', '--result', str(tmp_path / 'result')],
            stdout=full, stderr=subprocess.PIPE, universal_newlines=True, env=environment)
    said = [line for line in done.stderr.splitlines() if 'Standard output' in line]
    assert done.returncode == 0 and said == [output.LOST % 'No space left on device'] and 'Traceback' not in done.stderr
    result = json.loads((tmp_path / 'result/result.json').read_text())
    assert result['steps'] == 2 and (tmp_path / 'result/log.csv').read_text().count('\n') == 2


PRINTS = '''
import os, sys
sys.path.insert(0, sys.argv[1])
from sesemi import output
output.be_patient()
with open(sys.argv[2], 'w') as file:
    print('a line')
    os.write(1, b'another')
    print('caf\\udce9', file=sys.stderr)
sys.exit(7)
'''


FULL, ODD_TEXT = output.LOST % 'No space left on device' + '\n', 'caf\\udce9\n'


@pytest.mark.parametrize('redirection, said', [
    ('>&-', output.LOST % 'closed' + '\n' + ODD_TEXT), ('<&- >&-', output.LOST % 'closed' + '\n' + ODD_TEXT), ('2>&-', ''), ('>&- 2>&-', ''),
    ('>/dev/full', ODD_TEXT + FULL), ('>/dev/full 2>/dev/full', '')])
def test_output_that_is_closed_or_full(tmp_path, redirection, said):
    done = subprocess.run(
        ['bash', '-c', '"$@" ' + redirection, 'bash', sys.executable, '-c', PRINTS, str(PROJECT), str(tmp_path / 'file')],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True)
    assert (done.returncode, sorted(done.stderr.splitlines())) == (7, sorted(said.splitlines())) and (tmp_path / 'file').read_text() == ''


def test_a_reader_that_has_seen_enough_is_said_once(capsys):
    reader, writer = os.pipe()
    with open(writer, 'w') as stream:
        patient = output.Patient(stream, output.LOST)
        os.close(reader)
        for _ in range(3):
            print('a line', file=patient, flush=True)
        assert not patient.isatty()
    assert capsys.readouterr().err == output.LOST % 'Broken pipe' + '\n'


# The lock, in this process, for whose own second lock the system has always room


@pytest.fixture
def held_elsewhere(tmp_path):
    """Another process that has the lock of tmp_path."""
    program = 'import sys; sys.path.insert(0, sys.argv[1]); from sesemi import lock; held = lock.lock(sys.argv[2]); print(0, flush=True); sys.stdin.read()'
    process = subprocess.Popen([sys.executable, '-c', program, str(PROJECT), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.communicate()


def test_a_lock_that_another_process_has(held_elsewhere, tmp_path):
    for create in False, True:
        with pytest.raises(InputError, match='process %d on ' % held_elsewhere.pid):
            lock.lock(str(tmp_path), create)
    held_elsewhere.communicate()
    lock.release(lock.lock(str(tmp_path), create=False))
    assert os.listdir(str(tmp_path)) == [] and lock.lock(str(tmp_path), create=False) is None


def test_a_lock_file_that_was_removed_in_between_is_no_lock(tmp_path, monkeypatch):
    """As when the acceptance scripts empty the folder: of two starts the later one would have a file of its own."""
    lockf = lock.fcntl.lockf

    def emptied(file, kind):
        monkeypatch.setattr(lock.fcntl, 'lockf', lockf)
        os.remove(file.name)
        lockf(file, kind)

    monkeypatch.setattr(lock.fcntl, 'lockf', emptied)
    held = lock.lock(str(tmp_path))
    assert os.path.samestat(os.stat(str(tmp_path / '.lock')), os.fstat(held.fileno()))
    lock.release(held)


def test_a_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(lock.errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(lock.fcntl, 'lockf', refuse)
    assert lock.lock(str(tmp_path))
    assert capsys.readouterr().err == '%s: its file system has no locks (No locks available); start no second run there.\n' % tmp_path


@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo])
def test_a_lock_that_is_no_file(tmp_path, make):
    make(str(tmp_path / '.lock'))
    with pytest.raises(InputError, match='--result .*: cannot be written'):
        lock.lock(str(tmp_path))


# Signals in training


def test_a_second_signal_of_a_kind_ends_the_process(monkeypatch):
    ended, taken, before = [], [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signals, 'end', ended.append)
    with signals.taken_by(taken.append):
        for number in signal.SIGTERM, signal.SIGHUP, signal.SIGTERM:
            os.kill(os.getpid(), number)
    assert taken[:2] == [signal.SIGTERM, signal.SIGHUP] and ended == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before
