"""What ``--chaos`` means: every item says what, whom and when, or is refused by name."""

import pytest

from disttrain.collectives.chaos import BadChaos, Fault, parse, write

ALL = "kill:1@step=20,stop:2@30,slow:3x2,slow:0x1.5@step=4,nan:0@7,cut:b@40"


def test_all_items_are_read():
    assert parse(ALL, 4) == (
        Fault("kill", 1, 20),
        Fault("stop", 2, 30),
        Fault("slow", 3, 1, 2.0),
        Fault("slow", 0, 4, 1.5),
        Fault("nan", 0, 7),
        Fault("cut", 0, 40, host="b"),
    )


def test_what_is_written_is_read_again():
    faults = parse(ALL, 4)

    assert parse(write(faults), 4) == faults
    assert parse("", 4) == ()


def test_the_seed_draws_ranks_and_steps():
    drawn = {parse("kill:*@10-30", 8, seed)[0] for seed in range(50)}

    assert parse("kill:*@10-30", 8, 3) == parse("kill:*@10-30", 8, 3)
    assert len({fault.rank for fault in drawn}) == 8
    assert all(10 <= fault.step <= 30 for fault in drawn)
    assert len({fault.step for fault in drawn}) > 10


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("boom:1@3", "--chaos boom:1@3: not an item; write kill:1@step=20"),
        ("kill", "--chaos kill: not an item"),
        ("kill:1@", "not an item"),
        ("kill:-1@3", "not an item"),
        ("kill:1@3;stop:0@2", "not an item"),
        ("kill:1", r"--chaos kill:1: write kill:1@step=20 \(SIGKILL for rank 1"),
        ("kill:1x2@3", "write kill:1@step=20"),
        ("slow:1", "write slow:1x2"),
        ("slow:1x0.5", "slower only"),
        ("kill:4@3", "there is no rank 4, the ranks are 0 to 3"),
        ("nan:0@0", "steps count from 1"),
        ("nan:0@9-3", "a range goes up"),
        ("cut:b@40", "there is no other host 'b' to cut off, the job runs on one host"),
        ("cut:b", "not an item"),
        ("kill:1@3,kill:1@step=3", "kill:1@step=3 is ordered twice"),
    ],
)
def test_a_wrong_item_is_named(item, said):
    with pytest.raises(BadChaos, match=said):
        parse(f"nan:0@7,{item}", 4, hosts=())
