"""Ranks as threads, for the tests of this folder."""

import pytest

from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks


@pytest.fixture
def world():
    """``world(body, size)`` runs ``body(rank)`` on each rank and returns what they return."""

    def run(body, size=4):
        return run_ranks(
            WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body
        )

    return run
