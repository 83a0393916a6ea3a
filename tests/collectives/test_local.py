"""Ranks as threads: one at a time, always in one order, and every end of a rank is told to the others."""

import os
import re
import signal
import threading
import time

import numpy as np
import pytest

from disttrain.collectives import (
    CollectiveError,
    CollectiveMismatch,
    Deadlock,
    PeerFailed,
    RankFailed,
    connect,
    run_ranks,
    watch,
)
from disttrain.collectives.env import WorkerEnv, current_env


def env(ranks: int) -> WorkerEnv:
    return WorkerEnv(world_size=ranks, hosted=ranks)


def test_each_rank_sees_its_own_contract_and_results_come_in_rank_order():
    def body(rank):
        comm = connect()
        assert connect() is comm
        return rank, current_env().rank, comm.rank, comm.size, comm.ranks, threading.current_thread().name

    results = run_ranks(env(3), body)

    assert results == [(r, r, r, 3, (0, 1, 2), f"rank {r}") for r in range(3)]


def test_ranks_take_turns_in_rank_order():
    seen, switches = [], []

    def body(rank):
        comm = connect()
        for step in range(3):
            seen.append((step, rank))
            comm.barrier()

    run_ranks(env(4), body, switches.append)

    # The rank that completes a barrier goes on; the others follow it in rank order.
    assert seen == [
        *[(0, 0), (0, 1), (0, 2), (0, 3), (1, 3), (1, 0), (1, 1), (1, 2), (2, 2), (2, 3), (2, 0), (2, 1)]
    ]
    assert switches[:5] == [0, 1, 2, 3, 0]
    again = list(seen)
    seen.clear()
    run_ranks(env(4), body)
    assert seen == again


def test_a_seed_draws_the_order_and_the_same_seed_the_same_order():
    def order(seed):
        seen = []

        def body(rank):
            comm = connect()
            x = np.full(3, float(rank), "f")
            for step in range(3):
                seen.append((step, rank))
                work = comm.start_all_reduce(x, x)
                seen.append((step, rank))
                work.wait()
            return x.tolist()

        results = run_ranks(WorkerEnv(world_size=4, hosted=4, schedule=seed), body)
        assert results == [[96.0] * 3] * 4
        return seen

    orders = [order(seed) for seed in range(6)]

    assert orders == [order(seed) for seed in range(6)]
    assert len({tuple(o) for o in [*orders, order(-1)]}) == 7
    assert {o[0][1] for o in orders} > {0}  # another rank than the first may begin
    assert any(a[0] == b[0] and a != b for o in orders for a, b in zip(o[::2], o[1::2], strict=True))


def test_a_deadlock_is_proven_under_any_seed():
    def body(rank):
        if rank != 1:
            connect().barrier()

    for seed in range(4):
        with pytest.raises(RankFailed) as caught:
            run_ranks(WorkerEnv(world_size=4, hosted=4, schedule=seed), body)
        assert isinstance(caught.value.exception, Deadlock)
        assert "rank 1: finished" in str(caught.value.exception)


def test_never_two_ranks_at_once():
    inside = []

    def body(rank):
        comm = connect()
        for _ in range(20):
            inside.append(rank)
            for _ in range(1000):
                pass
            assert inside == [rank]
            inside.remove(rank)
            comm.barrier()

    run_ranks(env(4), body)


def test_deadlock_names_every_rank_and_its_line():
    def body(rank):
        comm = connect()
        x = np.zeros(3)
        if rank != 1:
            comm.all_reduce(x, x)

    with pytest.raises(RankFailed) as caught:
        run_ranks(env(3), body)

    assert isinstance(caught.value.exception, Deadlock)
    line = body.__code__.co_firstlineno + 4
    text = str(caught.value.exception)
    assert (
        f"ranks 0, 2: in all_reduce(float64, shape (3,), op sum) at {__file__}:{line} (call 0 of the world)".replace(
            os.getcwd() + os.sep, ""
        )
        in text
    )
    assert "rank 1: finished" in text


def test_deadlock_of_two_groups():
    def body(rank):
        comm = connect()
        other = comm.split(0)
        (comm if rank == 0 else other).barrier()

    with pytest.raises(RankFailed, match="deadlock") as caught:
        run_ranks(env(2), body)

    assert isinstance(caught.value.exception, Deadlock)


def test_two_sends_first_are_a_deadlock():
    def body(rank):
        connect().send(np.zeros(1), 1 - rank)

    with pytest.raises(RankFailed, match=r"rank 0: in send\(.*, to 1\) .*\n  rank 1: in send\(.*, to 0\)"):
        run_ranks(env(2), body)


def explained(ranks, body):
    """Return what is said of each rank in the deadlock that ``body`` runs into, without the places."""
    with pytest.raises(RankFailed) as caught:
        run_ranks(env(ranks), body)
    assert isinstance(caught.value.exception, Deadlock)
    _, *lines, _ = str(caught.value.exception).splitlines()
    return [re.sub(r" at \S+test_local.py:\d+", "", line.strip()) for line in lines]


def test_groups_in_another_order_are_a_deadlock():
    def body(rank):
        world = connect()
        groups = [world.split(0), world.split(0)]
        for group in groups if rank == 0 else groups[::-1]:
            group.barrier()

    assert explained(2, body) == [
        "rank 0: in barrier() (call 0 of group 0 of ranks 0-1)",
        "rank 1: in barrier() (call 0 of group 1 of ranks 0-1)",
    ]


def test_a_ring_of_receives_is_a_deadlock():
    def body(rank):
        connect().recv(np.zeros(2), (rank + 1) % 3)

    assert explained(3, body) == [
        f"rank {rank}: in recv(float64, shape (2,), from {(rank + 1) % 3}) (call 0 of the world)"
        for rank in range(3)
    ]


def test_a_message_to_a_rank_that_has_ended_is_a_deadlock():
    def body(rank):
        if rank == 0:
            connect().send(np.zeros(2), 1)

    assert explained(2, body) == [
        "rank 0: in send(float64, shape (2,), to 1) (call 0 of the world)",
        "rank 1: finished",
    ]


def test_rank_0_may_not_call_what_the_others_cannot_answer_while_it_goes_first():
    def body(rank):
        world = connect()
        with world.rank0_first("prepare"):
            if rank == 0:
                world.recv(np.zeros(1), 1)
            else:
                world.send(np.zeros(1), 0)

    assert explained(2, body) == [
        "rank 0: in recv(float64, shape (1,), from 1) (call 0 of the world)",
        "rank 1: in rank0_first() (call 0 of the world)",
    ]


def test_a_rank_that_ends_before_a_later_call_of_another_is_in_the_deadlock():
    def body(rank):
        world, x = connect(), np.zeros(2)
        world.start_all_reduce(x, x)
        if rank == 0:
            world.barrier()

    assert explained(2, body) == [
        "rank 0: in barrier() (call 1 of the world)",
        "rank 1: finished",
    ]


def test_a_failure_that_nobody_waited_for_is_told_at_the_end():
    def body(rank):
        x = np.zeros(2 + rank)
        connect().start_all_reduce(x, x)

    with pytest.raises(
        CollectiveError, match=r"nobody waited for all_reduce\(.*\) at .*, which has failed"
    ) as caught:
        run_ranks(env(2), body)

    assert isinstance(caught.value.__cause__, CollectiveMismatch)


@pytest.mark.timeout(30)
def test_a_rank_that_does_not_let_others_run_is_named(monkeypatch, caplog):
    monkeypatch.setattr(watch, "NOTICE_S", 0.2)

    def body(rank):
        comm = connect()
        if rank == 1:
            while "rank 1: has made no call" not in caplog.text:
                time.sleep(0.01)
        comm.barrier()

    run_ranks(env(2), body)

    assert re.search(
        r"rank 0 has waited \d\.\d s in barrier\(\) at .* for rank 1\n  rank 1: has made", caplog.text
    )
    assert re.search(r"test_local.py:\d+ in body", caplog.text)


def test_every_rank_is_told_of_the_deadlock():
    told = []

    def body(rank):
        comm = connect()
        if rank == 3:
            return
        try:
            comm.barrier()
        except Deadlock as error:
            told.append((rank, str(error)))
            raise

    with pytest.raises(RankFailed):
        run_ranks(env(4), body)

    assert sorted(rank for rank, _ in told) == [0, 1, 2]
    assert len({text for _, text in told}) == 1


def test_the_first_failure_is_raised_and_the_others_are_released():
    released = []

    def body(rank):
        comm = connect()
        if rank == 2:
            raise LookupError("the planted error")
        try:
            comm.barrier()
        except PeerFailed as error:
            released.append((rank, str(error)))
            raise

    with pytest.raises(RankFailed, match="rank 2 failed: LookupError: the planted error") as caught:
        run_ranks(env(4), body)

    assert caught.value.rank == 2
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.__cause__.__traceback__ is not None
    assert sorted(rank for rank, _ in released) == [0, 1]  # and rank 3 never began
    assert all("rank 2 failed with LookupError: the planted error" in text for _, text in released)


def test_a_rank_that_never_communicates_may_fail_too():
    def body(rank):
        if rank == 1:
            raise ValueError("alone")

    with pytest.raises(RankFailed, match="rank 1 failed: ValueError: alone"):
        run_ranks(env(2), body)


def test_exit_codes():
    def body(rank, code):
        connect().barrier()
        raise SystemExit(code)

    assert run_ranks(env(2), lambda rank: body(rank, 0)) == [None, None]
    with pytest.raises(RankFailed) as caught:
        run_ranks(env(2), lambda rank: body(rank, 3))
    assert isinstance(caught.value.exception, SystemExit)
    assert caught.value.exception.code == 3


def test_a_call_that_nobody_answered_is_named_at_the_end():
    def body(rank):
        comm = connect()
        if rank == 0:
            comm.start_barrier()

    with pytest.raises(
        CollectiveMismatch, match=r"rank 0: barrier\(\) at .*\n  rank 1: close\(\) at the end"
    ):
        run_ranks(env(2), body)


def test_ctrl_c_reaches_the_rank_that_runs():
    where = []

    def body(rank):
        connect().barrier()
        if rank == 0:
            os.kill(os.getpid(), signal.SIGINT)
            try:
                while True:
                    pass
            except KeyboardInterrupt:
                where.append(rank)
                raise
        connect().barrier()

    with pytest.raises(KeyboardInterrupt):
        run_ranks(env(2), body)

    assert where == [0]


def test_a_closed_group_cannot_be_used():
    def body(rank):
        comm = connect()
        part = comm.split(0)
        part.close()
        with pytest.raises(CollectiveError, match="was closed"):
            part.barrier()
        comm.barrier()

    run_ranks(env(2), body)


def test_hosted_ranks_need_run_ranks(monkeypatch):
    for name, value in env(2).to_environ().items():
        monkeypatch.setenv(name, value)

    with pytest.raises(RuntimeError, match="hosts 2 ranks; start them as threads"):
        connect()
