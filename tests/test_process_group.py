"""What ranks say to each other and what others may say to them: groups in this process, and bare sockets that play a rank."""
import contextlib
import os
import queue
import signal
import socket
import sys
import threading
from concurrent.futures import Future

import pytest

import train_evaluate_sesemi
from sesemi import rendezvous
from sesemi.errors import InputError, RunError
from sesemi.process_group import ALIVE, DATA, FROM_OTHERS, HEADER, HEARTBEATS, LEAVE, STOP, UNREAD, ProcessGroup
from sesemi.ranks import RankInfo
from sesemi.rendezvous import ANSWER, GREETING, HELLO, STRANGERS

pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')     # of `ended`
LIMIT = 60      # seconds, for what should take none
PEERS = []      # the sockets of a test: if it forgot them at its end, they would be closed there


def start(function, *arguments):
    """Run a function in a thread that the tests do not wait for if it hangs; its Future."""
    future = Future()

    def run():
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
    threading.Thread(target=run, daemon=True).start()
    return future


@pytest.fixture
def ended(monkeypatch):
    """The exit statuses with which groups would have ended the process; a thread that does so goes no further."""
    statuses, groups, init = queue.Queue(), [], ProcessGroup.__init__

    def remember(group, *arguments):
        groups.append(group)
        init(group, *arguments)

    def end(status):
        statuses.put(status)
        sys.exit()
    monkeypatch.setattr(ProcessGroup, '__init__', remember)
    monkeypatch.setattr(os, '_exit', end)
    yield statuses
    for group in groups:
        group._ending.acquire(timeout=LIMIT)
        group._over.set()       # when its peers go with the test, that is the end of no process
        group._ending.release()
    PEERS.clear()


def infos(world_size):
    """The RankInfo of each rank."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        workers = tuple('127.0.0.1:%d' % (free.getsockname()[1] + rank) for rank in range(world_size))
    return [RankInfo(rank, world_size, workers, world_size) for rank in range(world_size)]


def group_of(info, peer_timeout=LIMIT):
    group = ProcessGroup(info, peer_timeout)
    group.join(LIMIT)
    return group


def groups_of(world_size):
    return [future.result(LIMIT) for future in [start(group_of, info) for info in infos(world_size)]]


def connect(info, said):
    """A socket that has said so much to rank 0, which may yet have to start listening."""
    host, port = info.workers[0].split(':')
    while True:
        try:
            sock = socket.create_connection((host, int(port)), timeout=LIMIT)
        except ConnectionRefusedError:
            continue
        PEERS.append(sock)
        sock.sendall(said)
        return sock


def hello(info):
    return HELLO.pack(GREETING, info.rank, info.world_size)


def with_played(world_size=2, peer_timeout=LIMIT):
    """The group of rank 0, and a bare socket for each other rank."""
    first, *others = infos(world_size)
    group = start(group_of, first, peer_timeout)
    sockets = [connect(info, hello(info)) for info in others]
    for sock in sockets:
        assert receive(sock, ANSWER.size) == ANSWER.pack(0, 0)
    return [group.result(LIMIT)] + sockets


def receive(sock, size):
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, 'closed after %d of %d bytes' % (len(data), size)
        data += part
    return bytes(data)


def message(kind, status=0, payload=b''):
    return HEADER.pack(kind, status, len(payload)) + payload


def heartbeats(sock, count):
    """Whether that is what comes next."""
    return [HEADER.unpack(receive(sock, HEADER.size)) for _ in range(count)] == [(ALIVE, 0, 0)] * count


def keep_alive(*sockets):
    """Have heartbeats sent, whatever else happens."""
    def beat():
        with contextlib.suppress(OSError):
            while not threading.Event().wait(0.1):
                for sock in sockets:
                    sock.sendall(message(ALIVE))
    start(beat)


def next_message(sock):
    """The next one that is no heartbeat."""
    while True:
        kind, status, size = HEADER.unpack(receive(sock, HEADER.size))
        if kind != ALIVE:
            return kind, status, receive(sock, size)


def is_closed(sock):
    try:
        return sock.recv(1) == b''
    except ConnectionResetError:
        return True


def refusal(sock):
    status, size = ANSWER.unpack(receive(sock, ANSWER.size))
    return status, receive(sock, size).decode()


# Joining


def test_strangers_neither_join_nor_keep_the_ranks_from_joining(ended):
    first, second, third = infos(3)
    group = start(group_of, first)
    silent = [connect(first, b''), connect(first, hello(second)[:9])]
    for said in b'GET / HTTP/1.1\r\n\r\n', b'\x16\x03\x01' + bytes(100), hello(second) + b'more':
        assert is_closed(connect(first, said))
    for rank, world_size in (3, 3), (0, 3), (1, 2), (2 ** 32 - 1, 3):
        status, sentence = refusal(connect(first, HELLO.pack(GREETING, rank, world_size)))
        assert status == 2 and 'rank %d of %d' % (rank, world_size) in sentence
    silent += [connect(first, b'') for _ in range(STRANGERS)]
    assert is_closed(silent[0]) and is_closed(silent[1])        # too many: the oldest make room
    groups = [start(group_of, info) for info in (second, third)]
    groups = [future.result(LIMIT) for future in [group] + groups]
    assert [start(each.broadcast, b'it').result(LIMIT) for each in groups] == [b'it'] * 3
    assert all(map(is_closed, silent))


def test_a_rank_that_went_may_come_again_and_one_that_is_there_may_not(ended):
    first, second, third = infos(3)
    group = start(group_of, first)
    connect(first, hello(second)).close()
    there = connect(first, hello(second))
    again = start(group_of, second)
    with pytest.raises(RunError, match=r'Rank 0 \(127.*: a process came as rank 1 of 3 .* after another one; give') as raised:
        again.result(LIMIT)
    assert raised.value.status == 2
    other = start(group_of, third)
    assert receive(there, ANSWER.size) == ANSWER.pack(0, 0)
    assert group.result(LIMIT).world_size == other.result(LIMIT).world_size == 3


def test_who_did_not_come_is_named_to_all():
    first, second, _ = infos(3)
    joining = [start(rendezvous.join, first, 0.5), start(rendezvous.join, second, LIMIT)]
    for future in joining:
        with pytest.raises(RunError, match=r'Rank 2 \(127.* did not come within 0.5 seconds \(--join-timeout\)'):
            future.result(LIMIT)


@pytest.mark.parametrize('host, elsewhere', [('localhost', False), ('127.0.0.9', False), ('other.host', True)])
def test_rank_0_listens_on_the_loopback_alone_if_all_ranks_are_there(host, elsewhere):
    with rendezvous._listener((infos(1)[0].workers[0], host + ':1')) as listener, socket.socket() as stranger:
        refused = stranger.connect_ex(('127.0.0.2', listener.getsockname()[1]))
    assert (refused == 0) == elsewhere


@pytest.fixture
def impostor():
    """A listener, and the info of a rank 1 that takes it for rank 0."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(5)
        yield listener, RankInfo(1, 2, ('127.0.0.1:%d' % listener.getsockname()[1], '127.0.0.1:1'), 2)


@pytest.mark.parametrize('answer', [b'', b'H', ANSWER.pack(1, 10) + b'slowly'])
def test_a_rank_waits_no_longer_for_what_does_not_answer(impostor, answer):
    listener, info = impostor
    joining = start(rendezvous.join, info, 0.3)
    with listener.accept()[0] as sock:
        sock.sendall(answer)
        with pytest.raises(RunError, match=r'Rank 0 \(127.* within 0.3 seconds \(--join-timeout\): timed out'):
            joining.result(LIMIT)


def test_a_rank_asks_again_after_what_is_no_rank_0_and_then_waits(impostor, monkeypatch):
    monkeypatch.setattr(rendezvous, 'CONNECT_SECONDS', 0.1)
    listener, info = impostor
    joining = start(rendezvous.join, info, LIMIT)
    listener.accept()[0].close()
    sock = listener.accept()[0]
    assert receive(sock, HELLO.size) == hello(info)
    listener.settimeout(0.5)
    with pytest.raises(socket.timeout):     # it does not come a third time
        listener.accept()
    sock.sendall(ANSWER.pack(0, 0))
    assert list(joining.result(LIMIT)) == [0]


def test_what_another_says_cannot_command_the_terminal(impostor):
    listener, info = impostor
    joining = start(rendezvous.join, info, LIMIT)
    listener.accept()[0].sendall(ANSWER.pack(7, 8) + b'\x1b[2Jno\n\xff')
    with pytest.raises(RunError, match=r': \\x1b\[2Jno\\n\ufffd$') as raised:
        joining.result(LIMIT)
    assert raised.value.status == 7


# Together


def test_every_rank_gets_what_rank_0_has(ended):
    groups = groups_of(3)
    data = bytes(range(256)) * 10000
    received = [start(group.broadcast, data if group.rank == 0 else None) for group in groups]
    assert all(future.result(LIMIT) == data for future in received)
    left = [start(group.leave, 0) for group in reversed(groups)]
    assert [future.result(LIMIT) for future in left] == [None] * 3 and ended.empty()


def test_the_main_process_is_first(ended):
    group, sock = with_played(peer_timeout=2)
    with group.main_process_first():
        assert heartbeats(sock, 2)
    assert next_message(sock) == (DATA, 0, b'')


def test_a_rank_that_is_ready_waits_for_the_end_of_rank_0(ended, impostor):
    listener, info = impostor
    group = start(group_of, info, 2)
    sock = listener.accept()[0]
    sock.sendall(ANSWER.pack(0, 0))
    receive(sock, HELLO.size)
    leaving = start(group.result(LIMIT).leave, 0)
    assert next_message(sock) == (LEAVE, 0, b'')
    assert heartbeats(sock, 2) and not leaving.done()
    sock.sendall(message(LEAVE))
    assert leaving.result(LIMIT) is None and ended.empty()


def test_what_differs_is_named(ended):
    groups = groups_of(3)
    values = [{'--seed': 1, 'the images': 'a' * 64}, {'--seed': 1, 'the images': 'a' * 64}, {'--seed': 2, 'the images': 'b' * 64}]
    for group in groups[1:]:
        group.check_equal(values[group.rank])
    with pytest.raises(InputError, match=r'^Rank 2 differs from rank 0 in --seed \(2, not 1\), the images; start every rank'):
        start(groups[0].check_equal, values[0]).result(LIMIT)


@pytest.mark.parametrize('sent', [b'\xff', b'[1]', b'7', b'{"a": 1', b'[' * 60000, b'{"a": ' + b'[' * 900 + b']' * 900 + b'}'])
def test_values_that_no_rank_sends(ended, sent):
    group, sock = with_played()
    sock.sendall(message(DATA, payload=sent))
    with pytest.raises(RunError, match=r'^Rank 1 (\(127.* sent what no rank sends; the run ends|differs from rank 0 in a \(\[\[\[)'):
        start(group.check_equal, {'a': 1}).result(LIMIT)


def test_a_signal_goes_to_rank_0(ended, capsys):
    group, other = groups_of(2)
    received = queue.Queue()
    group.on_stop = received.put
    other.request_stop(signal.SIGINT)
    assert received.get(timeout=LIMIT) == signal.SIGINT
    group.on_stop = None
    other.request_stop(signal.SIGTERM)
    assert [ended.get(timeout=LIMIT) for _ in range(2)] == [143, 143]
    assert 'Rank 1 (127.0.0.1:' in capsys.readouterr().err


# Lost


def test_a_rank_that_fails_ends_the_others_with_its_status_and_sentence(ended, capsys):
    group, sock = with_played()
    sock.sendall(message(LEAVE, 3, b'It \x1b[2Jdiverged.'))
    assert ended.get(timeout=LIMIT) == 3
    assert capsys.readouterr().err == 'Rank 1 (%s) ends the run: It \\x1b[2Jdiverged.\n' % group.workers[1]


def test_a_silent_rank_is_named_to_all(ended, capsys):
    group, silent, other = with_played(3, peer_timeout=1.5)
    keep_alive(other)
    assert ended.get(timeout=LIMIT) == 1
    sentence = 'Rank 1 (%s) does not answer for 1.5 seconds (--peer-timeout)' % group.workers[1]
    assert capsys.readouterr().err.startswith(sentence)
    kind, status, told = next_message(other)
    assert (kind, status) == (LEAVE, 1) and told.startswith(sentence.encode())


def test_a_wait_lasts_as_long_as_heartbeats_arrive_and_a_slow_rank_delays_no_other(ended):
    """Rank 1 does not read, for longer than the time after which a silent rank is lost; rank 2 shows how time goes by."""
    group, slow, other = with_played(3, peer_timeout=2)
    keep_alive(slow, other)
    data = bytes(30 << 20)      # more than waits in a connection
    assert start(group.broadcast, data).result(LIMIT) == data
    assert next_message(other) == (DATA, 0, data)
    assert heartbeats(other, HEARTBEATS + 2) and ended.empty()
    assert next_message(slow) == (DATA, 0, data) and ended.empty()


def test_a_process_that_was_stopped_listens_again_before_it_calls_another_silent():
    class Socket:
        def __init__(self, *parts):
            self.parts = list(parts)

        def recv(self, size):
            part = self.parts.pop(0)
            if part is None:
                raise socket.timeout
            return part
    silent = [None] * (HEARTBEATS - 1)
    assert rendezvous.read(Socket(*silent, b'a', *silent, b'b'), 2, attempts=HEARTBEATS) == b'ab'
    with pytest.raises(socket.timeout):
        rendezvous.read(Socket(*silent, None, b'a'), 1, attempts=HEARTBEATS)


@pytest.mark.parametrize('sent', [
    b'GET / HTTP/1.1\r\n\r\n', message(b'x'), message(ALIVE, 0, b'more'), message(STOP, 0), message(STOP, 250),
    HEADER.pack(DATA, 0, FROM_OTHERS[DATA] + 1), HEADER.pack(LEAVE, 1, 2 ** 32 - 1), message(DATA) * (UNREAD + 1)])
def test_what_no_rank_sends(ended, capsys, sent):
    group, sock = with_played()
    sock.sendall(sent)
    assert ended.get(timeout=LIMIT) == 1
    assert capsys.readouterr().err.startswith('Rank 1 (%s) sent what no rank sends; the run ends here' % group.workers[1])
    kind, status, sentence = next_message(sock)
    assert (kind, status) == (LEAVE, 1) and b'what no rank sends' in sentence


def test_a_rank_lost_after_its_last_step_is_missed_only_when_it_is_needed(ended, capsys):
    group, sock, other = with_played(3)
    sock.sendall(message(LEAVE))
    sock.close()
    with pytest.raises(RunError, match=r'^Rank 1 \(127.* is gone; the run ends here and goes on with --resume'):
        start(group.check_equal, {}).result(LIMIT)
    other.sendall(message(LEAVE) + message(DATA, payload=b'{}'))    # a further run
    other.close()
    assert ended.get(timeout=LIMIT) == 1
    assert capsys.readouterr().err.startswith('Rank 2 (')


def test_a_rank_that_fails_after_its_last_step_ends_the_run_in_which_it_is_needed(ended):
    group, sock = with_played()
    sock.sendall(message(LEAVE) + message(LEAVE, 2, b'It cannot be read.'))
    sock.close()
    with pytest.raises(RunError, match=r'^Rank 1 \(127.* ends the run: It cannot be read.$'):
        start(group.check_equal, {}).result(LIMIT)
    assert ended.empty()


def test_a_rank_that_does_not_read_cannot_hold_the_end_up(ended):
    group, stopped, other = with_played(3)
    group.broadcast(bytes(30 << 20))
    received = start(lambda: [next_message(other), next_message(other)])
    start(group.leave, 2, 'wrong \udcff').result(LIMIT)
    assert received.result(LIMIT)[1] == (LEAVE, 2, b'wrong \\udcff')


def test_a_rank_that_is_not_the_first_may_print(ended, monkeypatch):
    """As Keras does when it downloads."""
    def load(*_):
        sys.stdout.write('1/2 [===>')
        sys.stdout.flush()
        raise InputError('loaded')
    monkeypatch.setattr(train_evaluate_sesemi, 'load_dataset', load)
    first, second = infos(2)
    group = start(group_of, first)
    status = start(train_evaluate_sesemi.main, ['--data', 'digits', '--workers', ','.join(second.workers), '--rank', '1'])
    with group.result(LIMIT).main_process_first():
        pass
    assert status.result(LIMIT) == 2 and ended.get(timeout=LIMIT) == 2
