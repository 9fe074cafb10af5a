"""Several devices, a process for each: which rank this process is, its GPU, and the meeting of them all.

Every rank trains on batches of its own and the device's engine averages the gradients (runtime.py). All else that ranks have to
tell each other goes through the meeting: a TCP connection from each rank to rank 0, the chief, that lasts as long as the job, so
that its end tells either side at once that the other is gone. The chief listens at its own address of --workers, and hands the
port to TensorFlow when all have come: a rank needs one port. Standard library only.
"""
import contextlib
import glob
import json
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from typing import NamedTuple, Tuple

from sesemi.errors import InputError, RunError

ASCEND_PORT = 29400     # of the meeting, plus the number of rank 0's card: a rank table names no ports
JOIN_SECONDS = 300     # for all ranks to come, by default
HELLO_SECONDS = 5       # for a connection to say who it is: port scanners and health checks never do


class Place(NamedTuple):
    """Which rank this process is."""
    rank: int = 0
    ranks: int = 1
    workers: Tuple[str, ...] = ()       # host:port of each rank; with a rank table of the chief alone
    on_host: int = 1                    # ranks on this host, which share its memory


def find_place(workers, rank, environment):
    """This process's Place: from --workers and --rank, else TF_CONFIG, else RANK_ID and RANK_SIZE as on Ascend hosts.

    workers: 'host:port,host:port' or None; rank: int or None; environment: as os.environ. Raises InputError naming what
    is wrong or does not fit together.
    """
    size = _number(environment, 'RANK_SIZE', 1)
    if workers:
        place = _place(workers.split(','), rank, '--workers %s' % workers, '--rank')
    elif rank is not None:
        raise InputError('--rank %d: which ranks there are is not known; give --workers HOST:PORT,HOST:PORT too.' % rank)
    elif environment.get('TF_CONFIG'):
        place = _from_tf_config(environment['TF_CONFIG'])
    elif size > 1:
        return Place(_number(environment, 'RANK_ID', 0), size, *_chief_of_table(environment.get('RANK_TABLE_FILE')))
    else:
        return Place()
    if size > 1 and (place.rank, place.ranks) != (_number(environment, 'RANK_ID', 0), size):
        raise InputError('RANK_ID and RANK_SIZE say rank %s of %d, but --workers or TF_CONFIG rank %d of %d; make them agree.'
                         % (environment.get('RANK_ID', 0), size, place.rank, place.ranks))
    return place


def _number(environment, name, default):
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise InputError('%s is %s, not a whole number; set it right or unset it.' % (name, text))
    return int(text)


def _place(workers, rank, source, which):
    for worker in workers:
        host, _, port = str(worker).rpartition(':')
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError('%s: %s is not HOST:PORT.' % (source, worker))
    if len(set(workers)) < len(workers):
        raise InputError('%s: an address is there twice; every rank needs its own.' % source)
    if rank is None or not 0 <= rank < len(workers):
        raise InputError('%s has %d addresses: %s must be from 0 to %d.' % (source, len(workers), which, len(workers) - 1))
    hosts = [worker.rpartition(':')[0] for worker in workers]
    return Place(rank, len(workers), tuple(workers), hosts.count(hosts[rank]))


def _from_tf_config(text):
    """The chief, if the cluster has one beside its workers, is rank 0."""
    try:
        config = json.loads(text)
        chief, workers = (list(config['cluster'].get(name, ())) for name in ('chief', 'worker'))
        task = config['task']['type']
        rank = int(config['task']['index']) + (len(chief) if task == 'worker' else 0)
        if task not in ('chief', 'worker'):
            raise ValueError('the task is a %s' % task)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError('TF_CONFIG: not the cluster and task of a worker (%s: %s); correct it, unset it or give --workers and '
                         '--rank.' % (type(error).__name__, error)) from None
    return _place(chief + workers, rank, 'TF_CONFIG', 'its task index')


def _chief_of_table(path):
    """((where the ranks meet,), ranks on a host) of an Ascend rank table, of version 1.0 or, as ModelArts first had it, 0.1.

    Two jobs on one host have different cards, so the number of rank 0's card keeps their ports apart.
    """
    try:
        with open(path or '') as file:
            table = json.load(file)
        if 'server_list' in table:
            servers = [(server['server_id'], server['device']) for server in table['server_list']]
            (host, cards, card), = [(host, cards, card) for host, cards in servers for card in cards if str(card['rank_id']) == '0']
        else:       # ranks have no numbers there, but an order
            servers = [(server['server_id'], server['devices']) for group in table['group_list'] for server in group['instance_list']]
            host, cards, card = (*servers[0], servers[0][1][0])
        port = ASCEND_PORT + int(card['device_id'])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError('RANK_TABLE_FILE=%s: where rank 0 is cannot be read from it (%s); set it to the rank table, or give '
                         '--workers and --rank.' % (path or '', error)) from None
    return ('%s:%d' % (host if len(servers) > 1 else '127.0.0.1', port),), len(cards)


def find_gpus(gpus, environment):
    """The GPUs that --gpus means, as CUDA_VISIBLE_DEVICES names them: a list of str. Raises InputError when there is none."""
    if gpus != 'all':
        return gpus.split(',')
    visible = environment.get('CUDA_VISIBLE_DEVICES')
    if visible is not None and visible.split(',')[0].strip() in ('', '-1'):
        raise InputError("--gpus all: CUDA_VISIBLE_DEVICES is '%s', which hides every GPU; unset it, or leave the flag out." % visible)
    found = visible.split(',') if visible else sorted(re.findall(r'\d+$', '\n'.join(glob.glob('/dev/nvidia[0-9]*')), re.MULTILINE), key=int)
    if not found:
        raise InputError('--gpus all: there is no /dev/nvidia0 here; name the GPUs, as in --gpus 0,1, or leave the flag out.')
    return found


class Meeting:
    """What the ranks tell each other. Alone, every method does nothing or gives back what it was given.

    Once joined, a rank that is lost ends the process: with status 1 and a sentence naming the rank, or with the status and the
    sentence that it left. So nothing waits for a rank that is gone, not even an all-reduce deep inside TensorFlow.
    """

    def __init__(self, place=Place()):
        self.place = place
        self.on_stop = None             # the chief: called with the number of a signal that another rank received
        self._links, self._inbox = {}, {}
        self._over, self._ending = threading.Event(), threading.Lock()

    def join(self, timeout):
        """Wait until all ranks are there, at most `timeout` seconds. Raises RunError naming one that is not."""
        if self.place.ranks == 1:
            return
        deadline = time.monotonic() + timeout
        if self.place.rank:
            self._reach_chief(deadline, timeout)
        else:
            self._await_others(deadline, timeout)
        for rank, (connection, _) in self._links.items():
            connection.settimeout(None)
            _keep_alive(connection)
            self._inbox[rank] = queue.Queue()
            threading.Thread(target=self._listen, args=(rank,), daemon=True).start()

    def agree(self, facts):
        """Compare `facts`, JSON values by name, with the chief's. There it raises InputError naming the rank and what differs."""
        if self.place.rank:
            self._send(0, 'facts', json.dumps(facts).encode())
            return
        for rank in sorted(self._links):
            theirs = json.loads(self._receive(rank).decode())
            differ = [name if len(str(value)) > 20 else '%s (%s, not %s)' % (name, theirs.get(name), value)
                      for name, value in facts.items() if theirs.get(name) != value]
            if differ:
                raise InputError('Rank %d differs from rank 0 in %s; start every rank with the same code, images and flags.'
                                 % (rank, ', '.join(differ)))

    def spread(self, data):
        """The chief's `data`, bytes, on every rank."""
        if self.place.rank:
            return self._receive(0)
        for rank in self._links:
            self._send(rank, 'data', data)
        return data

    @contextlib.contextmanager
    def chief_first(self):
        """The other ranks wait with the block until the chief has done it: they find what it downloaded."""
        if self.place.rank:
            self._receive(0)
        yield
        if not self.place.rank:
            self.spread(b'')

    def ask_to_stop(self, number):
        """Tell the chief of a signal; it saves a checkpoint and ends the job."""
        self._send(0, 'stop', status=number)

    def leave(self, status, sentence=''):
        """Tell the others how this process ends. With status 0 the chief ends the job; the other ranks wait for that."""
        if self.place.rank and self._links and not status:
            self._over.wait()
            return
        with self._ending:
            self._over.set()
            for rank in self._links:
                self._send(rank, 'leave', sentence.encode(), status)

    def linger(self):
        """After an error that the loss of a rank may have caused: let that end the process first, with its sentence."""
        if self._links:
            self._over.wait(HELLO_SECONDS)

    def _await_others(self, deadline, timeout):
        host, port = self.place.workers[0].rsplit(':', 1)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(('', int(port)))
            except OSError as error:
                raise InputError('Rank 0 cannot listen at %s (%s); give it another port.' % (self.place.workers[0], error.strerror)) from None
            listener.listen(self.place.ranks)
            while len(self._links) < self.place.ranks - 1:
                listener.settimeout(max(deadline - time.monotonic(), 1e-3))
                try:
                    self._admit(listener.accept()[0])
                except socket.timeout:
                    missing = [rank for rank in range(1, self.place.ranks) if rank not in self._links]
                    raise RunError('%s did not come within %g seconds (--join-timeout).' % (
                        ' and '.join(map(self._name, missing)), timeout)) from None

    def _admit(self, connection):
        connection.settimeout(HELLO_SECONDS)
        stream = connection.makefile('rb')
        try:
            rank, ranks = map(int, stream.readline(64).split())
        except (OSError, ValueError):       # not one of ours
            connection.close()
            return
        if ranks != self.place.ranks or not 0 < rank < ranks or rank in self._links:
            raise InputError('A process came as rank %d of %d where rank 0 has %d ranks%s; give every rank the same --workers and '
                             'its own --rank.' % (rank, ranks, self.place.ranks, ', after another one' if rank in self._links else ''))
        self._links[rank] = connection, stream

    def _reach_chief(self, deadline, timeout):
        host, port = self.place.workers[0].rsplit(':', 1)
        while True:
            try:
                connection = socket.create_connection((host, int(port)), timeout=HELLO_SECONDS)
                if connection.getsockname() != connection.getpeername():    # else it has met itself, on a port nobody listens at
                    connection.sendall(b'%d %d\n' % (self.place.rank, self.place.ranks))
                    self._links[0] = connection, connection.makefile('rb')
                    return
                connection.close()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RunError('%s cannot be reached for %g seconds (--join-timeout): %s.' % (
                        self._name(0), timeout, error.strerror or error)) from None
            time.sleep(0.1)

    def _name(self, rank):
        return 'Rank %d (%s)' % (rank, self.place.workers[rank]) if rank < len(self.place.workers) else 'Rank %d' % rank

    def _send(self, rank, kind, payload=b'', status=0):
        """A line of three words, then the payload. One who is gone is noticed by the thread that listens to it."""
        with contextlib.suppress(OSError):
            self._links[rank][0].sendall(b'%s %d %d\n' % (kind.encode(), status, len(payload)) + payload)

    def _receive(self, rank):
        return self._inbox[rank].get()

    def _listen(self, rank):
        """A thread for each connection: takes messages until the other side leaves or is lost."""
        stream = self._links[rank][1]
        while True:
            try:
                kind, status, size = stream.readline().split()
                payload, status = stream.read(int(size)), int(status)
            except (OSError, ValueError):
                self._end(1, '%s is gone; the run ends here and goes on with --resume.' % self._name(rank))
                return      # it was over already
            if kind == b'stop' and self.on_stop:
                self.on_stop(status)
            elif kind == b'stop':
                self._end(128 + status, '%s was stopped by %s.' % (self._name(rank), signal.Signals(status).name))
            elif kind != b'leave':
                self._inbox[rank].put(payload)
            elif status:
                self._end(status, '%s ends the run: %s' % (self._name(rank), payload.decode()))
            else:
                self._over.set()
                return

    def _end(self, status, sentence):
        """End the process, wherever its other threads are. They cannot be asked: they may wait for the lost rank for ever."""
        with self._ending:
            if self._over.is_set():
                return
            for rank in self._links:
                self._send(rank, 'leave', sentence.encode(), status)
            print(sentence, file=sys.stderr, flush=True)
            os._exit(status)


def _keep_alive(connection):
    """Have the system ask a silent connection for life: a host that lost its power or its network is noticed in half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (('TCP_KEEPIDLE', 10), ('TCP_KEEPINTVL', 5), ('TCP_KEEPCNT', 4)):
        if hasattr(socket, name):       # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
