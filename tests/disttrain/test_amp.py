"""Mixed precision: what autocast refuses, and the scaler of gradients against PyTorch's."""

import warnings

import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def test_autocast_that_is_off_changes_nothing():
    for autocast in (dt.autocast, dt.amp.autocast):
        with autocast("cpu", enabled=False), autocast("cuda", dtype=dt.float16, enabled=False):
            assert (dt.ones(2, 2) @ dt.ones(2, 2)).dtype is dt.float32

        @autocast("cpu", enabled=False)
        def product(x):
            """Of x."""
            return x @ x

        assert product(dt.ones(2, 2)).dtype is dt.float32
        assert product.__doc__ == "Of x."
    assert dt.is_autocast_enabled() is dt.is_autocast_available("cpu") is False
    with dt.cuda.amp.autocast(enabled=False) as entered:
        assert entered is not None


def test_autocast_without_a_gpu_warns_as_in_pytorch():
    if torch.cuda.is_available() or dt.cuda.is_available():
        pytest.skip("there is a GPU")
    for lib in (torch, dt):
        with pytest.warns(UserWarning, match="not available"), lib.autocast("cuda", dtype=lib.float16):
            assert (lib.ones(2, 2) @ lib.ones(2, 2)).dtype is lib.float32
        with pytest.warns(UserWarning, match="lower precision|bfloat16"):
            lib.autocast("cpu", dtype=lib.float32)
        with pytest.raises(RuntimeError):
            lib.autocast("abacus")
        with pytest.raises(ValueError, match="device_type"):
            lib.autocast(lib.device("cpu"))


def test_autocast_that_would_do_something_is_refused():
    for dtype in (None, dt.bfloat16, dt.float16):
        with pytest.raises(NotImplementedError, match=r"on 'cpu' is not in disttrain yet; leave it out"):
            dt.autocast("cpu", dtype=dtype)


def train(lib, steps, bad_step=None, **options):
    """Return the weights after each step, the scale after each, and the state of the scaler."""
    layer = lib.nn.Linear(2, 1, bias=False, dtype=lib.float64)
    with lib.no_grad():
        layer.weight.copy_(lib.tensor([[0.5, -0.25]]))
    optimizer = lib.optim.SGD(layer.parameters(), lr=0.1)
    scaler = lib.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2, **options)
    seen = []
    for step in range(steps):
        x = lib.tensor([[1.0, 2.0]], dtype=lib.float64) * (float("inf") if step == bad_step else 1.0)
        optimizer.zero_grad()
        scaler.scale(layer(x).sum()).backward()
        if step % 2:
            scaler.unscale_(optimizer)
            lib.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        seen.append((layer.weight.tolist(), scaler.get_scale()))
    return seen, scaler.state_dict()


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy says it of the products with inf
@pytest.mark.parametrize("bad_step", [None, 0, 3])
@pytest.mark.parametrize("enabled", [True, False])
def test_the_scaler_follows_that_of_pytorch(bad_step, enabled):
    bad_step = bad_step if enabled else None

    theirs, their_state = train(torch, 6, bad_step, enabled=enabled)
    mine, my_state = train(dt, 6, bad_step, enabled=enabled)

    assert [scale for _, scale in mine] == [scale for _, scale in theirs]
    for (a, _), (b, _) in zip(mine, theirs, strict=True):
        assert a[0] == pytest.approx(b[0])
    assert my_state == their_state


def test_wrong_uses_of_the_scaler():
    for lib in (torch, dt):
        layer = lib.nn.Linear(1, 1)
        optimizer = lib.optim.SGD(layer.parameters(), lr=0.1)
        scaler = lib.amp.GradScaler("cpu")
        scaler.scale(layer(lib.ones(1, 1)).sum()).backward()
        scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match=r"already been called|unscaled already"):
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        with pytest.raises(RuntimeError, match=r"already been called|has had its step"):
            scaler.step(optimizer)
        with pytest.raises(RuntimeError, match=r"after step|unscale before it"):
            scaler.unscale_(optimizer)
        scaler.update()
        with pytest.raises((RuntimeError, AssertionError)):
            scaler.update()
        with pytest.raises(RuntimeError):
            scaler.load_state_dict({})
        with pytest.raises((ValueError, AssertionError)):
            lib.amp.GradScaler("cpu", growth_factor=1.0)
        with pytest.raises((ValueError, AssertionError)):
            lib.amp.GradScaler("cpu", backoff_factor=1.0)
        scaler.update(8.0)
        assert scaler.get_scale() == 8.0
        assert [t.item() for t in scaler.scale([lib.ones(1), lib.ones(1)])] == [8.0, 8.0]


def test_the_scaler_keeps_and_takes_its_state():
    scaler = dt.amp.GradScaler("cpu", init_scale=8.0)
    scaler.set_growth_factor(3.0)
    scaler.set_backoff_factor(0.25)
    scaler.set_growth_interval(5)
    other = dt.GradScaler("cpu")

    other.load_state_dict(scaler.state_dict())

    assert other.state_dict() == scaler.state_dict()
    assert (other.get_growth_factor(), other.get_backoff_factor(), other.get_growth_interval()) == (
        3.0,
        0.25,
        5,
    )


def test_a_scaler_for_gpus_is_disabled_without_one():
    if dt.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.warns(UserWarning, match="no GPU"):
        scaler = dt.cuda.amp.GradScaler()
    assert scaler.is_enabled() is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dt.cuda.amp.GradScaler(enabled=False).get_scale() == 1.0
