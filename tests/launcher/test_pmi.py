"""The PMI-1 server, spoken to as MPICH speaks to it."""

import socket

import pytest

from disttrain.launcher.pmi import PmiServer


@pytest.fixture
def world():
    server = PmiServer([2], "kvs")
    children = [server.connect(process)[1] for process in range(2)]
    yield server, children
    server.close()
    for child in children:
        child.close()


def ask(server: PmiServer, child: socket.socket, process: int, line: str) -> str:
    child.sendall(f"{line}\n".encode())
    assert server.read(process)
    child.settimeout(1.0)
    return child.recv(4096).decode()


def test_the_questions_of_init_are_answered(world):
    server, (child, _) = world

    assert ask(server, child, 0, "cmd=init pmi_version=1 pmi_subversion=1").endswith("rc=0\n")
    assert ask(server, child, 0, "cmd=get_my_kvsname") == "cmd=my_kvsname kvsname=kvs\n"
    assert ask(server, child, 0, "cmd=get kvsname=kvs key=PMI_process_mapping").endswith(
        "value=(vector,(0,1,2))\n"
    )
    assert ask(server, child, 0, "cmd=get kvsname=kvs key=none").startswith("cmd=get_result rc=-1")


def test_a_value_of_one_process_is_seen_by_the_other_after_a_barrier(world):
    server, (a, b) = world

    assert ask(server, a, 0, "cmd=put kvsname=kvs key=card value=x=1 y").startswith("cmd=put_result rc=0")
    a.sendall(b"cmd=barrier_in\n")
    assert server.read(0)
    assert ask(server, b, 1, "cmd=barrier_in") == "cmd=barrier_out\n"
    assert a.recv(64) == b"cmd=barrier_out\n"
    assert ask(server, b, 1, "cmd=get kvsname=kvs key=card").endswith("value=x=1 y\n")


def test_a_request_may_come_in_pieces(world):
    server, (child, _) = world
    child.sendall(b"cmd=get_app")
    assert server.read(0)

    assert ask(server, child, 0, "num") == "cmd=appnum appnum=0\n"


def test_an_abort_is_noted_and_the_unknown_is_refused(world):
    server, (a, b) = world
    a.sendall(b"cmd=abort exitcode=5\n")
    assert server.read(0)

    assert ask(server, b, 1, "cmd=spawn nprocs=1") == "cmd=spawn_result rc=-1 msg=unsupported\n"
    assert server.aborts == {0: 5}
    assert server.complaints == ["process 1 asked for 'spawn', which is not served"]


def test_the_end_of_a_connection_is_told(world):
    server, (child, _) = world
    child.close()

    assert not server.read(0)


@pytest.mark.parametrize("code", ["--5", "²", "9" * 5000, "", "x"])
def test_an_abort_with_a_code_that_is_no_number_is_an_abort(world, code):
    server, (child, _) = world
    child.sendall(f"cmd=abort exitcode={code}\n".encode())

    assert server.read(0)

    assert server.aborts == {0: 1}


def test_a_process_that_asks_for_nonsense_for_ever_is_not_remembered_for_ever(world):
    server, (child, _) = world
    child.sendall(b"cmd=nonsense\n" * 100)

    assert server.read(0)

    assert 0 < len(server.complaints) < 50


@pytest.mark.timeout(20)
def test_a_process_that_never_reads_its_answers_does_not_stop_the_launcher(world):
    server, (child, _) = world

    for _ in range(100):
        child.sendall(b"cmd=get_appnum\n" * 1000)
        assert server.read(0)
