"""Programs in the manner of PyTorch's public examples, with nothing but the import changed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ONE = ("script.py",)
TWO = ("-m", "disttrain", "launch", "-n", "2", "script.py")
DEBUG = ("-m", "disttrain", "debug", "-n", "2", "script.py")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    def run(script: str, how: tuple[str, ...]) -> str:
        (tmp_path / "script.py").write_text(textwrap.dedent(script))
        keep = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        done = subprocess.run(
            [sys.executable, *how],
            cwd=tmp_path,
            env=keep | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return re.sub(r"^\[\d\] ", "", done.stdout, flags=re.MULTILINE)

    return run


DISTRIBUTED = """
    import os
    import disttrain as torch
    import disttrain.distributed as dist
    from disttrain import nn
    from disttrain.nn.parallel import DistributedDataParallel as DDP
    from disttrain.utils.data import DataLoader, TensorDataset
    from disttrain.utils.data.distributed import DistributedSampler

    def main():
        dist.init_process_group("gloo")
        rank, world, local_rank = dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"])
        device = torch.device(f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(42)
        x = torch.randn(203, 4)
        data = TensorDataset(x, (x.sum(1) > 0).long())
        torch.manual_seed(rank)
        sampler = DistributedSampler(data, num_replicas=world, rank=rank, shuffle=True)
        loader = DataLoader(data, batch_size=16, sampler=sampler, shuffle=False)
        ddp = DDP(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).to(device))
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.5)
        for epoch in range(6):
            sampler.set_epoch(epoch)
            total = torch.zeros(2, device=device)
            for inputs, targets in loader:
                inputs, targets = inputs.to(device), targets.to(device)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(ddp(inputs), targets)
                loss.backward()
                optimizer.step()
                total[0] += loss.item() * len(targets)
                total[1] += len(targets)
            dist.all_reduce(total, op=dist.ReduceOp.SUM)
        if rank == 0:
            torch.save(ddp.module.state_dict(), "model.pt")
        dist.barrier()
        ddp.module.load_state_dict(torch.load("model.pt", map_location="cpu"))
        first = next(ddp.parameters()).detach()
        everyone = [torch.zeros_like(first) for _ in range(world)]
        dist.all_gather(everyone, first)
        if rank == 0:
            same = all(torch.equal(p, everyone[0]) for p in everyone)
            print(world, int(total[1]), same, (total[0] / total[1] < 0.25).item())
        dist.destroy_process_group()

    if __name__ == "__main__":
        main()
"""


@pytest.mark.mpi
def test_a_script_for_torchrun_runs_on_two_processes(run):
    pytest.importorskip("mpi4py")

    assert run(DISTRIBUTED, TWO) == "2 204 True True\n"


def test_a_script_for_torchrun_runs_as_threads(run):
    assert run(DISTRIBUTED, DEBUG) == "2 204 True True\n"


def test_a_checkpoint_of_model_optimizer_scheduler_and_generator_resumes_to_the_bit(run):
    script = """
        import disttrain as torch
        from disttrain import nn

        def make():
            torch.manual_seed(0)
            m = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))
            o = torch.optim.AdamW(m.parameters(), lr=1e-2)
            return m, o, torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20)

        def steps(m, o, s, n):
            out = []
            for _ in range(n):
                x = torch.randn(16, 4)
                loss = nn.functional.mse_loss(m(x), x.sum(1, keepdim=True))
                o.zero_grad()
                loss.backward()
                o.step()
                s.step()
                out.append(loss.item())
            return out

        m, o, s = make()
        steps(m, o, s, 5)
        torch.save({"epoch": 5, "model": m.state_dict(), "optimizer": o.state_dict(),
                    "scheduler": s.state_dict(), "rng": torch.get_rng_state()}, "ck.pt")
        went_on = steps(m, o, s, 5)
        m, o, s = make()
        ck = torch.load("ck.pt", map_location="cpu")
        m.load_state_dict(ck["model"])
        o.load_state_dict(ck["optimizer"])
        s.load_state_dict(ck["scheduler"])
        torch.set_rng_state(ck["rng"])
        print(ck["epoch"], steps(m, o, s, 5) == went_on, len(set(went_on)), s.last_epoch)
    """

    assert run(script, ONE) == "5 True 5 10\n"


@pytest.mark.parametrize("library", ["disttrain", "torch"])
def test_a_gradient_penalty_trains_through_second_derivatives(library: str, run: Any) -> None:
    if library == "torch":
        pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    script = f"import {library} as torch" + textwrap.dedent(
        """
        nn, autograd = torch.nn, torch.autograd
        torch.manual_seed(0)
        D = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 1))
        optimizer = torch.optim.Adam(D.parameters(), lr=1e-2)
        for step in range(60):
            real = torch.randn(64, 2) * 0.1 + torch.tensor([1.0, -1.0])
            fake = torch.randn(64, 2)
            alpha = torch.rand(64, 1).expand_as(real)
            x = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
            out = D(x)
            g, = autograd.grad(outputs=out, inputs=x, grad_outputs=torch.ones(out.size()),
                               create_graph=True, retain_graph=True, only_inputs=True)
            penalty = ((g.norm(2, dim=1) - 1) ** 2).mean()
            loss = D(fake).mean() - D(real).mean() + 10 * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        w = torch.ones(3, requires_grad=True)
        g, = autograd.grad((w**3).sum() * w.sum(), w, create_graph=True)
        print(penalty.item() < 0.15, loss.item() < 0)
        print(torch.stack([autograd.grad(g[i], w, retain_graph=True)[0] for i in range(3)]))
        """
    )

    assert run(script, ONE) == (
        "True True\ntensor([[24.,  6.,  6.],\n        [ 6., 24.,  6.],\n        [ 6.,  6., 24.]])\n"
    )
