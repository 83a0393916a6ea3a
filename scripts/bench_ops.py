"""Time single operations against PyTorch, forward and backward, on the same arrays, in one run.

    python scripts/bench_ops.py --against torch
    python scripts/bench_ops.py --against torch --ops attention GELU

One thread, float32. The two sides take turns, call by call; figures are lower quartiles of the process's CPU time.
Results and gradients of both sides must agree, or the row is an error. Ratio: PyTorch's time over disttrain's.
"""

import argparse
import os
import sys
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"  # before a library reads them

import numpy as np  # noqa: E402

TOLERANCE = 2e-4


def functional(name, **options):
    """Return what calls a function of ``nn.functional``."""
    return lambda lib, *xs: getattr(lib.nn.functional, name)(*xs, **options)


def plain(name):
    return lambda lib, *xs: getattr(lib, name)(*xs)


def floats(*shape):
    return lambda rng: rng.standard_normal(shape).astype(np.float32)


def integers(below, *shape):
    return lambda rng: rng.integers(0, below, shape)


def heads(*shape):
    """Return what makes (B, H, T, D) that lies as (B, T, H, D) in memory, as projections give it."""
    B, H, T, D = shape
    return lambda rng: rng.standard_normal((B, T, H, D)).astype(np.float32).transpose(0, 2, 1, 3)


def layer_norm(lib, x, weight, bias):
    return lib.nn.functional.layer_norm(x, weight.shape, weight, bias)


OPS = {
    "softmax 1024x1024": (functional("softmax", dim=-1), [floats(1024, 1024)]),
    "log softmax 1024x1024": (functional("log_softmax", dim=-1), [floats(1024, 1024)]),
    "cross-entropy 1024x256": (functional("cross_entropy"), [floats(1024, 256), integers(256, 1024)]),
    "LayerNorm 1024x128": (layer_norm, [floats(1024, 128), floats(128), floats(128)]),
    "LayerNorm 1024x768": (layer_norm, [floats(1024, 768), floats(768), floats(768)]),
    "GELU 1024x512": (functional("gelu"), [floats(1024, 512)]),
    "SiLU 1024x512": (functional("silu"), [floats(1024, 512)]),
    "tanh 1024x512": (plain("tanh"), [floats(1024, 512)]),
    "sigmoid 1024x512": (plain("sigmoid"), [floats(1024, 512)]),
    "ReLU 1024x512": (functional("relu"), [floats(1024, 512)]),
    "attention 8x4x128x32": (functional("scaled_dot_product_attention"), [heads(8, 4, 128, 32)] * 3),
    "causal attention 8x4x128x32": (
        functional("scaled_dot_product_attention", is_causal=True),
        [heads(8, 4, 128, 32)] * 3,
    ),
    "causal attention 2x8x512x64": (
        functional("scaled_dot_product_attention", is_causal=True),
        [heads(2, 8, 512, 64)] * 3,
    ),
    "embedding 5000x128 of 1024": (
        lambda lib, i, w: lib.nn.functional.embedding(i, w),
        [integers(5000, 1024), floats(5000, 128)],
    ),
    "matmul 512x512x512": (plain("matmul"), [floats(512, 512), floats(512, 512)]),
    "linear 1024x128 to 512": (functional("linear"), [floats(1024, 128), floats(512, 128), floats(512)]),
    "linear 128x1024 to 1024": (functional("linear"), [floats(128, 1024), floats(1024, 1024), floats(1024)]),
    "conv 8x64x32x32, 3x3 to 64": (
        functional("conv2d", padding=1),
        [floats(8, 64, 32, 32), floats(64, 64, 3, 3)],
    ),
    "conv 8x128x16x16, 3x3/2 to 256": (
        functional("conv2d", padding=1, stride=2),
        [floats(8, 128, 16, 16), floats(256, 128, 3, 3)],
    ),
    "depthwise 8x192x28x28, 3x3": (
        functional("conv2d", padding=1, groups=192),
        [floats(8, 192, 28, 28), floats(192, 1, 3, 3)],
    ),
    "conv 8x128x28x28, 3x3, 32 groups": (
        functional("conv2d", padding=1, groups=32),
        [floats(8, 128, 28, 28), floats(128, 4, 3, 3)],
    ),
    "conv 8x256x8x8, 1x1 to 64": (functional("conv2d"), [floats(8, 256, 8, 8), floats(64, 256, 1, 1)]),
}


def dropout(lib, x):
    return lib.nn.functional.dropout(x, 0.1)


RANDOM = {"dropout 1024x512": (dropout, [floats(1024, 512)])}
"""Operations whose two sides draw other numbers: nothing is compared but how many elements are dropped."""


def library(side):
    if side == "torch":
        import torch

        torch.set_num_threads(1)
        return torch
    import disttrain

    return disttrain


class Side:
    """One operation of one library, ready to be called."""

    def __init__(self, side, op, arrays):
        self.lib, self.op = library(side), op
        self.args = []
        for a in arrays:
            t = self.lib.tensor(np.ascontiguousarray(a))
            if a.dtype.kind == "f":
                back = np.argsort([-stride for stride in a.strides], kind="stable")
                if list(back) != list(range(a.ndim)):  # keep how it lies in memory
                    t = self.lib.tensor(np.ascontiguousarray(a.transpose(back)))
                    t = t.permute(*[int(i) for i in np.argsort(back)])
                t = t.detach().requires_grad_()
            self.args.append(t)
        self.leaves = [t for t in self.args if t.requires_grad]
        out = self.op(self.lib, *self.args)
        rng = np.random.default_rng(1)
        self.g = self.lib.tensor(np.asarray(rng.standard_normal(tuple(out.shape)), np.float32))

    def __call__(self):
        """Return the result, the gradients and the seconds of forward and backward."""
        start = time.process_time_ns()
        out = self.op(self.lib, *self.args)
        middle = time.process_time_ns()
        grads = self.lib.autograd.grad(out, self.leaves, self.g)
        end = time.process_time_ns()
        return out, grads, (middle - start, end - middle)


class AdamSide:
    """A step of Adam on the parameters of an MLP, 1.86 million; it has no backward."""

    def __init__(self, side, shapes):
        self.lib = library(side)
        rng = np.random.default_rng(0)
        self.params = [self.lib.tensor(rng.standard_normal(s).astype(np.float32)) for s in shapes]
        for p in self.params:
            p.requires_grad_()
        self.optimizer = self.lib.optim.Adam(self.params)
        for p in self.params:
            (p * self.lib.tensor(rng.standard_normal(tuple(p.shape)).astype(np.float32))).sum().backward()

    def __call__(self):
        start = time.process_time_ns()
        self.optimizer.step()
        end = time.process_time_ns()
        return self.params[0].detach(), [], (end - start, 0)


def apart(a, b):
    """Return the largest difference of two results, in units of the largest element."""
    a, b = (np.asarray(x.detach().numpy(), np.float64) for x in (a, b))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def measure(sides, repeats):
    """Return for each side the quartiles of forward and backward, and the results of its first call."""
    first = [side() for side in sides]
    times = [[] for _ in sides]
    for _ in range(repeats):
        for side, found in zip(sides, times, strict=True):
            found.append(side()[2])
    return first, [np.quantile(np.array(t), 0.25, axis=0) / 1e3 for t in times]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", choices=["torch"], help="measure this peer too, and print the ratio")
    parser.add_argument("--ops", nargs="*", help="only rows that have one of these words")
    parser.add_argument("--repeats", type=int, default=60)
    args = parser.parse_args()
    names = ["disttrain"] + ([args.against] if args.against else [])
    makers = {}
    for row, (op, arrays) in {**OPS, **RANDOM}.items():
        made = [make(np.random.default_rng(0)) for make in arrays]
        if len(made) > 1 and all(a.shape == made[0].shape for a in made):  # queries, keys and values differ
            made = [make(np.random.default_rng(i)) for i, make in enumerate(arrays)]
        makers[row] = lambda side, op=op, made=made: Side(side, op, made)
    shapes = [(1024, 784), (1024,), (1024, 1024), (1024,), (10, 1024), (10,)]
    makers["Adam, 1.86 M parameters"] = lambda side: AdamSide(side, shapes)
    print(
        f"{'operation, us':34s}"
        + "".join(f"{n + ' fwd':>15s}{'bwd':>9s}" for n in names)
        + "   ratio fwd, bwd"
    )
    wrong = 0
    for row, make in makers.items():
        if args.ops and not any(word in row for word in args.ops):
            continue
        first, times = measure([make(name) for name in names], args.repeats)
        line = f"{row:34s}" + "".join(f"{forward:15.0f}{backward:9.0f}" for forward, backward in times)
        if args.against:
            (mine, peer), (a, b) = times, first
            line += f"   {peer[0] / mine[0]:9.2f}" + (f", {peer[1] / mine[1]:.2f}" if mine[1] else "")
            if row in RANDOM:
                kept = [float((out.detach().numpy() != 0).mean()) for out in (a[0], b[0])]
                bad = abs(kept[0] - kept[1]) > 0.01
            else:
                pairs = [(a[0], b[0]), *zip(a[1], b[1], strict=True)]
                bad = max(apart(x, y) for x, y in pairs) > TOLERANCE
            if bad:
                wrong += 1
                line += "   ERROR: the results differ"
        print(line, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
