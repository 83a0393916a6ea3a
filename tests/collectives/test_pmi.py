"""How processes of a job tell each other what they have to know: here threads, and the launcher's server."""

import selectors
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from disttrain.collectives.errors import CollectiveTimeout, PeerFailed, TransportUnavailable
from disttrain.collectives.pmi import Pmi
from disttrain.launcher.pmi import PmiServer, environ


@pytest.fixture
def world():
    """``world(n)`` returns the environments of n processes whose server runs."""
    ended = threading.Event()
    with ThreadPoolExecutor() as threads, selectors.DefaultSelector() as selector:
        server = []

        def serve():
            while not ended.is_set():
                for key, _ in selector.select(0.01):
                    if not server[0].read(key.data):
                        selector.unregister(key.fileobj)

        def start(n):
            server.append(PmiServer([n], "test"))
            environs = []
            for process in range(n):
                ours, theirs = server[0].connect(process)
                selector.register(ours, selectors.EVENT_READ, process)
                environs.append(environ(process, n, theirs))
                theirs.detach()
            threads.submit(serve)
            return environs

        yield start
        ended.set()
    server[0].close()


def close(connections):
    for connection in connections:
        socket.socket(fileno=connection._socket).close()


def test_every_process_is_told_what_all_have_said_each_time(world):
    connections = [Pmi(env) for env in world(3)]

    def body(connection):
        first = connection.gather(bytes([connection.index, 0, 255]), 10.0)
        return first, connection.gather(b"x" * 500 + b"012"[connection.index : connection.index + 1], 10.0)

    with ThreadPoolExecutor(3) as threads:
        told = list(threads.map(body, connections))

    assert (
        told == [([bytes([i, 0, 255]) for i in range(3)], [b"x" * 500 + c for c in (b"0", b"1", b"2")])] * 3
    )
    close(connections)


def test_a_process_that_does_not_come_is_waited_for_as_long_as_was_said(world):
    connections = [Pmi(env) for env in world(2)]

    with pytest.raises(CollectiveTimeout, match="not all processes of the job have connected in time"):
        connections[0].gather(b"x", 0.05)

    close(connections)


def test_a_process_that_connects_in_another_way_is_named(world):
    ours, other = (Pmi(env) for env in world(2))

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(other._ask, "barrier_in", "barrier_out")
        with pytest.raises(PeerFailed, match="process 1 of the job does not connect as process 0 does"):
            ours.gather(b"x", 10.0)
        answer.result()

    close([ours, other])


def served_by(answers):
    """Return the environment of a process whose server says this and no more."""
    ours, theirs = socket.socketpair()
    ours.sendall(answers)
    ours.shutdown(socket.SHUT_WR)
    return ours, environ(0, 1, theirs), theirs


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (b"", r"does not answer \(the launcher of this job has gone\)"),
        (b"cmd=response_to_", r"does not answer \(the launcher of this job has gone\)"),
        (b"HTTP/1.1 400 Bad Request\n", "answers 'HTTP/1.1 400 Bad Request' to 'init"),
    ],
)
def test_a_server_that_is_none_is_found_out(answers, said):
    ours, env, theirs = served_by(answers)

    with pytest.raises(TransportUnavailable, match=said):
        Pmi(env)

    ours.close()
    theirs.close()


def test_a_server_that_goes_is_found_out():
    begin = b"cmd=response_to_init rc=0\ncmd=my_kvsname kvsname=table\n"
    ours, env, theirs = served_by(begin)
    connection = Pmi(env)

    with pytest.raises(PeerFailed, match="the launcher of this job has gone"):
        connection.gather(b"x", 10.0)

    connection.release()
    connection.finalize()  # says nothing, to nobody
    ours.close()
    theirs.close()
