"""Time CUDA kernels on the GPU of this machine: how near they come to a copy, and to PyTorch where it is installed.

    python scripts/bench_kernels.py
    python scripts/bench_kernels.py --rows kernels.jsonl

Shapes are those of GPT-2 (8 x 1024 tokens). Times are medians of 20 launches between two events, after 3 that warm up.
GB/s counts what must be read and written once; "of copy" is that over the bandwidth of copying 1 GiB, measured in the
same run. The columns of PyTorch are its time over ours, eager and compiled: above 1 ours is quicker. ``--rows`` appends
what was measured as lines of JSON, as soon as it is known; a case that fails is such a line too, and the exit code 1.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from disttrain.kernels import (
    buckets,
    columns,
    cudnn,
    dropout,
    embedding,
    gelu,
    layout,
    norm,
    optim,
    pool,
    random,
    softmax,
)
from disttrain.kernels.axes import Spans
from disttrain.kernels.optim.common import Extras

KEY = np.array([1, 0, 0, 0], np.uint64)


@dataclass
class Case:
    """One call."""

    run: Callable[..., Any]
    arrays: list[Any]
    nbytes: int
    """That must be read and written."""
    peer: Callable[..., Any] | None = None
    """The same in PyTorch: takes the module and tensors like ``arrays``."""


def cases(dtype: Any, place: Callable[[Any], Any], shrink: int = 1) -> dict[str, Case]:
    """Return what is timed, by name.

    Args:
        dtype: of the activations.
        place: puts a NumPy array where it is worked on.
        shrink: divides the number of rows and parameters.
    """
    rng = np.random.default_rng(0)
    M, C, V, P = 8192 // shrink, 768, 50304 // shrink, (124 << 20) // shrink

    def floats(*shape: int, of: Any = dtype) -> Any:
        return place(rng.standard_normal(shape, np.float32).astype(of))

    def integers(below: int, count: int) -> Any:
        return place(rng.integers(0, below, count))

    x, g, scores = floats(M, C), floats(M, C), floats(M, V)
    wide, bias = floats(M, 4 * C), floats(4 * C)
    weight, shift, ones = (floats(n, of=np.float32) for n in (C, C, V))
    mean, rstd, up = (floats(M, of=np.float32) for _ in range(3))
    classes, tokens, table = integers(V, M), integers(V, M), floats(V, C)
    stats = floats(2, M, of=np.float32)
    p, d, m, v = (floats(P, of=np.float32) for _ in range(4))
    key = place(KEY)
    adam = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "step": 1}
    size = x.nbytes
    pooled = floats(max(M // 64, 1), 4, 4, C).transpose(0, 3, 1, 2)  # of images of 8 by 8, channels last
    row = np.arange(4)
    corners = np.broadcast_to((16 * row[:, None] + 2 * row)[None, :, :, None], (len(pooled), 4, 4, C))
    corners = place(corners.astype(np.int32)).transpose(0, 3, 1, 2)
    halves = Spans(np.arange(0, 8, 2), np.arange(2, 9, 2))

    def eager(name: str, **options: Any) -> Callable[..., Any]:
        return lambda torch, *tensors: getattr(torch.nn.functional, name)(*tensors, **options)

    return {
        "softmax": Case(softmax.softmax, [scores], 2 * scores.nbytes, eager("softmax", dim=1)),
        "cross-entropy": Case(
            lambda x, t, w: softmax.cross_entropy(x, t, w, 0.0, -100), [scores, classes, ones], scores.nbytes,
            lambda torch, x, t, w: torch.nn.functional.cross_entropy(x, t),
        ),
        "cross-entropy, gradient in place": Case(
            lambda x, t, w, u, s: softmax.cross_entropy_grad(u, x, t, w, 0.0, -100, s, x),
            [floats(M, V), classes, ones, up, stats], 2 * scores.nbytes,
        ),
        "LayerNorm": Case(
            lambda x, w, b: norm.layer_norm(x, w, b, 1e-5), [x, weight, shift], 2 * size,
            lambda torch, x, w, b: torch.nn.functional.layer_norm(x, (C,), w.to(x.dtype), b.to(x.dtype)),
        ),
        "LayerNorm, kernel of ours": Case(
            without_cudnn(lambda x, w, b: norm.layer_norm(x, w, b, 1e-5)), [x, weight, shift], 2 * size
        ),
        "LayerNorm of a sum": Case(
            lambda x, r, w, b: norm.add_layer_norm(x, r, w, b, 1e-5), [x, g, weight, shift], 4 * size,
            lambda torch, x, r, w, b: torch.nn.functional.layer_norm(x + r, (C,), w.to(x.dtype), b.to(x.dtype)),
        ),
        "LayerNorm, gradient": Case(norm.layer_norm_grad, [g, x, weight, mean, rstd], 5 * size),
        "LayerNorm, gradient, kernel of ours": Case(
            without_cudnn(norm.layer_norm_grad), [g, x, weight, mean, rstd], 5 * size
        ),
        "BatchNorm's last pass, sum and ReLU": Case(
            lambda x, r, m, s, b: norm.channel_affine(x, m, s, b, residual=r, relu=True),
            [x, g, shift, weight, shift], 3 * size,
            lambda torch, x, r, m, s, b: torch.relu((x - m.to(x.dtype)) * s.to(x.dtype) + b.to(x.dtype) + r),
        ),
        "max pooling, gradient": Case(
            lambda g, at: pool.max_spans_input_grad(g, at, (8, 8), (halves, halves)), [pooled, corners],
            4 * pooled.nbytes + pooled.nbytes + corners.nbytes,
        ),
        "sum of four buckets along a tree": Case(
            lambda a, b, c, d: buckets.fold_tree(((a, b), (c, d)), d), [p, d, m, v], 5 * p.nbytes,
            lambda torch, a, b, c, d: a + b + (c + d),
        ),
        "bias and GELU": Case(
            gelu.bias_gelu, [wide, bias], 2 * wide.nbytes, lambda torch, x, b: torch.nn.functional.gelu(x + b)
        ),
        "dropout": Case(
            lambda x, k: dropout.dropout(x, k, 0.1), [wide, key], 2 * wide.nbytes,
            lambda torch, x, k: torch.nn.functional.dropout(x, 0.1),
        ),
        "embedding": Case(
            embedding.take_rows, [table, tokens], 2 * size,
            lambda torch, w, i: torch.nn.functional.embedding(i, w),
        ),
        "embedding, gradient": Case(
            lambda g, i: embedding.add_rows(g, i, V, -1), [g, tokens], size + table.nbytes
        ),
        "sums of columns": Case(columns.column_sums, [wide], wide.nbytes, lambda torch, x: x.sum(0)),
        "transpose": Case(
            layout.transpose, [floats(8, M // 8, C)], 2 * size,
            lambda torch, x: x.transpose(1, 2).contiguous(),
        ),
        "Adam": Case(
            lambda p, g, m, v: optim.adam_step(p, g, m, v, None, **adam), [p, d, m, v], 7 * p.nbytes
        ),
        "Adam on halves, rounded at random": Case(
            lambda p, g, m, v, k: optim.adam_step(p, g, m, v, None, **adam, extras=Extras(key=k)),
            [*(floats(P, of=ml_dtypes.bfloat16) for _ in range(2)), m, v, key], 22 * P,
        ),
        "normal numbers": Case(
            lambda x, k: random.draw_normal(k, x.size, x.dtype), [wide, key], wide.nbytes,
            lambda torch, x, k: torch.randn_like(x),
        ),
        "sum of squares": Case(optim.sums_of_squares, [d], d.nbytes, lambda torch, x: (x * x).sum()),
    }  # fmt: skip


def without_cudnn(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run`` with what cuDNN would do done by kernels of ours."""

    def call(*arrays: Any) -> Any:
        kept, cudnn.settings.enabled = cudnn.settings.enabled, False
        try:
            return run(*arrays)
        finally:
            cudnn.settings.enabled = kept

    return call


def measure(run: Callable[[], Any], event: Callable[[], Any], elapsed: Callable[[Any, Any], float]) -> float:
    """Return the median of the milliseconds between two events around a call."""
    for _ in range(3):
        run()
    times = []
    for _ in range(20):
        start = event()
        run()
        times.append(elapsed(start, event()))
    return statistics.median(times)


def on_cupy(run: Callable[[], Any]) -> float:
    import cupy

    def event() -> Any:
        e = cupy.cuda.Event()
        e.record()
        return e

    def elapsed(start: Any, end: Any) -> float:
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, end))

    return measure(run, event, elapsed)


def on_torch(torch: Any, run: Callable[[], Any]) -> float:
    def event() -> Any:
        e = torch.cuda.Event(enable_timing=True)
        e.record()
        return e

    def elapsed(start: Any, end: Any) -> float:
        end.synchronize()
        return float(start.elapsed_time(end))

    return measure(run, event, elapsed)


def compare(torch: Any, case: Case) -> list[float]:
    """Return PyTorch's milliseconds for a case, eager and compiled."""
    tensors = [torch.from_dlpack(a) for a in case.arrays]
    peer = case.peer
    assert peer is not None
    with torch.no_grad():
        fast = torch.compile(lambda *xs: peer(torch, *xs))
        return [on_torch(torch, lambda: peer(torch, *tensors)), on_torch(torch, lambda: fast(*tensors))]


def here(run: Callable[[], Any]) -> float:
    """Return milliseconds without a GPU, for the tests."""
    return measure(run, time.perf_counter, lambda start, end: (end - start) * 1e3)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, help="append what was measured to this file")
    parser.add_argument("--stand-in", action="store_true", help=argparse.SUPPRESS)  # NumPy for CuPy
    args = parser.parse_args()
    if args.stand_in:
        timed, big = here, np.zeros(1 << 20, np.uint8)
        found, torch = cases(np.float32, lambda x: x, shrink=128), None
    else:
        try:
            import cupy
        except ImportError:
            sys.exit("bench_kernels needs CuPy and a GPU: CuPy is not installed")
        if not cupy.is_available():
            sys.exit("bench_kernels needs CuPy and a GPU: CuPy sees no GPU")
        try:
            import torch
        except ImportError:
            torch = None
        import ml_dtypes

        timed, big = on_cupy, cupy.zeros(1 << 30, np.uint8)
        found = cases(ml_dtypes.bfloat16, cupy.asarray)

    def tell(**row: Any) -> None:
        if args.rows:
            with open(args.rows, "a") as file:
                file.write(json.dumps(row) + "\n")

    copy = 2 * big.nbytes / timed(big.copy) / 1e6
    del big
    tell(copy=copy)
    wrong = 0
    print(f"copy: {copy:.0f} GB/s")
    print(f"{'bfloat16':34}{'ms':>9}{'GB/s':>8}{'of copy':>9}{'eager':>8}{'compiled':>10}")
    for name, case in found.items():
        try:
            ms = timed(lambda case=case: case.run(*case.arrays))
            peers = compare(torch, case) if torch is not None and case.peer is not None else []
        except Exception as error:  # the other cases are still to be measured
            wrong += 1
            tell(name=name, error="\n".join(f"{type(error).__name__}: {error}".splitlines()[:6]))
            print(f"{name:34}{type(error).__name__}: {error}", flush=True)
            continue
        rate = case.nbytes / ms / 1e6
        tell(name=name, ms=ms, gb_per_s=rate, of_copy=rate / copy, torch=[t / ms for t in peers])
        ratios = "".join(f"{t / ms:>{w}.2f}" for t, w in zip(peers, (8, 10), strict=False))
        print(f"{name:34}{ms:9.4f}{rate:8.0f}{rate / copy:9.2f}{ratios}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
