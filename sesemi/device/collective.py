"""Sums over the ranks of a run, by TensorFlow's collective operations, or on NPUs by HCCL.

All ranks run the same graphs in the same order; rank 0 also writes files and prints. Whatever ranks tell each
other is a sum over all of them: of gradients and a few counts in each step, of int32 values between steps.
"""
import contextlib
import functools
import itertools
import json
import threading
import time

import numpy as np

from sesemi.device import npu
from sesemi.device.backend import keras, tf
from sesemi.device.ranks import RankInfo
from sesemi.device.runtime import batch_number
from sesemi.errors import InputError, RunError
from sesemi.system import signals
from sesemi.system.files import WAIT_SECONDS

PEER_SECONDS = 600      # default limit of one run of a graph in which all ranks take part
SIZE = 1 << 18          # int32 values in a sum between steps; always the same, as each size is another graph
RESUME = '; the run ends here and goes on with --resume.'
NO_ANSWER = 'Another rank has not answered for %g seconds (--peer-timeout), as if stopped or cut off' + RESUME
LOST_RANK_ERRORS = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError,
                    tf.errors.CancelledError)

# Keys of collective operations: if one is used again with another shape, all later operations abort.
_keys = itertools.count(1)


class Ranks:
    """The processes that train together. If there is only one, a sum is the value itself.

    info: a ranks.RankInfo. device: 'cpu', 'gpu' or 'npu'. join_timeout, peer_timeout: seconds; None: the
    defaults.
    """

    def __init__(self, info=RankInfo(), device='cpu', join_timeout=None, peer_timeout=None):
        self.info, self.device = info, device
        self.rank, self.world_size, self.alone = info.rank, info.world_size, info.world_size == 1
        self.join_timeout, self.peer_timeout = join_timeout or WAIT_SECONDS, peer_timeout or PEER_SECONDS
        self.run_options = None     # for each session.run in which all ranks take part; None on NPUs
        self._compiled = set()      # the names of the graphs that have run
        if device == 'npu' and not self.alone:
            npu.set_timeouts(self.join_timeout, self.peer_timeout)

    # The session

    def start_server(self, config):
        """Start this rank's server, if it does not run yet; returns its address, a session's `target`.

        config: the session's ConfigProto, to which what the server needs is added. Raises InputError if the
        server cannot listen at the address of this rank.
        """
        config.device_filters.append(self._task)
        config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
        # A build for CPUs has no NCCL and would crash.
        config.experimental.collective_nccl = self.device == 'gpu'
        return _server(self.info.workers, self.rank, config.SerializeToString()).target

    def join(self):
        """Wait in the current session until all ranks have started. Its graph must still be empty.

        If one does not start within join_timeout, the process ends with status 1. Raises RunError if the
        connection to one breaks, InputError if one runs another TensorFlow.
        """
        if self.alone:
            return
        if self.device != 'npu':
            self.run_options = tf.RunOptions()
            # With a key, TensorFlow 2 notices at once that rank 0 is lost.
            self.run_options.experimental.collective_graph_key = next(_keys)
        with tf.device(None if self.device == 'npu' else self._task + '/device:CPU:0'):
            self._addend = tf.placeholder(tf.int32, [SIZE], 'addend')
            self._total = self.all_reduce(self._addend)
        # A placeholder, not a constant, so that all ranks have the same graph.
        self.rank_input = tf.placeholder_with_default(0, (), 'rank')
        workers = ': ' + ', '.join(self.info.workers) if self.info.workers else ''
        sentence = ('Not all of the %d ranks started within %g seconds (--join-timeout)%s; start all of '
                    'them, with the same versions.' % (self.world_size, self.join_timeout, workers))
        try:
            with self.waiting('sum', self.join_timeout, sentence):
                self._run(np.zeros(SIZE, np.int32))
        except tf.errors.InternalError:     # TensorFlow 2 answers this to 1.15
            raise InputError('Another rank has another version of TensorFlow than this one, %s; start every '
                             'rank with the same versions.'
                             % tf.__version__) from None

    def batch_number(self):
        """runtime.batch_number for this rank: an int32 scalar tensor."""
        return batch_number() if self.alone else batch_number(self.rank_input, self.world_size)

    # Sums

    def all_reduce(self, tensor):
        """The sum over the ranks of an int32 tensor of the graph. It must not be a variable."""
        if self.device == 'npu':
            return npu.all_reduce(tensor)
        # All members of a group must be on one kind of device, and fed values are on the CPU.
        with tf.device(self._task + '/device:CPU:0'):
            return tf.raw_ops.CollectiveReduce(
                input=tensor, group_size=self.world_size, group_key=2, instance_key=next(_keys),
                merge_op='Add', final_op='Id',
                subdiv_offsets=[0], communication_hint='ring')

    def sum(self, values):
        """The sum over the ranks of an int32 array (n,); n is the same on all ranks."""
        if self.alone:
            return values
        total = np.empty(len(values), np.int32)
        for start in range(0, len(values), SIZE):
            part = values[start:start + SIZE]
            with self.waiting('sum'):
                padded = np.pad(part, (0, SIZE - len(part)), mode='constant')
                total[start:start + SIZE] = self._run(padded)[:len(part)]
        return total

    def broadcast(self, data):
        """Returns rank 0's `data`, bytes, on every rank."""
        if self.alone:
            return data
        size, = self.sum(np.array([0 if self.rank else len(data)], np.int32))
        numbers = np.zeros(-(-size // 4), np.int32)
        if not self.rank:
            numbers.view(np.uint8)[:size] = np.frombuffer(data, np.uint8)
        return self.sum(numbers).view(np.uint8)[:size].tobytes()

    def broadcast_arrays(self, arrays):
        """Returns rank 0's float32 arrays; every rank passes arrays of the same shapes."""
        if self.alone:
            return arrays
        data = b''.join(np.asarray(array, np.float32).tobytes() for array in arrays)
        flat = np.frombuffer(self.broadcast(data), np.float32)
        ends = np.cumsum([array.size for array in arrays])
        return [part.reshape(array.shape) for part, array in zip(np.split(flat, ends[:-1]), arrays)]

    def per_rank(self, total):
        """How many of `total` images each rank takes: n, rounded up.

        Rank r takes images r * n to (r + 1) * n - 1; the last ranks may have fewer, or none.
        """
        return -(-total // self.world_size)

    def gather(self, rows, total):
        """The rows of all ranks joined: float32 (total, k).

        rows: this rank's own, float32 (per_rank(total), k).
        """
        if self.alone:
            return rows
        padded = np.zeros((self.world_size * len(rows),) + rows.shape[1:], np.float32)
        padded[self.rank * len(rows):][:len(rows)] = rows
        bits = self.sum(padded.view(np.int32).ravel())      # a sum of float32 may change bits
        return bits.view(np.float32).reshape(padded.shape)[:total]

    def check_equal(self, values):
        """Compare `values` with those of rank 0. If any differ, all ranks raise the same InputError.

        values: {name for the message: JSON value}.
        """
        if self.alone:
            return
        own = json.dumps(values).encode()
        size = SIZE // self.world_size * 4
        slots = np.zeros((self.world_size, size), np.uint8)
        slots[self.rank, :len(own)] = np.frombuffer(own, np.uint8)
        found = [json.loads(slot.tobytes().rstrip(b'\0').decode())
                 for slot in self.sum(slots.ravel().view(np.int32)).view(np.uint8).reshape(slots.shape)]
        for rank, theirs in enumerate(found):
            differ = [name if len(str(value)) > 20
                      else '%s (%s, not %s)' % (name, str(theirs.get(name))[:20], value)
                      for name, value in found[0].items() if theirs.get(name) != value]
            if differ:
                raise InputError('%s differs from rank 0 in %s; start every rank with the same versions, '
                                 'code, images and flags.'
                                 % (self.info.name(rank), ', '.join(differ)))

    def average(self, optimizer):
        """Make the optimizer average its gradients over the ranks; returns it.

        One all-reduce carries all gradients, and gives every rank the same bits. Not for the NPU, where the
        adapter's optimizer averages them.
        """
        get_own_gradients = optimizer.get_gradients

        def get_gradients(loss, params):
            gradients = get_own_gradients(loss, params)
            with tf.device(self._task):
                flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
                mean = tf.raw_ops.CollectiveReduce(
                    input=flat, group_size=self.world_size, group_key=1, instance_key=next(_keys),
                    merge_op='Add', final_op='Div',
                    subdiv_offsets=[0])
                parts = tf.split(mean, [param.shape.num_elements() for param in params])
            return [tf.reshape(part, param.shape) for part, param in zip(parts, params)]
        optimizer.get_gradients = get_gradients
        return optimizer

    # Waiting

    @contextlib.contextmanager
    def waiting(self, graph, seconds=None, sentence=None):
        """Limit the time of the block, in which all ranks run the graph named `graph`.

        After `seconds` (None: peer_timeout) the process ends with status 1 and `sentence`. On an NPU the
        first run of a graph has no such limit, only HCCL's, because compiling it may take an hour. Raises
        RunError if TensorFlow finds that a rank is lost; then no later sum would work.
        """
        unlimited = self.device == 'npu' and graph not in self._compiled
        self._compiled.add(graph)
        limit = _limit(seconds or self.peer_timeout, sentence or NO_ANSWER % self.peer_timeout)
        try:
            with contextlib.nullcontext() if unlimited else limit:
                yield
        except LOST_RANK_ERRORS as error:
            raise RunError(sentence
                           or 'Another rank is lost (%s)%s' % (type(error).__name__, RESUME)) from None

    def _run(self, values):
        return keras.backend.get_session().run(self._total, {self._addend: values}, self.run_options)

    @property
    def _task(self):
        return '/job:worker/task:%d' % self.rank


class _Watchdog(threading.Thread):
    """Ends this process when a block exceeds its limit. Time while the process is stopped does not count."""

    def __init__(self):
        super().__init__(daemon=True)
        self.seconds, self.limit = 0, None      # limit: (second, sentence), set only by the main thread
        self.start()

    def run(self):
        while True:
            time.sleep(1)
            self.seconds += 1
            limit = self.limit
            if limit and self.seconds > limit[0]:       # not >=: the first second may be cut short
                signals.end_process(RunError.status, limit[1])


@functools.lru_cache(maxsize=None)
def _watchdog():
    return _Watchdog()


@contextlib.contextmanager
def _limit(seconds, sentence):
    """End the process with a sentence if the block takes longer than `seconds`."""
    watchdog = _watchdog()
    watchdog.limit = watchdog.seconds + seconds, sentence
    try:
        yield
    finally:
        watchdog.limit = None


@functools.lru_cache(maxsize=None)      # one for all sessions of the process: TensorFlow cannot close it
def _server(workers, rank, config):
    cluster = tf.train.ClusterSpec({'worker': workers})
    try:
        return tf.distribute.Server(cluster, 'worker', rank, config=tf.ConfigProto.FromString(config))
    except tf.errors.OpError as error:
        raise InputError('--workers: TensorFlow cannot listen at %s, the address of rank %d (%s); give it '
                         'another port, or another --rank if that one is running already.'
                         % (workers[rank], rank, error.message)) from None
