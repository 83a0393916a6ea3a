"""The launcher's side of the control plane: one ZeroMQ ROUTER that takes messages from the workers.

On one node it is a socket file in the run directory, which only the user can enter. What does not fit the
schema of ``disttrain.collectives.control`` is counted and ignored.
"""

from typing import Final

import zmq

from disttrain.collectives.control import MAX_BYTES, REPORTS, BadMessage, Message, decode, encode

_MAX_COMPLAINTS: Final = 20


class ControlPlane:
    """Takes the messages of one job, at any time those of one generation.

    ``fd`` becomes readable when messages *may* have come (edge-triggered: drain with :meth:`receive`).
    """

    def __init__(self, endpoint: str, *, run: str, generation: int, processes: int) -> None:
        self.bad = 0
        """Number of messages that were ignored."""
        self.complaints: list[str] = []
        """Why, for the first few."""
        self._run, self._generation, self._processes = run, generation, processes
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._socket.bind(endpoint)
        self.fd = int(self._socket.getsockopt(zmq.FD))

    def begin(self, generation: int, processes: int) -> None:
        """Take messages of that generation alone from now on, of so many processes."""
        self._generation, self._processes = generation, processes

    def receive(self) -> list[Message]:
        """Return all messages that have come, in order; their senders have been answered."""
        messages: list[Message] = []
        while True:
            try:
                sender, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            try:
                messages.append(self._accept(frames))
            except BadMessage as e:
                self.bad += 1
                if len(self.complaints) < _MAX_COMPLAINTS:
                    self.complaints.append(f"ignored a message on the control plane: {e}")
                continue
            ack = {**messages[-1], "kind": "ack"}
            common = ("v", "kind", "run", "generation", "process")
            try:
                self._socket.send_multipart([sender, encode({k: ack[k] for k in common})], zmq.NOBLOCK)
            except zmq.ZMQError:  # the sender has gone, or takes no answers
                continue

    def _accept(self, frames: list[bytes]) -> Message:
        if len(frames) != 1:
            raise BadMessage(f"{len(frames)} frames instead of 1")
        message = decode(frames[0])
        if message["run"] != self._run or message["generation"] != self._generation:
            raise BadMessage(
                f"of run {message['run'][:40]!r} generation {message['generation']}, "
                f"this is run {self._run} generation {self._generation}"
            )
        if not 0 <= message["process"] < self._processes:
            raise BadMessage(f"from process {message['process']} of {self._processes}")
        if message["kind"] not in REPORTS:
            raise BadMessage(f"{message['kind']!r} is not for the launcher")
        return message

    def close(self) -> None:
        """Close the socket and remove its file."""
        self._socket.close()
        self._context.term()
