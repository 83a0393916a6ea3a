"""Data sets of images, from files that are made here."""

import gzip
import io
import struct

import numpy as np
import pytest

import disttrain as dt
from disttrain.vision import datasets, models, transforms, utils

Image = pytest.importorskip("PIL.Image", reason="needs Pillow, which is not installed")
RNG = np.random.default_rng(0)


def write_idx(path, array, kind=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def mnist(tmp_path):
    images, labels = RNG.integers(0, 256, (7, 28, 28)).astype(np.uint8), np.arange(7, dtype=np.uint8)
    for part, n in (("train", 7), ("t10k", 3)):
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images[:n])
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte.gz", labels[:n])
    return tmp_path, images


def test_mnist(mnist):
    root, images = mnist

    train = datasets.MNIST(root, train=True, download=True, transform=transforms.ToTensor())
    test = datasets.MNIST(str(root), train=False, target_transform=lambda t: -t)

    assert (len(train), len(test)) == (7, 3)
    image, label = train[6]
    assert image.shape == (1, 28, 28)
    np.testing.assert_array_equal(image[0].numpy(), images[6].astype(np.float32) / 255)
    assert label == 6
    image, label = test[2]
    assert (np.asarray(image) == images[2]).all()
    assert label == -2
    assert train.data.dtype is dt.uint8
    assert train.targets.tolist() == list(range(7))
    assert train.class_to_idx["3 - three"] == 3
    assert (
        repr(test)
        == f"Dataset MNIST\n    Number of datapoints: 3\n    Root location: {root}\n    Split: Test"
    )
    batches = list(dt.data.DataLoader(train, batch_size=4))
    assert [b[0].shape[0] for b in batches] == [4, 3]


def test_files_that_are_not_there_are_asked_for(tmp_path):
    for options, text in (({"download": True}, "nothing is downloaded"), ({}, "Dataset not found")):
        with pytest.raises(RuntimeError, match=text) as raised:
            datasets.FashionMNIST(tmp_path, **options)
        assert "train-images-idx3-ubyte.gz" in str(raised.value)
        assert str(tmp_path / "FashionMNIST" / "raw") in str(raised.value)
    with pytest.raises(
        RuntimeError, match=r"test_batch\.bin.*cifar-10-binary\.tar\.gz; the Python version is a pickle"
    ):
        datasets.CIFAR10(tmp_path, train=False, download=True)


def test_damaged_idx_files_are_refused(tmp_path):
    path = tmp_path / "x"
    for content in (
        b"",
        b"\0\0\x08",
        b"\x80\x04abc",
        b"\0\0\x07\x01\0\0\0\0",
        b"\0\0\x08\x01\0\0\0\x05abc",
        b"\0\0\x08\x03abc",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is no IDX file|is damaged"):
            datasets.read_idx(path)
    write_idx(path, np.arange(3, dtype=">i4"), 12)
    assert datasets.read_idx(path).tolist() == [0, 1, 2]
    assert datasets.read_idx(path).dtype == np.int32


def test_images_and_labels_must_be_of_one_length(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 28, 28), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, np.uint8))

    with pytest.raises(ValueError, match="holds images"):
        datasets.MNIST(tmp_path)


@pytest.mark.parametrize(("kind", "extra"), [(datasets.CIFAR10, 1), (datasets.CIFAR100, 2)])
def test_cifar(tmp_path, kind, extra):
    pixels = RNG.integers(0, 256, (10, 3, 32, 32)).astype(np.uint8)
    labels = np.arange(10, dtype=np.uint8)
    table = np.concatenate([np.full((10, extra), 1, np.uint8), pixels.reshape(10, -1)], 1)
    table[:, extra - 1] = labels
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    for i, name in enumerate(kind._train_files):
        per = 10 // len(kind._train_files)
        table[i * per : (i + 1) * per].tofile(folder / name)
    table[:2].tofile(folder / kind._test_files[0])

    train, test = kind(tmp_path), kind(tmp_path, train=False)

    assert (len(train), len(test)) == (10, 2)
    assert train.targets == list(range(10))
    np.testing.assert_array_equal(train.data, pixels.transpose(0, 2, 3, 1))
    image, label = train[4]
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels[4].transpose(1, 2, 0))
    assert label == 4
    assert len(train.classes) == (10 if extra == 1 else 100)
    (folder / kind._test_files[0]).write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="is damaged: 100 bytes"):
        kind(tmp_path, train=False)


def test_class_names_come_with_the_files(tmp_path):
    np.zeros(3073, np.uint8).tofile(tmp_path / "test_batch.bin")
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n")

    assert datasets.CIFAR10(tmp_path, train=False).class_to_idx["c"] == 2


def test_folders_of_images(tmp_path):
    for name in ("dog/a.png", "dog/deep/b.JPG", "cat/c.bmp", "cat/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".txt"):
            (tmp_path / name).write_text("")
        else:
            Image.new("L", (4, 3), 200).save(tmp_path / name)

    data = datasets.ImageFolder(tmp_path, transform=transforms.ToTensor())

    assert data.classes == ["cat", "dog"]
    assert data.class_to_idx == {"cat": 0, "dog": 1}
    assert data.targets == [0, 1, 1]
    assert [path.removeprefix(f"{tmp_path}/") for path, _ in data.imgs] == [
        "cat/c.bmp",
        "dog/a.png",
        "dog/deep/b.JPG",
    ]
    assert data[0][0].shape == (3, 3, 4)
    assert len(datasets.ImageFolder(tmp_path, is_valid_file=lambda p: "deep" in p, allow_empty=True)) == 1
    with pytest.raises(FileNotFoundError, match=r"no file counts in the folders of the classes cat\."):
        datasets.ImageFolder(tmp_path, is_valid_file=lambda p: "deep" in p)
    with pytest.raises(FileNotFoundError, match="each class is a folder"):
        datasets.ImageFolder(tmp_path / "cat")
    with pytest.raises(ValueError, match="give one, not both"):
        datasets.DatasetFolder(tmp_path, open)


def test_fake_images():
    data = datasets.FakeData(5, (3, 4, 6), 3, transform=transforms.ToTensor())

    assert len(data) == 5
    assert data[1][0].shape == (3, 4, 6)
    assert (data[1][0] == data[1][0]).all()
    assert (data[1][0] != data[2][0]).any()
    assert {data[i][1] for i in range(5)} <= {0, 1, 2}
    assert len(list(data)) == 5
    with pytest.raises(IndexError):
        data[5]


def test_transforms_of_both(mnist):
    class Both(datasets.VisionDataset):
        def __getitem__(self, index):
            return self._transformed(1, 2)

        def __len__(self):
            return 1

    assert Both("x", transforms=lambda a, b: (b, a))[0] == (2, 1)
    assert repr(Both(None)) == "Dataset Both\n    Number of datapoints: 1"
    with pytest.raises(ValueError, match="takes the place of transform"):
        Both("x", transforms=len, transform=len)


# ------------------------------------------------------------------------------------------ grids


def test_a_grid_of_images():
    x = dt.arange(3 * 2 * 2, dtype=dt.float32).view(3, 1, 2, 2)

    grid = utils.make_grid(x, nrow=2, padding=1, pad_value=-1.0)

    assert grid.shape == (3, 7, 7)
    assert grid[0].tolist() == [
        [-1, -1, -1, -1, -1, -1, -1],
        [-1, 0, 1, -1, 4, 5, -1],
        [-1, 2, 3, -1, 6, 7, -1],
        [-1, -1, -1, -1, -1, -1, -1],
        [-1, 8, 9, -1, -1, -1, -1],
        [-1, 10, 11, -1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1, -1],
    ]
    assert (utils.make_grid([x[0], x[1]], padding=0) == utils.make_grid(x[:2], padding=0)).all()
    assert utils.make_grid(x[0]).shape == utils.make_grid(x[0, 0]).shape == (3, 2, 2)
    scaled = utils.make_grid(x, normalize=True, padding=0)
    assert (scaled.min().item(), scaled.max().item()) == (0.0, 1.0)
    each = utils.make_grid(x, normalize=True, scale_each=True, padding=0)
    assert each[0, 0, 2].item() == 0.0
    assert utils.make_grid(x, normalize=True, value_range=(0.0, 5.5), padding=0).max().item() == 1.0
    assert x.max().item() == 11.0
    with pytest.raises(TypeError, match="a list of Tensors, got list"):
        utils.make_grid([1])
    with pytest.raises(ValueError, match="shape"):
        utils.make_grid(dt.ones(3))


def test_images_are_saved(tmp_path):
    x = dt.tensor([[[[0.0, 1.0], [0.5, 2.0]]]])

    utils.save_image(x, tmp_path / "x.png")
    utils.save_image(x, buffer := io.BytesIO(), format="png")

    assert np.asarray(Image.open(tmp_path / "x.png"))[:, :, 0].tolist() == [[0, 255], [128, 255]]
    assert buffer.getvalue() == (tmp_path / "x.png").read_bytes()


# ------------------------------------------------------------------------------------------ models


def test_residual_networks_have_their_published_size():
    sizes = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}
    for name, expected in sizes.items():
        model = getattr(models, name)(weights=None)
        assert sum(p.numel() for p in model.parameters()) == expected
    assert list(model.state_dict())[:2] == ["conv1.weight", "bn1.weight"]
    assert "layer1.0.downsample.0.weight" in model.state_dict()
    assert models.resnet.resnet18 is models.resnet18
    with pytest.raises(NotImplementedError, match="nothing is downloaded"):
        models.resnet18(weights="DEFAULT")
    with pytest.raises(NotImplementedError, match="nothing is downloaded"):
        models.resnet18(pretrained=True)


def test_a_residual_network_learns():
    dt.manual_seed(0)
    model = models.ResNet(models.BasicBlock, [1, 1, 1, 1], num_classes=2, zero_init_residual=True)
    x = dt.randn(4, 3, 32, 32)
    target = dt.tensor([0, 1, 0, 1])
    optimizer = dt.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = dt.nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.5 * losses[0]
