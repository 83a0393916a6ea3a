"""The control plane as the workers see it: what its messages are, and how a worker sends one.

A message is one JSON object of a closed list of kinds (:data:`KINDS`), of :data:`MAX_BYTES` bytes at most;
nothing on this wire is ever unpickled or evaluated. ``disttrain.launcher.control_plane`` is the other side.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Final

VERSION: Final = 1
MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 8
MAX_TEXT: Final = 64 << 10
"""Characters that a sender keeps of one traceback or error message."""

Message = dict[str, Any]
Kinds = Mapping[str, Mapping[str, type]]
"""Kind of message → its fields beside those that all have, and their types."""

_COMMON: Final[Mapping[str, type]] = {"v": int, "kind": str, "run": str, "generation": int, "process": int}
KINDS: Final[Kinds] = {
    # A rank of the process has left the script: how, and with which exit code. Answered with an "ack".
    "end": {
        "rank": int,
        "code": int,
        "error": str,  # the exception's class, "" if there was none
        "message": str,
        "traceback": str,  # the user's frames, "" if there is nothing to show
        "follower": bool,  # the error only says that a peer failed
    },
    # A rank is about to suffer a fault that ``--chaos`` orders. Answered with an "ack".
    "chaos": {"rank": int, "fault": str},
    "ack": {},
    # Between processes of a job: have these ranks of the process ``asked`` come to that call, and where are they?
    "where": {
        "number": int,  # of the question
        "asked": int,
        "ranks": list,
        "group": str,
        "call": int,
        "pair": list,  # sender and receiver of a message, else empty
        "stacks": bool,
    },
    # Its answer: what ``disttrain.collectives.peers.Where`` has, for each rank.
    "there": {"number": int, "ranks": list},
}


REPORTS: Final = ("end", "chaos")
"""What a worker sends to the launcher."""


class BadMessage(ValueError):
    """Bytes from the control plane that are no message of ours."""


def encode(message: Message, kinds: Kinds = KINDS) -> bytes:
    """Return ``message``, one of ``kinds``, as bytes for the wire.

    Raises:
        BadMessage: it does not fit the schema; a mistake of the sender.
    """
    check(message, kinds)
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_BYTES:
        raise BadMessage(f"a message may have {MAX_BYTES} bytes, this {message['kind']!r} has {len(data)}")
    return data


def decode(data: bytes, kinds: Kinds = KINDS, common: Mapping[str, type] = _COMMON) -> Message:
    """Return the message, one of ``kinds``, in ``data``, which may be anything anybody sent.

    Args:
        kinds: those that may come, with their fields.
        common: the fields of all of them.

    Raises:
        BadMessage: too long, no JSON, too deep, or not of the schema.
    """
    if len(data) > MAX_BYTES:
        raise BadMessage(f"{len(data)} bytes, at most {MAX_BYTES} are allowed")
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise BadMessage(f"nested deeper than {MAX_DEPTH}")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise BadMessage(f"no JSON: {e}") from None
    check(message, kinds, common)
    return message  # type: ignore[no-any-return]


def _depth(data: bytes) -> int:
    """Return an upper bound of the nesting in ``data``: brackets outside of strings, without parsing."""
    depth = deepest = 0
    quoted = escaped = False
    for c in data:
        if quoted:
            quoted = escaped or c != 0x22
            escaped = c == 0x5C and not escaped
        elif c == 0x22:
            quoted = True
        elif c in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in b"]}":
            depth -= 1
    return deepest


def check(message: object, kinds: Kinds = KINDS, common: Mapping[str, type] = _COMMON) -> None:
    """Refuse what is not exactly one of ``kinds``: every field there, of its type, and no other.

    Raises:
        BadMessage: says which field is wrong.
    """
    if not isinstance(message, dict):
        raise BadMessage(f"an object is needed, got {type(message).__name__}")
    if message.get("v") != VERSION:
        raise BadMessage(f"version {str(message.get('v'))[:20]!r}, this is version {VERSION}")
    kind = message.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise BadMessage(f"unknown kind {str(kind)[:40]!r}")
    fields = {**common, **kinds[kind]}
    if wrong := sorted(str(name)[:40] for name in fields.keys() ^ message.keys()):
        raise BadMessage(f"{kind!r} with missing or unknown fields {', '.join(wrong[:5])}")
    for name, wanted in fields.items():
        if type(message[name]) is not wanted:  # bool is an int to isinstance
            got = type(message[name]).__name__
            raise BadMessage(f"{name!r} of {kind!r} must be {wanted.__name__}, got {got}")


def post_end(
    control: str,
    *,
    run: str,
    generation: int,
    process: int,
    rank: int,
    code: int,
    error: str = "",
    message: str = "",
    traceback: str = "",
    follower: bool = False,
    timeout: float = 2.0,
) -> bool:
    """Tell the launcher at ``control`` how a rank left the script; return whether it has heard.

    Waits up to ``timeout`` seconds for the answer, so that the report is in the launcher's hands before the
    process can be seen to be gone.
    """
    fields = {
        "rank": rank,
        "code": code,
        "error": _clip(error, 200),
        "message": _clip(message, MAX_TEXT),
        "traceback": _clip(traceback, MAX_TEXT),
        "follower": follower,
    }
    return _post(
        control, {"run": run, "generation": generation, "process": process, "kind": "end", **fields}, timeout
    )


def post_chaos(control: str, *, run: str, generation: int, process: int, rank: int, fault: str) -> bool:
    """Tell the launcher at ``control`` that the rank suffers an ordered fault now; return whether it has heard."""
    fields = {"run": run, "generation": generation, "process": process, "rank": rank, "fault": fault}
    return _post(control, {"kind": "chaos", **fields}, 2.0)


def _post(control: str, message: Message, timeout: float) -> bool:
    import zmq  # 30 ms that only the end of a script should pay

    data = encode({"v": VERSION, **message})
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(control)
        socket.send(data)
        return bool(socket.poll(int(timeout * 1000)))


def _clip(text: str, limit: int) -> str:
    """Return the beginning and the end of a text that is too long; the end of a traceback says most."""
    text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot go on the wire
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]}\n... {len(text) - limit} characters left out ...\n{text[head - limit :]}"


def leave(code: int) -> None:
    """End the process at once, without MPI's finalisation, which waits for ranks that will not come."""
    import sys

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, a broken pipe, or replaced by the script
            continue
    os._exit(code)
