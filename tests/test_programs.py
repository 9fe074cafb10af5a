"""A forked program runs and ends like one that is started."""
import os
import signal
import sys

import pytest
from programs import read_until, result, run, start

REPORTS = '''
import atexit, os, signal, sys, threading
atexit.register(print, 'at its end')
print(sys.argv, sys.path[0], os.getcwd(), __name__, __file__, vars(sys.modules['__main__']) is globals())
print(sorted(os.environ.items()), os.getsid(0) == os.getpgid(0) == os.getpid(), sys.stdin.read())
print([signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE)])
print('unbuffered', end='')
print('to standard error', file=sys.stderr)
threading.Timer(0.01, print, ['a thread that is waited for']).start()
'''


@pytest.mark.parametrize('end', [
    'pass', 'sys.exit(7)', 'sys.exit("words")', '1 / 0', 'raise KeyboardInterrupt', 'os._exit(3)',
    'os.kill(os.getpid(), signal.SIGKILL)'])
def test_a_forked_program_is_like_one_that_is_started(tmp_path, end):
    program = tmp_path / 'program.py'
    program.write_text(REPORTS + end)
    commands = [program], [sys.executable, '-u', program]
    forked, started = (run(*command, 'a word', cwd=tmp_path, SESEMI_WORD='caf\udce9') for command in commands)
    assert forked[:2] == started[:2]
    assert forked.err.splitlines()[-1] == started.err.splitlines()[-1]
    assert "'SESEMI_WORD', 'caf\\udce9'" in forked.out and forked.err.startswith('to standard error')


def test_a_forked_program_is_killed_after_its_limit_and_by_kill(tmp_path):
    (tmp_path / 'program.py').write_text('import time; print("begun"); time.sleep(1000)')
    assert run(tmp_path / 'program.py', limit=1).status == -signal.SIGKILL
    program = start(tmp_path / 'program.py')
    read_until(program, 'begun')
    assert program.poll() is None
    program.kill()
    assert result(program).status == program.poll() == -signal.SIGKILL


def test_a_forked_program_ends_with_the_tests_that_started_it(tmp_path):
    """So does what it started: a writer that lived on would keep the reader waiting."""
    os.mkfifo(str(tmp_path / 'fifo'))
    (tmp_path / 'program.py').write_text(
        'import os, sys, time\nwith open(sys.argv[1], "w") as file:\n'
        '    print("begun", file=file, flush=True)\n    os.fork()\n    time.sleep(60)\n'
        '    print("too late", file=file)')
    program = start(tmp_path / 'program.py', tmp_path / 'fifo')
    with open(str(tmp_path / 'fifo')) as file:
        assert file.readline() == 'begun\n'
        program.connection.close()      # as it is when this process ends, however that is
        assert file.read() == ''
