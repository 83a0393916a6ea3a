"""The ``out=`` argument, compared with PyTorch."""

import numpy as np
import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="compares with torch")


def both(f):
    return f(dt), f(torch)


def test_the_result_is_written_into_out_and_out_is_returned():
    def run(lib):
        x, out = lib.tensor([1.0, 2.0]), lib.zeros(2)
        assert lib.add(x, 1, out=out) is out
        return out.numpy()

    np.testing.assert_array_equal(*both(run))


def test_several_results_go_into_a_tuple():
    def run(lib):
        x = lib.tensor([[3.0, 1.0], [0.0, 5.0]])
        values, places = lib.zeros(2), lib.zeros(2, dtype=lib.int64)
        result = lib.max(x, 1, out=(values, places))
        assert result.values is values
        assert result.indices is places
        return np.stack([values.numpy(), places.numpy()])

    np.testing.assert_array_equal(*both(run))


def test_an_empty_out_takes_the_shape_of_the_result_and_any_other_with_a_warning():
    def run(lib):
        out = lib.empty(0)
        lib.exp(lib.tensor([0.0, 1.0]), out=out)
        other = lib.zeros(3)
        with pytest.warns(UserWarning, match="resized"):
            lib.exp(lib.tensor([0.0, 1.0]), out=other)
        return np.stack([out.numpy(), other.numpy()])

    np.testing.assert_allclose(*both(run), rtol=1e-6)


def test_out_may_be_a_view_and_one_of_the_arguments():
    def run(lib):
        x = lib.arange(6.0).reshape(2, 3)
        lib.mul(x[0], x[1], out=x[0])
        lib.neg(x[:, 0], out=x[:, 0])
        return x.numpy()

    np.testing.assert_array_equal(*both(run))


@pytest.mark.parametrize("lib", [dt, torch], ids=["disttrain", "torch"])
def test_out_that_shares_some_elements_with_an_argument_is_refused(lib):
    x = lib.arange(4.0)

    for call in (
        lambda: lib.add(x[1:], x[:3], out=x[:3]),
        lambda: lib.add(input=x[1:], other=x[:3], out=x[:3]),
        lambda: lib.stack(tensors=[x[:2], x[2:]], out=x.reshape(2, 2)),
    ):
        with pytest.raises(RuntimeError):
            call()


def test_out_of_a_wider_kind_is_converted_and_of_a_narrower_refused():
    def run(lib):
        out = lib.zeros(2, dtype=lib.float64)
        lib.add(lib.tensor([1, 2]), 1, out=out)
        with pytest.raises(RuntimeError, match="result"):
            lib.exp(lib.tensor([1.0, 2.0]), out=lib.zeros(2, dtype=lib.int64))
        return out.numpy()

    np.testing.assert_array_equal(*both(run))


def test_arguments_that_require_gradients_are_refused_unless_nothing_is_recorded():
    def run(lib):
        x, out = lib.ones(2, requires_grad=True), lib.zeros(2)
        with pytest.raises(RuntimeError, match="out="):
            lib.exp(x, out=out)
        with lib.no_grad():
            lib.exp(x, out=out)
        return out.numpy()

    np.testing.assert_allclose(*both(run), rtol=1e-6)


def test_what_is_no_tensor_and_the_wrong_number_are_refused():
    def run(lib):
        with pytest.raises(TypeError):
            lib.exp(lib.zeros(2), out=[1.0, 2.0])
        with pytest.raises((TypeError, RuntimeError)):
            lib.sort(lib.zeros(2), out=(lib.zeros(2),))

    both(run)


REFUSED = {
    *("empty_like", "empty_strided", "full_like", "hamming_window", "ones_like", "rand_like", "randint_like"),
    *("randn_like", "std_mean", "var_mean", "zeros_like"),
}
"""Whose pages in PyTorch name it, but which do not take it."""


def test_every_function_that_has_out_in_pytorch_has_it_here():
    missing = []
    for name in dt.__all__:
        theirs = getattr(torch, name, None)
        if callable(theirs) and "out=None" in (getattr(theirs, "__doc__", None) or "").split("\n\n")[0]:
            f = getattr(dt, name)
            try:
                f(out="no tensor")
            except TypeError as e:
                if ("out must be" in str(e)) == (name in REFUSED):
                    missing.append(name)
            else:
                missing.append(name)
    assert not missing


@pytest.mark.parametrize("name", ["ones_like", "zeros_like", "rand_like", "std_mean"])
def test_what_takes_none_in_pytorch_takes_none_here(name):
    def run(lib):
        with pytest.raises(TypeError):
            getattr(lib, name)(lib.ones(3), out=lib.ones(3))

    both(run)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("argmax", (0,)),
        ("all", (0,)),
        ("cumsum", (0,)),
        ("prod", (0,)),
        ("signbit", ()),
        ("msort", ()),
        ("nonzero", ()),
        ("nan_to_num", ()),
        ("arcsin", ()),
        ("absolute", ()),
        ("add", (1,)),
    ],
)
def test_the_type_of_out_is_converted_to_or_refused_as_in_pytorch(name, args, dtype):
    def run(lib):
        x = lib.tensor([2.0, -1.0, 1.0])
        out = lib.empty(0, dtype=getattr(lib, dtype))
        try:
            getattr(lib, name)(x, *args, out=out)
        except RuntimeError:
            return "refused"
        return out.tolist()

    ours, theirs = both(run)
    assert ours == theirs == "refused" or np.testing.assert_allclose(ours, theirs, rtol=1e-3) is None


@pytest.mark.parametrize("dtype", ["bool", "int64", "float16", "float32"])
@pytest.mark.parametrize(("name", "args"), [("eye", (3,)), ("ones", (3,)), ("full", ((3,), 1.0))])
def test_what_makes_tensors_takes_the_type_of_out(name, args, dtype):
    def run(lib):
        out = lib.empty(0, dtype=getattr(lib, dtype))
        with pytest.raises(RuntimeError):
            getattr(lib, name)(*args, dtype=lib.float64, out=out)
        return getattr(lib, name)(*args, out=out).numpy()

    ours, theirs = both(run)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype


def test_an_out_of_no_elements_may_have_any_shape():
    def run(lib):
        return lib.exp(lib.zeros(0, 3), out=lib.empty(0, 3)).shape

    ours, theirs = both(run)
    assert tuple(ours) == tuple(theirs)


def test_linear_algebra_has_it_too():
    def run(lib):
        out, wide = lib.empty(0), lib.empty(0, dtype=lib.float64)
        lib.linalg.norm(lib.tensor([3.0, 4.0]), out=out)
        with pytest.raises(RuntimeError):
            lib.linalg.inv(lib.eye(2), out=wide)
        return out.numpy()

    np.testing.assert_array_equal(*both(run))
