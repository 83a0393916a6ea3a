"""What Module does with parameters, buffers, modules, state dicts and hooks."""

import copy
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn


class Net(nn.Module):
    """Two layers that share one weight, a norm, and buffers of both kinds."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(dt.ones(4))
        self.register_buffer("shift", dt.zeros(4))
        self.register_buffer("scratch", dt.zeros(2), persistent=False)

    def forward(self, x):
        return self.second(self.norm(self.first(x))) * self.scale + self.shift


KEYS = [
    *("scale", "shift", "first.weight", "first.bias", "norm.weight", "norm.bias", "norm.running_mean"),
    *("norm.running_var", "norm.num_batches_tracked", "second.weight"),
]


def test_assignment_registers():
    net = Net()

    assert [n for n, _ in net.named_parameters()] == [
        "scale",
        "first.weight",
        "first.bias",
        "norm.weight",
        "norm.bias",
    ]
    names = [n for n, _ in net.named_parameters(remove_duplicate=False)]
    assert names[-1] == "second.weight"
    assert [n for n, _ in net.named_buffers(recurse=False)] == ["shift", "scratch"]
    assert [n for n, _ in net.named_children()] == ["first", "norm", "second"]
    assert [n for n, _ in net.named_modules()] == ["", "first", "norm", "second"]
    assert len(list(net.modules())) == 4
    assert len(list(net.children())) == 3
    assert len(list(net.parameters())) == 5
    assert len(list(net.parameters(recurse=False))) == 1
    assert len(list(net.buffers())) == 5
    assert {"scale", "shift", "first", "forward"} <= set(dir(net))


def test_a_parameter_is_a_tensor_whose_results_are_plain():
    p = nn.Parameter(dt.ones(3))

    assert p.requires_grad
    assert p.is_leaf
    assert type(p * 2) is dt.Tensor
    assert type(p.detach()) is dt.Tensor
    assert repr(p).startswith("Parameter containing:\ntensor(")
    assert not nn.Parameter(dt.ones(3), requires_grad=False).requires_grad
    assert nn.Parameter().shape == (0,)
    with pytest.raises(TypeError, match=r"a Parameter is made of a Tensor, got list; .*disttrain\.tensor"):
        nn.Parameter([1.0])
    with pytest.raises(RuntimeError, match="floating point"):
        nn.Parameter(dt.ones(3, dtype=dt.int64))


def test_a_buffer_registers_itself():
    module = nn.Module()

    module.kept = nn.Buffer(dt.ones(2))
    module.scratch = nn.Buffer(dt.ones(2), persistent=False)

    assert [n for n, _ in module.named_buffers()] == ["kept", "scratch"]
    assert list(module.state_dict()) == ["kept"]


def test_a_name_belongs_to_the_last_thing_assigned():
    module = nn.Module()
    module.x = 1
    module.x = nn.Parameter(dt.ones(2))
    module.x = nn.Linear(1, 1)

    assert isinstance(module.x, nn.Linear)
    assert list(module.parameters(recurse=False)) == []
    del module.x
    assert not hasattr(module, "x")
    module.y = nn.Parameter(dt.ones(2))
    module.y = None
    assert module.y is None
    assert list(module.parameters()) == []


def test_wrong_assignments_say_what_to_do():
    net = Net()
    with pytest.raises(
        TypeError, match=r"cannot assign Tensor as parameter 'scale'; wrap it in nn\.Parameter"
    ):
        net.scale = dt.ones(4)
    with pytest.raises(TypeError, match="cannot assign int as child module 'first'"):
        net.first = 3
    with pytest.raises(TypeError, match="cannot assign list as buffer 'shift'"):
        net.shift = [0]
    with pytest.raises(TypeError, match="cannot register Tensor as parameter 'a'"):
        net.register_parameter("a", dt.ones(2))
    with pytest.raises(TypeError, match="cannot register float as buffer 'a'"):
        net.register_buffer("a", 1.0)
    with pytest.raises(TypeError, match="cannot register int as module 'a'"):
        net.add_module("a", 1)
    with pytest.raises(KeyError, match=r"must not be empty or have a dot, got 'a\.b'"):
        net.register_buffer("a.b", None)
    with pytest.raises(KeyError, match="defines 'forward', which would hide"):
        net.register_parameter("forward", None)
    with pytest.raises(TypeError, match="must be a string, got int"):
        net.register_buffer(1, None)


def test_super_init_comes_first():
    class Early(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(1, 1)

    class Never(nn.Module):
        def __init__(self):
            pass

    with pytest.raises(
        AttributeError, match=r"Early was given module 'layer' before .*super\(\)\.__init__\(\) first"
    ):
        Early()
    with pytest.raises(AttributeError, match=r"Never was called before Module\.__init__\(\)"):
        Never()(1)
    with pytest.raises(AttributeError, match="Never was asked for 'weight' before"):
        _ = Never().weight


def test_unknown_names_and_missing_forward():
    net = Net()
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'third'"):
        _ = net.third
    with pytest.raises(NotImplementedError, match=r"Module has no forward\(\)"):
        nn.Module()(1)
    with pytest.raises(
        AttributeError, match=r"Net has no module 'third' \(of 'third.0'\); its modules: first, norm"
    ):
        net.get_submodule("third.0")
    with pytest.raises(AttributeError, match=r"no parameter 'first\.wait'; parameters there: weight, bias"):
        net.get_parameter("first.wait")
    assert net.get_submodule("") is net
    assert net.get_parameter("first.bias") is net.first.bias
    assert net.get_buffer("norm.running_mean") is net.norm.running_mean


def test_modes_reach_everything_below():
    net = Net()

    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    net.train()
    assert all(m.training for m in net.modules())
    with pytest.raises(ValueError, match="True or False, got str: 'eval'"):
        net.train("eval")
    seen = []
    assert net.apply(seen.append) is net
    assert seen[-1] is net
    assert len(seen) == 4
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())


def test_zero_grad_forgets_or_fills():
    net = Net()
    net(dt.randn(3, 4)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())

    net.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_to_converts_floating_point_tensors_in_place():
    net = Net()
    net(dt.randn(3, 4)).sum().backward()
    weight, running = net.first.weight, net.norm.running_mean

    assert net.double() is net

    assert net.first.weight is weight
    assert weight.dtype is dt.float64
    assert weight.grad.dtype is dt.float64
    assert net.second.weight is weight
    assert net.norm.running_mean is running
    assert running.dtype is dt.float64
    assert net.norm.num_batches_tracked.dtype is dt.int64
    net.zero_grad()
    net(dt.randn(3, 4, dtype=dt.float64)).sum().backward()
    assert weight.grad.dtype is dt.float64
    for convert, kind in (("half", dt.float16), ("bfloat16", dt.bfloat16), ("float", dt.float32)):
        assert getattr(net, convert)().scale.dtype is kind
    assert net.to("cpu", dt.float64).cpu().scale.dtype is dt.float64
    assert net.to(dt.zeros(1)).scale.dtype is dt.float32
    with pytest.raises(TypeError, match=r"floating point dtype only, got disttrain\.int64"):
        net.to(dt.int64)
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtyp'"):
        net.to(dtyp=dt.float64)


def test_state_dict_holds_detached_tensors_of_the_same_memory():
    net = Net()
    state = net.state_dict()

    assert list(state) == KEYS
    assert list(net.state_dict(prefix="net.")) == [f"net.{k}" for k in KEYS]
    assert state["scale"].data_ptr() == net.scale.data_ptr()
    assert not any(t.requires_grad for t in state.values())
    assert net.state_dict(keep_vars=True)["scale"] is net.scale


def test_a_state_dict_of_torch_fits():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    theirs = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(5, 5))
    ours = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(5, 5))

    result = ours.load_state_dict({k: dt.tensor(v.numpy()) for k, v in theirs.state_dict().items()})

    assert repr(result) == repr(theirs.load_state_dict(theirs.state_dict()))
    assert repr(ours) == repr(theirs)
    for key, value in ours.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), theirs.state_dict()[key].numpy())


def test_load_copies_into_the_same_memory_and_converts():
    net, other = Net(), Net().double()
    with dt.no_grad():
        other.scale.fill_(3)
    address, weight = net.scale.data_ptr(), net.first.weight

    result = net.load_state_dict(other.state_dict())

    assert result == ([], [])
    assert net.scale.data_ptr() == address
    assert net.first.weight is weight
    assert net.scale.dtype is dt.float32
    assert net.scale.tolist() == [3.0] * 4


def test_load_may_take_the_tensors_themselves():
    net, state = Net(), Net().double().state_dict()

    net.load_state_dict(state, assign=True)

    assert net.scale.data_ptr() == state["scale"].data_ptr()
    assert isinstance(net.scale, nn.Parameter)
    assert net.scale.requires_grad
    assert net.norm.running_mean.dtype is dt.float64


def test_a_state_that_does_not_fit_is_refused_whole_with_all_reasons():
    net, before = Net(), {k: v.clone() for k, v in Net().state_dict().items()}
    net.load_state_dict(before)
    state = {k: v + 1 for k, v in before.items()}
    del state["first.bias"], state["norm.running_var"]
    state |= {
        "third.weight": dt.ones(1),
        "more": dt.ones(1),
        "scale": dt.ones(5),
        "first.weight": dt.ones(4, 3),
    }
    state["shift"] = [0.0]

    with pytest.raises(RuntimeError) as error:
        net.load_state_dict(state)

    assert str(error.value).split("\n\t") == [
        "load_state_dict(): this does not fit Net:",
        'Missing key(s) in state_dict: "first.bias", "norm.running_var".',
        'Unexpected key(s) in state_dict: "third.weight", "more".',
        "size mismatch for scale: given (5,), the module has (4,).",
        "shift must be a Tensor, got list.",
        "size mismatch for first.weight: given (4, 3), the module has (4, 4).",
    ]
    assert all((value == before[key]).all() for key, value in net.state_dict().items())


def test_a_loose_load_tells_what_it_passed_over_and_still_minds_shapes():
    net = Net()

    result = net.load_state_dict({"scale": dt.zeros(4), "more": dt.ones(1)}, strict=False)

    assert result.unexpected_keys == ["more"]
    assert result.missing_keys == [k for k in KEYS if k not in ("scale", "norm.num_batches_tracked")]
    assert net.scale.tolist() == [0.0] * 4
    with pytest.raises(RuntimeError, match="size mismatch for scale"):
        net.load_state_dict({"scale": dt.zeros(3)}, strict=False)
    with pytest.raises(TypeError, match="expected state_dict to be a mapping, got list"):
        net.load_state_dict([])


def test_deepcopy_is_independent_and_keeps_sharing():
    net = Net()
    net(dt.randn(3, 4))

    twin = copy.deepcopy(net)

    assert twin.second.weight is twin.first.weight
    assert twin.first.weight is not net.first.weight
    assert isinstance(twin.scale, nn.Parameter)
    with dt.no_grad():
        twin.scale.fill_(5)
    assert net.scale.tolist() == [1.0] * 4
    assert list(twin.state_dict()) == KEYS
    x = dt.randn(3, 4)
    net.load_state_dict(twin.state_dict())
    assert (twin.eval()(x) == net.eval()(x)).all()


def test_repr_is_that_of_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    def build(nn):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()])
                self.heads = nn.ModuleDict(
                    {"a": nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1)), "b": nn.Tanh()}
                )

            def extra_repr(self):
                return "size=2\nkind=test"

        return Block()

    assert repr(build(nn)) == repr(build(torch.nn))


def test_forward_hooks_see_and_replace_arguments_and_outputs():
    layer, calls = nn.Identity(), []
    layer.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    layer.register_forward_pre_hook(lambda m, args: calls.append(args[0].item()), prepend=True)
    handle = layer.register_forward_hook(lambda m, args, out: out * 10)

    assert layer(dt.tensor(1.0)).item() == 20
    assert calls == [1.0]
    handle.remove()
    assert layer(dt.tensor(1.0)).item() == 2


def test_forward_hooks_may_have_keyword_arguments():
    class Scale(nn.Module):
        def forward(self, x, *, by=1):
            return x * by

    layer = Scale()
    layer.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {"by": kwargs["by"] + 1}), with_kwargs=True
    )
    layer.register_forward_hook(lambda m, args, kwargs, out: out + kwargs["by"], with_kwargs=True)

    assert layer(dt.tensor(5.0), by=2).item() == 18
    layer.register_forward_pre_hook(lambda m, args, kwargs: args, with_kwargs=True)
    with pytest.raises(RuntimeError, match=r"must return None or \(args, kwargs\)"):
        layer(dt.tensor(5.0), by=2)


def test_backward_hooks_are_those_of_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    x = np.random.default_rng(0).standard_normal((3, 4))

    def run(lib):
        seen = []
        layer = lib.nn.Bilinear(4, 4, 2)
        with lib.no_grad():
            for p in layer.parameters():
                p.fill_(0.5)
        layer = layer.double()
        layer.register_full_backward_pre_hook(lambda m, out: (out[0] * 2,))
        layer.register_full_backward_hook(lambda m, into, out: seen.append((into, out)))
        layer.register_full_backward_hook(lambda m, into, out: (into[0] * 3, into[1]))
        a, b = lib.tensor(x).requires_grad_(), lib.tensor(x)
        (layer(a, b) ** 2).sum().backward()
        (into, out) = seen[0]
        return [t.detach().numpy() for t in (into[0], out[0], a.grad, layer.weight.grad)]

    for ours, theirs in zip(run(dt), run(torch), strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-12)


def test_backward_hooks_run_where_no_input_asks_for_a_gradient_and_not_after_removal():
    layer, seen = nn.Linear(2, 2), []
    handle = layer.register_full_backward_hook(lambda m, into, out: seen.append(into))

    layer(dt.ones(1, 2)).sum().backward()
    assert seen == [(None,)]
    handle.remove()
    layer(dt.ones(1, 2)).sum().backward()
    assert len(seen) == 1
    with dt.no_grad():
        layer.register_full_backward_hook(lambda m, into, out: seen.append(into))
        layer(dt.ones(1, 2).requires_grad_())
    assert len(seen) == 1


def test_backward_hooks_watch_tuples_and_dicts_and_second_derivatives():
    class Two(nn.Module):
        def forward(self, x):
            return {"a": x**3, "b": (1, 2), "c": x * 2}

    layer, seen = Two(), []
    layer.register_full_backward_hook(lambda m, into, out: seen.append((into, out)))
    x = dt.tensor(2.0, requires_grad=True)

    out = layer(x)
    (g,) = dt.autograd.grad(out["a"], x, create_graph=True)
    (gg,) = dt.autograd.grad(g, x)

    assert out["b"] == (1, 2)
    assert g.item() == 12
    assert gg.item() == 12
    assert [v if v is None else v.item() for v in seen[0][1]] == [1.0, None, None]
    layer.register_full_backward_hook(lambda m, into, out: (into[0], into[0]))
    with pytest.raises(RuntimeError, match="returned 2 gradients for grad_input, expected 1"):
        layer(x)["a"].backward()


def test_import_loads_neither_compiler_nor_gpu_nor_mpi():
    code = (
        "import sys, disttrain, disttrain.nn as nn; nn.Linear(2, 2)(disttrain.ones(1, 2));"
        "bad = {'numba', 'cupy', 'mpi4py'} & set(sys.modules); sys.exit(f'imported {bad}' if bad else 0)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr


def test_unknown_names_of_nn():
    with pytest.raises(AttributeError, match=r"disttrain\.nn has no 'Linnear'"):
        _ = nn.Linnear
    with pytest.raises(AttributeError, match=r"nn\.parallel\.scatter is PyTorch's, not in disttrain"):
        _ = nn.parallel.scatter


@pytest.fixture(params=["torch", "disttrain"])
def lib(request: Any) -> Any:
    """PyTorch and disttrain in turn: what holds for the one must hold for the other."""
    if request.param == "disttrain":
        return dt
    return pytest.importorskip("torch", reason="PyTorch is the reference")


def _net(lib: Any) -> Any:
    return lib.nn.Sequential(lib.nn.Linear(2, 3), lib.nn.Sequential(lib.nn.Linear(3, 1)))


def test_hooks_around_the_state(lib):
    net, seen = _net(lib), []
    net[1].register_state_dict_pre_hook(lambda m, prefix, keep_vars: seen.append(("pre", prefix, keep_vars)))

    def rename(module, state, prefix, metadata):
        state[prefix + "renamed"] = state.pop(prefix + "0.bias")

    def back(module, state, prefix, metadata, strict, missing, unexpected, errors):
        state[prefix + "0.bias"] = state.pop(prefix + "renamed")
        seen.append(("load", prefix, strict))

    handle = net[1].register_state_dict_post_hook(rename)
    net[1].register_load_state_dict_pre_hook(back)
    net.register_load_state_dict_post_hook(lambda m, keys: seen.append((m is net, list(keys.missing_keys))))

    state = net.state_dict(prefix="x.")
    assert list(state) == ["x.0.weight", "x.0.bias", "x.1.0.weight", "x.1.renamed"]
    state = net.state_dict()
    result = net.load_state_dict(state)

    assert seen == [("pre", "x.1.", False), ("pre", "1.", False), ("load", "1.", True), (True, [])]
    assert not result.missing_keys
    assert "1.renamed" in state
    handle.remove()
    assert "1.0.bias" in net.state_dict()
    into = {"there": 1}
    assert net.state_dict(destination=into) is into
    assert next(iter(into)) == "there"
    with pytest.warns(FutureWarning, match=r"Positional args|by position is deprecated"):
        assert next(iter(net.state_dict({}, "y."))) == "y.0.weight"


def test_extra_state(lib):
    class Counter(lib.nn.Module):
        def __init__(self):
            super().__init__()
            self.count = 3

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    net = lib.nn.Sequential(Counter())
    state = net.state_dict()
    assert state == {"0._extra_state": {"count": 3}}
    net[0].count = 0
    net.load_state_dict(state)
    assert net[0].count == 3
    assert net.load_state_dict({}, strict=False).missing_keys == ["0._extra_state"]


def test_set_submodule(lib):
    net = _net(lib)
    new = lib.nn.ReLU()

    net.set_submodule("1.0", new)
    net.set_submodule("1.more", new)

    assert net[1][0] is new
    assert net.get_submodule("1.more") is new
    with pytest.raises(AttributeError):
        net.set_submodule("1.nothing", new, strict=True)
    with pytest.raises(AttributeError):
        net.set_submodule("nothing.0", new)
    with pytest.raises(ValueError):
        net.set_submodule("", new)
    with pytest.raises(ValueError):
        net.set_submodule("0", 3)


def test_a_hook_that_is_always_called(lib):
    class Bad(lib.nn.Module):
        def forward(self, x):
            raise KeyError("inside")

    seen = []
    bad = Bad()
    bad.register_forward_hook(lambda m, args, out: seen.append("plain"))
    bad.register_forward_hook(lambda m, args, out: seen.append(out), always_call=True)
    bad.register_forward_hook(
        lambda m, args, kwargs, out: seen.append(kwargs), always_call=True, with_kwargs=True
    )

    with pytest.raises(KeyError, match="inside"):
        bad(x=1)
    bad.register_forward_pre_hook(lambda m, args: {}["before"])
    with pytest.raises(KeyError, match="before"):
        bad(x=2)

    assert seen == [None, {"x": 1}, None, {"x": 2}]


def test_type_converts_integers_too_and_to_empty_keeps_shapes(lib):
    net = lib.nn.BatchNorm1d(3)

    assert net.type(lib.float64) is net
    assert {str(t.dtype).split(".")[1] for t in net.state_dict().values()} == {"float64"}
    net.to_empty(device="cpu")
    assert net.weight.shape == (3,)
    assert net.share_memory() is net


def test_to_a_memory_format_reaches_images_only(lib):
    net = lib.nn.Sequential(lib.nn.Conv2d(3, 4, 3), lib.nn.Flatten(), lib.nn.Linear(4, 2))
    optimizer = lib.optim.SGD(net.parameters(), lr=0.1)
    x = lib.ones(2, 3, 3, 3).to(memory_format=lib.channels_last)

    assert net.to(memory_format=lib.channels_last) is net

    assert net[0].weight.is_contiguous(memory_format=lib.channels_last)
    assert net[0].weight.stride() == (27, 1, 9, 3)
    before = net[0].weight.detach().clone()
    net(x)[:, 0].sum().backward()
    optimizer.step()
    assert not bool((net[0].weight == before).all())
    with pytest.raises(TypeError):
        lib.nn.Conv2d(1, 1, 1).to(memory_format="channels_last")
    with pytest.raises(RuntimeError):
        lib.nn.Conv2d(1, 1, 1).to(memory_format=lib.channels_last_3d)


def test_registering_takes_nobody_elses_name_and_assigning_does(lib):
    net = lib.nn.Module()
    net.child, net.plain, net.weight = lib.nn.ReLU(), 3, lib.nn.Parameter(lib.ones(1))
    net.register_buffer("kept", lib.ones(1))

    for name in ("child", "plain", "kept"):
        with pytest.raises(KeyError):
            net.register_parameter(name, lib.nn.Parameter(lib.ones(1)))
    for name in ("child", "plain", "weight"):
        with pytest.raises(KeyError):
            net.register_buffer(name, lib.ones(1))
    for name in ("weight", "plain", "kept"):
        with pytest.raises(KeyError):
            net.add_module(name, lib.nn.ReLU())
    net.kept, net.child, net.plain = (
        lib.nn.Parameter(lib.ones(2)),
        lib.nn.Parameter(lib.ones(2)),
        lib.nn.ReLU(),
    )
    assert [n for n, _ in net.named_parameters()] == ["weight", "kept", "child"]
    assert [n for n, _ in net.named_children()] == ["plain"]
    assert not list(net.buffers())


def test_a_name_that_the_class_defines_would_hide_what_is_assigned():
    class Net(nn.Module):
        encoder = None

    with pytest.raises(KeyError, match="the class Net defines 'encoder', which would hide the module"):
        Net().encoder = nn.Linear(1, 1)


def test_a_state_of_before_batches_were_counted(lib):
    norm = lib.nn.Sequential(lib.nn.BatchNorm1d(3))
    state = {k: v + 1 for k, v in norm.state_dict().items() if "tracked" not in k}

    keys = norm.load_state_dict(state)

    assert str(keys) == "<All keys matched successfully>"
    assert norm[0].running_var.tolist() == [2.0] * 3
    with pytest.raises(RuntimeError, match="running_var"):
        norm.load_state_dict({k: v for k, v in state.items() if "var" not in k})
    assert "_IncompatibleKeys(missing_keys=['0.weight'" in repr(norm.load_state_dict({}, strict=False))


def test_a_module_compiled_in_place_runs_as_it_is():
    net = dt.nn.Linear(2, 3)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert net.compile(mode="reduce-overhead") is None

    assert net(dt.ones(1, 2)).shape == (1, 3)


def test_a_parameter_prints_on_lines_of_its_own(lib):
    assert str(lib.nn.Parameter(lib.ones(2))) == (
        "Parameter containing:\ntensor([1., 1.], requires_grad=True)"
    )


def test_the_deprecated_backward_hook():
    net, seen = dt.nn.ReLU(), []
    net.register_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_output[0].tolist()))

    net(dt.ones(2, requires_grad=True)).sum().backward()

    assert seen == [[1.0, 1.0]]


@pytest.mark.parametrize("home", ["batchnorm", "conv", "utils", "adaptive"])
def test_the_homes_of_layers_can_be_imported_at_once(home):
    code = f"import disttrain.nn.modules.{home} as m; print(m.__name__)"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert out.stdout == f"disttrain.nn.modules.{home}\n"
