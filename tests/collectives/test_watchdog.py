"""Faults on GPUs that no call waits for: the stand-in hangs, fails and refuses, and every rank says why it ends."""

import re

import pytest

pytestmark = pytest.mark.mpi


def test_a_process_that_stops_in_flight_is_a_timeout_where_the_script_is(mpiexec):
    job = mpiexec(2, "gpu_faults.py", "stops_in_flight", "gpu=nccl", timeout=30)

    assert re.search(
        r"rank 0: CollectiveTimeout: rank 0 waited 1\.\d s for the GPU in all_reduce\(float32 on the GPU, "
        r"shape \(4,\), op sum\) at gpu_faults.py:\d+, which all ranks have begun",
        job.stdout,
    ), job.stdout + job.stderr
    assert "rank 0: CollectiveError: the GPU cannot be used any more: rank 0 waited " in job.stdout


def test_if_the_abort_hangs_too_the_job_is_ended_with_the_reason(mpiexec):
    env = {"FAKE_NCCL_ABORT_HANGS": "1"}

    job = mpiexec(2, "gpu_faults.py", "stops_and_nobody_listens", "gpu=nccl", timeout=30, env=env)

    assert job.returncode != 0
    assert re.search(r"CollectiveTimeout: rank 0 waited 0\.\d s for the GPU in all_reduce", job.stderr), (
        job.stderr
    )


def test_a_call_that_nccl_refuses_ends_all_others(mpiexec):
    job = mpiexec(2, "gpu_faults.py", "fails_to_begin", "gpu=nccl", timeout=30)

    assert "rank 0: PeerFailed: NCCL cannot go on (ncclAllReduce: stand-in, status 6" in job.stdout
    assert "rank 0: CollectiveError: the GPU cannot be used any more: NCCL cannot go on" in job.stdout


def test_what_nccl_notices_comes_before_any_timeout(mpiexec):
    env = {"FAKE_NCCL_NOTICES": "1"}

    job = mpiexec(2, "gpu_faults.py", "leaves_in_flight", "gpu=nccl", timeout=30, env=env)

    assert re.search(
        r"rank 0: PeerFailed: rank 0 in all_reduce\(float32 on the GPU, shape \(4,\), op sum\) at gpu_faults.py:\d+: "
        r"NCCL cannot go on \(the background: stand-in, status 6",
        job.stdout,
    ), job.stdout + job.stderr
