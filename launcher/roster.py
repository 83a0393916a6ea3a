"""Who may run what: the places for processes on each node, less what is gone or has failed too often."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from disttrain.launcher.config import ConfigError, count_gpus
from disttrain.launcher.node import LocalNode, WorkerState

if TYPE_CHECKING:  # what several hosts need takes longer to load than all else here
    from disttrain.launcher.fleet import RemoteNode
    from disttrain.launcher.hosts import Cluster

FAILS: Final = 2
"""After so many failed generations because of one process, or node, it is left out, if the job has enough others."""
_ALL: Final = -1  # the place of a failure that was all of the node's


class Roster:
    """Which places of which nodes each generation of a job uses.

    Args:
        cluster: where the job is to run.
        nodes: by number; those of the cluster, once they have joined.
        notice: what tells the user.
    """

    def __init__(
        self, cluster: "Cluster", nodes: "Mapping[int, LocalNode | RemoteNode]", notice: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._notice = notice
        self._fails: Counter[tuple[int, int]] = Counter()
        """Node and place on it → how many generations have failed because of it."""
        self._tired: list[tuple[int, int]] = []
        """Those that have failed too often, in the order in which they came to it."""
        self._said_away: list[str] = []
        """What was last said of nodes and processes that are left out."""
        self._used: dict[int, list[int]] = {}
        """Node → the places on it that this generation uses, from 0: process after process."""

    @property
    def least(self) -> int:
        """With fewer nodes the job does not go on."""
        return self._cluster.least

    @property
    def suffices(self) -> bool:
        """Whether enough is left for another generation."""
        return len(self._places()[0]) >= self.least

    def share_out(self) -> tuple[tuple[int, int], ...]:
        """Decide who runs what in the next generation, say what is left out, and return (node, processes) of each.

        Raises:
            ConfigError: fewer nodes are there than the job needs.
        """
        slots, away = self._places()
        if len(slots) < self.least:
            s = "s" if self.least > 1 else ""
            raise ConfigError(
                "\n  ".join([f"the job needs {self.least} node{s}, {len(slots)} are there", *away])
            )
        for line in away:
            if line not in self._said_away:
                self._notice(f"disttrain: going on without {line}")
        self._said_away = away
        self._used = slots
        return tuple((index, len(places)) for index, places in slots.items())

    def blame(self, worker: WorkerState, workers: Sequence[WorkerState]) -> None:
        """Note that a generation of ``workers`` has failed because of this one, or of its node if that was lost."""
        node = worker.env.node
        place = _ALL
        if node in self._used and not getattr(self._nodes[node], "lost", ""):
            first = next(w.env.process for w in workers if w.env.node == node)
            place = self._used[node][worker.env.process - first]
        self._fails[node, place] += 1
        if self._fails[node, place] == FAILS:
            self._tired.append((node, place))

    def unused(self, node: int) -> tuple[int, ...]:
        """Return the places of a node before the last used one that were those of processes which have failed."""
        places = self._used.get(node, [])
        return tuple(i for i in range(max(places, default=0)) if i not in places)

    def _places(self) -> tuple[dict[int, list[int]], list[str]]:
        """Return the places on each node that may be used; and who is left out, and why."""
        cluster = self._cluster
        slots: dict[int, list[int]] = {}
        away = []
        for index, host in cluster.numbered:
            node = self._nodes[index]
            if isinstance(node, LocalNode):
                gpus, cores = count_gpus(), len(os.sched_getaffinity(0))
            elif node.lost or node.facts is None:
                away.append(f"{host.name}: {node.lost or 'it has not joined'}")
                continue
            else:
                gpus, cores = len(node.facts["GPUs"]), node.facts["cores"]
            count = host.slots or cluster.each(gpus, cores, host.name)
            if count < cluster.fewest:
                away.append(f"{node.host}: it is for {count} processes, -n asks for {cluster.fewest}")
                continue
            slots[index] = list(range(count))
            tired = [place for n, place in self._tired if n == index and place != _ALL]
            for place in tired[: count - cluster.fewest if cluster.fewest else 0]:
                away.append(
                    f"process {place} of {node.host}: it has failed {self._fails[index, place]} times"
                )
                slots[index].remove(place)
        fails = {index: sum(self._fails[index, place] for place in (_ALL, *slots[index])) for index in slots}
        failed = sorted((i for i in slots if fails[i] >= FAILS), key=lambda i: -fails[i])
        for index in failed[: max(0, len(slots) - self.least)]:
            away.append(f"{self._nodes[index].host}: it has failed {fails[index]} times")
            del slots[index]
        return slots, away
