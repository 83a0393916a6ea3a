"""Who is left out after failures: a process, a node, never more than the job can do without."""

from types import SimpleNamespace

import pytest

from disttrain.launcher.config import ConfigError
from disttrain.launcher.hosts import Cluster, Host
from disttrain.launcher.roster import Roster


def make(hosts="a:2,b:2", **options):
    """A roster of hosts that are there, none of which is this machine; and what it says."""
    named = [name.split(":") for name in hosts.split(",")]
    cluster = Cluster(
        hosts=tuple(Host(name, int(slots)) for name, slots in named), here=False, **{"least": 1} | options
    )
    nodes = {
        i: SimpleNamespace(host=host.name, lost="", facts={"GPUs": [], "cores": 4})
        for i, host in cluster.numbered
    }
    said = []
    return Roster(cluster, nodes, said.append), nodes, said


def workers(shares):
    """The workers of a generation, by process."""
    places = [node for node, count in shares for _ in range(count)]
    return [SimpleNamespace(env=SimpleNamespace(process=i, node=node)) for i, node in enumerate(places)]


def fail(roster, process, times=2):
    for _ in range(times):
        team = workers(roster.share_out())
        roster.blame(team[process], team)


def test_all_that_are_there_are_used():
    roster, nodes, said = make()
    nodes[2].facts = None

    assert roster.share_out() == ((1, 2),)
    assert said == ["disttrain: going on without b: it has not joined"]
    assert roster.share_out() == ((1, 2),)
    assert len(said) == 1


def test_a_process_that_has_failed_twice_is_left_out_and_its_place_stays_free():
    roster, _, said = make("a:3", fewest=2)
    fail(roster, 1)

    assert roster.share_out() == ((1, 2),)
    assert roster.unused(1) == (1,)
    assert said == ["disttrain: going on without process 1 of a: it has failed 2 times"]
    fail(roster, 1)  # the third one of the node: the job cannot do without
    assert roster.share_out() == ((1, 2),)


def test_a_node_whose_processes_have_failed_twice_is_left_out_if_others_suffice():
    roster, _, said = make()
    fail(roster, 3, 1)
    fail(roster, 2, 1)

    assert roster.share_out() == ((1, 2),)
    assert said == ["disttrain: going on without b: it has failed 2 times"]
    fail(roster, 0)
    assert roster.share_out() == ((2, 2),)
    fail(roster, 0, 1)  # one of them must go on: the one that has failed less
    assert roster.share_out() == ((1, 2),)
    assert roster.suffices


def test_a_lost_node_is_told_and_too_few_are_an_error():
    roster, nodes, _ = make(least=2)
    team = workers(roster.share_out())
    nodes[2].lost = "silent for 10 s"
    roster.blame(team[2], team)

    assert not roster.suffices
    with pytest.raises(ConfigError, match="needs 2 nodes, 1 are there\n  b: silent for 10 s"):
        roster.share_out()
