"""The process group: what the ranks of a run tell each other beside the gradients, which the device's engine averages (runtime.py).

A TCP connection from each rank to rank 0 lasts as long as the run: its end tells either side at once that the other is gone, and
missing heartbeats tell within --peer-timeout that the other is stopped or cut off. It is made at rank 0's address of --workers,
which rank 0 then leaves to TensorFlow: a rank needs one port.

Nobody proves who he is, so what arrives is taken as hostile: a message is of a known kind, no larger than that kind may be, and
nothing but bytes, JSON or a sentence. Standard library only.
"""
import contextlib
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time

from sesemi import rendezvous
from sesemi.errors import InputError, RunError, printable
from sesemi.ranks import RankInfo
from sesemi.rendezvous import read

HEADER = struct.Struct('!cBI')      # of a message: its kind, an exit status or a signal's number, the bytes that follow
ALIVE, DATA, STOP, LEAVE = b'a', b'd', b's', b'l'
FROM_RANK_0 = {ALIVE: 0, DATA: 1 << 28, LEAVE: 1 << 12}             # the most bytes of each kind; data may be a checkpoint
FROM_OTHERS = {ALIVE: 0, DATA: 1 << 16, LEAVE: 1 << 12, STOP: 0}    # data is what rank 0 compares
JOIN_SECONDS, PEER_SECONDS = 300, 30    # defaults: for all ranks to come; of silence that make a rank lost
HEARTBEATS = 4                      # missing ones that make a rank lost
UNREAD = 8                          # messages; no rank is ever so far ahead of another
LAST_WORDS_SECONDS = 1              # to send them before the process ends
NOTICE_SECONDS = 5                  # for a lost rank to be noticed here after TensorFlow noticed


class ProcessGroup:
    """The ranks that train together. Alone, every method does nothing or gives back what it was given.

    Once joined, a rank that is lost ends the process: with status 1 and a sentence naming the rank, or with the status and the
    sentence that it left. So nothing waits for a rank that is gone, not even an all-reduce deep inside TensorFlow.

    info: a RankInfo; peer_timeout: seconds of silence after which a rank is lost.
    """

    def __init__(self, info=RankInfo(), peer_timeout=PEER_SECONDS):
        self.info, self.peer_timeout = info, peer_timeout
        self.rank, self.world_size, self.workers, self.local_size = info
        self.on_stop = None             # rank 0: called with the number of a signal that another rank received
        self._connections = {}          # by rank: rank 0 has all others, the others have rank 0
        self._over, self._ending = threading.Event(), threading.Lock()

    def join(self, timeout):
        """Wait until all ranks are there, at most `timeout` seconds. Raises RunError naming one that is not."""
        if self.world_size > 1:
            sockets = rendezvous.join(self.info, timeout)
            self._connections = {rank: _Connection(sock, self.peer_timeout) for rank, sock in sockets.items()}
            for rank in sockets:
                threading.Thread(target=self._listen, args=(rank,), daemon=True).start()

    def check_equal(self, values):
        """Compare `values`, JSON values by name, with rank 0's. There it raises InputError naming the rank and what differs."""
        if self.rank:
            self._connections[0].send(_message(DATA, payload=json.dumps(values).encode()))
        for rank in () if self.rank else sorted(self._connections):
            try:
                theirs = dict(json.loads(self._receive(rank).decode()))
                differ = [name if len(str(value)) > 20 else '%s (%s, not %s)' % (name, str(theirs.get(name))[:20], value)
                          for name, value in values.items() if theirs.get(name) != value]
            except (ValueError, TypeError, RecursionError):
                raise RunError(self._loss(rank, 'sent what no rank sends')) from None
            if differ:
                raise InputError('Rank %d differs from rank 0 in %s; start every rank with the same versions, code, images and '
                                 'flags.' % (rank, ', '.join(differ)))

    def broadcast(self, data):
        """Rank 0's `data`, bytes, on every rank."""
        if self.rank:
            return self._receive(0)
        message = _message(DATA, payload=data)
        for connection in self._connections.values():
            connection.send(message)
        return data

    @contextlib.contextmanager
    def main_process_first(self):
        """The other ranks wait with the block until rank 0 has done it: they find what it downloaded."""
        if self.rank:
            self._receive(0)
        yield
        if not self.rank:
            self.broadcast(b'')

    def request_stop(self, number):
        """Tell rank 0 of a signal, from its handler: rank 0 saves a checkpoint and ends the run."""
        self._connections[0].send(_message(STOP, number))

    def finish(self):
        """This rank has done its last step: if it is lost from now on, the run does without it until it is needed again."""
        if self.rank:
            self._connections[0].send(_message(LEAVE))

    def leave(self, status, sentence=''):
        """Tell the others how this process ends. With status 0 rank 0 ends the run; the other ranks wait for that."""
        if self.rank and self._connections and not status:
            self.finish()
            self._over.wait()
            return
        with self._ending:
            self._over.set()
            self._send_last(status, sentence)

    def wait_for_lost_rank(self):
        """After an error that the loss of a rank may have caused: let that end the process first, with its sentence."""
        if self._connections:
            self._over.wait(NOTICE_SECONDS)

    def _receive(self, rank):
        """The next data of a rank, however long that takes it. Raises RunError if it left or was lost after its last step."""
        data = self._connections[rank].inbox.get()
        if data is None:
            raise RunError(self._connections[rank].loss)
        return data

    def _listen(self, rank):
        """A thread for each connection: takes messages until the other side leaves or is lost."""
        connection = self._connections[rank]
        try:
            while self._take(rank, *connection.read(FROM_RANK_0 if self.rank else FROM_OTHERS)):
                pass
            return
        except socket.timeout:
            loss = 'does not answer for %g seconds (--peer-timeout), as if stopped or cut off' % self.peer_timeout
        except OSError:
            loss = 'is gone'
        except (ValueError, queue.Full):
            loss = 'sent what no rank sends'
        self._lose(rank, 1, self._loss(rank, loss))

    def _take(self, rank, kind, status, payload):
        """Act on a message; whether more may follow."""
        connection, who = self._connections[rank], self.info.name(rank)
        if kind == DATA:
            connection.finished = False
            connection.inbox.put_nowait(payload)
        elif kind == STOP and self.on_stop:
            self.on_stop(signal.Signals(status))
        elif kind == STOP:
            self._end(128 + status, '%s was stopped by %s.' % (who, signal.Signals(status).name))
        elif kind == LEAVE and status:
            self._lose(rank, status, '%s ends the run: %s' % (who, payload.decode(errors='replace')))
            return False
        elif kind == LEAVE and self.rank:
            self._over.set()
        elif kind == LEAVE:
            connection.finished = True
        return not self._over.is_set()

    def _lose(self, rank, status, sentence):
        """A rank has left or is lost: the end of this process, or of the run in which it is needed next."""
        connection = self._connections[rank]
        if connection.finished:
            connection.loss = sentence
            connection.inbox.put(None)
        else:
            self._end(status, sentence)

    def _loss(self, rank, how):
        return '%s %s; the run ends here and goes on with --resume.' % (self.info.name(rank), how)

    def _end(self, status, sentence):
        """End the process, wherever its other threads are. They cannot be asked: they may wait for the lost rank for ever."""
        with self._ending:
            if not self._over.is_set():
                self._send_last(status, sentence)
                try:
                    print(printable(sentence), file=sys.stderr, flush=True)
                finally:
                    os._exit(status)

    def _send_last(self, status, sentence):
        """Send what this process ends with to those who take it soon: one that is stopped does not."""
        until = time.monotonic() + LAST_WORDS_SECONDS
        message = _message(LEAVE, status, sentence.encode(errors='backslashreplace')[:FROM_OTHERS[LEAVE]])
        for connection in self._connections.values():
            connection.send(message)
            connection.send(None)
        for connection in self._connections.values():
            connection.writer.join(max(until - time.monotonic(), 0))


class _Connection:
    """Messages from and to another rank. A thread sends those that wait, and heartbeats when none do: so one who does not read
    delays nobody else.
    """

    def __init__(self, sock, peer_timeout):
        # Several short waits in place of one: a process that was itself stopped listens once more before it calls others silent.
        self.interval = peer_timeout / HEARTBEATS
        sock.settimeout(self.interval)
        self.sock, self.inbox, self.outbox = sock, queue.Queue(UNREAD), queue.SimpleQueue()
        self.send = self.outbox.put             # which a signal's handler may call at any moment
        self.finished, self.loss = False, ''    # whether the rank has done its last step; the sentence when it was lost then
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.writer.start()

    def read(self, sizes):
        """The next (kind, status, payload). Raises ValueError if it is not of a kind and size in `sizes`, and OSError."""
        kind, status, size = HEADER.unpack(read(self.sock, HEADER.size, attempts=HEARTBEATS))
        if size > sizes.get(kind, -1):
            raise ValueError('%d bytes of kind %r' % (size, kind))
        return kind, status, read(self.sock, size, attempts=HEARTBEATS)

    def _write(self):
        message = _message(ALIVE)
        with contextlib.suppress(OSError):      # the other is gone, which the thread that reads notices too
            while message is not None:
                rest = memoryview(message)
                while rest:
                    with contextlib.suppress(socket.timeout):
                        rest = rest[self.sock.send(rest):]
                try:
                    message = self.outbox.get(timeout=self.interval)
                except queue.Empty:
                    message = _message(ALIVE)


def _message(kind, status=0, payload=b''):
    return HEADER.pack(kind, status, len(payload)) + payload
