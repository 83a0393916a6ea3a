"""``scripts/soak.py``, for a short while."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[2] / "scripts" / "soak.py"


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_that_is_injured_all_the_time_ends_with_the_same_parameters():
    pytest.importorskip("mpi4py")

    done = subprocess.run(
        [sys.executable, str(SOAK), "--minutes", "0.2", "--pause", "2", "3", "--steps", "200", "--seed", "2"],
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^faults: [1-9]", done.stdout, re.MULTILINE), done.stdout
    assert "parameters: equal to the undisturbed run's" in done.stdout
    assert "samples: each sample was used once: epoch" in done.stdout
    assert "processes left: 0" in done.stdout
