"""The toolchain of CUDA kernels: all of them compile, what is compiled is kept, and the shim finds what is wrong."""

import ctypes
import textwrap
from pathlib import Path

import cuda_shim
import fake_cupy
import ml_dtypes
import numpy as np
import pytest
from cuda_cases import programs

from disttrain import kernels
from disttrain.kernels import cuda, nvrtc


@pytest.fixture
def compiler():
    try:
        nvrtc.load_library()
    except nvrtc.CompilerMissing as error:
        pytest.skip(str(error))


def test_every_file_of_kernels_is_launched_by_the_module_beside_it():
    files = {path.name for folder in kernels.__path__ for path in Path(folder).rglob("*.cu")}

    assert {program.path.name for program in programs().values()} == files
    assert all(program.kernels for program in programs().values())


@pytest.mark.parametrize("name", programs())
@pytest.mark.timeout(600)
def test_every_variant_compiles(name, compiler):
    program = programs()[name]

    for variant in program.variants():
        check_code(program, cuda.compiled(program, variant, "sm_90"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_100"])
@pytest.mark.parametrize("name", programs())
@pytest.mark.timeout(600)
def test_every_variant_compiles_for_other_gpus(name, arch, compiler):
    """Whatever a GPU lacks is found without optimising as much as for sm_90, in less than half the time."""
    program = programs()[name]
    quick = ("--Ofast-compile=max",) if nvrtc.version() >= (13, 0) else ()

    for variant in program.variants():
        options = (f"-arch={arch}", *cuda._OPTIONS, *quick)
        check_code(program, nvrtc.compile_source(program.source(variant), program.path.name, options))


def check_code(program, code):
    assert code[:4] == b"\x7fELF"
    assert all(kernel.encode() in code for kernel in program.kernels)


def test_vectors_are_moved_16_bytes_at_a_time(compiler):
    program = programs()["softmax.cu"]
    for kind in cuda.FLOATS:
        text = program.source({"T": kind, "BLOCK": 256, "VECTOR": 1})
        ptx = nvrtc.compile_source(text, "softmax.cu", ["-arch=compute_90", *cuda._OPTIONS], ptx=True)

        assert (b"ld.global.v2." if kind == "double" else b"ld.global.v4.") in ptx
        assert b".local" not in ptx  # nothing went to memory for want of registers


# ------------------------------------------------------------------------------------------ programs of the tests


@pytest.fixture
def write(tmp_path):
    """Make a program of a text."""

    def make(text, **constants):
        (tmp_path / "family.cu").write_text(textwrap.dedent(text))
        return cuda.Program(str(tmp_path / "family.py"), **constants)

    return make


def test_what_does_not_compile_says_where_and_why(write, compiler):
    program = write("KERNEL f(float* x) {\n    x[0] = unknown;\n}", T=("float",))

    with pytest.raises(
        nvrtc.CompilationError, match=r"(?s)family\.cu with -arch=sm_90.*family\.cu\(2\).*unknown"
    ):
        cuda.compiled(program, {"T": "float"}, "sm_90")


def test_machine_code_is_kept_for_the_next_run(write, compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cuda._cache.cache_clear()
    program = write("KERNEL f(T* x) { x[0] = T(); }", T=("float", "double"))

    first = cuda._cubin(program, {"T": "float"}, "sm_90")
    monkeypatch.setattr(cuda, "compiled", None)

    assert cuda._cubin(program, {"T": "float"}, "sm_90") == first
    assert list((tmp_path / "disttrain" / "cuda").iterdir()) == [first]
    with pytest.raises(TypeError):  # another variant must be compiled
        cuda._cubin(program, {"T": "double"}, "sm_90")
    cuda._cache.cache_clear()


def test_without_a_folder_to_write_to_kernels_are_kept_for_this_process(tmp_path, monkeypatch, caplog):
    (tmp_path / "disttrain").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cuda._cache.cache_clear()

    assert cuda._cache().is_dir()
    assert "compiled kernels are not kept for the next run" in caplog.text
    cuda._cache.cache_clear()


def test_a_launch_is_checked(write, cpu_shim):
    program = write("KERNEL f(float* x, long long n) { x[0] = n; }", T=("float",))
    x = np.zeros(1, np.float32)

    program.launch("f", (1,), (32,), x, 7, T="float")
    program.launch("f", (0,), (32,), x, 8, T="float")

    assert x[0] == 7
    with pytest.raises(ValueError, match=r"family.cu is made for .*, not for {'T': 'half_t'}"):
        program.launch("f", (1,), (32,), x, 7, T="half_t")
    with pytest.raises(cuda_shim.KernelFault, match="f: argument 0 must be \\*f, as ctypes has it, got \\*d"):
        program.launch("f", (1,), (32,), x.astype(np.float64), 7, T="float")
    with pytest.raises(cuda_shim.KernelFault, match="f: argument 1 must be q"):
        program.launch("f", (1,), (32,), x, 7.0, T="float")
    with pytest.raises(cuda_shim.KernelFault, match="takes 2 arguments, got 1"):
        program.launch("f", (1,), (32,), x, T="float")


def test_conversions_to_half_precision_are_those_of_numpy(write, shim):
    program = write(
        """
        KERNEL up(const T* x, float* y, long long n) { for (int i = 0; i < n; i++) y[i] = widen(x[i]); }
        KERNEL down(const float* x, T* y, long long n) { for (int i = 0; i < n; i++) y[i] = narrow<T>(x[i]); }
        """,
        T=cuda.HALVES,
    )
    for name, kind in (("half_t", np.float16), ("bfloat16_t", ml_dtypes.bfloat16)):
        halves = np.arange(1 << 16, dtype=np.uint16).view(kind)
        floats = np.empty(halves.shape, np.float32)
        program.launch("up", (1,), (32,), halves, floats, halves.size, T=name)
        np.testing.assert_array_equal(floats, halves.astype(np.float32))

        number = floats[np.isfinite(floats)]
        near = np.concatenate(
            [number, np.nextafter(number, np.inf, dtype=np.float32), number * np.float32(1.0005)]
        )
        between = ((number[:-1].astype(np.float64) + number[1:]) / 2).astype(np.float32)
        floats = np.concatenate([near, between, np.float32([np.inf, -np.inf, 1e38, 65519.99, 65520])])
        out = np.empty(floats.shape, kind)
        program.launch("down", (1,), (32,), floats, out, floats.size, T=name)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(out.view(np.uint16), floats.astype(kind).view(np.uint16))


def test_a_kernel_on_a_gpu_gets_copies_as_they_lie_here(cupy):
    """What `_ThereAndBack` does, on the stand-in for CuPy: views, those that overlap, and what is empty."""
    host = np.zeros(40, np.int64)
    x, inner, empty = host[1:20], host[3:5], host[:0]
    inner[:] = 7

    def add_one(grid, block, arguments):
        fake_cupy.get_current_stream().synchronize()
        at, again, _, count = arguments
        assert again - at == 16
        there = np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(int(at)))
        assert there[2] == np.ctypeslib.as_array((ctypes.c_int64 * 1).from_address(int(again)))[0] == 7
        there += 1

    cuda_shim._ThereAndBack(add_one)((1,), (32,), (x, inner, empty, 19))

    assert host.tolist() == [0, 1, 1, 8, 8, *[1] * 15, *[0] * 20]


# ----------------------------------------------------------------------------------------------- planted mistakes

_TILE = """
KERNEL reverse(const float* x, float* out) {
    SHARED(float, tile, 256);
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[255 - threadIdx.x];
}
"""


def test_a_kernel_without_mistakes_runs(write, shim):
    x, out = np.arange(256, dtype=np.float32), cuda.empty(256, np.float32)

    write(_TILE).launch("reverse", (1,), (256,), x, out)

    np.testing.assert_array_equal(out, x[::-1])


def test_a_missing_barrier_is_found(write, cpu_shim):
    x, out = np.arange(256, dtype=np.float32), cuda.empty(256, np.float32)

    write(_TILE.replace("__syncthreads();", "")).launch("reverse", (1,), (256,), x, out)

    assert np.isnan(out).any()  # what was not written yet is poison


@pytest.mark.parametrize("which", [0, 1])
def test_each_barrier_of_a_fold_is_needed(which, write, monkeypatch):
    if reason := cuda_shim.missing():
        pytest.skip(reason)
    before, *after = cuda._header().split("__syncthreads();")
    kept = [b + "__syncthreads();" for b in (before, *after[:-1])]
    kept[which] = kept[which].removesuffix("__syncthreads();")
    monkeypatch.setattr(cuda, "_header", lambda: "".join(kept) + after[-1])
    program = write(
        """
        KERNEL folds(const float* x, float* out) {
            const float v = x[threadIdx.x];
            const float total = fold<256>(v, Sum()), twice = fold<256>(2 * v, Sum());
            out[threadIdx.x] = total + twice;
        }
        """
    )
    x, right = np.arange(256, dtype=np.float32), []
    for schedule in cuda_shim.SCHEDULES:
        with cuda_shim.shim(schedule):
            out = cuda.empty(256, np.float32)
            program.launch("folds", (1,), (256,), x, out)
            right.append((out == 3 * x.sum()).all())

    assert not all(right)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x[n] = 0;", "wrote beside an array|outside of the arrays"),
        ("x[n + 4] = 0;", "f: an access outside of the arrays, at 0x"),
        ("x[0] = x[n + 4];", "f: an access outside of the arrays, at 0x"),
        ("x[-1] = 0;", "wrote beside an array|outside of the arrays"),
        ("((float*)0)[threadIdx.x] = 0;", "f: an access outside of the arrays, at"),
        ("SHARED(float, s, 4); s[threadIdx.x] = 0;", "an index outside of a shared array"),
        ("if (threadIdx.x < 32) return; __syncthreads();", "a barrier of the block that threads left before"),
        ("if (threadIdx.x & 1) __syncthreads(); else __syncwarp();", "wait at different barriers"),
        ("if (threadIdx.x & 1) return; __syncwarp();", "a call of the warp that lanes left before"),
        ("__shfl_sync(1, 0, 0);", "names some lanes only, mask 1"),
        ("x[0] = load<4>(x + 1)[0];", "an access that is not aligned to its size 16"),
    ],
)
@pytest.mark.parametrize("n", [64, 61])
def test_planted_mistakes_are_found(body, message, n, write, cpu_shim):
    program = write(f"KERNEL f(float* x, long long n) {{ {body} }}")
    x = cuda_shim.poisoned(n, np.float32)

    with pytest.raises(cuda_shim.KernelFault, match=message):
        program.launch("f", (1,), (64,), x, n)
    program = write("KERNEL f(float* x, long long n) { x[n - 1] = 5; }")  # and the shim goes on
    program.launch("f", (1,), (64,), x, n)
    assert x[n - 1] == 5


def test_blocks_of_threads_that_are_no_whole_warps_are_refused(write, cpu_shim):
    with pytest.raises(cuda_shim.KernelFault, match="no multiple of 32 up to 1024: 33"):
        write("KERNEL f(long long n) {}").launch("f", (1,), (33,), 0)
