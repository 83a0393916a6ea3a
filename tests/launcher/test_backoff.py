"""Restarts wait only for jobs that get nowhere."""

from disttrain.launcher.backoff import BackOff


def test_a_job_that_fails_at_once_waits_longer_each_time():
    back_off = BackOff()

    assert [back_off.after(0.5, communicated=False) for _ in range(9)] == [0, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_generation_that_got_somewhere_is_followed_at_once():
    back_off = BackOff()
    for _ in range(3):
        back_off.after(0.5, communicated=False)

    assert back_off.after(0.5, communicated=True) == 0
    assert back_off.after(0.5, communicated=False) == 0  # the count began anew
    assert back_off.after(0.5, communicated=False) == 1
    assert back_off.after(60.0, communicated=False) == 0
