"""Cores and memory of a container, read from copies of the files that Linux has for them."""
import os

import pytest

from sesemi.data import cache
from sesemi.system import machine


@pytest.fixture
def container(tmp_path, monkeypatch):
    """container(lines, files): use these lines as /proc/self/cgroup and these files below /sys/fs/cgroup."""
    def put(lines, files):
        (tmp_path / 'cgroup').write_text(''.join(line + '\n' for line in lines))
        for path, text in files.items():
            (tmp_path / 'sys' / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / 'sys' / path).write_text(text + '\n')
        monkeypatch.setattr(machine, 'PROC', str(tmp_path / 'cgroup'))
        monkeypatch.setattr(machine, 'CGROUPS', str(tmp_path / 'sys'))
        monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(16)), raising=False)
    return put


@pytest.mark.parametrize('lines, files, cores, memory', [
    (['0::/'], {'memory.max': 'max', 'cpu.max': 'max 100000'}, 16, None),
    (['0::/'], {'memory.max': '1000', 'cpu.max': '150000 100000'}, 2, 1000),
    (['0::/job/step'], {
        'job/memory.max': '1000', 'job/step/memory.max': 'max', 'job/cpu.max': '300000 100000',
        'job/step/cpu.max': 'max 100000'}, 3, 1000),
    (['0::/docker/not/seen/inside'], {'memory.max': '1000', 'cpu.max': '10000 100000'}, 1, 1000),
    (['5:memory:/a', '3:cpu,cpuacct:/a:b', '1:name=systemd:/', '0::/'], {
        'memory/memory.limit_in_bytes': '9223372036854771712', 'memory/a/memory.limit_in_bytes': '1000',
        'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000', 'cpu/a:b/cpu.cfs_quota_us': '400000',
        'cpu/a:b/cpu.cfs_period_us': '100000'}, 4, 1000),
    (['0::/'], {}, 16, None), ([], {}, 16, None)])
def test_limits(container, lines, files, cores, memory):
    container(lines, files)
    everything = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    assert (machine.count_cores(), machine.get_memory_size()) == (cores, memory or everything)
    assert cache.Cache(None).memory_limit == (memory or everything) / 2


def test_cores_are_those_that_the_process_may_run_on(container):
    container([], {})
    os.sched_getaffinity = lambda _: {3}
    assert machine.count_cores() == 1
