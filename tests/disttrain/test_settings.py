"""Settings that scripts make and ask: those of the process, of the libraries under PyTorch, and of its compiler."""

import warnings

import pytest

import disttrain as dt
from disttrain import compiler
from disttrain.kernels import threads


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def test_settings_are_kept(torch):
    for lib in (torch, dt):
        before = lib.get_float32_matmul_precision()
        lib.set_float32_matmul_precision("high")
        assert lib.get_float32_matmul_precision() == "high"
        lib.set_float32_matmul_precision(before)
        assert before == "highest"
        lib.use_deterministic_algorithms(True, warn_only=True)
        assert lib.are_deterministic_algorithms_enabled() is True
        assert lib.is_deterministic_algorithms_warn_only_enabled() is True
        lib.use_deterministic_algorithms(False)
        assert lib.are_deterministic_algorithms_enabled() is False
        assert str(lib.get_default_device()) == "cpu"
        lib.set_default_device("cpu")
        lib.set_default_device(None)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="'highest', 'high' or 'medium', got 'low'"):
        dt.set_float32_matmul_precision("low")
    with pytest.raises(NotImplementedError, match="device='cuda'"):
        dt.set_default_device("cuda")
    with pytest.raises(RuntimeError, match="positive"):
        dt.set_num_threads(0)
    with pytest.raises(TypeError, match="int"):
        dt.set_num_threads(1.5)
    with pytest.raises(RuntimeError, match="positive"):
        dt.set_num_interop_threads(0)


def test_threads_are_those_of_the_environment_until_they_are_set(monkeypatch):
    monkeypatch.setattr(threads, "_chosen", 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert dt.get_num_threads() == 3
    dt.set_num_threads(3)
    with pytest.warns(UserWarning, match="OMP_NUM_THREADS=2"):
        dt.set_num_threads(2)
    assert dt.get_num_threads() == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_chosen", 0)
    assert dt.get_num_threads() >= 1
    assert dt.get_num_interop_threads() == 1
    dt.set_num_interop_threads(4)


def test_switches_of_backends_can_be_set_and_begin_as_in_pytorch(torch):
    # what test modules of PyTorch's own forbid once they are imported
    with torch.backends.__allow_nonbracketed_mutation():
        for lib in (torch, dt):
            cudnn = lib.backends.cudnn
            values = (cudnn.benchmark, cudnn.deterministic, cudnn.enabled, cudnn.allow_tf32)
            assert values == (False, False, True, True)
            cudnn.benchmark = True
            with cudnn.flags(enabled=False, benchmark=False):
                assert (cudnn.enabled, cudnn.benchmark) == (False, False)
            assert (cudnn.enabled, cudnn.benchmark) == (True, True)
            cudnn.benchmark = False
            assert lib.backends.cuda.matmul.allow_tf32 is False
            lib.backends.cuda.matmul.allow_tf32 = True
            assert lib.backends.cuda.matmul.allow_tf32 is True
            lib.backends.cuda.matmul.allow_tf32 = False
            assert lib.backends.cudnn.is_available() is False
            assert lib.backends.cudnn.version() is None
            assert lib.backends.mps.is_available() is lib.backends.mps.is_built() is False
            assert lib.backends.cuda.is_built() is False
            for name in ("flash", "mem_efficient", "math", "cudnn"):
                enabled = getattr(lib.backends.cuda, f"{name}_sdp_enabled")
                assert enabled() is True
                getattr(lib.backends.cuda, f"enable_{name}_sdp")(False)
                assert enabled() is False
                getattr(lib.backends.cuda, f"enable_{name}_sdp")(True)
    with pytest.raises(AttributeError):
        dt.backends.cuda.matmul.allow_tf23 = True


def test_no_accelerator(torch):
    if torch.accelerator.is_available() or dt.cuda.is_available():
        pytest.skip("there is an accelerator")
    for lib in (torch, dt):
        assert lib.accelerator.is_available() is False
        assert lib.accelerator.current_accelerator() is None
        assert lib.accelerator.device_count() == 0
        assert lib.cuda.is_available() is lib.cuda.is_initialized() is False
        assert lib.cuda.device_count() == lib.cuda.memory_allocated() == lib.cuda.max_memory_allocated() == 0
        assert lib.cuda.memory_reserved() == 0
        lib.cuda.empty_cache()
        lib.cuda.manual_seed(0)
        lib.cuda.manual_seed_all(0)
        for call in (lib.cuda.current_device, lib.cuda.get_device_name, lib.cuda.get_device_capability):
            with pytest.raises((RuntimeError, AssertionError)):
                call()
        with pytest.raises((RuntimeError, AssertionError, AttributeError)):
            lib.cuda.set_device("cuda:0")
        assert lib.mps.is_available() is False if hasattr(lib.mps, "is_available") else True
        assert lib.xpu.is_available() is False
        assert lib.mps.device_count() == lib.xpu.device_count() == 0
        assert lib.version.cuda is lib.version.hip is None
    assert dt.cuda.is_bf16_supported() is False
    for lib in (dt.mps, dt.xpu, dt.cuda):
        lib.synchronize()
        lib.empty_cache()
        lib.manual_seed(1)
    dt.cuda.reset_peak_memory_stats()


def test_compile_returns_the_model_and_says_once_that_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(compiler, "_warned", False)
    model = dt.nn.Linear(2, 2)

    with pytest.warns(UserWarning, match="nothing is compiled yet"):
        assert dt.compile(model, mode="max-autotune", fullgraph=True) is model

    @dt.compile
    def twice(x):
        return 2 * x

    @dt.compile(dynamic=True)
    def thrice(x):
        return 3 * x

    @compiler.disable
    def once(x):
        return x

    assert (once(1), twice(1), thrice(1)) == (1, 2, 3)
    assert compiler.disable(recursive=False)(twice) is twice
    assert compiler.is_compiling() is dt.jit.is_scripting() is dt.jit.is_tracing() is False
    compiler.reset()


def test_marks_for_the_compiler_change_nothing():
    for mark in (dt.jit.export, dt.jit.unused, dt.jit.ignore, dt.jit.ignore(drop=True)):
        assert mark(len) is len


def test_multiprocessing_is_the_standard_library():
    import multiprocessing

    assert dt.multiprocessing.Queue == multiprocessing.Queue
    assert dt.multiprocessing.get_all_sharing_strategies() == {"file_descriptor", "file_system"}
    dt.multiprocessing.set_sharing_strategy("file_system")
    with pytest.raises(ValueError, match="'shared_memory'"):
        dt.multiprocessing.set_sharing_strategy("shared_memory")
    with pytest.raises(AttributeError, match="no 'Thread'"):
        _ = dt.multiprocessing.Thread


def test_versions_compare_by_their_numbers(torch):
    from torch.torch_version import TorchVersion

    from disttrain.version import Version

    for kind in (TorchVersion, Version):
        v = kind("2.13.0+x1")
        assert v >= "2.6"
        assert v > (1, 13)
        assert not v < "2.13"
        assert v <= "2.13.1"
        assert v.startswith("2.13")
        assert isinstance(v, str)


def test_data_parallel_on_one_device_calls_the_module(torch):
    for lib in (torch, dt):
        layer = lib.nn.Linear(3, 2)
        wrapped = lib.nn.DataParallel(layer)
        x = lib.ones(4, 3)
        assert bool((wrapped(x) == layer(x)).all())
        assert wrapped.module is layer
        assert list(wrapped.state_dict()) == ["module.weight", "module.bias"]
    layer = dt.nn.Linear(3, 2)
    assert (dt.nn.parallel.data_parallel(layer, dt.ones(1, 3), device_ids=[0]) == layer(dt.ones(1, 3))).all()
    with pytest.raises(NotImplementedError, match="disttrain launch -n 2"):
        dt.nn.DataParallel(dt.nn.Linear(3, 2), device_ids=[0, 1])


def test_layers_are_found_where_pytorch_keeps_them():
    from disttrain.nn import modules

    assert modules.linear.Linear is modules.Linear is dt.nn.Linear
    assert modules.container.ModuleList is dt.nn.ModuleList
    with pytest.raises(AttributeError, match="no 'bogus'"):
        _ = modules.bogus


def test_the_default_type_by_its_old_name():
    try:
        for kind in (dt.DoubleTensor, "torch.DoubleTensor", dt.float64):
            dt.set_default_tensor_type(kind)
            assert dt.tensor(1.0).dtype is dt.float64
            dt.set_default_tensor_type("torch.FloatTensor")
            assert dt.tensor(1.0).dtype is dt.float32
        with pytest.raises(TypeError, match="floating point"):
            dt.set_default_tensor_type(dt.LongTensor)
    finally:
        dt.set_default_dtype(dt.float32)


def test_transports_that_are_there():
    assert dt.distributed.is_gloo_available() is True
    assert dt.distributed.is_nccl_available() is dt.cuda.is_available()
    assert isinstance(dt.distributed.is_mpi_available(), bool)


def test_no_warning_where_nothing_is_asked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dt.compile(len, disable=True) is len


def test_a_device_is_a_context():
    with dt.device("cpu") as device:
        assert dt.ones(2).device == device
    with pytest.raises(NotImplementedError, match="device="), dt.device("cuda"):
        pass
