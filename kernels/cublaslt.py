"""cuBLASLt, NVIDIA's library of matrix products, through ctypes.

Its matrices are column after column, ours row after row: a matrix of ours is to it the transposed one, and
``out = a @ b`` is ``out.T = b.T @ a.T``. So its A is our ``b``, its B our ``a``, and its m, n, k are our N, M, K.

A product is planned once for its sizes, strides, types and what is done to its result; the plan keeps the descriptors
and the algorithm that the library's heuristics chose. Nothing is allocated and nothing waited for after the first call
in a stream, so products can be captured in graphs, which CuPy's cannot.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import math
import threading
from ctypes import byref, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, address, get_array_module
from disttrain.kernels.libraries import LibraryMissing, open_library

WORKSPACE_BYTES = 32 << 20
"""What NVIDIA recommends for Hopper; each stream in which products run has as much."""


class _Settings:
    tf32 = False
    """Whether products of float32 may be of factors that are rounded to TF32."""


settings = _Settings()
"""Of the process, as in PyTorch: ``disttrain.set_float32_matmul_precision``."""


class LtError(RuntimeError):
    """A call of cuBLASLt failed: which, with what status."""


class Unsupported(LtError):
    """cuBLASLt has no algorithm for a product."""


class Epilogue(enum.IntEnum):
    """What is done to the result before it is written: ``cublasLtEpilogue_t``, in the words of our rows and columns.

    GELU is its approximation by tanh. AUX keeps what the gradient needs (``aux``): of GELU its argument, of ReLU a bit
    for each element. DRELU and DGELU multiply by the slope; BGRAD also adds up the result's rows, and BGRADB the
    columns of the left factor, into ``bias``.
    """

    DEFAULT = 1
    RELU = 2
    RELU_AUX = RELU | 128
    BIAS = 4
    RELU_BIAS = RELU | BIAS
    RELU_AUX_BIAS = RELU_AUX | BIAS
    DRELU = 8 | 128
    DRELU_BGRAD = DRELU | 16
    GELU = 32
    GELU_AUX = GELU | 128
    GELU_BIAS = GELU | BIAS
    GELU_AUX_BIAS = GELU_AUX | BIAS
    DGELU = 64 | 128
    DGELU_BGRAD = DGELU | 16
    BGRADB = 512

    @property
    def has_aux(self) -> bool:
        """Whether it takes ``aux``."""
        return bool(self & 128)

    @property
    def has_bits(self) -> bool:
        """Whether ``aux`` is a bit for each element."""
        return self.has_aux and bool(self & (2 | 8))

    @property
    def has_bias(self) -> bool:
        """Whether it takes ``bias``, to read or to write."""
        return bool(self & (4 | 16 | 512))


class Attribute(enum.Enum):
    """Something that a descriptor can be told: its number and the type of its value in C."""

    def __init__(self, number: int, kind: Any) -> None:
        self.number = number
        self.kind = kind


class Desc(Attribute):
    """``cublasLtMatmulDescAttributes_t``, as far as they are used here."""

    TRANSA = 3, c_int32
    TRANSB = 4, c_int32
    EPILOGUE = 7, c_uint32
    BIAS_POINTER = 8, c_void_p
    EPILOGUE_AUX_POINTER = 11, c_void_p
    EPILOGUE_AUX_LD = 12, c_int64


class Layout(Attribute):
    """``cublasLtMatrixLayoutAttribute_t``, as far as they are used here."""

    BATCH_COUNT = 5, c_int32
    STRIDED_BATCH_OFFSET = 6, c_int64


class Preference(Attribute):
    """``cublasLtMatmulPreferenceAttributes_t``, as far as they are used here."""

    MAX_WORKSPACE_BYTES = 1, c_uint64
    MIN_ALIGNMENT_A_BYTES = 5, c_uint32
    MIN_ALIGNMENT_B_BYTES = 6, c_uint32
    MIN_ALIGNMENT_C_BYTES = 7, c_uint32
    MIN_ALIGNMENT_D_BYTES = 8, c_uint32


DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
"""``cudaDataType_t`` of NumPy's types."""
COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F = 68, 77, 70
"""``cublasComputeType_t``."""
NOT_SUPPORTED = 15
"""``CUBLAS_STATUS_NOT_SUPPORTED``."""


class Algorithm(ctypes.Structure):
    """``cublasLtMatmulAlgo_t``."""

    _fields_ = [("data", c_uint64 * 8)]


class HeuristicResult(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``."""

    _fields_ = [
        ("algo", Algorithm),
        ("workspace_size", c_size_t),
        ("state", c_int),
        ("waves_count", c_float),
        ("reserved", c_int * 4),
    ]


_POINTER_TO_HANDLE = ctypes.POINTER(c_void_p)
SIGNATURES: dict[str, list[Any]] = {
    "cublasLtCreate": [_POINTER_TO_HANDLE],
    "cublasLtMatmulDescCreate": [_POINTER_TO_HANDLE, c_int, c_int],
    "cublasLtMatmulDescSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatrixLayoutCreate": [_POINTER_TO_HANDLE, c_int, c_uint64, c_uint64, c_int64],
    "cublasLtMatrixLayoutSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulPreferenceCreate": [_POINTER_TO_HANDLE],
    "cublasLtMatmulPreferenceSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulPreferenceDestroy": [c_void_p],
    "cublasLtMatmulAlgoGetHeuristic": [
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_int, ctypes.POINTER(HeuristicResult), ctypes.POINTER(c_int)),
    ],
    "cublasLtMatmul": [
        *(c_void_p, c_void_p, c_void_p),  # handle, operation, alpha
        *(c_void_p, c_void_p) * 2,  # A, B
        *(c_void_p, c_void_p, c_void_p),  # beta, C
        *(c_void_p, c_void_p),  # D
        *(c_void_p, c_void_p, c_size_t, c_void_p),  # algorithm, workspace, stream
    ],
}
"""What the functions take, all of which return a status."""


@functools.cache
def load_library() -> Any:
    """Return cuBLASLt.

    Raises:
        LibraryMissing: it cannot be loaded.
    """
    try:
        library = open_library("libcublasLt", (13, 12))
    except LibraryMissing as error:
        raise LibraryMissing(
            "products of matrices on a GPU need cuBLASLt: install disttrain[cuda13] or disttrain[cuda12], or the wheel "
            f"nvidia-cublas; tried: {error}"
        ) from error
    for name, arguments in SIGNATURES.items():
        getattr(library, name).argtypes = arguments
    library.cublasLtGetStatusName.restype = ctypes.c_char_p
    library.cublasLtGetVersion.restype = c_size_t
    return library


def check(status: int, call: str) -> None:
    """Raise :class:`LtError` for a status other than success."""
    if status:
        name = load_library().cublasLtGetStatusName(status).decode()
        kind = Unsupported if status == NOT_SUPPORTED else LtError
        raise kind(f"{call} failed with {name} ({status})")


@functools.cache
def handle(device: int) -> c_void_p:
    """Return the library's handle for a GPU, which must be the current one.

    Raises:
        LibraryMissing: the library cannot be loaded.
        LtError: there is no driver, or no memory.
    """
    made = c_void_p()
    check(load_library().cublasLtCreate(byref(made)), "cublasLtCreate")
    return made


class Matrix(NamedTuple):
    """How a factor lies in memory: ``across`` if its columns are side by side and not its rows, elements from one of
    them to the next, elements from one matrix of a batch to the next, and to how many bytes it is aligned."""

    across: bool
    step: int
    batch_step: int
    alignment: int


class Key(NamedTuple):
    """What a product must have in common with another for both to have one plan."""

    sizes: tuple[int, int, int]
    """M, N, K."""
    batch: int
    a: Matrix
    b: Matrix
    out: Matrix
    dtype: str
    out_dtype: str
    epilogue: Epilogue
    alignments: tuple[int, int]
    """Of ``bias`` and ``aux``."""
    tf32: bool


_local = threading.local()
"""The plans of each thread, as a plan holds pointers between two calls of the library; None where it has none."""
_workspaces: dict[tuple[int, int], Array] = {}
"""By GPU and stream."""


def multiply(
    a: Array,
    b: Array,
    out: Array,
    *,
    epilogue: Epilogue = Epilogue.DEFAULT,
    bias: Array | None = None,
    aux: Array | None = None,
    tf32: bool = False,
) -> None:
    """Write ``a @ b``, and what ``epilogue`` makes of it, to ``out``; in the current stream, waiting for nothing.

    Half precision is summed in float32.

    Args:
        a: (..., M, K) on a GPU, in float32, float64, float16 or bfloat16. Strides such that neither rows nor columns
            are side by side cost a copy.
        b: (..., K, N), of the same type.
        out: (..., M, N), C-contiguous, of the same type, or float32 for factors in half precision. The leading axes of
            ``a`` and ``b`` are broadcast to its.
        epilogue: see there.
        bias: of the type of ``out``; (N,) to be added, or to be written with the sum of the rows; with BGRADB (M,), to
            be written with the sum of the columns of ``a``.
        aux: for GELU (..., M, N) like ``out``; for ReLU what :func:`relu_bits` returns.
        tf32: let float32 factors be rounded to TF32, of 10 bits.

    Raises:
        TypeError: types that the library does not have.
        ValueError: shapes that do not fit.
        Unsupported: there is no algorithm for this.
        LtError: a call failed.
        LibraryMissing: the library cannot be loaded.
    """
    _check_arguments(a, b, out, epilogue, bias, aux)
    (M, K), N = a.shape[-2:], b.shape[-1]
    batch = math.prod(out.shape[:-2])
    if batch * M * N == 0:
        return
    a, b = _readable(a, out.shape[:-2]), _readable(b, out.shape[:-2])
    key = Key(
        (M, N, K),
        batch,
        _matrix(a),
        _matrix(b),
        Matrix(False, max(N, 1), M * N, alignment(address(out))),
        a.dtype.name,
        out.dtype.name,
        epilogue,
        tuple(256 if x is None else alignment(address(x)) for x in (bias, aux)),  # type: ignore[arg-type]
        tf32,
    )
    device = cuda.device()
    plans = _local.__dict__.setdefault("plans", {})
    plan = plans.get((device, key), _local)
    if plan is _local:
        plans[device, key] = None
        plan = plans[device, key] = Plan(handle(device), key, bias, aux)
    if plan is None:
        raise Unsupported(f"there was no algorithm before for {key}")
    plan.run(a, b, out, bias, aux)


def relu_bits(shape: tuple[int, ...]) -> Array:
    """Return room for what RELU_AUX keeps of a result (..., M, N): its rows as bits, padded to 128; uint8."""
    return cuda.empty((*shape[:-1], _bits_step(shape[-1]) // 8), numpy.uint8)


def _bits_step(N: int) -> int:
    return -(-N // 128) * 128


def fits_gelu(N: int) -> bool:
    """Return whether results of ``N`` columns can have an epilogue that takes GELU's ``aux``."""
    return N % 8 == 0


def _check_arguments(
    a: Array, b: Array, out: Array, epilogue: Epilogue, bias: Array | None, aux: Array | None
) -> None:
    kinds = {a.dtype.name, b.dtype.name}
    if len(kinds) > 1 or not kinds <= DATA_TYPES.keys():
        raise TypeError(
            f"cuBLASLt multiplies {', '.join(DATA_TYPES)}, both alike; got {a.dtype} and {b.dtype}"
        )
    wider = a.itemsize == 2 and out.dtype == numpy.float32
    if out.dtype != a.dtype and not wider:
        raise TypeError(f"out must be {a.dtype}, or float32 for half precision; got {out.dtype}")
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matrices of shapes {a.shape} and {b.shape} cannot be multiplied")
    M, N = a.shape[-2], b.shape[-1]
    if out.shape[-2:] != (M, N) or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be C-contiguous with matrices of {(M, N)}, got {out.shape}, strides {out.strides}"
        )
    if (bias is not None) != epilogue.has_bias or (aux is not None) != epilogue.has_aux:
        raise ValueError(
            f"{epilogue.name} takes {'a' if epilogue.has_bias else 'no'} bias and "
            f"{'an' if epilogue.has_aux else 'no'} aux"
        )
    batched = math.prod(out.shape[:-2]) > 1
    length = M if epilogue is Epilogue.BGRADB else N
    if bias is not None and (bias.shape != (length,) or bias.dtype != out.dtype or batched):
        raise ValueError(
            f"bias must be ({length},) of {out.dtype}, for one product; got {bias.shape} of {bias.dtype} for "
            f"{out.shape}"
        )
    if aux is None:
        return
    if epilogue.has_bits:
        wanted = (*out.shape[:-1], _bits_step(N) // 8), numpy.dtype(numpy.uint8)
    else:
        wanted = out.shape, out.dtype
        if not fits_gelu(N):
            raise ValueError(f"{epilogue.name} needs a multiple of 8 columns, got {N}")
    if (aux.shape, aux.dtype) != wanted or not aux.flags.c_contiguous or batched:
        raise ValueError(
            f"aux must be {wanted[0]} of {wanted[1]}, C-contiguous, for one product; got {aux.shape} of {aux.dtype}"
        )


def _readable(x: Array, lead: tuple[int, ...]) -> Array:
    """Return ``x`` as (batch or 1, rows, columns), copied if the library cannot read it where it lies."""
    xp = get_array_module(x)
    rows, columns = x.shape[-2:]
    own = math.prod(x.shape[:-2])
    if x.shape[:-2] != lead and own != 1:
        x = xp.broadcast_to(x, (*lead, rows, columns))
        own = math.prod(lead)
    size = x.itemsize
    step, side = x.strides[-2:]
    by_rows = (side == size or columns == 1) and step % size == 0 and (rows == 1 or step >= columns * size)
    by_columns = (step == size or rows == 1) and side % size == 0 and (columns == 1 or side >= rows * size)
    if not (by_rows or by_columns) or not _evenly(x):
        x = xp.ascontiguousarray(x)
    return x.reshape(own, rows, columns)


def _evenly(x: Array) -> bool:
    """Return whether the leading axes can be one, without a copy."""
    expected = None
    for size, stride in zip(x.shape[-3::-1], x.strides[-3::-1], strict=True):
        if size == 1:
            continue
        if stride <= 0 or stride % x.itemsize or (expected is not None and stride != expected):
            return False
        expected = stride * size
    return True


def _matrix(x: Array) -> Matrix:
    """Return how the matrices (B, rows, columns) of an array lie, one of whose last two axes is side by side."""
    B, rows, columns = x.shape
    batch, step, side = (s // x.itemsize for s in x.strides)
    across = not ((side == 1 or columns == 1) and (rows == 1 or step >= columns))
    if across:
        step = side if columns > 1 else rows
    elif rows == 1:
        step = columns
    return Matrix(across, max(step, 1), batch if B > 1 else 0, alignment(address(x)))


def alignment(pointer: int) -> int:
    """Return to how many bytes, at most 256, an address is aligned."""
    return min(pointer & -pointer, 256) or 256


class Plan:
    """A product, described and with its algorithm chosen.

    Args:
        handle: the library's, of the GPU.
        key: what to plan.
        bias: one of the arrays it will be run with; the library reads their alignment from the pointer.
        aux: likewise.

    Raises:
        Unsupported: there is no algorithm.
        LtError: a call failed.
    """

    def __init__(self, handle: c_void_p, key: Key, bias: Array | None, aux: Array | None) -> None:
        self._library = load_library()
        self._handle = handle
        (M, N, K), double = key.sizes, key.dtype == "float64"
        compute = (
            COMPUTE_64F
            if double
            else COMPUTE_32F_FAST_TF32
            if key.tf32 and key.dtype == "float32"
            else COMPUTE_32F
        )
        number = c_double if double else c_float
        self._one, self._zero = number(1), number(0)
        self._operation = self._make(
            "cublasLtMatmulDescCreate", compute, DATA_TYPES["float64" if double else "float32"]
        )
        self._set("MatmulDesc", self._operation, Desc.TRANSA, int(key.b.across))
        self._set("MatmulDesc", self._operation, Desc.TRANSB, int(key.a.across))
        self._set("MatmulDesc", self._operation, Desc.EPILOGUE, key.epilogue)
        if key.epilogue.has_aux:
            step = _bits_step(N) if key.epilogue.has_bits else N
            self._set("MatmulDesc", self._operation, Desc.EPILOGUE_AUX_LD, step)
        self._point(bias, aux)
        kind, out_kind = DATA_TYPES[key.dtype], DATA_TYPES[key.out_dtype]
        self._right = self._layout(kind, (K, N), key.b, key.batch)
        self._left = self._layout(kind, (M, K), key.a, key.batch)
        self._result = self._layout(out_kind, (M, N), key.out, key.batch)
        self._algorithm, self._workspace_bytes = self._choose(key)

    def _make(self, call: str, *args: int) -> c_void_p:
        made = c_void_p()
        check(getattr(self._library, call)(byref(made), *args), call)
        return made

    def _set(self, of: str, what: c_void_p, attribute: Attribute, value: int) -> None:
        number = attribute.kind(value)
        call = f"cublasLt{of}SetAttribute"
        status = getattr(self._library, call)(what, attribute.number, byref(number), ctypes.sizeof(number))
        check(status, f"{call}({attribute.name}, {value})")

    def _layout(self, kind: int, size: tuple[int, int], matrix: Matrix, batch: int) -> c_void_p:
        """Describe a matrix of ours, which in the library's memory order is transposed, or not if ``across``."""
        rows, columns = size if matrix.across else size[::-1]
        layout = self._make("cublasLtMatrixLayoutCreate", kind, rows, columns, matrix.step)
        self._set("MatrixLayout", layout, Layout.BATCH_COUNT, batch)
        if batch > 1:
            self._set("MatrixLayout", layout, Layout.STRIDED_BATCH_OFFSET, matrix.batch_step)
        return layout

    def _point(self, bias: Array | None, aux: Array | None) -> None:
        if bias is not None:
            self._set("MatmulDesc", self._operation, Desc.BIAS_POINTER, address(bias))
        if aux is not None:
            self._set("MatmulDesc", self._operation, Desc.EPILOGUE_AUX_POINTER, address(aux))

    def _choose(self, key: Key) -> tuple[Algorithm, int]:
        preference = self._make("cublasLtMatmulPreferenceCreate")
        try:
            for attribute, value in (
                (Preference.MAX_WORKSPACE_BYTES, WORKSPACE_BYTES),
                (Preference.MIN_ALIGNMENT_A_BYTES, key.b.alignment),
                (Preference.MIN_ALIGNMENT_B_BYTES, key.a.alignment),
                (Preference.MIN_ALIGNMENT_C_BYTES, key.out.alignment),
                (Preference.MIN_ALIGNMENT_D_BYTES, key.out.alignment),
            ):
                self._set("MatmulPreference", preference, attribute, value)
            found, count = HeuristicResult(), c_int()
            status = self._library.cublasLtMatmulAlgoGetHeuristic(
                *(
                    self._handle,
                    self._operation,
                    self._right,
                    self._left,
                    self._result,
                    self._result,
                    preference,
                ),
                *(1, byref(found), byref(count)),
            )
            check(
                status or (found.state if count.value else NOT_SUPPORTED), f"choosing an algorithm for {key}"
            )
        finally:
            self._library.cublasLtMatmulPreferenceDestroy(preference)
        return found.algo, int(found.workspace_size)

    def run(self, a: Array, b: Array, out: Array, bias: Array | None, aux: Array | None) -> None:
        """Start the product in the current stream."""
        self._point(bias, aux)
        stream = cuda.stream()
        status = self._library.cublasLtMatmul(
            *(self._handle, self._operation, byref(self._one)),
            *(address(b), self._right, address(a), self._left, byref(self._zero)),
            *(address(out), self._result, address(out), self._result),
            *(byref(self._algorithm), _workspace(stream), WORKSPACE_BYTES, stream),
        )
        check(status, "cublasLtMatmul")


def _workspace(stream: int) -> int:
    """Return the address of the memory that products in a stream of the current GPU may use."""
    where = (cuda.device(), stream)
    if where not in _workspaces:
        _workspaces[where] = cuda.empty(WORKSPACE_BYTES, numpy.uint8)
    return address(_workspaces[where])
