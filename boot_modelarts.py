"""The boot file of a ModelArts job: brings the data in, trains by run_1p.sh, brings results and log out.

    python boot_modelarts.py --data_url obs://bucket/cifar-10 --train_url obs://bucket/out --method ssl

URLs (obs://, s3://) are copied to the local disk and back; anything else is a folder that is used in place,
so that a job can be tried on any machine: --data_url ./dataset --train_url ./out --data digits. A job that
the platform starts again goes on where the first one stopped. The exit status is the training's; 1 when only
the results could not be brought out, 2 when the job could not be started. Any Python from 3.7 on runs this
file: run_1p.sh finds the one to train with.
"""
import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile

import help_modelarts
from help_modelarts import ModelArtsError

PROJECT = os.path.dirname(os.path.abspath(__file__))
LOG = 'train.log'       # among the results; where it is, a job has been before

# What ModelArts itself adds to a job's parameters, for scripts that build a cluster by hand. Only these are
# dropped: an argument that nobody knows must stop the job, because it may be a misspelled flag.
OF_THE_PLATFORM = ('num_gpus', 'init_method', 'rank', 'world_size', 'ps_hosts', 'worker_hosts', 'job_name',
                   'task_index')


def main(argv):
    """Run the job; returns its exit status."""
    try:
        job, flags = parse_args(argv)
        return run(job.data_url, job.train_url, flags, os.environ.get('RANK_ID') or '0')
    except ModelArtsError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:        # a full disk, say
        print('boot_modelarts.py: %s' % error, file=sys.stderr)
        return 1


def parse_args(argv):
    """(the arguments this file uses, the flags for the training script). Raises ModelArtsError naming the
    argument.
    """
    parser = _Parser(prog='boot_modelarts.py', allow_abbrev=False,
                     description='Run train_evaluate_sesemi.py as a ModelArts job. '
                     'All other flags go to it; its --help lists them.')
    parser.add_argument('--data_url', metavar='DIR|URL',
                        help='the data, handed on as --dataset unless that is given')
    parser.add_argument('--train_url', metavar='DIR|URL', help='where the results and train.log are left')
    parser.add_argument('--result', help=argparse.SUPPRESS)
    for name in OF_THE_PLATFORM:
        parser.add_argument('--' + name, nargs='?', help=argparse.SUPPRESS)
    job, flags = parser.parse_known_args(argv)
    if not job.train_url:
        raise ModelArtsError('--train_url is missing: give the folder or the obs:// URL that the results are '
                             'to be left in.')
    if job.rank and given('--workers', flags):      # of a cluster that the user builds
        flags += ['--rank', job.rank]
    if job.result:
        raise ModelArtsError('--result: here the results are left in --train_url; leave the flag out.')
    return job, flags


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ModelArtsError('%s; --help lists the arguments.' % message)


def run(data_url, train_url, flags, rank):
    """Bring the data in, train, bring the results out in every case; returns the exit status.

    The platform starts a process for each card: every rank has its own folders here, and all but rank 0 their
    own results.
    """
    results = train_url if rank == '0' else help_modelarts.below(train_url, 'rank-' + rank)
    folder = results
    if help_modelarts.is_url(results):
        folder = local_folder('result', rank)
        if help_modelarts.exists(help_modelarts.below(results, LOG)):
            print('Bringing back what an earlier start left in', help_modelarts.without_secrets(results),
                  flush=True)
            help_modelarts.copy_in(results, folder)
    if data_url and not given('--dataset', flags):
        if help_modelarts.is_url(data_url):
            data_url = help_modelarts.copy_in(data_url, local_folder('data', rank))
        flags = ['--dataset', data_url] + flags
    if not given('--resume', flags):
        flags = ['--resume', 'auto'] + flags
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ModelArtsError('--train_url %s: cannot be made (%s); give a folder that can be written.'
                             % (folder, error.strerror)) from None

    with noted_signals() as signals:
        try:
            status = run_logged(['bash', os.path.join(PROJECT, 'run_1p.sh'), '--result', folder] + flags,
                                os.path.join(folder, LOG), signals)
        finally:
            brought_out = not help_modelarts.is_url(results) or bring_out(folder, results)
    return status or int(not brought_out)


def given(flag, flags):
    """Whether `flag` is among the flags, in either form."""
    return any(word.split('=')[0] == flag for word in flags)


def local_folder(purpose, rank):
    """A new folder on the platform's fast local disk, or where SESEMI_CACHE says. Raises ModelArtsError when
    it cannot be made.
    """
    cache = os.environ.get('SESEMI_CACHE') or '/cache'
    try:
        os.makedirs(cache, exist_ok=True)
        return tempfile.mkdtemp(prefix='%s-rank-%s-' % (purpose, rank), dir=cache)
    except OSError as error:
        raise ModelArtsError('%s: no folder can be made there for a copy (%s); set SESEMI_CACHE to a folder '
                             'on a local disk.'
                             % (cache, error.strerror)) from None


@contextlib.contextmanager
def noted_signals():
    """Within the block SIGTERM and Ctrl-C are appended to the list it gives, instead of ending this
    process.
    """
    signals = []
    before = {number: signal.signal(number, lambda number, frame: signals.append(number))
              for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_logged(command, log, signals):
    """Run a command, its output on the screen and, as it comes, at the end of the file `log`; returns its
    exit status.

    Numbers in the list `signals` are sent on to the command and its children: the training then saves a
    checkpoint and ends.
    """
    with open(log, 'ab', buffering=0) as file, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process:
        while True:
            ended = process.poll() is not None
            while signals and not ended:
                os.killpg(process.pid, signals.pop(0))
            if select.select([process.stdout], [], [], 0.2)[0]:
                output = os.read(process.stdout.fileno(), 1 << 16)
                if not output:
                    break
                file.write(output)
                sys.stdout.buffer.write(output)
                sys.stdout.flush()
            elif ended:
                # something it left running still holds its output open, as compilers of the NPU may after a
                # crash
                break
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def bring_out(folder, url):
    """Copy the results to the URL; returns whether that worked, having said so if not."""
    try:
        help_modelarts.copy_out(folder, url)
    except ModelArtsError as error:
        print('The results are still in %s: %s' % (folder, error), file=sys.stderr)
        return False
    return True


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
