"""What the MPI transport makes of the errors of MPI, which a stand-in raises here."""

from types import SimpleNamespace

import numpy as np
import pytest

from disttrain.collectives.errors import PeerFailed
from disttrain.collectives.mpi import PIECE_BYTES, MpiChannel


class LostPeer(Exception):
    pass


def fail(*_):
    raise LostPeer("MPI_ERR_OTHER: the process has gone")


REQUEST = SimpleNamespace(Test=fail)
MPI = SimpleNamespace(
    Exception=LostPeer,
    BYTE=None,
    IN_PLACE=None,
    SUM=None,
    Request=SimpleNamespace(Testall=fail),
)
COMM = SimpleNamespace(
    Get_rank=lambda: 0,
    Get_size=lambda: 2,
    Iallgather=lambda *_: REQUEST,
    Iallreduce=lambda *_: REQUEST,
    Irecv=lambda *_: REQUEST,
    Isend=lambda *_: REQUEST,
)
X = np.zeros(3)


@pytest.mark.parametrize(
    "start",
    [
        lambda channel: channel.gather_headers(b"header")[0],
        lambda channel: channel.all_reduce(X, "sum"),
        lambda channel: channel.exchange([(1, X)], []),
        lambda channel: channel.exchange([(1, X)], [(1, X)]),
    ],
)
def test_an_error_in_the_middle_of_a_transfer_is_a_peers_failure(start):
    test = start(MpiChannel(MPI, COMM))

    with pytest.raises(PeerFailed, match="the process has gone") as failed:
        test()

    assert isinstance(failed.value.__cause__, LostPeer)


def test_large_messages_go_in_pieces_and_empty_ones_not_at_all():
    """MPI counts to 2**31; the first, the last and all bytes between are there, in order."""
    posted = []
    record = SimpleNamespace(
        Get_rank=lambda: 0,
        Get_size=lambda: 2,
        Isend=lambda what, to, lane: posted.append((to, what[0].copy(), what[1])) or REQUEST,
    )
    x = np.arange(PIECE_BYTES // 2 + 5, dtype=np.float64)  # more than four pieces

    MpiChannel(MPI, record).exchange([(1, np.zeros(0)), (1, x)], [])

    assert [to for to, *_ in posted] == [1] * 5
    assert all(sent.nbytes == count <= PIECE_BYTES for _, sent, count in posted)
    np.testing.assert_array_equal(np.concatenate([sent for _, sent, _ in posted]).view(np.float64), x)
