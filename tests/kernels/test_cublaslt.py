"""The binding of cuBLASLt: its numbers are those of the header, and what it asks for is the product."""

import ctypes
import functools
import re

import cuda_shim
import lt_on_cpu
import numpy as np
import pytest
from cuda_cases import DTYPES, cast, exact, near

from disttrain.kernels import cublaslt
from disttrain.kernels.cublaslt import Desc, Epilogue, Layout, Preference
from disttrain.kernels.libraries import wheel_folders

rng = np.random.default_rng(0)


@pytest.fixture
def library():
    if reason := lt_on_cpu.missing():
        pytest.skip(reason)
    return cublaslt.load_library()


@pytest.fixture
def lt(library, monkeypatch):
    """The library with products on the CPU."""
    with cuda_shim.shim("round-robin"):
        yield lt_on_cpu.install(monkeypatch)


@pytest.fixture
def header(library):
    """The text of `cublasLt.h` and of what it includes, as far as wheels and toolkits have it."""
    names = ("cublasLt.h", "cublas_api.h")
    folders = [folder.parent / "include" for folder in wheel_folders()]
    texts = [(folder / name).read_text() for folder in folders for name in names if (folder / name).exists()]
    if len(texts) < len(names):
        pytest.skip("cublasLt.h is not beside the library")
    return "\n".join(texts)


def number(header, name):
    """Return the value of an enumerator, which the header may make of others."""
    value = re.search(rf"^\s*{name} = ([^,/\n]+?),?\s*(/[*/]|$)", header, re.MULTILINE)[1].strip("() ")
    return functools.reduce(
        int.__or__, (int(w) if w.isdigit() else number(header, w) for w in value.split(" | "))
    )


@pytest.mark.parametrize(
    ("enum", "prefix"),
    [
        (Epilogue, "CUBLASLT_EPILOGUE_"),
        (Desc, "CUBLASLT_MATMUL_DESC_"),
        (Layout, "CUBLASLT_MATRIX_LAYOUT_"),
        (Preference, "CUBLASLT_MATMUL_PREF_"),
    ],
)
def test_enumerators_are_those_of_the_header(enum, prefix, header):
    ours = {e.name: e.number if isinstance(e, cublaslt.Attribute) else e.value for e in enum}

    assert ours == {e.name: number(header, prefix + e.name) for e in enum}


def test_other_numbers_and_sizes_are_those_of_the_header(header):
    assert number(header, "CUBLAS_COMPUTE_32F") == cublaslt.COMPUTE_32F
    assert number(header, "CUBLAS_COMPUTE_32F_FAST_TF32") == cublaslt.COMPUTE_32F_FAST_TF32
    assert number(header, "CUBLAS_COMPUTE_64F") == cublaslt.COMPUTE_64F
    assert number(header, "CUBLAS_STATUS_NOT_SUPPORTED") == cublaslt.NOT_SUPPORTED
    words = int(re.search(r"uint64_t data\[(\d+)\];\n} cublasLtMatmulAlgo_t;", header)[1])
    assert ctypes.sizeof(cublaslt.Algorithm) == 8 * words
    # size_t after the algorithm, then an int, a float and four ints, with nothing to pad.
    assert ctypes.sizeof(cublaslt.HeuristicResult) == 8 * words + 8 + 4 + 4 + 16


def test_functions_take_as_many_arguments_as_the_header_says(header):
    for name, arguments in cublaslt.SIGNATURES.items():
        declared = re.search(rf"CUBLASWINAPI {name}\(([^;]*)\);", header)[1]
        declared = re.sub(r"/\*.*?\*/|//[^\n]*", "", declared)
        assert len(arguments) == declared.count(",") + 1, name
        for ours, theirs in zip(arguments, declared.split(","), strict=True):
            if "size_t" in theirs:
                kind = ctypes.c_size_t
            elif "uint64_t" in theirs:
                kind = ctypes.c_uint64
            elif "int64_t" in theirs:
                kind = ctypes.c_int64
            else:
                handles = ("*", "[", "Handle_t", "Desc_t", "Layout_t", "Preference_t", "Stream_t")
                kind = "pointer" if any(word in theirs for word in handles) else ctypes.c_int
            if kind == "pointer":
                assert ours is ctypes.c_void_p or issubclass(ours, ctypes._Pointer), (name, theirs)
            else:
                assert ours is kind, (name, theirs)


@pytest.mark.parametrize("attribute", [*Desc, *Layout, *Preference], ids=str)
def test_the_library_keeps_every_attribute_as_it_is_set(attribute, library):
    of, arguments = {
        Desc: ("MatmulDesc", (cublaslt.COMPUTE_32F, 0)),
        Layout: ("MatrixLayout", (0, 16, 16, 16)),
        Preference: ("MatmulPreference", ()),
    }[type(attribute)]
    what = ctypes.c_void_p()
    cublaslt.check(getattr(library, f"cublasLt{of}Create")(ctypes.byref(what), *arguments), "create")
    value = attribute.kind({"TRANSA": 1, "TRANSB": 1, "EPILOGUE": 36}.get(attribute.name, 128))
    size, read, written = ctypes.sizeof(value), type(value)(), ctypes.c_size_t()

    status = getattr(library, f"cublasLt{of}SetAttribute")(what, attribute.number, ctypes.byref(value), size)
    assert status == 0
    get = getattr(library, f"cublasLt{of}GetAttribute")
    assert get(what, attribute.number, None, ctypes.c_size_t(0), ctypes.byref(written)) == 0
    assert written.value == size  # the library's own idea of the size
    assert get(what, attribute.number, ctypes.byref(read), ctypes.c_size_t(size), ctypes.byref(written)) == 0
    assert read.value == value.value
    getattr(library, f"cublasLt{of}Destroy")(what)


# ------------------------------------------------------------------------------------------------- products

LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "part of a wider one": lambda x: np.concatenate([x, x], -1)[..., : x.shape[-1]],
    "neither": lambda x: np.repeat(np.repeat(x, 2, -1), 2, -2)[..., ::2, ::2],
}


def multiplied(a, b, dtype="float32", **options):
    out = cuda_shim.poisoned(np.matmul(a, b).shape, a.dtype)
    cublaslt.multiply(a, b, out, **options)
    near(out, np.matmul(*exact(a, b)), dtype, 4)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_products_of_matrices_however_they_lie(left, right, dtype, lt):
    a, b = (cast(rng.standard_normal(s) / 2, dtype) for s in ((5, 7), (7, 3)))

    multiplied(LAYOUTS[left](a), LAYOUTS[right](b), dtype)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 3), (4, 1, 3), (4, 3, 1), (1, 1, 5), (5, 1, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_single_rows_and_columns(sizes, layout, lt):
    M, N, K = sizes

    multiplied(*(LAYOUTS[layout](cast(rng.standard_normal(s), "float32")) for s in ((M, K), (K, N))))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((4, 2, 3), (4, 3, 5)),
        ((2, 3, 2, 4), (2, 3, 4, 2)),
        ((6, 2, 3), (3, 5)),
        ((2, 3), (6, 3, 5)),
        ((2, 1, 2, 3), (1, 4, 3, 5)),
        ((1, 2, 3), (1, 3, 5)),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_are_one_call(a, b, layout, dtype, lt):
    multiplied(*(LAYOUTS[layout](cast(rng.standard_normal(s) / 2, dtype)) for s in (a, b)), dtype)

    assert lt.ran == 1


def test_heads_between_the_rows_are_read_where_they_are_if_one_stride_says_how(lt):
    x = cast(rng.standard_normal((6, 4, 8)), "float32")  # (tokens, heads, features)
    heads = x.transpose(1, 0, 2)

    out = cuda_shim.poisoned((4, 6, 6), np.float32)
    cublaslt.multiply(heads, heads.swapaxes(1, 2), out)

    near(out, np.matmul(*exact(heads, heads.swapaxes(1, 2))), "float32")
    assert cublaslt._readable(heads, (4,)).base is not None  # no copy
    assert np.shares_memory(cublaslt._readable(heads, (4,)), x)


def test_products_of_half_precision_can_be_kept_in_single(lt):
    a, b = (cast(rng.standard_normal(s), "bfloat16") for s in ((5, 70), (70, 3)))
    out = cuda_shim.poisoned((5, 3), np.float32)

    cublaslt.multiply(a, b, out)

    near(out, np.matmul(*exact(a, b)), "float32")


def test_tf32_only_where_it_is_wanted(lt):
    a, b = (cast(rng.standard_normal(s), "float32") for s in ((5, 70), (70, 3)))
    out = cuda_shim.poisoned((5, 3), np.float32)

    cublaslt.multiply(a, b, out, tf32=True)
    assert 1e-5 < np.abs(out - np.matmul(a, b)).max() < 0.05
    multiplied(a, b)
    assert [o["compute"] for o in lt.operations] == [77, 68]


def test_a_plan_is_made_once_for_the_same_sizes_strides_and_types(lt):
    a, b = (cast(rng.standard_normal(s), "float32") for s in ((8, 4), (4, 8)))
    for _ in range(3):
        multiplied(cuda_shim.aligned(a), cuda_shim.aligned(b))
    before = lt.planned
    multiplied(b.T, a.T)

    assert (before, lt.planned, lt.ran) == (1, 2, 4)


def test_the_alignment_that_is_promised_is_there(lt):
    told, names = [], {p.number: p.name for p in Preference}
    lt.cublasLtMatmulPreferenceSetAttribute = lambda what, attribute, value, size: told.append(
        (names[attribute], value._obj.value)
    )
    room = cuda_shim.poisoned(100, np.float16)
    a, b = room[1:13].reshape(3, 4), room[16:36].reshape(4, 5)
    a[...], b[...] = 1, 1

    cublaslt.multiply(a, b, cuda_shim.poisoned((3, 5), np.float16))

    assert dict(told) == {
        "MAX_WORKSPACE_BYTES": cublaslt.WORKSPACE_BYTES,
        "MIN_ALIGNMENT_A_BYTES": 32,  # the library's A is our b
        "MIN_ALIGNMENT_B_BYTES": 2,
        "MIN_ALIGNMENT_C_BYTES": 256,
        "MIN_ALIGNMENT_D_BYTES": 256,
    }


# ------------------------------------------------------------------------------------------------- epilogues


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [8, 136])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_activation_and_its_gradient(activation, N, dtype, lt):
    M, K = 6, 5
    a, b, bias = (cast(rng.standard_normal(s), dtype) for s in ((M, K), (K, N), (N,)))
    out = cuda_shim.poisoned((M, N), a.dtype)
    aux = cublaslt.relu_bits((M, N)) if activation == "relu" else cuda_shim.poisoned((M, N), a.dtype)
    name = activation.upper()
    u = np.matmul(*exact(a, b)) + exact(bias)[0]
    act = (lambda v: np.maximum(v, 0)) if activation == "relu" else lt_on_cpu.gelu
    slope = (lambda v: v > 0) if activation == "relu" else lt_on_cpu.gelu_slope

    for e, options in (
        (name, {}),
        (f"{name}_AUX", {"aux": aux}),
        (f"{name}_BIAS", {"bias": bias}),
        (f"{name}_AUX_BIAS", {"bias": bias, "aux": aux}),
    ):
        cublaslt.multiply(a, b, out, epilogue=Epilogue[e], **options)
        near(out, act(u if "BIAS" in e else np.matmul(*exact(a, b))), dtype, 8)

    g, w = (cast(rng.standard_normal(s), dtype) for s in ((M, 7), (7, N)))
    ours, total = cuda_shim.poisoned((M, N), a.dtype), cuda_shim.poisoned(N, a.dtype)
    expected = np.matmul(*exact(g, w)) * slope(u if activation == "relu" else exact(aux)[0])
    cublaslt.multiply(g, w, ours, epilogue=Epilogue[f"D{name}"], aux=aux)
    near(ours, expected, dtype, 8)
    cublaslt.multiply(g, w, ours, epilogue=Epilogue[f"D{name}_BGRAD"], aux=aux, bias=total)
    near((ours, total), (expected, expected.sum(0)), dtype, 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_and_its_gradient(dtype, lt):
    a, b, bias = (cast(rng.standard_normal(s), dtype) for s in ((6, 5), (5, 3), (3,)))
    out = cuda_shim.poisoned((6, 3), a.dtype)
    cublaslt.multiply(a, b, out, epilogue=Epilogue.BIAS, bias=bias)
    near(out, np.matmul(*exact(a, b)) + exact(bias)[0], dtype, 8)

    g = cast(rng.standard_normal((6, 3)), dtype)
    gw, gb = cuda_shim.poisoned((3, 5), a.dtype), cuda_shim.poisoned(3, a.dtype)
    cublaslt.multiply(g.T, a, gw, epilogue=Epilogue.BGRADB, bias=gb)
    near((gw, gb), (np.matmul(*exact(g.T, a)), exact(g)[0].sum(0)), dtype, 8)


# ---------------------------------------------------------------------------------------------------- errors


def test_what_the_library_cannot_do_is_an_error_that_names_it(lt):
    lt._unsupported = lambda operation, result: result["columns"] == 6
    a, b = np.ones((6, 4), np.float32), np.ones((4, 8), np.float32)
    out = np.empty((6, 8), np.float32)

    with pytest.raises(cublaslt.Unsupported, match=r"CUBLAS_STATUS_NOT_SUPPORTED \(15\)"):
        cublaslt.multiply(a, b, out)
    with pytest.raises(cublaslt.Unsupported, match="no algorithm"):  # which is remembered
        cublaslt.multiply(a, b, out)
    assert lt.planned == 1


def test_without_a_driver_the_library_says_so(library):
    import os

    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("there is a driver")
    with pytest.raises(
        cublaslt.LtError, match=r"cublasLtCreate failed with CUBLAS_STATUS_NOT_INITIALIZED \(1\)"
    ):
        cublaslt.handle.__wrapped__(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": np.ones((6, 4))}, "both alike; got float64 and float32"),
        ({"a": np.ones((6, 4), np.int32), "b": np.ones((4, 8), np.int32)}, "cuBLASLt multiplies float32"),
        ({"out": np.empty((6, 8), np.float16)}, "out must be float32"),
        ({"out": np.empty((8, 6), np.float32).T}, "out must be C-contiguous"),
        ({"b": np.ones((5, 8), np.float32)}, r"shapes \(6, 4\) and \(5, 8\) cannot be multiplied"),
        ({"epilogue": Epilogue.BIAS}, "BIAS takes a bias and no aux"),
        ({"bias": np.ones(8, np.float32)}, "DEFAULT takes no bias"),
        ({"epilogue": Epilogue.BIAS, "bias": np.ones(6, np.float32)}, r"bias must be \(8,\) of float32"),
        ({"epilogue": Epilogue.BGRADB, "bias": np.ones(8, np.float32)}, r"bias must be \(6,\)"),
        (
            {"epilogue": Epilogue.GELU_AUX, "aux": np.ones((6, 7), np.float32)},
            r"aux must be \(6, 8\) of float32",
        ),
        (
            {"epilogue": Epilogue.RELU_AUX, "aux": np.ones((6, 1), np.uint8)},
            r"aux must be \(6, 16\) of uint8",
        ),
    ],
)
def test_misfits_are_refused(options, message):
    given = {
        "a": np.ones((6, 4), np.float32),
        "b": np.ones((4, 8), np.float32),
        "out": np.empty((6, 8), np.float32),
    }
    with pytest.raises((TypeError, ValueError), match=message):
        cublaslt.multiply(**given | options)


def test_gelu_needs_columns_in_eights():
    a, b, out = np.ones((6, 4), np.float32), np.ones((4, 7), np.float32), np.empty((6, 7), np.float32)
    with pytest.raises(ValueError, match="multiple of 8 columns, got 7"):
        cublaslt.multiply(a, b, out, epilogue=Epilogue.GELU_AUX, aux=np.empty_like(out))
