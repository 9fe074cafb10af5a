"""The boot file of a ModelArts job: copies the data in, trains with run_1p.sh, copies results and log out.

    python boot_modelarts.py --data_url obs://bucket/cifar-10 --train_url obs://bucket/out --method ssl

URLs (obs://, s3://) are copied to and from the local disk. Anything else is a local folder, used in place, so
a job can be tried on any machine: --data_url ./dataset --train_url ./out --data digits. A job that the
platform starts again continues where the first one stopped. The exit status is that of the training; 1 if
only copying the results out failed; 2 if the job could not be started. Any Python from 3.7 on can run this
file, because run_1p.sh finds the Python to train with.
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
LOG = 'train.log'       # in the folder of the results; if it is there, an earlier start has written there

# Arguments that ModelArts adds for scripts that build a cluster by hand, and some of the model zoo that have
# no use here. Only these are dropped. An unknown argument must stop the job, because it may be a misspelled
# flag.
PLATFORM_ARGUMENTS = ('num_gpus', 'init_method', 'rank', 'world_size', 'ps_hosts', 'worker_hosts', 'job_name',
                      'task_index')
UNUSED_ARGUMENTS = ('output_path', 'train_steps', 'bind_core', 'conda_name', 'more_path1', 'ckpt_path')


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
    """Split the arguments: (those of this file, the list of flags for the training script).

    Raises ModelArtsError naming the argument.
    """
    parser = _Parser(prog='boot_modelarts.py', allow_abbrev=False,
                     description='Run train_evaluate_sesemi.py as a ModelArts job. '
                     'All other flags are passed to it; its --help lists them.')
    parser.add_argument('--data_url', metavar='DIR|URL',
                        help='the data, passed on as --dataset unless that is given')
    parser.add_argument('--train_url', metavar='DIR|URL', help='where to write the results and train.log')
    parser.add_argument('--train_epochs', help=argparse.SUPPRESS)
    parser.add_argument('--result', help=argparse.SUPPRESS)
    for name in PLATFORM_ARGUMENTS + UNUSED_ARGUMENTS:
        parser.add_argument('--' + name, nargs='?', help=argparse.SUPPRESS)
    job, flags = parser.parse_known_args(argv)
    if not job.train_url:
        raise ModelArtsError('--train_url is missing: give the folder or the obs:// URL that the results are '
                             'to be left in.')
    if job.rank and has_flag('--workers', flags):       # the user builds a cluster, which needs the rank
        flags += ['--rank', job.rank]
    if job.result:
        raise ModelArtsError('--result: here the results are left in --train_url; leave the flag out.')
    if job.train_epochs is not None:
        flags.append('--epochs=' + job.train_epochs)
    unused = ['--' + name for name in UNUSED_ARGUMENTS if has_flag('--' + name, argv)]
    if unused:
        print('Not used:', *unused, flush=True)
    return job, flags


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ModelArtsError('%s; --help lists the arguments.' % message)


def run(data_url, train_url, flags, rank):
    """Copy the data in, train, copy the results out even if the training fails; returns the exit status.

    The platform starts a process for each card. Each rank has its own local folders; ranks other than 0 write
    their results to the folder rank-N of train_url.
    """
    results = train_url if rank == '0' else help_modelarts.join(train_url, 'rank-' + rank)
    folder = results
    if help_modelarts.is_url(results):
        folder = make_local_folder('result', rank)
        if help_modelarts.exists(help_modelarts.join(results, LOG)):
            print('Copying the results of an earlier start from', help_modelarts.without_secrets(results),
                  flush=True)
            help_modelarts.copy_in(results, folder)
    if data_url and not has_flag('--dataset', flags):
        if help_modelarts.is_url(data_url):
            data_url = help_modelarts.copy_in(data_url, make_local_folder('data', rank))
        flags = ['--dataset', data_url] + flags
    if not has_flag('--resume', flags):
        flags = ['--resume', 'auto'] + flags
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ModelArtsError('--train_url %s: cannot be made (%s); give a folder that can be written.'
                             % (folder, error.strerror)) from None

    with collected_signals() as signals:
        try:
            status = run_logged(['bash', os.path.join(PROJECT, 'run_1p.sh'), '--result', folder] + flags,
                                os.path.join(folder, LOG), signals)
        finally:
            copied = not help_modelarts.is_url(results) or copy_results_out(folder, results)
    return status or int(not copied)


def has_flag(flag, flags):
    """Whether `flag` is among the flags, as --flag or --flag=value."""
    return any(word.split('=')[0] == flag for word in flags)


def make_local_folder(purpose, rank):
    """Make a new folder in $SESEMI_CACHE, by default /cache, ModelArts' fast local disk; returns its path.

    Raises ModelArtsError when it cannot be made.
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
def collected_signals():
    """Within the block, append signals to the list it yields instead of ending this process.

    These are SIGTERM, Ctrl-C and, unless they are ignored, SIGUSR1 and SIGXCPU.
    """
    signals = []
    before = {number: signal.signal(number, lambda number, frame: signals.append(number))
              for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGXCPU)
              if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_logged(command, log, signals):
    """Run a command, print its output and append it to the file `log` at once; returns the exit status.

    The signal numbers that appear in the list `signals` are sent to the command and its children; the
    training then saves a checkpoint and ends.
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
                # a child that still runs holds the output open, as the NPU's compilers may after a crash
                break
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def copy_results_out(folder, url):
    """Copy the results to the URL; returns whether that worked, and prints where they are if it did not."""
    try:
        help_modelarts.copy_out(folder, url)
    except ModelArtsError as error:
        print('The results are still in %s: %s' % (folder, error), file=sys.stderr)
        return False
    return True


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
