#!/usr/bin/env python3
"""What the launcher's loop costs with many agents: each a CURVE connection that says once a second that it lives.

    python scripts/bench_control_plane.py [--agents 4000] [--seconds 10]

The launcher's half is the real one (``disttrain.launcher.fleet``); the agents are simulated by a second process, whose
cost is not counted. Printed: seconds until all have joined, CPU of the launcher's process in percent of a core (all of
its threads), the delay of an answer, and memory.
"""

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import selectors
import statistics
import time
from typing import Any

import zmq

from disttrain.collectives.control import VERSION, encode
from disttrain.launcher.fleet import Fleet
from disttrain.launcher.hosts import Host
from disttrain.launcher.wire import KINDS


def simulate(endpoint: str, server: str, keys: list[tuple[str, str]], seconds: float, pipe: Any) -> None:
    """Be all agents: say hello, then a beat a second each, spread evenly; send the delays of the answers."""
    allow_files()
    context = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, len(keys) + 100)
    poller = zmq.Poller()
    agents = []
    common = {"v": VERSION, "run": "bench", "generation": 0, "process": -1}
    hello = encode(
        common | {"kind": "hello", "facts": {"host": "n", "clock": time.time(), "cores": 8, "GPUs": []}},
        KINDS,
    )
    beat = encode(common | {"kind": "beat"}, KINDS)
    for public, secret in keys:
        agent = context.socket(zmq.DEALER)
        agent.linger = 0
        agent.curve_serverkey, agent.curve_publickey = server.encode(), public.encode()
        agent.curve_secretkey = secret.encode()
        agent.connect(endpoint)
        agent.send(hello)
        poller.register(agent, zmq.POLLIN)
        agents.append(agent)
    start, end = time.perf_counter(), float("inf")
    sent: dict[Any, float] = {}
    delays: list[float] = []
    number = 0
    while (now := time.perf_counter()) < end:
        if pipe.poll():
            pipe.recv()  # all have joined: what comes from now on counts
            end, delays = now + seconds, []
        due = int((now - start) * len(agents))
        for i in range(number, due):
            agent = agents[i % len(agents)]
            if agent not in sent:  # a beat at a time, also of one that has not joined yet
                sent[agent] = time.perf_counter()
                agent.send(beat)
        number = due
        for agent, _ in poller.poll(5):
            agent.recv()
            delays.append(time.perf_counter() - sent.pop(agent))
    pipe.send(delays)
    context.destroy(linger=0)


def allow_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    allow_files()
    selector = selectors.DefaultSelector()
    fleet = Fleet(
        [(i + 1, Host(f"n{i}", 1)) for i in range(options.agents)],
        run="bench",
        selector=selector,
        on_report=print,
        on_exit=print,
        on_lost=lambda node, _: print(f"lost {node.name}: {node.lost}"),
        on_signal=print,
        on_history=print,
        notice=print,
        guard=print,
    )
    endpoint = fleet.hub.listen("127.0.0.1")
    ours, theirs = multiprocessing.Pipe()
    keys = [tuple(pair) for pair in fleet.hub.nodes[1:]]
    agents = multiprocessing.get_context("spawn").Process(
        target=simulate, args=(endpoint, fleet.hub.server.public, keys, options.seconds, theirs)
    )
    start = time.perf_counter()
    agents.start()
    for node in fleet.nodes:
        while node.facts is None:
            turn(fleet, selector)
    joined = time.perf_counter() - start
    ours.send("joined")
    before, began = cpu(), time.perf_counter()
    while not ours.poll():
        turn(fleet, selector)
    used, lasted = cpu() - before, time.perf_counter() - began
    delays = sorted(ours.recv())
    agents.join()
    result = {
        "agents": options.agents,
        "join_s": round(joined, 2),
        "beats": len(delays),
        "cpu_percent": round(100 * used / lasted, 1),
        "us_per_beat": round(1e6 * used / len(delays), 1),
        "delay_ms_p50": round(1e3 * statistics.median(delays), 2),
        "delay_ms_p99": round(1e3 * delays[int(0.99 * len(delays))], 2),
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "lost": sum(bool(node.lost) for node in fleet.nodes),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))
    for fd in fleet.hub.fds:
        selector.unregister(fd)
    fleet.hub.close()


def turn(fleet: Fleet, selector: selectors.BaseSelector) -> None:
    """One turn of the launcher's loop."""
    for key, _ in selector.select(min(fleet.tick(), 0.05)):
        key.data()


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
