"""Messages between workers and launcher: what is accepted, and that nothing else does harm."""

import json
import random
import threading

import pytest
import zmq

from disttrain.collectives.control import BadMessage, decode, encode, post_end
from disttrain.launcher.control_plane import ControlPlane

END = {
    "v": 1,
    "kind": "end",
    "run": "job",
    "generation": 0,
    "process": 1,
    "rank": 1,
    "code": 3,
    "error": "ValueError",
    "message": "bad",
    "traceback": "",
    "follower": False,
}


def test_a_message_survives_the_wire():
    assert decode(encode(END)) == END


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no JSON"),
        (b"\x80\x04\x95", "no JSON"),  # a pickle
        (b"[1]", "an object is needed, got list"),
        (b"[" * 100_000, "nested deeper than 8"),
        (b'{"a":' * 50 + b"1" + b"}" * 50, "nested deeper than 8"),
        (b" " * (1 << 21), "at most 1048576 are allowed"),
        (json.dumps(END | {"v": 2}).encode(), "version '2', this is version 1"),
        (json.dumps(END | {"kind": "exec"}).encode(), "unknown kind 'exec'"),
        (json.dumps(END | {"extra": 1}).encode(), "missing or unknown fields extra"),
        (
            json.dumps({k: v for k, v in END.items() if k != "rank"}).encode(),
            "missing or unknown fields rank",
        ),
        (json.dumps(END | {"rank": True}).encode(), "'rank' of 'end' must be int, got bool"),
        (json.dumps(END | {"code": "3"}).encode(), "'code' of 'end' must be int, got str"),
    ],
)
def test_what_is_no_message_is_refused_by_reason(data, said):
    with pytest.raises(BadMessage, match=said):
        decode(data)


@pytest.fixture
def plane(tmp_path):
    plane = ControlPlane("inproc://control", run="job", generation=0, processes=2)
    yield plane
    plane.close()


@pytest.fixture
def peer(plane):
    socket = plane._context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect("inproc://control")
    yield socket
    socket.close()


def test_a_report_is_taken_and_answered(plane, peer):
    peer.send(encode(END))

    assert plane.receive() == [END]
    assert peer.poll(1000)
    assert decode(peer.recv())["kind"] == "ack"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run": "other"}, "of run 'other' generation 0, this is run job generation 0"),
        ({"generation": 1}, "of run 'job' generation 1"),
        ({"process": 2}, "from process 2 of 2"),
        ({"process": -1}, "from process -1 of 2"),
    ],
)
def test_a_message_of_another_job_or_process_is_ignored(plane, peer, change, said):
    peer.send(encode(END | change))

    assert plane.receive() == []
    assert plane.bad == 1
    assert said in plane.complaints[0]


def test_a_hundred_thousand_messages_that_are_none_change_nothing(plane, peer):
    noise = random.Random(0)
    kinds = set()
    for _ in range(500):
        for _ in range(100):
            frames = [noise.randbytes(noise.randrange(40)) for _ in range(noise.randrange(1, 4))]
            peer.send_multipart(frames)
            text = list(encode(END))
            text[noise.randrange(len(text))] = noise.randrange(256)
            peer.send(bytes(text))
        kinds |= {m["kind"] for m in plane.receive()}  # some changes leave a message that is one
        while peer.poll(0):
            peer.recv()
    assert kinds <= {"end"}
    assert plane.bad > 90_000
    assert len(plane.complaints) <= 20

    peer.send(encode(END))

    assert plane.receive() == [END]


def test_a_worker_knows_whether_it_was_heard(tmp_path):
    endpoint = f"ipc://{tmp_path}/c"
    plane = ControlPlane(endpoint, run="job", generation=0, processes=1)
    got = []

    def serve():
        poller = zmq.Poller()
        poller.register(plane.fd, zmq.POLLIN)
        while not got and poller.poll(5000):
            got.extend(plane.receive())

    server = threading.Thread(target=serve)
    server.start()
    heard = post_end(
        endpoint, run="job", generation=0, process=0, rank=0, code=1, message="\ud800" + "x" * 200_000
    )
    server.join()
    plane.close()

    assert heard
    assert len(got[0]["message"]) < 70_000
    assert not post_end(endpoint, run="job", generation=0, process=0, rank=0, code=1, timeout=0.05)


def test_a_worker_of_an_old_generation_is_refused(tmp_path):
    plane = ControlPlane(f"ipc://{tmp_path}/c", run="job", generation=0, processes=2)
    plane.begin(1, 2)
    sent = threading.Thread(
        target=post_end,
        args=(f"ipc://{tmp_path}/c",),
        kwargs={"run": "job", "generation": 0, "process": 1, "rank": 1, "code": 3, "timeout": 0.5},
    )

    sent.start()
    taken = []
    while sent.is_alive():
        taken += plane.receive()
        sent.join(0.01)
    plane.close()

    assert taken == []
    assert plane.complaints == [
        "ignored a message on the control plane: of run 'job' generation 0, this is run job generation 1"
    ]
