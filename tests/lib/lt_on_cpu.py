"""cuBLASLt without a GPU: descriptors by the library itself, products by NumPy on the addresses that it is given.

What `cublasLtMatmul` would be asked for is read back from the descriptors with the library's own functions, and done as
the comments of `cublasLt.h` say. Needs the wheel nvidia-cublas, which loads without a driver.
"""

import ctypes
import functools
import threading
from ctypes import c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

import ml_dtypes
import numpy as np

from disttrain.kernels import cublaslt, gemm
from disttrain.kernels.libraries import LibraryMissing

WORDS = {0: np.float32, 1: np.float64, 2: np.float16, 14: ml_dtypes.bfloat16}
LAYOUT = {"type": (0, c_uint32), "order": (1, c_int32), "rows": (2, c_uint64), "columns": (3, c_uint64),
          "step": (4, c_int64), "batch": (5, c_int32), "batch_step": (6, c_int64)}  # fmt: skip
OPERATION = {"compute": (0, c_int32), "scale": (1, c_int32), "pointer_mode": (2, c_int32), "trans_a": (3, c_int32),
             "trans_b": (4, c_int32), "epilogue": (7, c_uint32), "bias": (8, c_void_p), "aux": (11, c_void_p),
             "aux_step": (12, c_int64)}  # fmt: skip


def missing():
    """Return why this cannot work here, or an empty string."""
    try:
        cublaslt.load_library()
    except LibraryMissing:
        return "needs the wheel nvidia-cublas"
    return ""


def install(monkeypatch, **options):
    """Let products go through an :class:`OnCpu` and return it."""
    stand_in = OnCpu(**options)
    monkeypatch.setattr(cublaslt, "load_library", lambda: stand_in)
    monkeypatch.setattr(cublaslt, "handle", functools.cache(cublaslt.handle.__wrapped__))
    monkeypatch.setattr(cublaslt, "_local", threading.local())
    monkeypatch.setattr(cublaslt, "_workspaces", {})
    monkeypatch.setattr(gemm, "_is_there", lambda device: True)
    monkeypatch.setattr(gemm, "_say", functools.cache(gemm._say.__wrapped__))
    return stand_in


def read(function, what, attributes):
    """Return all attributes of a descriptor by the names of :data:`LAYOUT` or :data:`OPERATION`."""
    values = {}
    for name, (number, kind) in attributes.items():
        value, written = kind(), c_size_t()
        status = function(
            c_void_p(what.value), number, ctypes.byref(value), ctypes.sizeof(value), ctypes.byref(written)
        )
        assert (status, written.value) == (0, ctypes.sizeof(value)), name
        values[name] = value.value
    return values


class OnCpu:
    """The library, but for what needs a GPU; ``planned`` and ``ran`` count."""

    def __init__(self, unsupported=lambda operation, result: False):
        self._real = cublaslt.load_library()
        self._unsupported = unsupported
        self.planned = self.ran = 0
        self.operations = []

    def __getattr__(self, name):
        return getattr(self._real, name)

    def cublasLtCreate(self, made):
        made._obj.value = 4711
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, handle, operation, a, b, c, d, preference, wanted, found, count):
        assert (handle.value, wanted) == (4711, 1)
        self.planned += 1
        values, result = self.operation(operation), self.layout(d)
        self._check(values, *(self.layout(x) for x in (a, b)), result)
        count._obj.value = 0 if self._unsupported(values, result) else 1
        found._obj.algo.data[0], found._obj.workspace_size = 1234, 0
        return 0

    def cublasLtMatmul(
        self,
        handle,
        operation,
        alpha,
        A,
        a,
        B,
        b,
        beta,
        C,
        c,
        D,
        d,
        algorithm,
        workspace,
        workspace_size,
        stream,
    ):
        assert handle.value == 4711
        assert algorithm._obj.data[0] == 1234
        assert workspace % 256 == 0
        assert workspace_size == cublaslt.WORKSPACE_BYTES
        assert (C, c.value) == (D, d.value)
        self.ran += 1
        o, la, lb, ld = self.operation(operation), *(self.layout(x) for x in (a, b, d))
        self._check(o, la, lb, ld)
        self.operations.append(o)
        scale = c_double if o["scale"] == 1 else c_float
        assert isinstance(alpha._obj, scale)
        wide = np.float64 if o["compute"] == 70 else np.float32
        for i in range(ld["batch"]):
            x, y, out = matrix(A, la, i).astype(wide), matrix(B, lb, i).astype(wide), matrix(D, ld, i)
            if o["compute"] == 77:
                x, y = to_tf32(x), to_tf32(y)
            x, y = x.T if o["trans_a"] else x, y.T if o["trans_b"] else y
            out[...] = self._finish(o, alpha._obj.value * (x @ y) + beta._obj.value * 0, y, out).astype(
                out.dtype
            )
        return 0

    def layout(self, x):
        return read(self._real.cublasLtMatrixLayoutGetAttribute, x, LAYOUT)

    def operation(self, x):
        return read(self._real.cublasLtMatmulDescGetAttribute, x, OPERATION)

    def _check(self, o, a, b, d):
        m, k = (a["rows"], a["columns"])[:: -1 if o["trans_a"] else 1]
        k2, n = (b["rows"], b["columns"])[:: -1 if o["trans_b"] else 1]
        assert (k, (m, n)) == (k2, (d["rows"], d["columns"]))
        assert a["type"] == b["type"]
        assert d["type"] in (a["type"], 0)
        assert o["scale"] == (1 if o["compute"] == 70 else 0) == (a["type"] == 1)
        assert o["pointer_mode"] == 0
        for x in (a, b, d):
            assert x["order"] == 0
            assert x["step"] >= x["rows"]
            assert x["batch"] == d["batch"]

    def _finish(self, o, x, y, out):
        """Return what the epilogue makes of a product (m, n), as `cublasLtEpilogue_t` is explained."""
        (m, n), e = x.shape, o["epilogue"]
        rows = n if e == 512 else m
        if e & (4 | 16 | 512):
            assert o["bias"] % 2 == 0
            bias = at(o["bias"], out.dtype, rows)
        if e & 4:
            x = x + bias.astype(x.dtype)[:, None]
        if e == 512:
            bias[...] = y.sum(0).astype(bias.dtype)
        if e & 128:
            bits = e & (2 | 8)
            assert o["aux_step"] % (128 if bits else 8) == 0
            assert o["aux_step"] >= m
            if bits:
                aux = at(o["aux"], np.uint8, (n, o["aux_step"] // 8))
            else:
                aux = at(o["aux"], out.dtype, (n, o["aux_step"]))[:, :m].T
        if e & 2:
            if e & 128:
                aux[...] = 0
                aux[:, : -(-m // 8)] = np.packbits(x.T > 0, axis=1, bitorder="little")
            x = np.maximum(x, 0)
        if e & 32:
            if e & 128:
                aux[...] = x
            x = gelu(x)
        if e & 8:
            x = np.where(np.unpackbits(aux, axis=1, bitorder="little")[:, :m].T, x, 0)
        if e & 64:
            x = x * gelu_slope(aux.astype(x.dtype))
        if e & 16:
            bias[...] = x.sum(1).astype(bias.dtype)
        return x


def at(address, dtype, shape):
    """Return the memory at an address as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8).view(dtype).reshape(shape)


def matrix(address, layout, index):
    """Return a matrix of a batch, column after column in memory, as a view."""
    kind = np.dtype(WORDS[layout["type"]])
    rows, columns, step = layout["rows"], layout["columns"], layout["step"]
    begin = address + index * layout["batch_step"] * kind.itemsize
    flat = at(begin, kind, ((columns - 1) * step + rows,))
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (kind.itemsize, step * kind.itemsize))


def to_tf32(x):
    """Return float32 numbers rounded to ten bits after the first."""
    bits = x.view(np.uint32).astype(np.uint64) + 0x1000
    return (bits & 0xFFFFE000).astype(np.uint32).view(np.float32)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x):
    root = np.sqrt(2 / np.pi)
    t = np.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x)
