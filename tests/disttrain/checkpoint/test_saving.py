"""Saving and loading in one process: what is kept, what is refused, and what a failure leaves."""

import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.checkpoint import files, saving
from disttrain.checkpoint.files import Lock
from disttrain.checkpoint.reading import Reader
from disttrain.checkpoint.states import Wanted
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.errors import CheckpointBusy, CheckpointError, CheckpointMismatch

ROOT = Path(__file__).resolve().parents[3]


def world(size, body):
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


@pytest.fixture(autouse=True)
def released():
    yield
    dt.checkpoint.close()


def steps_in(folder):
    return [int(p.name.rpartition("-")[2]) for p in sorted(folder.glob("0*"))]


def make():
    dt.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    optimizer = dt.optim.Adam(model.parameters(), lr=0.01)
    scheduler = dt.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40)
    data = dt.data.TensorDataset(dt.randn(50, 4), dt.randn(50, 2))
    loader = dt.data.DataLoader(data, batch_size=8, shuffle=True)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}


def train(run, until, done=0, at=None):
    """Train up to a step; call ``at(step)`` after each."""
    losses = []
    while done < until:
        for x, y in run["loader"]:
            run["optimizer"].zero_grad()
            loss = nn.functional.mse_loss(run["model"](x), y)
            loss.backward()
            run["optimizer"].step()
            run["scheduler"].step()
            losses.append(loss.item())
            done += 1
            if at is not None:
                at(done)
            if done == until:
                break
    return losses


@pytest.mark.parametrize("step", [1, 6, 7, 12, 20])
def test_a_resumed_run_is_the_same_run(tmp_path, step):
    def at(done):
        if done == step:
            dt.checkpoint.save(tmp_path, step=done, **run)

    run = make()
    losses = train(run, 21, at=at)
    dt.checkpoint.wait()
    again = make()
    dt.rand(5)
    loaded = dt.checkpoint.load(tmp_path, **again)

    assert loaded.step == step
    assert train(again, 21, done=step) == losses[step:]
    for a, b in zip(run["model"].state_dict().values(), again["model"].state_dict().values(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert run["scheduler"].state_dict() == again["scheduler"].state_dict()


def test_nothing_is_loaded_from_a_folder_without_checkpoints(tmp_path):
    assert dt.checkpoint.load(tmp_path / "none", **make()) is None
    assert dt.checkpoint.load(tmp_path, **make()) is None


def test_plain_values_come_back(tmp_path):
    history = {"losses": [0.5, float("inf")], "best": dt.tensor([1, 2]), "when": (1, None)}
    dt.checkpoint.save(tmp_path, step=0, history=history, name="é", metric=dt.tensor(0.25))
    dt.checkpoint.wait()

    found = dt.checkpoint.load(tmp_path)

    assert found.values.keys() == {"history", "name"}
    assert found["history"]["losses"] == history["losses"]
    assert found["history"]["when"] == (1, None)
    assert found["history"]["best"].tolist() == [1, 2]
    assert (found["name"], found.metric, found.step) == ("é", 0.25, 0)


def test_the_last_ones_and_the_best_ones_stay(tmp_path):
    for step, metric in enumerate([5.0, 1.0, 4.0, float("nan"), 3.0, 2.0]):
        dt.checkpoint.save(tmp_path, step=step, metric=metric, keep_last=2, keep_best=1, background=False)

    assert steps_in(tmp_path) == [1, 4, 5]
    assert dt.checkpoint.load(tmp_path, step="best").step == 1
    assert dt.checkpoint.load(tmp_path, step=4).step == 4
    with pytest.raises(
        FileNotFoundError, match="no checkpoint of step 2; there are those of the steps 1, 4, 5"
    ):
        dt.checkpoint.load(tmp_path, step=2)


def test_more_is_better_if_said_so_and_all_stay_if_wished(tmp_path):
    for step, metric in enumerate([0.5, 0.9, 0.7]):
        dt.checkpoint.save(tmp_path, step=step, metric=metric, mode="max", keep_last=None)
    dt.checkpoint.wait()

    assert steps_in(tmp_path) == [0, 1, 2]
    assert dt.checkpoint.load(tmp_path, step="best").step == 1


def test_a_run_that_goes_back_is_continued_where_it_saved_last(tmp_path):
    for step in (10, 20, 30):
        dt.checkpoint.save(tmp_path, step=step)
    dt.checkpoint.wait()
    assert dt.checkpoint.load(tmp_path, step=10).step == 10
    dt.checkpoint.save(tmp_path, step=20, note="second")
    dt.checkpoint.wait()

    assert dt.checkpoint.load(tmp_path)["note"] == "second"


def test_a_load_waits_for_the_save_of_the_same_job(tmp_path, monkeypatch):
    begun = threading.Event()
    write = files.write_file
    monkeypatch.setattr(files, "write_file", lambda *args: (begun.wait(1), write(*args)))
    dt.checkpoint.save(tmp_path, step=1)

    assert dt.checkpoint.load(tmp_path).step == 1


def test_the_snapshot_is_of_the_moment_of_the_save(tmp_path, monkeypatch):
    written = threading.Event()
    write = files.write_file
    monkeypatch.setattr(files, "write_file", lambda *args: (written.wait(30), write(*args)))
    model = nn.Linear(3, 3)
    expected = model.weight.detach().clone()

    dt.checkpoint.save(tmp_path, step=1, model=model)
    with dt.no_grad():
        model.weight.zero_()
    written.set()
    dt.checkpoint.wait()
    dt.checkpoint.load(tmp_path, model=model)

    assert (model.weight == expected).all()


def test_memory_of_the_snapshot_is_used_again(tmp_path):
    model = nn.Linear(128, 100)
    dt.checkpoint.save(tmp_path, step=1, model=model)
    (writer,) = saving._writers(tmp_path)
    memory = writer.arena._memory
    dt.checkpoint.save(tmp_path, step=2, model=model)

    assert writer.arena._memory is memory
    assert memory.nbytes == 128 * 100 * 4 + 448


def test_a_forked_process_does_not_share_the_memory_of_snapshots(tmp_path):
    model = nn.Linear(1100, 1000)  # above 4 MiB
    dt.checkpoint.save(tmp_path, step=1, model=model)
    dt.checkpoint.wait()
    (writer,) = saving._writers(tmp_path)
    memory = writer.arena._memory
    before = memory.copy()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of several threads
        child = os.fork()
    if not child:
        os._exit(int(memory.any()))
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert before.any()
    np.testing.assert_array_equal(memory, before)


def test_a_load_reads_modules_into_the_memory_of_the_snapshot_and_keeps_none_of_it(tmp_path):
    first, second, odd = nn.Linear(300, 200), nn.Linear(200, 300), nn.Linear(7, 3)
    kept = []
    odd.register_load_state_dict_pre_hook(lambda module, state, *_: kept.append(state["weight"]))
    optimizer = dt.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1, momentum=0.9)
    run = {"first": first, "second": second, "odd": odd, "optimizer": optimizer}
    expected = step_and_copy(run)
    dt.checkpoint.save(tmp_path, step=1, **run)
    dt.checkpoint.wait()
    (writer,) = saving._writers(tmp_path)
    memory = writer.arena._memory
    memory[:] = 77

    step_and_copy(run)
    dt.checkpoint.load(tmp_path, **run)

    used = (memory != 77).mean()
    assert used > 0.4  # the parameters, which are half of the snapshot
    assert kept
    memory[:] = 77  # what the next snapshot does to it
    assert [a.tolist() for a in tensors(run)] == [a.tolist() for a in expected]
    assert kept[0].tolist() == odd.weight.tolist()


def step_and_copy(run):
    """Make a step of an optimizer, and return copies of all tensors of the run."""
    optimizer = run["optimizer"]
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = dt.rand(*p.shape)
    optimizer.step()
    return [t.detach().clone() for t in tensors(run)]


def tensors(run):
    modules = [m for m in run.values() if isinstance(m, nn.Module)]
    state = run["optimizer"].state_dict()["state"]
    return [p for m in modules for p in m.parameters()] + [s["momentum_buffer"] for s in state.values()]


def test_a_load_of_some_elements_of_large_tensors_by_threads(tmp_path):
    model = nn.Sequential(*(nn.Linear(700, 1500) for _ in range(3)))  # above what one thread reads
    dt.checkpoint.save(tmp_path, step=1, model=model)
    dt.checkpoint.wait()
    (place,) = tmp_path.glob("0*")

    with Reader(str(place)) as reader:
        name, size = "model/1.weight", 700 * 1500
        spans = [(0, size), (0, 5), (size // 2, size), (size, size), (3, size - 1)]
        wholes = reader.read([Wanted(f"model/{i}.weight") for i in range(3)])
        parts = [reader.read([Wanted(name, span), Wanted("model/0.weight")])[name] for span in spans]

    for i in range(3):
        np.testing.assert_array_equal(wholes[f"model/{i}.weight"], model[i].weight.detach().numpy())
    for (begin, end), part in zip(spans, parts, strict=True):
        np.testing.assert_array_equal(part, model[1].weight.detach().numpy().reshape(-1)[begin:end])


def test_a_load_that_does_not_fit_lists_everything_and_changes_nothing(tmp_path):
    run = make()
    train(run, 3)
    dt.checkpoint.save(tmp_path, step=3, **run)
    dt.checkpoint.wait()
    other = make()
    other["model"] = nn.Sequential(nn.Linear(4, 9), nn.Identity(), nn.Linear(8, 2).double())
    other["optimizer"] = dt.optim.Adam(other["model"].parameters())
    before = [p.tolist() for p in other["model"].parameters()]

    with pytest.raises(CheckpointMismatch) as refused:
        dt.checkpoint.load(tmp_path, **other, missing=other["scheduler"])

    text = str(refused.value)
    for part in (
        "missing: not in the checkpoint, which has ",
        "model: tensors missing in the checkpoint: 2.weight, 2.bias",
        "model: tensors only in the checkpoint: 1.bias, 1.num_batches_tracked, 1.running_mean",
        "model: 0.weight has shape [8, 4] in the checkpoint, the module has [9, 4]",
        "optimizer: parameters in group 0 missing in the checkpoint: model.2.weight, model.2.bias",
    ):
        assert part in text
    assert [p.tolist() for p in other["model"].parameters()] == before
    assert other["optimizer"].state_dict()["state"] == {}
    assert other["loader"].epoch == 0


def test_a_type_that_differs_is_refused(tmp_path):
    dt.checkpoint.save(tmp_path, step=1, model=nn.Linear(2, 2))
    dt.checkpoint.wait()

    with pytest.raises(
        CheckpointMismatch, match="weight is float32 in the checkpoint, the module has float64"
    ):
        dt.checkpoint.load(tmp_path, model=nn.Linear(2, 2).double())


def test_several_models_and_optimizers_go_by_their_names(tmp_path):
    def things():
        g, d = nn.Linear(2, 3), nn.Linear(3, 1)
        return {
            "generator": g,
            "critic": d,
            "of_g": dt.optim.SGD(g.parameters(), lr=0.1, momentum=0.9),
            "of_d": dt.optim.RMSprop(d.parameters()),
        }

    first, second = things(), things()
    first["critic"](first["generator"](dt.ones(4, 2))).sum().backward()
    first["of_g"].step(), first["of_d"].step()
    dt.checkpoint.save(tmp_path, step=1, **first)
    dt.checkpoint.wait()
    dt.checkpoint.load(tmp_path, **second)

    for name in ("generator", "critic"):
        assert (first[name].weight == second[name].weight).all()
    assert (
        first["of_g"].state_dict()["state"][0]["momentum_buffer"].tolist()
        == second["of_g"].state_dict()["state"][0]["momentum_buffer"].tolist()
    )
    content = dt.checkpoint.read(tmp_path)
    assert set(content["of_g"]["state"]) == {"generator.weight", "generator.bias"}


def test_an_optimizer_without_its_model_numbers_its_parameters(tmp_path):
    def make():
        p = nn.Parameter(dt.ones(3))
        return p, dt.optim.LBFGS([p], max_iter=2)

    p, optimizer = make()

    def closure():
        optimizer.zero_grad()
        loss = ((p - dt.arange(3.0)) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    dt.checkpoint.save(tmp_path, step=1, optimizer=optimizer, p=p.detach())
    dt.checkpoint.wait()
    _, again = make()
    dt.checkpoint.load(tmp_path, optimizer=again)

    ours, theirs = optimizer.state_dict()["state"][0], again.state_dict()["state"][0]
    assert ours.keys() == theirs.keys()
    assert [d.tolist() for d in ours["old_dirs"]] == [d.tolist() for d in theirs["old_dirs"]]


def test_a_part_that_refuses_its_state_undoes_the_others(tmp_path):
    class Refuses:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise RuntimeError("not this one")

    run = make()
    train(run, 3)
    dt.checkpoint.save(tmp_path, step=3, **run, zzz=Refuses())
    train(run, 5, 3)
    before = (
        run["scheduler"].state_dict().copy(),
        run["optimizer"].state_dict()["state"][0]["exp_avg"].tolist(),
    )
    state = dt.get_rng_state().tolist()

    with pytest.raises(CheckpointMismatch, match="zzz: not this one"):
        dt.checkpoint.load(tmp_path, **run, zzz=Refuses())

    assert run["scheduler"].state_dict() == before[0]
    assert run["optimizer"].state_dict()["state"][0]["exp_avg"].tolist() == before[1]
    assert dt.get_rng_state().tolist() == state
    train(run, 7, 5)


def test_random_numbers_continue_with_an_optimizer_or_if_asked(tmp_path):
    run = make()
    dt.checkpoint.save(tmp_path, step=0, **run)
    dt.checkpoint.wait()
    expected = dt.rand(2).tolist()
    dt.manual_seed(77)
    alone = dt.rand(2).tolist()

    dt.manual_seed(77)
    dt.checkpoint.load(tmp_path, model=run["model"])
    assert dt.rand(2).tolist() == alone
    dt.checkpoint.load(tmp_path, model=run["model"], random=True)
    assert dt.rand(2).tolist() == expected
    dt.checkpoint.load(tmp_path, model=run["model"], optimizer=run["optimizer"])
    assert dt.rand(2).tolist() == expected
    own = dt.Generator()
    dt.checkpoint.load(tmp_path, random=own)
    assert dt.rand(2, generator=own).tolist() == expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"step": -1}, "step must be"),
        ({"step": True}, "step must be"),
        ({"step": 1, "mode": "best"}, "mode must be"),
        ({"step": 1, "keep_last": 0}, "keep_last must be positive"),
        ({"step": 1, "keep_best": -1}, "keep_best must not be negative"),
        ({"step": 1, "on_failure": "ignore"}, "on_failure must be"),
        ({"step": 1, "a/b": 1}, "cannot be called 'a/b'"),
        ({"step": 1, "hook": print}, "hook of a checkpoint: cannot save obj: it is of type"),
        ({"step": 1, "random": 3}, "random must be a bool or a Generator"),
    ],
)
def test_wrong_arguments_write_nothing(tmp_path, options, text):
    with pytest.raises((ValueError, TypeError), match=text):
        dt.checkpoint.save(tmp_path / "run", **options)

    assert not (tmp_path / "run").exists()


def test_a_value_cannot_be_loaded_into(tmp_path):
    with pytest.raises(
        TypeError, match=r"load\(note=...\) needs an object with load_state_dict\(\), got int"
    ):
        dt.checkpoint.load(tmp_path, note=3)


def test_what_is_read_is_the_state_whole(tmp_path):
    run = make()
    train(run, 2)
    dt.checkpoint.save(tmp_path, step=2, **run)
    dt.checkpoint.wait()

    found = dt.checkpoint.read(tmp_path)

    assert set(found) == {"model", "optimizer", "scheduler", "loader"}
    fresh = make()["model"]
    fresh.load_state_dict(found["model"])
    assert found["optimizer"]["param_groups"][0]["params"] == [
        f"model.{n}" for n, _ in fresh.named_parameters()
    ]
    assert found["loader"]["epoch"] == 1
    assert set(dt.checkpoint.read(tmp_path, parts=["loader"])) == {"loader"}


# ------------------------------------------------------------------------------------------- failures


@pytest.fixture
def file_limit():
    """A function that sets how large a file can be written, in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_save_that_fails_is_told_keeps_the_last_one_and_leaves_nothing(tmp_path, caplog, ranks, file_limit):
    def body(rank):
        small, large = nn.Linear(2, 2), nn.Linear(300, 300)
        dt.distributed.barrier()
        file_limit(1 << 18)
        dt.checkpoint.save(tmp_path, step=1, model=small)
        dt.checkpoint.wait()
        dt.checkpoint.save(tmp_path, step=2, model=large)
        with pytest.raises(
            CheckpointError, match=r"checkpoint of step 2 failed: .*the last good one is .*1-step-1"
        ):
            dt.checkpoint.save(tmp_path, step=3, model=small)
        dt.checkpoint.save(tmp_path, step=4, model=small)
        dt.checkpoint.save(tmp_path, step=5, model=large, on_failure="log")
        dt.checkpoint.save(tmp_path, step=6, model=small)
        with pytest.raises(CheckpointError, match="checkpoint of step 7 failed"):
            dt.checkpoint.save(tmp_path, step=7, model=large, background=False)
        dt.checkpoint.close()

    world(ranks, body)

    assert steps_in(tmp_path) == [1, 4, 6]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [".lock"]
    assert caplog.text.count("checkpoint of step 5 failed: ") == 1
    file_limit(1 << 30)
    dt.checkpoint.save(tmp_path, step=8, model=nn.Linear(300, 300))
    dt.checkpoint.wait()
    assert steps_in(tmp_path) == [4, 6, 8]


def test_a_full_disk_is_told_with_what_is_needed_and_free(tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(28, "No space left on device", path)

    dt.checkpoint.save(tmp_path, step=100)
    dt.checkpoint.wait()
    monkeypatch.setattr(files, "write_file", full)
    dt.checkpoint.save(tmp_path, step=200, model=nn.Linear(1000, 500))

    text = r"step 200 failed: No space left on device: .* \(needs 2.0 MB, [\d.]+ MB free\); the last good one is .*100"
    with pytest.raises(CheckpointError, match=text):
        dt.checkpoint.wait()


SMALL_DISK = """
import os
import sys
import disttrain as dt
from disttrain import nn
from disttrain.errors import CheckpointError

folder, small, large = sys.argv[1], nn.Linear(300, 300), nn.Linear(2000, 1000)
dt.checkpoint.save(folder, step=100, model=small, background=False)
for background in (False, True):
    try:
        dt.checkpoint.save(folder, step=200, model=large, background=background)
        dt.checkpoint.wait()
    except CheckpointError as error:
        print(error)
dt.checkpoint.save(folder, step=300, model=small)
dt.checkpoint.wait()
print(*sorted(os.listdir(folder)))
print(dt.checkpoint.load(folder, model=small).step)
"""


def test_a_disk_that_is_full_keeps_the_last_one_and_takes_the_next_that_fits(tmp_path):
    """On a real file system of 4 MB, in a namespace of its own."""
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=4m tmpfs {tmp_path}"
    if (
        shutil.which("unshare") is None
        or subprocess.run([*apart, "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("this system mounts no file systems for its users")
    run = [*apart, "sh", "-c", f'{mount} && exec "$0" "$@"', sys.executable, "-c", SMALL_DISK, str(tmp_path)]

    done = subprocess.run(run, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    *failures, names, step = done.stdout.splitlines()
    assert len(failures) == 2
    for failure in failures:
        assert re.search(
            r"step 200 failed: No space left .*\(needs 8.0 MB, 3.\d MB free\); the last good one is .*1-step-100",
            failure,
        )
    assert names == ".lock 00001-step-100 00002-step-300"
    assert step == "300"


def test_a_folder_that_cannot_be_made_is_told_on_all_ranks(tmp_path):
    (tmp_path / "file").write_text("")

    def body(rank):
        with pytest.raises(CheckpointError, match=r"checkpoint of step 1 failed: .*file"):
            dt.checkpoint.save(tmp_path / "file" / "run", step=1)

    world(2, body)


# ------------------------------------------------------------------------------------------- the lock

OTHER = """
import sys
import disttrain as dt
from disttrain.errors import CheckpointBusy
try:
    dt.checkpoint.save(sys.argv[1], step=2, background=False)
except CheckpointBusy as error:
    print(error)
else:
    print("saved", flush=True)
    sys.stdin.read()
"""


def other(folder):
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_job_is_refused_and_told_who_writes(tmp_path):
    dt.checkpoint.save(tmp_path, step=1)
    dt.checkpoint.wait()

    out, _ = other(tmp_path).communicate(timeout=60)

    assert f"is written by another job: host {os.uname().nodename}, pid {os.getpid()}, generation 0" in out
    assert steps_in(tmp_path) == [1]
    dt.checkpoint.close()
    assert other(tmp_path).communicate(timeout=60)[0] == "saved\n"
    assert steps_in(tmp_path) == [1, 2]


def test_the_lock_of_a_job_that_was_killed_is_taken_over(tmp_path):
    holder = other(tmp_path)
    assert holder.stdout.readline() == "saved\n"
    with pytest.raises(CheckpointBusy, match=f"pid {holder.pid}"):
        dt.checkpoint.save(tmp_path, step=3)
    assert dt.checkpoint.load(tmp_path).step == 2  # who only reads needs no lock

    holder.kill()
    holder.communicate(timeout=60)
    dt.checkpoint.save(tmp_path, step=3)
    dt.checkpoint.wait()

    assert steps_in(tmp_path) == [2, 3]


def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    lock = Lock.take(str(tmp_path), {"generation": 0})
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)  # until the parent is done
        os._exit(0)
    try:
        lock.release()
        out, _ = other(tmp_path).communicate(timeout=60)
        assert out == "saved\n"
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)


def test_a_folder_that_was_removed_is_made_and_locked_again(tmp_path):
    dt.checkpoint.save(tmp_path / "run", step=1)
    dt.checkpoint.wait()
    shutil.rmtree(tmp_path / "run")
    dt.checkpoint.save(tmp_path / "run", step=2)
    dt.checkpoint.wait()

    assert steps_in(tmp_path / "run") == [2]
    assert "is written by another job" in other(tmp_path / "run").communicate(timeout=60)[0]
