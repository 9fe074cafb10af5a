"""What the ranks of a run tell each other, by the engine that averages their gradients: TensorFlow's
collective operations, on NPUs HCCL.

All ranks run the same graphs in the same order; rank 0 differs in that it writes and prints. So everything is
a sum in which all take part: of the gradients and of a few counts in each step, of whole numbers between the
steps.
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

PEER_SECONDS = 600      # for a run of a graph in which all take part
SIZE = 1 << 18          # int32 numbers of a sum between the steps: one size is one graph
END = '; the run ends here and goes on with --resume.'
SILENT = 'Another rank does not answer for %g seconds (--peer-timeout), as if stopped or cut off' + END
LOST_RANK_ERRORS = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError,
                    tf.errors.CancelledError)

# of collective operations: a key used again with another shape aborts all that follow
_keys = itertools.count(1)


class Ranks:
    """The processes that train together. Alone, a sum is what was given.

    info: a ranks.RankInfo; device: 'cpu', 'gpu' or 'npu'; the time-outs in seconds, None: the defaults.
    """

    def __init__(self, info=RankInfo(), device='cpu', join_timeout=None, peer_timeout=None):
        self.info, self.device = info, device
        self.rank, self.world_size, self.alone = info.rank, info.world_size, info.world_size == 1
        self.join_timeout, self.peer_timeout = join_timeout or WAIT_SECONDS, peer_timeout or PEER_SECONDS
        self.run_options = None     # of every run in which all ranks take part; on NPUs none
        self._compiled = set()      # the names of the graphs that have run
        if device == 'npu' and not self.alone:
            npu.set_timeouts(self.join_timeout, self.peer_timeout)

    # The session

    def start_server(self, config):
        """The target of a session whose graph is this process's own, with its settings added to its
        ConfigProto.
        """
        config.device_filters.append(self._task)
        config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
        # a build for CPUs has no NCCL and crashes if it is asked for
        config.experimental.collective_nccl = self.device == 'gpu'
        return _server(self.info.workers, self.rank, config.SerializeToString()).target

    def join(self):
        """Meet all ranks in the current session, which has an empty graph. Raises RunError if one does not
        come.
        """
        if self.alone:
            return
        if self.device != 'npu':
            self.run_options = tf.RunOptions()
            # so TensorFlow 2 notices at once that rank 0 is lost
            self.run_options.experimental.collective_graph_key = next(_keys)
        with tf.device(None if self.device == 'npu' else self._task + '/device:CPU:0'):
            self._addend = tf.placeholder(tf.int32, [SIZE], 'addend')
            self._total = self.all_reduce(self._addend)
        # not a constant: all ranks have the same graph
        self.given_rank = tf.placeholder_with_default(0, (), 'rank')
        workers = ': ' + ', '.join(self.info.workers) if self.info.workers else ''
        sentence = ('Not all of the %d ranks came within %g seconds (--join-timeout)%s; start all of them, '
                    'with the same versions.' % (self.world_size, self.join_timeout, workers))
        try:
            with self.waiting('sum', self.join_timeout, sentence):
                self._run(np.zeros(SIZE, np.int32))
        except tf.errors.InternalError:     # what TensorFlow 2 answers to 1.15
            raise InputError('Another rank has another TensorFlow than %s, which this one has; start every '
                             'rank with the same versions.'
                             % tf.__version__) from None

    def batch_number(self):
        """The number of this rank's batch of the current step among those of all ranks and steps: an int32
        scalar tensor.
        """
        return batch_number() if self.alone else batch_number(self.given_rank, self.world_size)

    # Sums

    def all_reduce(self, tensor):
        """The sum over the ranks of an int32 tensor of the graph, which is not a variable."""
        if self.device == 'npu':
            return npu.all_reduce(tensor)
        # all of a group are on one kind of device, and so is what is fed
        with tf.device(self._task + '/device:CPU:0'):
            return tf.raw_ops.CollectiveReduce(
                input=tensor, group_size=self.world_size, group_key=2, instance_key=next(_keys),
                merge_op='Add', final_op='Id',
                subdiv_offsets=[0], communication_hint='ring')

    def sum(self, values):
        """The sum over the ranks of int32 values, (n,) with the same n on all."""
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
        """Rank 0's `data`, bytes, on every rank."""
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
        """How many of so many images, n, each rank takes: rank r those from r * n to (r + 1) * n; the last
        ranks may get fewer or none.
        """
        return -(-total // self.world_size)

    def gather(self, rows, total):
        """The rows of all images, float32 (total, k), of which this rank has computed its own,
        (per_rank(total), k).
        """
        if self.alone:
            return rows
        whole = np.zeros((self.world_size * len(rows),) + rows.shape[1:], np.float32)
        whole[self.rank * len(rows):][:len(rows)] = rows
        bits = self.sum(whole.view(np.int32).ravel())       # a sum of float32 may change bits
        return bits.view(np.float32).reshape(whole.shape)[:total]

    def check_equal(self, values):
        """Compares `values`, {what a user calls it: JSON value}, with rank 0's. All ranks raise the same
        InputError.
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
        """The optimizer, its gradients averaged over the ranks: one all-reduce for all of them, which gives
        every rank the same bits.

        Not on the NPU, whose adapter's wrapper does it.
        """
        own_gradients = optimizer.get_gradients

        def get_gradients(loss, params):
            gradients = own_gradients(loss, params)
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
        """The block in which all ranks run the graph of that name: the process ends with status 1 and a
        sentence if that takes too long.

        An NPU may compile for an hour when it runs a graph for the first time: there HCCL's limits hold
        alone. Raises RunError when TensorFlow finds that a rank is lost; nothing is to be tried again then.
        """
        unlimited = self.device == 'npu' and graph not in self._compiled
        self._compiled.add(graph)
        try:
            sentence = sentence or SILENT % self.peer_timeout
            with contextlib.nullcontext() if unlimited else _limit(seconds or self.peer_timeout, sentence):
                yield
        except LOST_RANK_ERRORS as error:
            raise RunError(sentence or 'Another rank is lost (%s)%s' % (type(error).__name__, END)) from None

    def _run(self, values):
        return keras.backend.get_session().run(self._total, {self._addend: values}, self.run_options)

    @property
    def _task(self):
        return '/job:worker/task:%d' % self.rank


class _Clock(threading.Thread):
    """Counts the seconds that this process runs, not those from Ctrl-Z to fg, and ends it behind the limit of
    a block.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.seconds, self.limit = 0, None      # limit: (second, sentence), set by the main thread alone
        self.start()

    def run(self):
        while True:
            time.sleep(1)
            self.seconds += 1
            limit = self.limit
            if limit and self.seconds > limit[0]:       # the first second may have been a short one
                signals.end_process(RunError.status, limit[1])


@functools.lru_cache(maxsize=None)
def _clock():
    return _Clock()


@contextlib.contextmanager
def _limit(seconds, sentence):
    """The block that ends the process with a sentence if it takes longer."""
    clock = _clock()
    clock.limit = clock.seconds + seconds, sentence
    try:
        yield
    finally:
        clock.limit = None


@functools.lru_cache(maxsize=None)      # a process has one for all its sessions: TensorFlow cannot close it
def _server(workers, rank, config):
    cluster = tf.train.ClusterSpec({'worker': workers})
    try:
        return tf.distribute.Server(cluster, 'worker', rank, config=tf.ConfigProto.FromString(config))
    except tf.errors.OpError as error:
        raise InputError('--workers: TensorFlow cannot listen at %s, the address of rank %d (%s); give it '
                         'another port, or another --rank if that one is running already.'
                         % (workers[rank], rank, error.message)) from None
