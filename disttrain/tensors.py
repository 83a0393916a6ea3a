"""Tensor: an array that remembers how it was made."""

from __future__ import annotations

import copy
import operator
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from disttrain import autograd, backward_pass, dtypes, engine
from disttrain.absent import AbsentMethods
from disttrain.devices import device as Device
from disttrain.devices import move
from disttrain.errors import GradientError
from disttrain.inquiries import Inquiries
from disttrain.kernels.arrays import Array, to_host
from disttrain.layouts import preserve_format
from disttrain.methods import (
    ElementwiseMethods,
    IndexMethods,
    InPlaceMethods,
    LinalgMethods,
    RandomMethods,
    ReduceMethods,
    ShapeMethods,
    SortMethods,
)
from disttrain.modes import Counter, reads_values, replayed
from disttrain.nodes import Node, RemovableHandle
from disttrain.ops import shape as shape_ops


class Size(tuple[int, ...]):
    """A shape, as ``torch.Size``: a tuple that knows its number of elements; its parts and sums are shapes too.

    Raises:
        TypeError: something is no integer.
    """

    __slots__ = ()

    def __new__(cls, sizes: Any = ()) -> Size:
        return tuple.__new__(cls, map(operator.index, sizes))

    def __getitem__(self, key: Any) -> Any:
        part = tuple.__getitem__(self, key)
        return tuple.__new__(Size, part) if type(part) is tuple else part

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, tuple):
            return NotImplemented
        return tuple.__new__(Size, tuple.__add__(self, other))

    def __radd__(self, other: Any) -> Any:
        if not isinstance(other, tuple):
            return NotImplemented
        return tuple.__new__(Size, tuple.__add__(other, self))

    def __mul__(self, times: Any) -> Any:
        return tuple.__new__(Size, tuple.__mul__(self, times))

    __rmul__ = __mul__

    def numel(self) -> int:
        """Return the number of elements of a tensor of this shape."""
        n = 1
        for k in self:
            n *= k
        return n

    def __repr__(self) -> str:
        return f"disttrain.Size({list(self)})"


class Tensor(
    ElementwiseMethods,
    InPlaceMethods,
    ReduceMethods,
    SortMethods,
    ShapeMethods,
    LinalgMethods,
    IndexMethods,
    RandomMethods,
    Inquiries,
    AbsentMethods,
):
    """A multi-dimensional array of one type that records the operations on it, as ``torch.Tensor``.

    Make one with :func:`disttrain.tensor`, :func:`disttrain.zeros` and their like. ``Tensor(data)`` converts to the
    default floating point type, ``Tensor(2, 3)`` takes sizes.
    """

    _array: Array
    _version_counter: list[int]
    """One number, shared by all tensors over the same memory: how often it was changed in place."""
    _requires_grad = False
    _grad: Tensor | None = None
    _node: Node | None = None
    """The operation that made this tensor, if it is recorded; a leaf has none."""
    _index = 0
    """Which output of the operation this tensor is."""
    _base: Tensor | None = None
    """The tensor that this one is a view of."""
    _chain: shape_ops.Chain = ()
    """How it is a view of its base."""
    _history = 0
    """How often the history of a base was changed by a change in place."""
    _seen = 0
    """The ``_history`` of the base that this view's own history agrees with."""
    _layout = 0
    """How often a base was given another shape in place; of a view, how often it had been when the view was taken."""
    _hooks: dict[int, Callable[..., Any]] | None = None
    """Of a leaf: functions of its gradient."""
    _post_hooks: dict[int, Callable[..., Any]] | None = None
    """Of a leaf: functions of the leaf, called once its gradient has been accumulated."""
    _after_hooks: dict[int, Callable[..., Any]] | None = None
    """Of a leaf: functions of ``()`` and a tuple of its gradient, called once that has been accumulated."""
    _retained: RemovableHandle | None = None
    """Of a result whose gradient is kept: what ends that."""
    _frozen: str | None = None
    """Why this tensor must not be changed in place in what is recorded."""
    _slot: backward_pass.Slot | None = None
    """Of a leaf: where its gradient lives."""
    _given_grad: weakref.ref[Tensor] | None = None
    """The gradient tensor that was last given out over the slot."""

    _twin: Tensor | None = None
    """The tensor without history that this one is the ``data`` of, or was detached from."""
    _synchronized: Any = False
    """Of a parameter: the parallel wrapper that keeps it equal on all ranks. Of a gradient: whether it was averaged."""

    _shard: Any = None
    """Of a parameter that is spread over the ranks, and of its gradient: which part of it is here."""

    __array_priority__ = 1000  # so that `array * tensor` comes to us

    def __init__(self, data: Any = 0, *sizes: Any) -> None:
        from disttrain import context, legacy

        self._array = legacy.construct("Tensor", context.current().default_dtype, (data, *sizes))._array
        self._version_counter = engine.new_counter()

    @classmethod
    def _of(cls, array: Array) -> Tensor:
        """Return a tensor on the memory of an array.

        Raises:
            TypeError: the array is of a type that no tensor can have.
        """
        dtypes.of(array)
        t = Tensor.__new__(Tensor)
        t._array = array
        t._version_counter = engine.new_counter()
        return t

    @classmethod
    def full_(cls, value: Any) -> Tensor:
        """Return a tensor without dimensions that holds a Python number, in PyTorch's type for it."""
        from disttrain.functions.conversion import tensor

        return tensor(value)

    # -------------------------------------------------------------------------------------- what it is

    @property
    def shape(self) -> Size:
        """Size of each dimension."""
        return tuple.__new__(Size, self._array.shape)

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or the size of one dimension."""
        if dim is None:
            return self.shape
        from disttrain.functions.common import normalize_dim

        return self._array.shape[normalize_dim(dim, self._array.ndim)]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._array.ndim  # type: ignore[no-any-return]

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self._array.ndim  # type: ignore[no-any-return]

    def numel(self) -> int:
        """Return the number of elements."""
        return int(self._array.size)

    nelement = numel

    @property
    def dtype(self) -> dtypes.dtype:
        """Type of the elements."""
        return dtypes.of(self._array)

    @property
    def device(self) -> Device:
        """Where the memory is."""
        return Device.of(self._array)

    @property
    def is_cuda(self) -> bool:
        """Whether the memory is a GPU's."""
        return self.device.type == "cuda"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int(self._array.itemsize)

    def element_size(self) -> Any:
        """Return the bytes of one element."""
        return self._array.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return int(self._array.nbytes)

    def stride(self, dim: int | None = None) -> Any:
        """Return the distance in elements between neighbours along each dimension, or along one."""
        strides = tuple(s // self._array.itemsize for s in self._array.strides)
        return strides if dim is None else strides[dim]

    def storage_offset(self) -> int:
        """Return where the first element lies, in elements from that of the tensor that this one is a view of."""
        if self._base is None:
            return 0
        return (self.data_ptr() - self._base.data_ptr()) // int(self._array.itemsize)

    def is_floating_point(self) -> bool:
        """Return whether the elements are floating point numbers."""
        return self.dtype.is_floating_point

    def data_ptr(self) -> int:
        """Return the address of the first element."""
        return int(self._array.__array_interface__["data"][0])

    @property
    def T(self) -> Tensor:
        """A view with the dimensions in reverse order."""
        return engine.apply_view(shape_ops.transpose, self, axes=tuple(range(self.ndim))[::-1])

    @property
    def mT(self) -> Tensor:
        """A view with the last two dimensions exchanged."""
        if not self.ndim:
            return self
        if self.ndim < 2:
            raise RuntimeError(f"mT needs matrices, got shape {list(self.shape)}")
        return self.transpose(-2, -1)

    @property
    def H(self) -> Tensor:
        """A view of a matrix transposed."""
        if self.ndim not in (0, 2):
            raise RuntimeError(f"H needs a matrix, got shape {list(self.shape)}; use mH for several")
        return self.t()

    @property
    def mH(self) -> Tensor:
        """:attr:`mT`."""
        return self.mT

    @property
    def _version(self) -> int:
        if self.is_inference():
            raise RuntimeError(
                "a tensor made in inference_mode() does not count its changes; clone() it outside"
            )
        return self._version_counter[0]

    def is_inference(self) -> Any:
        """Return whether this tensor, or the memory that it is a view of, was made in ``inference_mode``."""
        return isinstance(self._version_counter, Counter)

    # -------------------------------------------------------------------------------------- conversion

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the tensor as another dtype and/or on another device; itself if it is so already.

        As ``torch.Tensor.to``: ``to(dtype)``, ``to(device)``, ``to(device, dtype)``, ``to(other)``; the options
        ``non_blocking``, ``copy`` and ``memory_format``.
        """
        copy = kwargs.pop("copy", False)
        order = kwargs.pop("memory_format", None)
        kind, where = destination(args, kwargs)
        t = self
        if kind is not None and kind.numpy != self._array.dtype:
            t = engine.apply(shape_ops.astype, self, dtype=kind.numpy)
        if where is not None and where != t.device:
            t = engine.apply(move, t, device=where)
        if order is not None and order is not preserve_format:
            t = t.contiguous(order)
        return t.clone() if copy and t is self else t

    def type_as(self, other: Tensor) -> Tensor:
        """Return the tensor in the dtype of ``other``."""
        return self.to(other.dtype)

    def float(self, memory_format: Any = None) -> Tensor:
        """Return the tensor as float32."""
        return self.to(dtypes.float32, memory_format=memory_format)

    def double(self, memory_format: Any = None) -> Tensor:
        """Return the tensor as float64."""
        return self.to(dtypes.float64, memory_format=memory_format)

    def half(self, memory_format: Any = None) -> Tensor:
        """Return the tensor as float16."""
        return self.to(dtypes.float16, memory_format=memory_format)

    def bfloat16(self, memory_format: Any = None) -> Tensor:
        """Return the tensor as bfloat16."""
        return self.to(dtypes.bfloat16, memory_format=memory_format)

    def long(self, memory_format: Any = None) -> Tensor:
        """Return the tensor as int64."""
        return self.to(dtypes.int64, memory_format=memory_format)

    def int(self, memory_format: Any = None) -> Tensor:
        """Return the tensor as int32."""
        return self.to(dtypes.int32, memory_format=memory_format)

    def bool(self, memory_format: Any = None) -> Tensor:
        """Return the tensor as booleans."""
        return self.to(dtypes.bool_, memory_format=memory_format)

    def cpu(self, memory_format: Any = None) -> Tensor:
        """Return the tensor in host memory."""
        return self.to("cpu", memory_format=memory_format)

    def cuda(self, device: Any = None, non_blocking: Any = False, memory_format: Any = None) -> Tensor:
        """Return the tensor in a GPU's memory."""
        where = "cuda" if device is None else device
        return self.to(where, non_blocking=non_blocking, memory_format=memory_format)

    def numpy(self, *, force: Any = False) -> np.ndarray[Any, Any]:
        """Return the elements as a NumPy array that shares the memory; with ``force``, detached and on the host.

        Raises:
            RuntimeError: the tensor requires a gradient, or is on a GPU, and ``force`` is not given.
        """
        reads_values("numpy()")
        if force:
            return self.detach().cpu().numpy()
        if self.requires_grad:
            raise RuntimeError("numpy() of a tensor that requires grad; use detach().numpy()")
        if self.device.type != "cpu":
            raise RuntimeError(f"numpy() of a tensor on {self.device}; use cpu().numpy()")
        return to_host(self._array)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        """Return the memory as a DLPack capsule, for ``from_dlpack()`` of another library, on the CPU or a GPU.

        Args:
            options: ``stream``, ``max_version``, ``dl_device`` and ``copy``, as the array API standard has them.

        Raises:
            BufferError: the tensor requires a gradient, or its library cannot hand out its type (bfloat16 on the CPU).
        """
        reads_values("__dlpack__()")
        if self.requires_grad:
            raise BufferError("a tensor that requires grad cannot be handed out by DLPack; use detach()")
        return self._array.__dlpack__(**{k: v for k, v in options.items() if v is not None})

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """Return DLPack's number of the kind of device (1: CPU, 2: CUDA), and which one it is."""
        kind, index = self._array.__dlpack_device__()
        return operator.index(kind), operator.index(index)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: Any = False) -> Tensor:
        return Tensor._of(np.asarray(array))  # what a function of NumPy's made of this tensor

    def item(self) -> Any:
        """Return the only element as a Python number.

        Raises:
            RuntimeError: there is more than one, or none.
        """
        if self._array.size != 1:
            raise RuntimeError(f"item() needs a tensor of one element, got shape {list(self.shape)}")
        reads_values("a number made of a tensor, by item() or float(),")
        value = self._array.item()
        return value if isinstance(value, int | float) else float(value)

    def tolist(self) -> Any:
        """Return the elements as nested lists of Python numbers."""
        reads_values("tolist()")
        a = to_host(self._array)
        return (a.astype(np.float32) if a.dtype.kind == "V" else a).tolist()

    def __float__(self) -> Any:
        return float(self._only("float"))

    def __int__(self) -> Any:
        return int(self._only("int"))

    def _only(self, kind: str) -> Any:
        if self._array.size != 1:
            raise ValueError(
                f"only a tensor of one element can become a Python {kind}, got shape {list(self.shape)}"
            )
        return self.item()

    def __index__(self) -> Any:
        if self.dtype.category > 1 or self._array.size != 1:
            raise TypeError(
                f"only integer tensors of one element can be an index, got {self.dtype} of shape {list(self.shape)}"
            )
        return int(self.item())

    def __bool__(self) -> Any:
        if self._array.size != 1:
            raise RuntimeError(
                f"the truth of a tensor of shape {list(self.shape)} is ambiguous; use .any() or .all()"
            )
        reads_values("the truth of a tensor, which `if` asks for,")
        return bool(self._array.item())

    def __len__(self) -> Any:
        if not self.ndim:
            raise TypeError("len() of a tensor without dimensions")
        return self._array.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise TypeError("iteration over a tensor without dimensions")
        return iter([self[i] for i in range(len(self))])

    def __reversed__(self) -> Tensor:
        return self.flip(0) if self.ndim else self

    def __contains__(self, element: Any) -> Any:
        if not isinstance(element, Tensor | bool | int | float | np.generic):
            raise RuntimeError(
                f"a tensor contains numbers, not what is of type {type(element).__name__}: {element!r:.80}"
            )
        return (self == element).any().item()

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, Tensor | bool | int | float | np.ndarray | np.generic):
            return NotImplemented
        return self.eq(other)

    def __ne__(self, other: object) -> Any:
        if not isinstance(other, Tensor | bool | int | float | np.ndarray | np.generic):
            return NotImplemented
        return self.ne(other)

    def __repr__(self) -> str:
        from disttrain.printing import tensor_repr

        reads_values("printing")
        return tensor_repr(self)

    def __format__(self, spec: str) -> str:
        if not self.ndim and (spec or type(self) is Tensor):
            return format(self.item(), spec)
        return object.__format__(self, spec)

    def __deepcopy__(self, memo: dict[Any, Any]) -> Tensor:
        if self._node is not None:
            raise RuntimeError("only leaf tensors can be deep-copied; detach() it first")
        copied = type(self).__new__(type(self))
        if self._base is None:
            copied._array = self._array.copy()
            copied._version_counter = [0]
        else:  # the copy of a view is a view of the copy
            base = copy.deepcopy(self._base, memo)
            view = base.detach()
            for op, options in self._chain:
                view = engine.apply(op, view, **options)
            copied._array, copied._version_counter = view._array, base._version_counter
        memo[id(self)] = copied
        copied._requires_grad = self._requires_grad
        if self._grad is not None:
            copied._grad = copy.deepcopy(self._grad, memo)
        for name, value in vars(self).items():
            if not name.startswith("_") and name not in vars(copied):  # what a program has put there
                setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    # -------------------------------------------------------------------------------------- new tensors like it

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """Return a tensor of ``data`` in this one's dtype and on its device."""
        from disttrain.functions import conversion

        return conversion.tensor(data, **self._like(options))

    def new_zeros(self, *size: Any, **options: Any) -> Tensor:
        """Return zeros in this one's dtype and on its device."""
        from disttrain.functions import creation

        return creation.zeros(*size, **self._like(options))

    def new_ones(self, *size: Any, **options: Any) -> Tensor:
        """Return ones in this one's dtype and on its device."""
        from disttrain.functions import creation

        return creation.ones(*size, **self._like(options))

    def new_empty(self, *size: Any, **options: Any) -> Tensor:
        """Return elements that are not set, in this one's dtype and on its device."""
        from disttrain.functions import creation

        return creation.empty(*size, **self._like(options))

    def new_full(self, size: Any, fill_value: Any, **options: Any) -> Tensor:
        """Return ``fill_value`` in this one's dtype and on its device."""
        from disttrain.functions import creation

        return creation.full(size, fill_value, **self._like(options))

    def new_empty_strided(self, size: Any, stride: Any, **options: Any) -> Tensor:
        """Return elements that are not set, with the strides given, in this one's dtype and on its device."""
        from disttrain.functions import creation

        return creation.empty_strided(size, stride, **self._like(options))

    def _like(self, options: dict[str, Any]) -> dict[str, Any]:
        options = {k: v for k, v in options.items() if v is not None}
        return {"dtype": self.dtype, "device": self.device} | options

    # -------------------------------------------------------------------------------------- autograd

    @classmethod
    def __apply__(cls, op: Any, *args: Any, **options: Any) -> Any:
        """See ``disttrain.ops.types.call``."""
        return engine.apply(op, *args, **options)

    def _edge(self) -> engine.Edge | None:
        """Return where the gradient of this tensor goes; ``None`` if nobody wants it."""
        if self._base is not None:
            engine.refresh_view(self)
        if self._node is not None:
            return self._node, self._index
        return (self, 0) if self._requires_grad else None

    @property
    def requires_grad(self) -> Any:
        """Whether operations on this tensor are recorded."""
        return self._edge() is not None

    @requires_grad.setter
    def requires_grad(self, value: Any) -> None:
        if value is not True and value is not False:
            raise RuntimeError(f"requires_grad must be a bool, got {type(value).__name__}: {value!r:.80}")
        if value and self._node is not None and self._edge() is not None:
            raise RuntimeError(
                "requires_grad can be set only on leaf tensors; this one has a grad_fn already"
            )
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: Any = True) -> Tensor:
        """Begin (or cease) to record operations on this leaf.

        Raises:
            RuntimeError: recording of a tensor that is not a leaf cannot be switched off, or the type is no
                floating point type.
        """
        if requires_grad is not True and requires_grad is not False:
            raise TypeError(
                f"requires_grad_(): argument 'requires_grad' must be bool, not {type(requires_grad).__name__}"
            )
        if self._edge() is not None and self._node is not None:
            if not requires_grad:
                raise RuntimeError("requires_grad can be switched off only for leaf tensors; use detach()")
            return self
        if requires_grad and not self.dtype.is_floating_point:
            raise RuntimeError(f"only floating point tensors can require gradients, got {self.dtype}")
        if (
            self.is_inference()
            and not engine.is_inference_mode_enabled()
            and self._requires_grad != requires_grad
        ):
            raise RuntimeError(
                "requires_grad cannot be set on a tensor made in inference_mode(); clone() it first"
            )
        self._requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> Any:
        """Whether no recorded operation made this tensor."""
        self._edge()
        return self._node is None

    @property
    def grad_fn(self) -> Node | None:
        """The recorded operation that made this tensor."""
        self._edge()
        return self._node

    @property
    def grad(self) -> Tensor | None:
        """The accumulated gradient of this leaf.

        Warns:
            UserWarning: the tensor is no leaf, and :meth:`retain_grad` was not called.
        """
        if self._grad is None and self._node is not None and self._retained is None:
            warnings.warn(
                f".grad of a tensor that is no leaf stays None. Call "
                f"retain_grad() on the tensor (made by {self._node.name()}) before backward() to keep its gradient, "
                f"or look at a leaf's",
                stacklevel=2,
            )
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f"grad must be a Tensor or None, got {type(value).__name__}")
            if value is self:
                raise RuntimeError("a tensor cannot be its own grad: give another one, or a clone()")
            if value.shape != self.shape or value.dtype is not self.dtype:
                raise RuntimeError(
                    f"grad of a tensor of shape {list(self.shape)} and {self.dtype} cannot have shape "
                    f"{list(value.shape)} and {value.dtype}"
                )
        self._put_grad(value)

    @grad.deleter
    def grad(self) -> None:
        self._put_grad(None)

    @replayed
    def _put_grad(self, value: Tensor | None) -> None:
        self._grad = value

    @property
    def output_nr(self) -> Any:
        """Which output of its ``grad_fn`` this tensor is; 0 for a leaf."""
        return self._index if self.grad_fn is not None else 0

    def _accumulate(self, g: Any) -> None:
        backward_pass.accumulate_grad(self, g)
        if self._after_hooks:
            gradient = g if isinstance(g, Tensor) else Tensor._of(g)
            for hook in list(self._after_hooks.values()):
                hook((), (gradient,))
        if self._post_hooks:
            for hook in list(self._post_hooks.values()):
                result = hook(self)
                if result is not None and not isinstance(result, Tensor):
                    raise TypeError(
                        f"a hook after the accumulation of a gradient returns nothing, got {type(result).__name__!r}"
                    )

    def _give_slot(self) -> None:
        """Hand out a gradient over the slot, and remember to whom."""
        assert self._slot is not None
        self._grad = Tensor._of(self._slot.array)
        self._given_grad = weakref.ref(self._grad)

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: Any = None,
        create_graph: Any = False,
        inputs: Sequence[Tensor] | None = None,
        *,
        weight: Any = None,
    ) -> None:
        """Accumulate the gradient of this tensor into the leaves it was made from, as ``torch.Tensor.backward``.

        Args:
            gradient: gradient of this tensor, of its shape; 1 for a tensor of one element.
            retain_graph: keep the graph for another backward; by default if ``create_graph``.
            create_graph: record backward itself, for gradients of gradients.
            inputs: accumulate only into these leaves.
            weight: how many samples this loss stands for, when ranks' gradients are averaged; by default as many
                as the DataLoader dealt. Without data parallelism it changes nothing.

        Raises:
            GradientError: the tensor does not require grad, has several elements and no ``gradient`` is given, or
                the graph has been freed.
        """
        autograd.backward(self, gradient, retain_graph, create_graph, inputs=inputs, weight=weight)

    @property
    def data(self) -> Tensor:
        """The same memory without history; changes in place are not seen by autograd."""
        t = Tensor._of(self._array)
        if self._node is None and not self._requires_grad:
            t._twin = self
        return t

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f".data takes a Tensor, got {type(value).__name__}: {value!r:.80}")
        if self._edge() is not None and not value.dtype.is_floating_point:
            raise RuntimeError(
                f".data of a tensor that requires grad takes floating point numbers, got {value.dtype}"
            )
        self._array = value._array

    def detach(self) -> Tensor:
        """Return the same memory without history; a change in place is seen by autograd's version check."""
        t = Tensor._of(self._array)
        t._version_counter = self._version_counter
        if self._node is None and not self._requires_grad:
            t._twin = self
        return t

    def detach_(self) -> Tensor:
        """Forget the history of this tensor.

        Raises:
            RuntimeError: the tensor is a view.
        """
        if self._base is not None:
            raise RuntimeError("detach_(): this is a view of another tensor; use detach()")
        self._node, self._requires_grad = None, False
        return self

    def retain_grad(self) -> None:
        """Keep the gradient of this tensor in ``grad`` although it is no leaf.

        Raises:
            RuntimeError: the tensor does not require grad.
        """
        edge = self._edge()
        if edge is None:
            raise RuntimeError("retain_grad() needs a tensor that requires grad")
        if self._node is not None and self._retained is None:
            self._retain()

    def _retain(self) -> None:
        """Keep the gradient of the value that the tensor has now, and no more that of an earlier one."""
        if self._retained is not None:
            self._retained.remove()
        me = weakref.ref(self)

        def keep(g: Tensor) -> None:
            t = me()
            if t is not None:
                t._grad = g.clone() if t._grad is None else t._grad + g

        if self._node is not None:
            hooks = self._node.hooks = {} if self._node.hooks is None else self._node.hooks
            self._retained = RemovableHandle(hooks.setdefault(self._index, {}), keep)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call ``hook`` with the gradient of this tensor whenever it is computed; what it returns replaces it.

        Raises:
            RuntimeError: the tensor does not require grad.
        """
        edge = self._edge()
        if edge is None:
            raise RuntimeError("register_hook() needs a tensor that requires grad")
        node = self._node
        if node is None:
            if self._hooks is None:
                self._hooks = {}
            return RemovableHandle(self._hooks, hook)
        if node.hooks is None:
            node.hooks = {}
        handle = RemovableHandle(node.hooks.setdefault(self._index, {}), hook)
        if self._retained is not None:
            self._retain()  # what is kept is what the last hook made of it
        return handle

    @property
    def retains_grad(self) -> Any:
        """Whether the gradient of this tensor is kept although it is no leaf."""
        return self._retained is not None

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call ``hook`` with this leaf after each accumulation of its gradient.

        Raises:
            RuntimeError: the tensor is not a leaf that requires grad.
        """
        if self._node is not None or not self._requires_grad:
            raise RuntimeError("register_post_accumulate_grad_hook() needs a leaf that requires grad")
        if self._post_hooks is None:
            self._post_hooks = {}
        return RemovableHandle(self._post_hooks, hook)


engine.Tensor_ = Tensor


def destination(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dtypes.dtype | None, Device | None]:
    """Return the dtype and the device that arguments of ``to()`` name; see :meth:`Tensor.to`.

    Raises:
        TypeError: an argument is unknown, or names neither.
        ValueError: there is no such device.
    """
    kind, where = kwargs.pop("dtype", None), kwargs.pop("device", None)
    kwargs.pop("non_blocking", None)
    if kwargs:
        raise TypeError(f"to() got an unexpected keyword argument {next(iter(kwargs))!r}")
    for a in args:
        if isinstance(a, Tensor):
            kind, where = a.dtype, a.device
        elif isinstance(a, str | Device | int) and not isinstance(a, bool):
            where = a
        elif a is not None and not isinstance(a, bool):
            kind = a
    return None if kind is None else dtypes.as_dtype(kind), None if where is None else Device(where)


def is_tensor(obj: object) -> bool:
    """Return whether ``obj`` is a Tensor."""
    return isinstance(obj, Tensor)


__all__ = ["GradientError", "RemovableHandle", "Size", "Tensor", "is_tensor"]
