"""A job with checkpoints is the same run, to the last bit, whatever kills it, also on fewer processes."""

import os
import random
import re
import signal

import pytest

from disttrain.checkpoint import folder

pytestmark = pytest.mark.mpi

TRAIN = """
    import hashlib, os, sys
    import disttrain as dt
    from disttrain import nn
    from disttrain.distributed.optim import ZeroRedundancyOptimizer
    dt.manual_seed(0)
    data = dt.data.TensorDataset(dt.randn(90, 1, 6, 6), dt.randint(0, 3, (90,)))
    loader = dt.data.DataLoader(data, batch_size=2, shuffle=True)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 3)
    )
    way = sys.argv[1] if len(sys.argv) > 1 else "replicated"
    if way == "sharded":
        model = dt.distributed.fsdp.FullyShardedDataParallel(layers)
    else:
        model = nn.parallel.DistributedDataParallel(layers)
    if way == "ZeRO":
        optimizer = ZeroRedundancyOptimizer(model.parameters(), dt.optim.Adam, stage=2, lr=0.01)
    else:
        optimizer = dt.optim.Adam(model.parameters(), lr=0.01)
    scheduler = dt.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    run = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    last = dt.checkpoint.load("run", **run)
    step = last.step if last else 0
    print("from", step, "as", os.environ["DISTTRAIN_GENERATION"], flush=True)

    def save():
        dt.checkpoint.save("run", step=step, **run)

    dt.on_save(save)
    for epoch in range(loader.epoch, 4):
        for images, labels in loader:
            step += 1
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if step % 2 == 0:
                save()
            print("step", step, os.getpid(), flush=True)
        scheduler.step()
    dt.checkpoint.wait()
    state = model.state_dict()
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in state.values())).hexdigest()
    if dt.distributed.get_rank() == 0:  # which has the running averages that count
        print("ended after", step, "with", digest, flush=True)
    """


def digests(out):
    found = set(re.findall(r"ended after (\d+) with (\w{64})", out))
    assert len(found) == 1
    return found


def finish(start, *command, args=(), within=60):
    code, out, err = start(TRAIN, "launch", *command, args=args, PYTHONWARNINGS="").end(within=within)
    assert code == 0, err
    return digests(out), out, err


def forget(tmp_path):
    for place in folder.places(str(tmp_path / "run")):
        folder.files.remove_folder(place.path)


@pytest.mark.parametrize("way", ["replicated", "ZeRO", "sharded"])
def test_killed_ranks_are_started_again_and_end_with_the_same_bits(start, tmp_path, way):
    # Each of the ranks; after a step that was saved, after one that was not, and after the last of an epoch.
    chaos = "kill:1@3,kill:0@9,kill:0@1,kill:1@6"
    found, out, err = finish(start, "-n", "2", "--max-restarts", "4", "--chaos", chaos, args=(way,))
    begun = {int(g): int(s) for s, g in re.findall(r"from (\d+) as (\d)", out)}
    forget(tmp_path)
    calm, _, _ = finish(start, "-n", "2", args=(way,))

    assert found == calm
    assert "ended well after 4 restarts" in err
    assert list(begun) == [0, 1, 2, 3, 4]
    assert sorted(begun.values()) == list(begun.values())
    assert begun[4] > 0


def test_four_processes_go_on_as_two_with_the_same_bits(start, tmp_path):
    job = start(TRAIN, "launch", "--ranks", "4", "-n", "4", "--chaos", "kill:2@15", PYTHONWARNINGS="")
    assert job.end(within=60)[0] == 137
    found, out, _ = finish(start, "--ranks", "4", "-n", "2")
    forget(tmp_path)
    calm, _, _ = finish(start, "--ranks", "4", "-n", "1")

    assert found == calm
    assert re.search(r"from 1[024] as 0", out)


def test_a_kill_at_any_moment_changes_nothing(start, tmp_path):
    """Ranks are killed from outside, wherever they are: in a step, in a save, or while a thread writes."""
    rng = random.Random(4)
    job = start(TRAIN, "launch", "-n", "2", "--max-restarts", "5", PYTHONWARNINGS="")
    for _ in range(5):
        for _ in range(rng.randrange(1, 20)):
            line = job.wait_for(r"step \d+ (\d+)")
        os.kill(int(line[1]), signal.SIGKILL)
        job.wait_for(r"from (\d+) as")
    code, out, err = job.end(within=60)
    forget(tmp_path)

    assert code == 0, err
    assert digests(out) == finish(start, "-n", "2")[0]


def test_a_job_that_is_preempted_saves_and_goes_on_later(start, tmp_path):
    job = start(TRAIN, "launch", "-n", "2", PYTHONWARNINGS="")
    job.wait_for("step 7 ")
    job.process.terminate()
    code, out, err = job.end(within=60)
    assert code == 75
    stopped = int(re.search(r"stopped after step (\d+)", err)[1])
    found, out, _ = finish(start, "-n", "2")
    forget(tmp_path)

    assert f"from {stopped} as 0" in out
    assert found == finish(start, "-n", "2")[0]


def test_a_second_job_on_the_folder_is_refused(start, tmp_path):
    first = start(
        TRAIN.replace("range(loader.epoch, 4)", "range(4000)"), "launch", "-n", "2", PYTHONWARNINGS=""
    )
    first.wait_for("step 5 ")
    second = start(None, "launch", "-n", "2", "script.py", PYTHONWARNINGS="").process
    _, err = second.communicate(timeout=20)

    assert second.returncode == 1
    assert re.search(
        r"CheckpointBusy: run is written by another job: host \S+, pid \d+, generation 0, run ", err
    )
    first.process.terminate()
    assert first.end()[0] == 75


def test_a_rank_that_is_killed_while_it_writes_leaves_nothing_to_be_seen(start, tmp_path):
    text = """
        import os, signal, sys
        import disttrain as dt
        from disttrain.checkpoint import files
        model = dt.nn.parallel.DistributedDataParallel(dt.nn.Linear(50, 50))
        print("found", dt.checkpoint.load("run", model=model), os.listdir("run") if os.path.exists("run") else [])
        dt.checkpoint.save("run", step=1, model=model)
        dt.checkpoint.wait()
        if dt.distributed.get_rank() == int(sys.argv[1]):
            write = files.write_file
            def killed(path, chunks, *_):
                def some():
                    yield next(chunks)
                    os.kill(os.getpid(), signal.SIGKILL)
                write(path, some())
            files.write_file = killed
        dt.checkpoint.save("run", step=2, model=model, background=False)
        """
    for rank in ("0", "1"):
        job = start(text, "launch", "-n", "2", args=(rank,), PYTHONWARNINGS="")
        assert job.end()[0] == 137
        assert [p.step for p in folder.places(str(tmp_path / "run"))][-1] == 1
    assert [n for n in os.listdir(tmp_path / "run") if n.startswith(".tmp-")] != []
    code, _, err = start(text, "launch", "-n", "2", args=("2",), PYTHONWARNINGS="").end()

    assert code == 0, err
    assert [p.step for p in folder.places(str(tmp_path / "run"))][-2:] == [1, 2]
    assert [n for n in os.listdir(tmp_path / "run") if n.startswith(".tmp-")] == []
