"""Questions to tensors, old type names and limits of types, against PyTorch."""

import numpy as np
import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
OLD = ["Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double"]


@pytest.mark.parametrize("name", DTYPES)
def test_what_a_tensor_is(name):
    theirs, mine = torch.ones(2, 3, dtype=getattr(torch, name)), dt.ones(2, 3, dtype=getattr(dt, name))

    for ask in ("is_floating_point", "is_complex", "is_signed", "numel"):
        assert (
            getattr(dt, ask)(mine)
            == getattr(torch, ask)(theirs)
            == getattr(mine, ask)()
            == getattr(theirs, ask)()
        )
    assert mine.type() == theirs.type() == dt.typename(mine) == torch.typename(theirs)
    assert mine.ndimension() == theirs.ndimension()
    assert mine.get_device() == theirs.get_device() == dt.get_device(mine) == -1
    assert mine.is_cpu is theirs.is_cpu is True
    assert dt.is_same_size(mine, mine) is torch.is_same_size(theirs, theirs) is True
    assert mine.is_same_size(dt.ones(3, 2)) is theirs.is_same_size(torch.ones(3, 2)) is False
    for other in DTYPES:
        a, b = getattr(dt, other), getattr(torch, other)
        assert dt.can_cast(mine.dtype, a) == torch.can_cast(theirs.dtype, b), other
    for convert in ("byte", "char", "short"):
        assert str(getattr(mine, convert)().dtype)[10:] == str(getattr(theirs, convert)().dtype)[6:]


@pytest.mark.parametrize("value", [0.0, 1.0, [2], [[0]], [], [1, 2]])
def test_is_nonzero(value):
    theirs, mine = torch.tensor(value), dt.tensor(value)
    if theirs.numel() == 1:
        assert dt.is_nonzero(mine) is mine.is_nonzero() is torch.is_nonzero(theirs)
        return
    for lib, x in ((torch, theirs), (dt, mine)):
        with pytest.raises(RuntimeError, match="ambiguous"):
            lib.is_nonzero(x)


def test_questions_need_tensors():
    for ask in (dt.is_floating_point, dt.is_complex, dt.is_signed, dt.is_nonzero, dt.numel, dt.get_device):
        with pytest.raises(TypeError, match="must be Tensor, not int"):
            ask(3)
    with pytest.raises(TypeError, match="two dtypes"):
        dt.can_cast(dt.int32, int)


def test_typename_of_other_things():
    assert dt.typename(dt.nn.Linear(1, 1)).startswith("disttrain.nn.")
    assert dt.typename(3) == torch.typename(3)
    assert dt.typename(dict) == torch.typename(dict)


@pytest.mark.parametrize(("name", "old"), list(zip(DTYPES, OLD, strict=True)))
def test_old_types(name, old):
    for lib in (torch, dt):
        kind, dtype = getattr(lib, f"{old}Tensor"), getattr(lib, name)
        assert kind().shape == (0,)
        assert kind().dtype is dtype
        assert kind(2, 3).shape == (2, 3)
        assert kind([1, 0]).tolist() == [1, 0]
        assert kind(np.array([1, 0])).dtype is dtype
        assert kind(lib.zeros(2, 3).size()).shape == (2, 3)
        assert kind(5).shape == (5,)
        assert isinstance(lib.ones(2, dtype=dtype), kind)
        assert not isinstance(lib.ones(2, dtype=lib.int64 if dtype is lib.bool else lib.bool), kind)
        assert not isinstance([1], kind)
        other = lib.ones(2, dtype=lib.int64 if dtype is lib.bool else lib.bool)
        with pytest.raises(TypeError):
            kind(other)
        with pytest.raises(TypeError):
            kind(2.5)
        same = lib.ones(2, dtype=dtype)
        assert kind(same).data_ptr() == same.data_ptr()
        assert lib.ones(2).type(kind).dtype is dtype
        assert lib.ones(2).type(dtype).dtype is dtype
        assert lib.ones(2).type(f"torch.{old}Tensor").dtype is dtype
        assert lib.ones(1, dtype=dtype).new(2, 3).shape == (2, 3)
        assert lib.ones(1, dtype=dtype).new([1, 0]).dtype is dtype


def test_tensor_itself_is_an_old_type():
    for lib in (torch, dt):
        assert lib.Tensor().shape == (0,)
        assert lib.Tensor(2, 3).shape == (2, 3)
        assert lib.Tensor(4).shape == (4,)
        assert lib.Tensor([1, 2]).dtype is lib.float32
        assert lib.Tensor([[1.5]]).tolist() == [[1.5]]
        assert lib.Tensor(lib.zeros(3, 2).shape).shape == (3, 2)
        assert lib.Tensor(lib.ones(2, dtype=lib.int64)).dtype is lib.int64
        with pytest.raises(TypeError):
            lib.Tensor(True)
        with pytest.raises(TypeError):
            lib.Tensor(1.5)
        with pytest.raises((TypeError, ValueError)):
            lib.ones(2).type("torch.NoTensor")


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_finfo(name):
    theirs, mine = torch.finfo(getattr(torch, name)), dt.finfo(getattr(dt, name))

    for field in ("bits", "eps", "max", "min", "tiny", "smallest_normal", "resolution", "dtype"):
        assert getattr(mine, field) == getattr(theirs, field), field
    assert repr(mine) == repr(theirs)


@pytest.mark.parametrize("name", ["uint8", "int8", "int16", "int32", "int64"])
def test_iinfo(name):
    theirs, mine = torch.iinfo(getattr(torch, name)), dt.iinfo(getattr(dt, name))

    for field in ("bits", "max", "min", "dtype"):
        assert getattr(mine, field) == getattr(theirs, field), field
    assert repr(mine) == repr(theirs)


def test_limits_of_the_wrong_kind_are_refused():
    assert dt.finfo().dtype == torch.finfo().dtype
    for lib in (torch, dt):
        with pytest.raises(TypeError):
            lib.finfo(lib.int32)
        with pytest.raises(TypeError):
            lib.iinfo(lib.float32)
        with pytest.raises(TypeError):
            lib.finfo("float32")
        with pytest.raises(TypeError):
            lib.iinfo(3)


def test_constants():
    for name in ("pi", "e", "inf", "newaxis"):
        assert getattr(dt, name) == getattr(torch, name)
    assert dt.nan != dt.nan
