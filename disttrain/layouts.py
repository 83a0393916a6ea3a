"""PyTorch's words for how a tensor lies in memory."""


class memory_format:
    """An order of the axes in memory, as ``torch.memory_format``."""

    __slots__ = ("axes", "name")

    def __init__(self, name: str, axes: tuple[int, ...] | None = None) -> None:
        self.name = name
        self.axes = axes
        """The axes from the outermost to the innermost; ``None`` if the number of dimensions decides."""

    def __repr__(self) -> str:
        return f"disttrain.{self.name}"

    def __reduce__(self) -> str:
        return self.name


class layout:
    """A way to store elements, as ``torch.layout``; there is only ``strided``."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"disttrain.{self.name}"

    def __reduce__(self) -> str:
        return self.name


contiguous_format = memory_format("contiguous_format")
preserve_format = memory_format("preserve_format")
channels_last = memory_format("channels_last", (0, 2, 3, 1))
channels_last_3d = memory_format("channels_last_3d", (0, 2, 3, 4, 1))
strided = layout("strided")


def need_strided(layout: object) -> None:
    """Raise ``RuntimeError`` for a layout other than ``strided``."""
    if layout is not None and layout is not strided:
        raise RuntimeError(f"layout must be disttrain.strided, got {layout!r}: there are no sparse tensors")
