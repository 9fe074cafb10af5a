"""The cores and memory that this process may use, within its container or job. Standard library only."""
import math
import os

PROC, CGROUPS = '/proc/self/cgroup', '/sys/fs/cgroup'


def count_cores():
    """The number of cores this process may run on (taskset, cpusets), at most its control groups' quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    limits = [*zip(_read_limits('cpu', 'cpu.cfs_quota_us'), _read_limits('cpu', 'cpu.cfs_period_us')),
              *map(str.split, _read_limits('', 'cpu.max'))]
    quotas = [float(quota) / float(period) for quota, period in limits if quota != 'max']
    return max(1, min([count] + [math.ceil(quota) for quota in quotas if quota > 0]))


def get_memory_size():
    """The machine's memory in bytes, or the limit of this process's control groups if that is less."""
    limits = _read_limits('memory', 'memory.limit_in_bytes')
    limits += [limit for limit in _read_limits('', 'memory.max') if limit != 'max']
    return min([os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')] + list(map(int, limits)))


def _read_limits(controller, name):
    """The contents of the files `name` of this process's control groups and all groups above them.

    controller: the name of a version 1 controller; '' for version 2. Every level of a group's path is tried,
    because a container often sees its group's path on the host but has its own group mounted as the root.
    """
    found = []
    try:
        with open(PROC) as file:
            groups = [line.rstrip('\n').split(':', 2)[1:] for line in file]
    except OSError:         # not on Linux
        return found
    for controllers, path in groups:
        if controller in controllers.split(','):
            parts = path.strip('/').split('/')
            for depth in range(len(parts) + 1):
                try:
                    with open(os.path.join(CGROUPS, controller, *parts[:depth], name)) as file:
                        found.append(file.read().strip())
                except OSError:
                    continue
    return found
