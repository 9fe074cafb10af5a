"""How the ranks of a run find each other: rank 0 listens at its own address until all the others have come.

Anybody may come, so what comes is taken as hostile: rank 0 reads 16 bytes of each connection and hears the others meanwhile.
"""
import contextlib
import selectors
import socket
import struct
import time

from sesemi.errors import InputError, RunError

HELLO = struct.Struct('!8sII')      # GREETING, a rank, its world size
GREETING = b'sesemi/1'
ANSWER = struct.Struct('!BH')       # an exit status, 0 once all are there; the size of the sentence that follows
STRANGERS = 64                      # connections that have not said which rank they are; of more, the oldest is closed
CONNECT_SECONDS = 5                 # for one attempt


def join(info, timeout):
    """A connected socket to each other rank, by rank: on rank 0 to all, elsewhere to rank 0.

    info: a RankInfo; timeout: seconds for all to come. Raises RunError naming one that did not, or saying what rank 0 has to say.
    """
    return {0: _reach_rank_0(info, timeout)} if info.rank else _admit_others(info, timeout)


def read(sock, size, deadline=None, attempts=1):
    """So many bytes of a socket. Raises OSError: after the deadline, or after so many of its time-outs in silence."""
    data, silent = bytearray(), 0
    while len(data) < size:
        if deadline is not None:
            sock.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            part = sock.recv(min(size - len(data), 1 << 16))
        except socket.timeout:
            silent += 1
            if silent == attempts:
                raise
            continue
        if not part:
            raise ConnectionResetError('Connection closed')
        data += part
        silent = 0
    return bytes(data)


def _reach_rank_0(info, timeout):
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _ask_rank_0(info, deadline)
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError('%s, or another rank, was not there within %g seconds (--join-timeout): %s.' % (
                    info.name(0), timeout, error.strerror or error)) from None
        time.sleep(0.1)


def _ask_rank_0(info, deadline):
    host, port = info.workers[0].rsplit(':', 1)
    seconds = min(CONNECT_SECONDS, max(deadline - time.monotonic(), 0.1))
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=seconds))
        if sock.getsockname() == sock.getpeername():    # it has met itself, on a port nobody listens at
            raise ConnectionRefusedError('Connection refused')
        sock.sendall(HELLO.pack(GREETING, info.rank, info.world_size))
        status, size = ANSWER.unpack(read(sock, ANSWER.size, deadline))
        if status:
            error = RunError('%s: %s' % (info.name(0), read(sock, size, deadline).decode(errors='replace')))
            error.status = status
            raise error
        stack.pop_all()
    return sock


def _admit_others(info, timeout):
    deadline = time.monotonic() + timeout
    with contextlib.closing(_Lobby(_listener(info.workers), info.world_size)) as lobby:
        while len(lobby.joined) < info.world_size - 1:
            lobby.serve(max(deadline - time.monotonic(), 0))
            if time.monotonic() > deadline:
                missing = [info.name(rank) for rank in range(1, info.world_size) if rank not in lobby.joined]
                sentence = '%s did not come within %g seconds (--join-timeout).' % (' and '.join(missing), timeout)
                for sock in lobby.joined.values():
                    _answer(sock, RunError.status, sentence)
                raise RunError(sentence)
        for sock in lobby.joined.values():
            _answer(sock, 0)
        return lobby.joined


def _listener(workers):
    """Rank 0's socket: on the loopback alone if all ranks are there, else on all interfaces, as its name may mean any of them."""
    host, port = workers[0].rsplit(':', 1)
    local = all(worker.startswith(('127.', 'localhost:')) for worker in workers)
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host if local else '', int(port)))
        listener.listen(STRANGERS)
    except OSError as error:
        listener.close()
        raise InputError('Rank 0 cannot listen at %s (%s); give it another port.' % (workers[0], error.strerror)) from None
    return listener


class _Lobby:
    """Where rank 0 waits: `joined` has the sockets of those who said that they are a rank still missing, by rank."""

    def __init__(self, listener, world_size):
        self.listener, self.world_size, self.joined = listener, world_size, {}
        self._said = {}             # what each socket has said so far, the oldest first
        self._selector = selectors.DefaultSelector()
        self._watch(listener)

    def serve(self, seconds):
        """Hear those who come or say something within so many seconds."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self.listener:
                with contextlib.suppress(OSError):      # gone again
                    self._greet(self.listener.accept()[0])
            elif key.fileobj in self._said:             # not dropped meanwhile
                self._hear(key.fileobj)

    def close(self):
        for sock in set(self._said) - set(self.joined.values()):
            self._drop(sock)
        self._selector.close()
        self.listener.close()

    def _watch(self, sock):
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ)

    def _greet(self, sock):
        self._watch(sock)
        self._said[sock] = b''
        strangers = [sock for sock in self._said if sock not in self.joined.values()]
        for stranger in strangers[:-STRANGERS]:
            self._drop(stranger)

    def _hear(self, sock):
        """Drop who is gone, says anything else, or goes on talking. A rank of another run is told, which may be a user's mistake."""
        part = b''
        with contextlib.suppress(OSError):
            part = sock.recv(HELLO.size)
        said = self._said[sock] = self._said[sock] + part
        if part and len(said) < HELLO.size:
            return
        if part and len(said) == HELLO.size and said.startswith(GREETING):
            _, rank, world_size = HELLO.unpack(said)
            if world_size == self.world_size and 0 < rank < world_size and rank not in self.joined:
                self.joined[rank] = sock
                return
            again = ', after another one' if rank in self.joined else ''
            _answer(sock, InputError.status, 'a process came as rank %d of %d where rank 0 has %d ranks%s; give every rank the '
                    'same --workers and its own --rank.' % (rank, world_size, self.world_size, again))
        self._drop(sock)

    def _drop(self, sock):
        self._selector.unregister(sock)
        sock.close()
        del self._said[sock]
        self.joined = {rank: other for rank, other in self.joined.items() if other is not sock}


def _answer(sock, status, sentence=''):
    sentence = sentence.encode()[:1 << 12]
    with contextlib.suppress(OSError):      # gone
        sock.send(ANSWER.pack(status, len(sentence)) + sentence)
