"""``disttrain audit``: scripts that compute the same on any number of processes, and planted ones that do not."""

import os
import re
import subprocess
import sys

import pytest

from disttrain.launcher.audit import Event, compare, difference, replicas

SCRIPT = """
import os
import disttrain as dt
from disttrain import nn


class Noise(nn.Module):
    def forward(self, x):
        out = x{in_layer}
        return out


{seed}
loader = dt.data.DataLoader(dt.data.datasets.Digits(train=True), batch_size=16, shuffle=True)
layers = nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), Noise(), nn.Dropout(0.3), nn.Linear(32, 10)
model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
optimizer = dt.optim.Adam(model.parameters(), lr=1e-3{in_options})
for step, (x, y) in enumerate(loader):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x{in_batch}), y).backward()
    {before_step}
    optimizer.step()
    {after_step}
print("not reached")
"""
PLACES = ("seed", "in_layer", "in_options", "in_batch", "before_step", "after_step")
BY_PROCESSES = "int(os.environ['DISTTRAIN_PROCESSES']) * 1e-3"


def audit(tmp_path, **planted):
    script = tmp_path / "train.py"
    planted = {"seed": "dt.manual_seed(1)", **planted}
    script.write_text(SCRIPT.format(**{place: planted.get(place, "") for place in PLACES}))
    command = [sys.executable, "-m", "disttrain", "audit", "--processes", "1,2", "--steps", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
    assert "not reached" not in done.stdout
    return done.returncode, done.stdout


@pytest.mark.mpi
def test_a_script_that_is_right_is_proven_so(tmp_path):
    code, said = audit(tmp_path)

    assert code == 0, said
    assert re.search(
        r"^equal: 2 ranks computed the same bits on 1, 2 processes: \d+ batches, .* in 2 steps$", said, re.M
    )


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("planted", "what"),
    [
        (
            {"in_layer": f" + {BY_PROCESSES}"},
            r"the result of add\(\) in 4 \(Noise\) at train.py:\d+ in step 1 is .*\nlikely cause: the batches were",
        ),
        (
            {"in_batch": f" + {BY_PROCESSES}"},
            r"the model's input in step 1 is .*\nlikely cause: the batches differ",
        ),
        (
            {"seed": ""},
            r"the model's input in step 1 is .*\nlikely cause: the batches differ: the script gives no seed",
        ),
        (
            {"in_layer": f".detach() + {BY_PROCESSES}"},  # which no operation is recorded of
            r"the output of 4 \(Noise\) in step 1 is .*\nlikely cause: from the same input",
        ),
        (
            {"in_layer": f" + 0; out.register_hook(lambda g: g + {BY_PROCESSES}); return out"},
            r"the gradient made by add\(\) in 4 \(Noise\) at train.py:\d+ in step 1 .*\nlikely cause: forward was",
        ),
        (
            {"before_step": f"model.module[6].bias.grad[1] += {BY_PROCESSES}"},
            r"the gradient of 6.bias in step 1 is .*\nlikely cause: forward was the same",
        ),
        (
            {"in_options": f" + {BY_PROCESSES}"},
            r"1.weight after the step in step 1 is .*\nlikely cause: the gradients were",
        ),
    ],
)
def test_what_differs_first_is_named_with_its_likely_cause(tmp_path, planted, what):
    code, said = audit(tmp_path, **planted)

    assert code == 1
    assert re.search(f"^differ: on rank 0, {what}", said, re.M), said


@pytest.mark.mpi
def test_the_rank_whose_copy_differs_is_named(tmp_path):
    odd = "if dt.distributed.get_rank() == 1 and step == 0: model.module[6].bias.data += 1"
    code, said = audit(tmp_path, after_step=odd)

    assert code == 1
    assert "6.bias after the step in step 2 is not the same on all ranks: rank " in said


@pytest.mark.mpi
def test_a_script_without_a_wrapped_model_has_nothing_to_compare(tmp_path):
    script = tmp_path / "plain.py"
    script.write_text("import disttrain")
    command = [sys.executable, "-m", "disttrain", "audit", "--processes", "1,2", str(script)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)

    assert done.returncode == 1
    assert "nothing to compare" in done.stdout


def events(*digests, kind="parameter", step=0):
    return [Event(kind, step, f"p{i}", "", d) for i, d in enumerate(digests)]


def test_the_earliest_difference_counts():
    a = {0: events("x", "y"), 1: events("x", kind="gradient") + events("x")}
    b = {0: events("x", "z"), 1: events("w", kind="gradient") + events("x")}

    rank, x, y = difference(a, b)

    assert (rank, x.digest, y.digest) == (1, "x", "w")  # a gradient comes before a parameter
    assert difference(a, a) is None
    assert difference(a, {0: events("x"), 1: a[1]}) == (0, events("x", "y")[1], None)


def test_the_smaller_number_of_ranks_is_the_odd_one_out():
    record = {rank: events("x", "odd" if rank == 2 else "y") for rank in range(4)}

    assert (
        replicas(record)
        == "p1 after the step in step 1 is not the same on all ranks: rank 2 differs from the others"
    )
    assert replicas({rank: events("x") for rank in range(4)}) == ""


def test_other_doings_are_told(capsys):
    assert compare({1: {0: events("x", "y")}, 2: {0: events("x")}}, 1) == 1
    assert (
        "rank 0 did other things: p1 after the step in step 1 on 1 process, nothing more on 2"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("processes", ["1", "two,3", "0,2", ""])
def test_numbers_of_processes_are_checked(processes):
    command = [sys.executable, "-m", "disttrain", "audit", "--processes", processes, "x.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert "--processes" in done.stderr
