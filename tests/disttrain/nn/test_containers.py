"""Sequential, ModuleList, ModuleDict and ParameterList."""

from collections import OrderedDict
from typing import Any

import pytest

import disttrain as dt
from disttrain import nn


def test_sequential_is_a_list_of_steps():
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    net = nn.Sequential(a, b)

    assert net.append(c) is net
    x = dt.randn(4, 2)
    assert (net(x) == c(b(a(x)))).all()
    assert len(net) == 3
    assert net[-1] is c
    assert list(net) == [a, b, c]
    head = net[:2]
    assert isinstance(head, nn.Sequential)
    assert list(head) == [a, b]
    assert list(net[1:].state_dict()) == ["2.weight", "2.bias"]  # names stay, as in PyTorch
    assert list(net[1:].append(a)) == [b, c, a]
    net[1] = nn.Tanh()
    assert repr(net[1]) == "Tanh()"
    del net[0]
    assert list(net._modules) == ["0", "1"]
    net.insert(0, a)
    assert net[0] is a
    assert list(net._modules) == ["0", "1", "2"]
    net.extend([b, b])
    assert len(net) == 5
    with pytest.raises(IndexError, match="index 5 is out of range for 5 modules"):
        _ = net[5]
    with pytest.raises(TypeError, match="cannot register int as module '5'"):
        net.append(3)
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got int"):
        net.insert(0, 3)


def test_sequential_may_have_names():
    net = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), act=nn.ReLU()))

    assert net.first is net[0]
    assert list(net.state_dict()) == ["first.weight", "first.bias"]
    assert list(net[:1]._modules) == ["first"]
    del net[1]
    assert list(net._modules) == ["0"]  # numbered anew, as in PyTorch


def test_what_a_sequential_refuses():
    net = nn.Sequential(nn.ReLU(), nn.Tanh())

    for index in (3, -3):
        with pytest.raises(IndexError, match=f"index {index} is out of range"):
            net.insert(index, nn.ELU())
    with pytest.raises(TypeError, match="cannot register dict as module '0'"):
        nn.Sequential({"act": nn.ReLU()})
    assert len(net) == 2


def test_a_module_dict_of_another():
    one = nn.ModuleDict({"act": nn.ReLU()})

    assert list(nn.ModuleDict(one)) == ["act"]
    assert nn.ModuleDict(one)["act"] is one["act"]


def test_a_parameter_dict_shows_the_kind_of_tensor():
    assert repr(nn.ParameterDict({"a": dt.ones(2)})).endswith(
        "(a): Parameter containing: [torch.FloatTensor of size 2])"
    )


def test_module_list_registers_its_modules():
    a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    layers = nn.ModuleList([a]) + [b]

    assert isinstance(layers, nn.ModuleList)
    assert len(list(layers.parameters())) == 4
    layers += [nn.ReLU()]
    assert [type(m).__name__ for m in layers] == ["Linear", "Linear", "ReLU"]
    assert list(layers[1:]) == [b, layers[2]]
    assert isinstance(layers[1:], nn.ModuleList)
    del layers[:2]
    assert len(layers) == 1
    assert repr(nn.ModuleList()) == "ModuleList()"
    with pytest.raises(NotImplementedError, match=r"ModuleList has no forward\(\)"):
        layers(dt.ones(1))


def test_module_dict_registers_its_modules():
    heads = nn.ModuleDict({"a": nn.Linear(1, 2)})
    heads["b"] = nn.ReLU()
    heads.update([("c", nn.Tanh())])

    assert list(heads) == list(heads.keys()) == ["a", "b", "c"]
    assert "b" in heads
    assert len(heads) == 3
    assert list(heads.state_dict()) == ["a.weight", "a.bias"]
    assert [k for k, _ in heads.items()] == ["a", "b", "c"]
    assert heads.pop("c") not in heads.values()
    del heads["b"]
    heads.clear()
    assert len(heads) == 0


def test_parameter_list_makes_parameters():
    values = nn.ParameterList([dt.ones(2), nn.Parameter(dt.zeros(3))])

    values.append(dt.ones(1)).extend([dt.ones(4)])
    values[0] = dt.ones(5)

    assert [tuple(p.shape) for p in values] == [(5,), (3,), (1,), (4,)]
    assert all(isinstance(p, nn.Parameter) for p in values)
    assert list(values.state_dict()) == ["0", "1", "2", "3"]
    assert len(values[1:3]) == 2
    assert values[-1].shape == (4,)
    assert "(1): Parameter containing: [disttrain.float32 of size 3]" in repr(values)
    assert repr(nn.ParameterList()) == "ParameterList()"


@pytest.fixture(params=["torch", "disttrain"])
def lib(request: Any) -> Any:
    """PyTorch and disttrain in turn: what holds for the one must hold for the other."""
    if request.param == "disttrain":
        return dt
    return pytest.importorskip("torch", reason="PyTorch is the reference")


def test_parameter_dict_is_a_dict(lib):
    a, b, c = (lib.full((2,), float(i)) for i in range(3))
    d = lib.nn.ParameterDict({"a": a, "b": lib.nn.Parameter(b)})
    d["note"] = 3

    assert list(d) == ["a", "b", "note"]
    assert list(reversed(d)) == ["note", "b", "a"]
    assert len(d) == 3
    assert "a" in d
    assert "z" not in d
    assert isinstance(d["a"], lib.nn.Parameter)
    assert d["note"] == 3
    assert [n for n, _ in d.named_parameters()] == ["a", "b"]
    assert list(d.state_dict()) == ["a", "b"]
    assert d.get("z", 5) == 5
    assert d.setdefault("c", c) is d["c"]
    assert d.pop("note") == 3
    assert d.popitem()[0] == "c"
    joined = d | lib.nn.ParameterDict([("e", c)])
    assert list(joined) == ["a", "b", "e"]
    assert joined["a"] is d["a"]
    d |= {"f": c}
    assert list(d.keys()) == ["a", "b", "f"]
    assert [k for k, _ in d.items()] == ["a", "b", "f"]
    assert len(list(d.values())) == 3
    assert list(d.copy()) == list(d)
    assert list(d.fromkeys(["x"], 1.0)) == ["x"]
    del d["a"]
    assert not hasattr(d, "a")
    d.clear()
    assert len(d) == 0
    assert repr(d) == "ParameterDict()"
    with pytest.raises(AttributeError):
        d["a"]
    with pytest.raises(TypeError):
        d.update(3)
    with pytest.raises(ValueError):
        d.update([("a", 1, 2)])


def test_parameter_list_is_a_list(lib):
    a, b = lib.zeros(2), lib.ones(3)
    p = lib.nn.ParameterList([a, b])
    p += [lib.ones(1), "note"]

    assert len(p) == 4
    assert p[-1] == "note"
    assert [n for n, _ in p.named_parameters()] == ["0", "1", "2"]
    p[1] = lib.zeros(5)
    assert p[1].shape == (5,)
    assert isinstance(p[1], lib.nn.Parameter)
    assert [tuple(x.shape) for x in p[:2]] == [(2,), (5,)]
    assert repr(lib.nn.ParameterList([a, b])).replace("torch", "disttrain") == (
        "ParameterList(\n    (0): Parameter containing: [disttrain.float32 of size 2]\n"
        "    (1): Parameter containing: [disttrain.float32 of size 3]\n)"
    )
    with pytest.raises(IndexError):
        p[4]
    with pytest.raises(TypeError):
        p.extend(a)


def test_sequentials_add_and_multiply(lib):
    nn = lib.nn
    a, b = nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Sigmoid())

    assert [type(m).__name__ for m in a + b] == ["ReLU", "Tanh", "Sigmoid"]
    assert [type(m).__name__ for m in b * 2] == ["Sigmoid", "Sigmoid"]
    assert [type(m).__name__ for m in 2 * b] == ["Sigmoid", "Sigmoid"]
    a += b
    assert len(a) == 3
    b *= 3
    assert len(b) == 3
    assert type(a.pop(0)).__name__ == "ReLU"
    assert list(dict(a.named_children())) == ["0", "1"]
    for wrong, error in (
        (lambda: a + [1], ValueError),
        (lambda: a * 0, ValueError),
        (lambda: a * 1.5, TypeError),
    ):
        with pytest.raises(error):
            wrong()
    assert type(nn.ModuleList([nn.ReLU(), nn.Tanh()]).pop(-1)).__name__ == "Tanh"
