"""Finds which rank this process is among those that train together, and its GPU. Standard library only."""
import glob
import json
import re
from typing import NamedTuple, Tuple

from sesemi.device.nvidia import has_card
from sesemi.errors import InputError, describe_error


class RankInfo(NamedTuple):
    """Which rank this process is, of how many."""
    rank: int = 0
    world_size: int = 1
    workers: Tuple[str, ...] = ()       # host:port of each rank; empty on NPUs, which have a rank table
    local_size: int = 1                 # ranks on this host, which share its memory

    def name(self, rank):
        """A rank in words, with its address if known."""
        return 'Rank %d (%s)' % (rank, self.workers[rank]) if rank < len(self.workers) else 'Rank %d' % rank


def find_rank(workers, rank, environment):
    """This process's RankInfo: from --workers and --rank, TF_CONFIG, or Ascend's RANK_ID and RANK_SIZE.

    The first of these that is given decides. workers: 'host:port,host:port' or None; rank: int or None;
    environment: as os.environ. Raises InputError if one is wrong or disagrees with another.
    """
    cards = _read_number(environment, 'CM_WORKER_SIZE', 1)
    if cards > 1:
        raise InputError('CM_WORKER_SIZE=%d: the CM_* variables are not used here; start the ranks by '
                         'run_8p.sh with RANK_TABLE_FILE, or unset them.' % cards)
    size = _read_number(environment, 'RANK_SIZE', 1)
    if workers:
        info = _make_rank_info(workers.split(','), rank, '--workers %s' % workers, '--rank')
    elif rank is not None:
        raise InputError('--rank %d: needs the addresses of all ranks; give --workers HOST:PORT,HOST:PORT '
                         'too.' % rank)
    else:
        info = _read_tf_config(environment.get('TF_CONFIG') or '{}')
    if info is None:
        if size == 1:
            return RankInfo()
        rank = _read_number(environment, 'RANK_ID', 0)
        return RankInfo(rank, size, (), _ranks_on_host(environment.get('RANK_TABLE_FILE'), rank))
    if size > 1 and (info.rank, info.world_size) != (_read_number(environment, 'RANK_ID', 0), size):
        raise InputError('RANK_ID and RANK_SIZE say rank %s of %d, but --workers or TF_CONFIG rank %d of %d; '
                         'make them agree.'
                         % (environment.get('RANK_ID', 0), size, info.rank, info.world_size))
    return info


def _read_number(environment, name, default):
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise InputError('%s is %s, not a whole number; set it right or unset it.' % (name, text))
    return int(text)


def _make_rank_info(workers, rank, source, rank_source):
    for worker in workers:
        host, _, port = str(worker).rpartition(':')
        if not _is_host(host) or not re.fullmatch('[0-9]{1,5}', port) or not 0 < int(port) < 65536:
            raise InputError('%s: %s is not HOST:PORT.' % (source, worker))
    if len(set(workers)) < len(workers):
        raise InputError('%s: names an address twice; every rank needs its own.' % source)
    if rank is None or not 0 <= rank < len(workers):
        raise InputError('%s has %d addresses: %s must be from 0 to %d.'
                         % (source, len(workers), rank_source, len(workers) - 1))
    hosts = [worker.rpartition(':')[0] for worker in workers]
    return RankInfo(rank, len(workers), tuple(workers), hosts.count(hosts[rank]))


def _is_host(text):
    """Whether Python's sockets accept it as a host: each part of a name must have 1 to 63 letters."""
    try:
        return bool(text.encode('idna'))
    except UnicodeError:
        return False


def _read_tf_config(text):
    """The RankInfo of a TF_CONFIG. If the cluster has a chief beside its workers, that is rank 0.

    None without a cluster, or if the only task of the cluster is this process.
    """
    try:
        config = json.loads(text) or {}
        cluster = config.get('cluster') or {}
        tasks = sum(map(len, cluster.values()))
        if not tasks or tasks == 1 and (config.get('task') or {}).get('type') in (None, *cluster):
            return None
        chief, workers = (list(cluster.get(name, ())) for name in ('chief', 'worker'))
        task = config['task']['type']
        rank = int(config['task']['index']) + (len(chief) if task == 'worker' else 0)
        if task not in ('chief', 'worker'):
            raise ValueError('the task is a %s' % task)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError('TF_CONFIG: not the cluster and task of a worker (%s: %s); correct it, unset it or '
                         'give --workers and --rank.' % (type(error).__name__, error)) from None
    return _make_rank_info(chief + workers, rank, 'TF_CONFIG', 'its task index')


def _ranks_on_host(path, rank):
    """How many ranks share the host of `rank`, from the Ascend rank table at `path`.

    The table has version 1.0, or 0.1 as on ModelArts at first.
    """
    try:
        with open(path or '') as file:
            table = json.load(file)
        if 'server_list' in table:
            hosts = [[int(card['rank_id']) for card in server['device']] for server in table['server_list']]
        else:       # version 0.1 numbers no ranks; their order counts
            counts = [len(server['devices']) for group in table['group_list']
                      for server in group['instance_list']]
            hosts = [range(sum(counts[:number]), sum(counts[:number + 1])) for number in range(len(counts))]
        return next(len(ranks) for ranks in hosts if rank in ranks)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise InputError('RANK_TABLE_FILE=%s: rank %d is not found in it (%s); set it to the rank '
                         'table, or give --workers and --rank.'
                         % (path or '', rank, describe_error(error))) from None


def find_gpus(gpus, environment):
    """The GPUs that --gpus means, as CUDA_VISIBLE_DEVICES names them: a list of str.

    gpus: 'all' or '0,1'; environment: as os.environ. Raises InputError if there is none.
    """
    if gpus != 'all':
        return gpus.split(',')
    visible = environment.get('CUDA_VISIBLE_DEVICES')
    if visible is not None and visible.split(',')[0].strip() in ('', '-1'):
        raise InputError("--gpus all: CUDA_VISIBLE_DEVICES is '%s', which hides every GPU; unset it, or "
                         "leave the flag out." % visible)
    nodes = '\n'.join(glob.glob('/dev/nvidia[0-9]*'))
    found = visible.split(',') if visible else sorted(re.findall(r'\d+$', nodes, re.MULTILINE), key=int)
    if not found and has_card():        # under WSL cards have no device nodes
        found = ['0']
    if not found:
        raise InputError('--gpus all: there is no /dev/nvidia0 here; name the GPUs, as in --gpus 0,1, or '
                         'leave the flag out.')
    return found
