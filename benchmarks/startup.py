"""Measures the start-up of the program in a process of its own, as a user sees it."""
import os
import re
import subprocess
import sys
import tempfile
import time

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def measure(flags, cache, steps=1):
    """Start the program with `flags` and kill it after some steps.

    cache: the cache folder, filled or empty. Returns {'seconds': until the first step begins, 'gb': peak
    memory until then, 'gb_step': peak memory after the steps, 'step': seconds of the median step}.
    """
    with tempfile.TemporaryDirectory() as result:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, '-u', os.path.join(PROJECT, 'train_evaluate_sesemi.py'), '--result', result,
             *flags],
            stdout=subprocess.PIPE, universal_newlines=True, bufsize=1,
            env={**os.environ, 'SESEMI_CACHE': cache})
        _read_until(process, r'\nEpoch 1/\d+\n')
        found = {'seconds': time.perf_counter() - started, 'gb': _peak(process)}
        times = [time.perf_counter()]
        for step in range(1, steps + 1):
            _read_until(process, r'\b%d/\d+ \[' % step)
            times.append(time.perf_counter())
        found['gb_step'] = _peak(process)
        process.kill()
        process.communicate()
    durations = sorted(after - before for before, after in zip(times, times[1:]))
    return dict(found, step=durations[len(durations) // 2])


def _read_until(process, pattern):
    seen = ''
    while not re.search(pattern, seen):
        character = process.stdout.read(1)
        if not character:
            sys.exit('The program ended before its first steps; it printed: %s' % seen)
        seen += character


def _peak(process):
    """Peak memory of the process so far, in GB."""
    with open('/proc/%d/status' % process.pid) as status:
        return int(re.search(r'VmHWM:\s+(\d+) kB', status.read()).group(1)) * 1024 / 1e9
