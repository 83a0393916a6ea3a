"""Data sets of images by torchvision's names, read from files that are on the disk: nothing is downloaded."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import missing
from disttrain.data.dataset import Dataset
from disttrain.functions.conversion import from_numpy
from disttrain.functions.random import randint, randn
from disttrain.random import Generator
from disttrain.tensors import Tensor
from disttrain.vision.transforms.functional import pil, to_pil_image

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "DatasetFolder",
    "FakeData",
    "FashionMNIST",
    "ImageFolder",
    "VisionDataset",
]

Transform = Callable[..., Any] | None
_DIGITS = [
    f"{i} - {word}"
    for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
]
_CLOTHES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class VisionDataset(Dataset[tuple[Any, Any]]):
    """What the data sets share.

    Args:
        root: where the files are.
        transforms: applied to image and target together; not with the others.
        transform: applied to the image.
        target_transform: applied to the target.

    Raises:
        ValueError: ``transforms`` beside one of the others.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        transforms: Transform = None,
        transform: Transform = None,
        target_transform: Transform = None,
    ) -> None:
        if transforms is not None and (transform is not None or target_transform is not None):
            raise ValueError(
                "transforms takes the place of transform and target_transform; give one or the others"
            )
        self.root = os.path.expanduser(root) if isinstance(root, str) else root
        self.transform, self.target_transform, self.transforms = transform, target_transform, transforms

    def _transformed(self, image: Any, target: Any) -> tuple[Any, Any]:
        if self.transforms is not None:
            return self.transforms(image, target)  # type: ignore[no-any-return]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def extra_repr(self) -> str:
        """Return a line for ``repr``."""
        return ""

    def __len__(self) -> int:
        raise NotImplementedError

    def __repr__(self) -> str:
        body = [f"Number of datapoints: {len(self)}"]
        if self.root is not None:
            body.append(f"Root location: {self.root}")
        body += [line for line in (self.extra_repr(),) if line]
        return "\n".join([f"Dataset {type(self).__name__}", *(f"    {line}" for line in body)])


def _not_here(what: str, download: bool, files: list[str], folders: list[Path], source: str) -> RuntimeError:
    asked = "download=True: nothing is downloaded. " if download else "Dataset not found. "
    return RuntimeError(f"{what}: {asked}Put {', '.join(files)} into {folders[0]} ({source})")


class MNIST(VisionDataset):
    """Handwritten digits, 28 x 28 (LeCun et al., 1998): samples are (Pillow image, int).

    Args:
        root: the four files, as they are or with ``.gz``, are in ``root/MNIST/raw``, ``root/MNIST`` or ``root``.
        train: the 60,000 digits to train on, else the 10,000 to test on.
        transform: applied to the image.
        target_transform: applied to the label.
        download: refused if the files are not there.

    Raises:
        RuntimeError: the files are not there; the text says where they belong.
        ValueError: a file does not hold what its head says.
    """

    classes = _DIGITS

    data: Tensor
    """All images, uint8 of shape ``(N, 28, 28)``."""
    targets: Tensor
    """All labels, int64 of shape ``(N,)``."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: bool = True,
        transform: Transform = None,
        target_transform: Transform = None,
        download: bool = False,
    ) -> None:
        super().__init__(root, transform=transform, target_transform=target_transform)
        self.train = train
        part = "train" if train else "t10k"
        names = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
        folders = [Path(self.raw_folder), Path(self.raw_folder).parent, Path(root).expanduser()]
        found = [_first(folders, name) for name in names]
        if None in found:
            raise _not_here(
                type(self).__name__, download, [f"{n}.gz" for n in names], folders, "they are in IDX format"
            )
        images, labels = (read_idx(path) for path in found if path is not None)
        if len(images) != len(labels) or images.ndim != 3 or labels.ndim != 1:
            raise ValueError(f"{found[0]} holds images {images.shape}, {found[1]} labels {labels.shape}")
        self.data, self.targets = from_numpy(images), from_numpy(labels.astype(np.int64))

    @property
    def raw_folder(self) -> str:
        """Where torchvision puts the files."""
        return os.path.join(os.fspath(self.root or ""), type(self).__name__, "raw")

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Number of each class."""
        return {name: i for i, name in enumerate(self.classes)}

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = pil().fromarray(self.data._array[index])
        return self._transformed(image, int(self.targets._array[index]))

    def __len__(self) -> int:
        return len(self.data)

    def extra_repr(self) -> str:
        """Return which part it is."""
        return f"Split: {'Train' if self.train else 'Test'}"


class FashionMNIST(MNIST):
    """Pieces of clothing, 28 x 28 (Xiao et al., 2017), in the files of :class:`MNIST`, in ``root/FashionMNIST/raw``."""

    classes = _CLOTHES


def _first(folders: list[Path], name: str) -> Path | None:
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None


_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray[Any, Any]:
    """Return the array in an IDX file, which may be compressed (``.gz``).

    Raises:
        ValueError: it is no IDX file, or is cut off.
    """
    opened: Any = gzip.open if os.fspath(path).endswith(".gz") else open
    with opened(path, "rb") as file:
        content = file.read()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError(f"{path} is no IDX file: it begins with {content[:4]!r}")
    ndim, kind = content[3], np.dtype(_IDX_TYPES[content[2]])
    shape = np.frombuffer(content, ">u4", ndim, 4) if len(content) >= 4 + 4 * ndim else np.zeros(0)
    expected = 4 + 4 * ndim + int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if len(shape) != ndim or len(content) != expected:
        raise ValueError(f"{path} is damaged: {len(content)} bytes where its head says {expected}")
    values = np.frombuffer(content, kind, offset=4 + 4 * ndim)
    return values.reshape(tuple(map(int, shape))).astype(kind.newbyteorder("="))


class CIFAR10(VisionDataset):
    """Small photographs of 10 classes, 32 x 32 (Krizhevsky, 2009): samples are (Pillow image, int).

    The binary version is read (``cifar-10-binary.tar.gz``, unpacked): the Python version is a pickle, which can run
    code.

    Args:
        root: holds ``cifar-10-batches-bin``, or its files.
        train: the 50,000 images to train on, else the 10,000 to test on.
        transform: applied to the image.
        target_transform: applied to the label.
        download: refused if the files are not there.

    Raises:
        RuntimeError: the files are not there; the text says where they belong.
        ValueError: a file has the wrong size.
    """

    base_folder = "cifar-10-batches-bin"
    _train_files = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    _test_files: tuple[str, ...] = ("test_batch.bin",)
    _names_file = "batches.meta.txt"
    _labels = 1
    """Bytes before the pixels; the last one is the class."""
    _archive = "cifar-10-binary.tar.gz"

    data: np.ndarray[Any, Any]
    """All images, uint8 of shape ``(N, 32, 32, 3)``."""
    targets: list[int]

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: bool = True,
        transform: Transform = None,
        target_transform: Transform = None,
        download: bool = False,
    ) -> None:
        super().__init__(root, transform=transform, target_transform=target_transform)
        self.train = train
        files = list(self._train_files if train else self._test_files)
        folders = [Path(root).expanduser() / self.base_folder, Path(root).expanduser()]
        folder = next((f for f in folders if all((f / name).is_file() for name in files)), None)
        if folder is None:
            source = f"the binary version, {self._archive}; the Python version is a pickle, which is not read"
            raise _not_here(type(self).__name__, download, files, folders, source)
        record = self._labels + 3 * 32 * 32
        rows = []
        for name in files:
            content = np.fromfile(folder / name, np.uint8)
            if content.size == 0 or content.size % record:
                raise ValueError(
                    f"{folder / name} is damaged: {content.size} bytes are no multiple of {record}"
                )
            rows.append(content.reshape(-1, record))
        table = np.concatenate(rows)
        pixels = table[:, self._labels :].reshape(-1, 3, 32, 32)
        self.data = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        self.targets = table[:, self._labels - 1].tolist()
        names = folder / self._names_file
        self.classes = names.read_text().split() if names.is_file() else list(self._default_classes())

    @classmethod
    def _default_classes(cls) -> tuple[str, ...]:
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Number of each class."""
        return {name: i for i, name in enumerate(self.classes)}

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._transformed(pil().fromarray(self.data[index]), self.targets[index])

    def __len__(self) -> int:
        return len(self.data)

    def extra_repr(self) -> str:
        """Return which part it is."""
        return f"Split: {'Train' if self.train else 'Test'}"


class CIFAR100(CIFAR10):
    """:class:`CIFAR10` with 100 classes: ``cifar-100-binary.tar.gz``, unpacked into ``root/cifar-100-binary``."""

    base_folder = "cifar-100-binary"
    _train_files = ("train.bin",)
    _test_files = ("test.bin",)
    _names_file = "fine_label_names.txt"
    _labels = 2
    _archive = "cifar-100-binary.tar.gz"

    @classmethod
    def _default_classes(cls) -> tuple[str, ...]:
        return tuple(map(str, range(100)))


def default_loader(path: str) -> Any:
    """Return the image in a file, in RGB."""
    with open(path, "rb") as file:
        return pil().open(file).convert("RGB")


def has_file_allowed_extension(filename: str, extensions: str | tuple[str, ...]) -> bool:
    """Return whether a name ends in one of ``extensions``, whatever the case."""
    return filename.lower().endswith(extensions)


class DatasetFolder(VisionDataset):
    """Files in one folder for each class: ``root/dog/xxx.png``; samples are (what ``loader`` returns, int).

    Args:
        root: the folder of folders.
        loader: reads a file.
        extensions: endings of the files that are samples; not with ``is_valid_file``.
        transform: applied to what ``loader`` returns.
        target_transform: applied to the class's number.
        is_valid_file: says of a path whether it is a sample.
        allow_empty: whether a class may have none.

    Raises:
        FileNotFoundError: no folder in ``root``, or a class without samples.
        ValueError: both or neither of ``extensions`` and ``is_valid_file``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        loader: Callable[[str], Any],
        extensions: tuple[str, ...] | None = None,
        transform: Transform = None,
        target_transform: Transform = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> None:
        super().__init__(root, transform=transform, target_transform=target_transform)
        if (extensions is None) == (is_valid_file is None):
            raise ValueError("one of extensions and is_valid_file says which files count; give one, not both")
        self.loader, self.extensions = loader, extensions
        self.classes, self.class_to_idx = self.find_classes(self.root or "")
        valid = is_valid_file or (lambda path: has_file_allowed_extension(path, extensions or ()))
        self.samples = self.imgs = [
            (path, self.class_to_idx[name])
            for name in sorted(self.class_to_idx)
            for path in _files(os.path.join(self.root or "", name))
            if valid(path)
        ]
        self.targets = [target for _, target in self.samples]
        empty = sorted(set(self.class_to_idx.values()) - set(self.targets))
        if empty and not allow_empty:
            names = ", ".join(n for n, i in self.class_to_idx.items() if i in empty)
            wanted = f" Supported extensions are: {', '.join(extensions)}" if extensions else ""
            raise FileNotFoundError(f"no file counts in the folders of the classes {names}.{wanted}")

    def find_classes(self, directory: str | os.PathLike[str]) -> tuple[list[str], dict[str, int]]:
        """Return the names of the folders in ``directory`` in order, and their numbers."""
        classes = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
        if not classes:
            raise FileNotFoundError(f"{directory} has no folder; each class is a folder of its files")
        return classes, {name: i for i, name in enumerate(classes)}

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        path, target = self.samples[index]
        return self._transformed(self.loader(path), target)

    def __len__(self) -> int:
        return len(self.samples)


def _files(folder: str) -> list[str]:
    return [
        os.path.join(parent, name)
        for parent, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
    ]


class ImageFolder(DatasetFolder):
    """Images in one folder for each class, as ``torchvision.datasets.ImageFolder``; see :class:`DatasetFolder`."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Transform = None,
        target_transform: Transform = None,
        loader: Callable[[str], Any] = default_loader,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> None:
        extensions = IMG_EXTENSIONS if is_valid_file is None else None
        super().__init__(root, loader, extensions, transform, target_transform, is_valid_file, allow_empty)


class FakeData(VisionDataset):
    """Random images, the same for the same index: samples are (Pillow image, int).

    Args:
        size: how many.
        image_size: (channels, height, width).
        num_classes: labels are below this.
        transform: applied to the image.
        target_transform: applied to the label.
        random_offset: another number gives other images.
    """

    def __init__(
        self,
        size: int = 1000,
        image_size: tuple[int, int, int] = (3, 224, 224),
        num_classes: int = 10,
        transform: Transform = None,
        target_transform: Transform = None,
        random_offset: int = 0,
    ) -> None:
        super().__init__(None, transform=transform, target_transform=target_transform)
        self.size, self.image_size, self.num_classes, self.random_offset = (
            size,
            image_size,
            num_classes,
            random_offset,
        )

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not 0 <= index < self.size:
            raise IndexError(f"{type(self).__name__}: there is no image {index}")
        generator = Generator().manual_seed(index + self.random_offset)
        image = randn(*self.image_size, generator=generator)
        target = randint(0, self.num_classes, (1,), generator=generator)
        return self._transformed(to_pil_image(image), int(target.item()))

    def __len__(self) -> int:
        return self.size


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
