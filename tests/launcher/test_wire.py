"""The encrypted line between agents: who gets in, and that nothing that comes does harm."""

import json
import random
import resource
import socket

import pytest
import zmq

from disttrain.collectives.control import BadMessage
from disttrain.launcher.wire import Hub, Keys, Link, LostConnection, Ticket, address_towards, pack, unpack

WAIT = 5000  # ms


@pytest.fixture
def hub():
    hub = Hub(run="job", nodes=2)
    yield hub
    hub.close()


@pytest.fixture
def links():
    """Make agents' ends that are closed after the test."""
    made = []

    def link(hub, node, **changes):
        ticket = {
            "endpoint": hub.listen("127.0.0.1"),
            "server": hub.server.public,
            "keys": hub.nodes[node],
            "run": "job",
        }
        made.append(Link(Ticket(**ticket | changes)))
        return made[-1]

    yield link
    for link in made:
        link.close()


def wait(end, *others):
    """Return what ``end`` receives next, while the others do their part."""
    poller = zmq.Poller()
    for fd in (*end.fds, *(fd for other in others for fd in other.fds)):
        poller.register(fd, zmq.POLLIN)
    for _ in range(100):
        for other in others:
            other.receive()
        if messages := end.receive():
            return messages
        assert poller.poll(WAIT)
    raise AssertionError("nothing has come")


def test_the_port_is_one_that_the_system_has_chosen_at_one_address(hub):
    host, _, port = hub.listen("127.0.0.1").removeprefix("tcp://").rpartition(":")

    assert host == "127.0.0.1"
    assert int(port) > 1023
    assert hub.listen("127.0.0.1").endswith(f":{port}")
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", int(port)))


def test_the_address_towards_a_host_is_ours():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    with pytest.raises(OSError, match=r"not known|resolution"):
        address_towards("no-such-host.invalid")


def test_a_node_is_known_by_its_key(hub, links):
    link = links(hub, 1)
    link.send("notice", text="here")

    ((node, message),) = wait(hub)
    hub.send(1, "beat", generation=0)

    assert (node, message["kind"], message["text"]) == (1, "notice", "here")
    assert [m["kind"] for m in wait(link, hub)] == ["beat"]


def test_a_wrong_key_is_refused_counted_and_told(hub, links):
    stranger = links(hub, 0, keys=Keys.make())

    with pytest.raises(LostConnection, match="does not accept this key"):
        wait(stranger, hub)

    assert hub.refused == 1


def test_a_peer_without_encryption_is_refused_and_counted(hub):
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(hub.listen("127.0.0.1"))
        stranger.send(b"x")
        poller = zmq.Poller()
        for fd in hub.fds:
            poller.register(fd, zmq.POLLIN)
        while hub.refused == 0:
            assert poller.poll(WAIT)
            assert hub.receive() == []


def test_an_endpoint_where_nobody_listens_is_told(hub, links):
    port = socket.create_server(("127.0.0.1", 0))
    taken = port.getsockname()[1]
    port.close()

    link = links(hub, 0, endpoint=f"tcp://127.0.0.1:{taken}")

    with pytest.raises(LostConnection, match="cannot be reached"):
        wait(link)


def test_a_launcher_that_goes_is_noticed(links):
    hub = Hub(run="job", nodes=1)
    link = links(hub, 0)
    link.send("beat")
    wait(hub)
    hub.close()

    with pytest.raises(LostConnection, match="has broken"):
        wait(link)


def test_a_message_of_another_run_is_ignored(hub, links):
    link = links(hub, 0, run="other")

    link.send("beat")

    wait_for_bad(hub, 1)
    assert "of run 'other', this is run job" in hub.complaints[0]


def wait_for_bad(hub, count):
    poller = zmq.Poller()
    for fd in hub.fds:
        poller.register(fd, zmq.POLLIN)
    while hub.bad < count:
        assert hub.receive() == []
        assert hub.bad >= count or poller.poll(WAIT)


def noise(count):
    """Yield messages that are none: random bytes, and messages of ours with bytes changed, cut or deepened."""
    dice = random.Random(0)
    whole = json.dumps(
        {"v": 1, "kind": "exit", "run": "job", "generation": 0, "process": 3, "status": 0},
        separators=(",", ":"),
    ).encode()
    for _ in range(count):
        match dice.randrange(5):
            case 0:
                yield dice.randbytes(dice.randrange(64))
            case 1:
                yield whole[: dice.randrange(len(whole))]
            case 2:
                yield b"[" * dice.randrange(1, 300)
            case 3:
                yield whole.replace(b'"exit"', json.dumps(dice.randbytes(4).hex()).encode())
            case _:
                yield whole.replace(b"3", json.dumps(dice.choice([None, "x", 1.5, [], {}, True])).encode())


def test_a_hundred_thousand_messages_that_are_none_change_nothing(hub, links):
    """From a node with a good key: what a stranger sends does not even get so far."""
    link = links(hub, 0)
    link.send("beat")
    wait(hub)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for sent, data in enumerate(noise(100_000), 1):
        link._socket.send(data)
        if sent % 1000 == 0:
            wait_for_bad(hub, sent)

    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert hub.bad == 100_000
    assert len(hub.complaints) == 20
    assert grown < 64 << 10  # KiB
    link.send("notice", text="still here")
    assert [m["text"] for _, m in wait(hub)] == ["still here"]


def test_bytes_from_strangers_do_no_harm(hub, links):
    """Plain TCP: no greeting, a wrong one, a frame that claims 2^62 bytes."""
    host, _, port = hub.listen("127.0.0.1").removeprefix("tcp://").rpartition(":")
    dice = random.Random(1)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(15) + b"\x00" + bytes(31)
    for text in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        greeting + b"\x06" + (1 << 62).to_bytes(8, "big"),
        *map(dice.randbytes, range(200)),
    ):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(text)
            hub.receive()

    link = links(hub, 0)
    link.send("notice", text="still here")

    assert [m["text"] for _, m in wait(hub)] == ["still here"]
    assert hub.bad == 0


def test_ledgers_travel_small_and_come_back_whole():
    data = bytes(100_000) + b"call"

    assert len(pack(data)) < 1000
    assert unpack(pack(data), len(data)) == data


@pytest.mark.parametrize("text", ["*", "AAAA", pack(b"short"), pack(bytes(1 << 24))])
def test_what_is_no_ledger_of_that_size_is_refused(text):
    with pytest.raises(BadMessage, match=r"base64|compressed|size"):
        unpack(text, 1000)
