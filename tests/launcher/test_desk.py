"""The socket where a job is asked: what fits no schema is answered or hung up on, and disturbs nobody."""

import json
import random
import selectors
import socket
import stat
import threading

import pytest

from disttrain.collectives.control import VERSION
from disttrain.launcher.desk import MAX_QUESTION, Desk

RUN = "0123456789ab"


@pytest.fixture
def desk(runtime):
    """A desk that answers with what it was asked, its loop in a thread; and the path of its socket."""
    selector = selectors.DefaultSelector()
    path = runtime / "desk"
    ours, theirs = socket.socketpair()
    stop = threading.Event()
    selector.register(ours, selectors.EVENT_READ, stop.set)

    def answer(question):
        return {"kind": "reply", "done": True, "text": "x" * (1 << 20), "number": 1}

    desk = Desk(path, RUN, selector, answer)

    def loop():
        while not stop.is_set():
            for key, _ in selector.select():
                key.data()

    thread = threading.Thread(target=loop)
    thread.start()
    yield desk, path
    theirs.close()
    thread.join()
    desk.close()
    selector.close()
    ours.close()
    assert not path.exists()


def connect(path):
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    caller.connect(str(path))  # waits where too many others do
    caller.settimeout(10)
    return caller


def question(**fields):
    return json.dumps({"v": VERSION, "kind": "status", "run": RUN, **fields}).encode() + b"\n"


def answer_to(caller, data):
    caller.sendall(data)
    with caller.makefile("rb") as lines:
        return json.loads(lines.readline())


def test_only_the_user_may_come_in(desk):
    _, path = desk

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_question_may_come_in_pieces_and_others_behind_it(desk):
    _, path = desk
    with connect(path) as caller, caller.makefile("rb") as lines:
        for byte in question():
            caller.send(bytes([byte]))
        caller.sendall(question(kind="kill") + question())

        answers = [json.loads(lines.readline()) for _ in range(3)]

    assert [(a["kind"], len(a["text"])) for a in answers] == [("reply", 1 << 20)] * 3


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (b"{}\n", "version 'None', this is version 1"),
        (b"[" * 100 + b"\n", "nested deeper than 8"),
        (b"\xff\n", "no JSON"),
        (question(kind="exec"), "unknown kind 'exec'"),
        (question(kind="ctl", command=3), "'command' of 'ctl' must be str, got int"),
        (question(more=1), "unknown fields more"),
        (question(run="other"), "for run 'other', this is 0123456789ab"),
    ],
)
def test_what_makes_no_sense_is_answered_so(desk, asked, why):
    served, path = desk
    with connect(path) as caller:
        answer = answer_to(caller, asked)

        assert answer["kind"] == "bad"
        assert why in answer["text"]
        assert served.bad == 1
        assert answer_to(caller, question())["kind"] == "reply"


def test_whoever_sends_no_line_is_hung_up_on(desk):
    _, path = desk
    with connect(path) as caller:
        caller.sendall(b"x" * (MAX_QUESTION + 1))

        assert caller.recv(1) == b""


def test_callers_that_do_nothing_or_leave_do_not_keep_others_out(desk):
    _, path = desk
    idle = [connect(path) for _ in range(100)]
    for caller in idle[90:]:  # the last ones: earlier ones have been hung up on
        caller.sendall(question())  # and takes no answer
    with connect(path) as caller:
        assert answer_to(caller, question())["kind"] == "reply"
    for caller in idle:
        caller.close()


def test_ten_thousand_lines_of_anything(desk):
    served, path = desk
    generator = random.Random(7)
    good = question(kind="ctl", command="save")
    with connect(path) as caller, caller.makefile("rb") as lines:
        for _ in range(10_000):
            data = bytearray(good[:-1])
            for _ in range(generator.randrange(1, 4)):
                data[generator.randrange(len(data))] = generator.choice(b'{}[]",:0\x00\xffn')
            if b"\n" in data or bytes(data) == good[:-1]:
                continue
            caller.sendall(bytes(data) + b"\n")
            assert json.loads(lines.readline())["kind"] in ("bad", "reply")
        assert answer_to(caller, good)["kind"] == "reply"
    assert served.bad > 5_000
