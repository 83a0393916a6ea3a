"""What goes over the wire of a channel, looked at without one."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from disttrain.collectives import moves
from disttrain.collectives.scratch import Scratch
from disttrain.collectives.tree import cover


@pytest.mark.parametrize(
    ("kind", "hosted", "sent_as"),
    [
        (np.float16, ([0], [1]), np.float16),
        (ml_dtypes.bfloat16, ([0], [1]), ml_dtypes.bfloat16),
        (np.float16, ([0, 1], [2, 3]), np.float32),  # a sum of two ranks is not rounded on its way
        (np.float32, ([0], [1]), np.float32),
        (np.float64, ([0, 1], [2, 3]), np.float64),
    ],
)
def test_half_precision_is_sent_as_it_is(kind, hosted, sent_as):
    rng = np.random.default_rng(0)
    ranks = sum(map(len, hosted))
    data = {i: rng.standard_normal(64).astype(kind) for i in range(ranks)}
    sent = []

    def exchange(sends, receives):
        sent.extend(x.dtype for _, x in sends)
        theirs = [x for i, x in data.items() if i in hosted[1]]
        for _, into in receives:
            into[...] = theirs[0] if len(theirs) == 1 else theirs[0].astype(into.dtype) + theirs[1]
        return lambda: True

    group = SimpleNamespace(
        channel=SimpleNamespace(size=2, index=0, exchange=exchange),
        subtrees=[cover(ranks, h) for h in hosted],
        others=[1],
        size=ranks,
        scratch=Scratch(),
    )
    xs = {(i, i + 1): data[i] for i in hosted[0]}
    out = np.empty(64, kind)

    list(moves.fold_segments(group, [(0, xs), (1, xs)], {0: out}, "sum"))

    assert sent == [np.dtype(sent_as)]
    wide = [x.astype(np.float32 if np.dtype(kind).itemsize == 2 else kind) for x in data.values()]
    while len(wide) > 1:
        wide = [a + b for a, b in zip(wide[::2], wide[1::2], strict=True)]
    np.testing.assert_array_equal(out, wide[0].astype(kind))
