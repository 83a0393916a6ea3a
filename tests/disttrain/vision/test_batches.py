"""Transforms of whole batches, against what they mean image by image."""

import itertools

import numpy as np
import pytest

import disttrain as dt
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.data import DataLoader, TensorDataset
from disttrain.vision import transforms as T
from disttrain.vision.transforms import v2

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 10), np.uint8)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def normalized(images):
    return (images / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))


def candidates(image, size, padding):
    """Return every crop that may come of an image, and its mirror image."""
    image = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    h, w = size
    for i in range(image.shape[1] - h + 1):
        for j in range(image.shape[2] - w + 1):
            crop = normalized(image[:, i : i + h, j : j + w])
            yield crop
            yield crop[:, :, ::-1]


@pytest.mark.parametrize("padding", [0, 1])
def test_each_image_is_cropped_flipped_and_normalised(padding):
    transform = T.RandomCropFlipNormalize((7, 8), MEAN, STD, padding=padding)

    out = transform(dt.from_numpy(IMAGES)).numpy()

    assert (out.dtype, out.shape) == (np.float32, (6, 3, 7, 8))
    for image, crop in zip(IMAGES, out, strict=True):
        assert any(np.allclose(crop, c, atol=1e-5) for c in candidates(image, (7, 8), padding))


def test_in_evaluation_it_takes_the_middle():
    out = T.RandomCropFlipNormalize(6, MEAN, STD).eval()(dt.from_numpy(IMAGES)).numpy()

    np.testing.assert_allclose(out, normalized(IMAGES[:, :, 1:7, 2:8]), atol=1e-5)


def test_all_places_and_both_sides_come_up():
    dt.manual_seed(0)
    ramp = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4).repeat(400, 0)
    out = T.RandomCropFlipNormalize(3, (0.0,), (1 / 255,))(dt.from_numpy(ramp)).numpy()

    kinds, counts = np.unique(out.reshape(400, -1).round(), axis=0, return_counts=True)

    assert len(kinds) == 2 * 2 * 2
    assert counts.min() > 25
    flipped = T.RandomCropFlipNormalize(4, (0.0,), (1 / 255,), p=1)(dt.from_numpy(ramp)).numpy()
    np.testing.assert_array_equal(flipped.round(), ramp[..., ::-1])


def test_what_an_image_draws_depends_on_its_number_and_the_epoch_only():
    data = TensorDataset(dt.from_numpy(IMAGES.repeat(4, 0)), dt.arange(24))
    transform = T.RandomCropFlipNormalize(5, MEAN, STD)

    def world(size, batch_size, workers=0):
        def body(rank):
            loader = DataLoader(data, batch_size, shuffle=True, seed=3, num_workers=workers)
            return [
                (epoch, i, x.numpy().tobytes())
                for epoch in range(2)
                for images, numbers in loader
                for i, x in zip(numbers.tolist(), transform(images), strict=True)
            ]

        env = WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True)
        return sorted(itertools.chain(*run_ranks(env, body)))

    alone = world(1, 5)
    assert alone == world(2, 3) == world(4, 4)
    assert [x for epoch, _, x in alone if epoch == 0] != [x for epoch, _, x in alone if epoch == 1]


def test_images_that_do_not_fit_are_refused():
    transform = T.RandomCropFlipNormalize(5, MEAN, STD)
    with pytest.raises(TypeError, match="uint8 images"):
        transform(dt.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="mean has 3 channels"):
        transform(dt.zeros(2, 1, 8, 8, dtype=dt.uint8))
    with pytest.raises(ValueError, match=r"the crop is \[5, 5\]"):
        transform(dt.zeros(2, 3, 4, 8, dtype=dt.uint8))
    with pytest.raises(ValueError, match="std must be positive"):
        T.RandomCropFlipNormalize(5, MEAN, (1, 1, 0))


@pytest.mark.parametrize("form", ["two arguments", "tuple", "dict"])
def test_mixup_mixes_images_and_labels_alike(form):
    dt.manual_seed(4)
    x, y = dt.rand(4, 3, 5, 5), dt.tensor([0, 1, 2, 1])
    mix = v2.MixUp(alpha=0.7, num_classes=3)

    if form == "dict":
        out = mix({"image": x, "label": y, "id": 7})
        assert out["id"] == 7
        mixed, labels = out["image"], out["label"]
    else:
        mixed, labels = mix(x, y) if form == "two arguments" else mix((x, y))

    share = labels[0, 0].item()
    assert 0 < share < 1
    np.testing.assert_allclose(
        mixed.numpy(), share * x.numpy() + (1 - share) * np.roll(x.numpy(), 1, 0), rtol=1e-5
    )
    one_hot = np.eye(3)[y.numpy()]
    np.testing.assert_allclose(
        labels.numpy(), share * one_hot + (1 - share) * np.roll(one_hot, 1, 0), rtol=1e-5
    )


def test_cutmix_replaces_a_rectangle_and_mixes_labels_by_its_area():
    dt.manual_seed(0)
    x = dt.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 20, 30).contiguous()
    cut = T.CutMix(num_classes=4)
    areas = []
    for _ in range(20):
        mixed, labels = cut(x, dt.arange(4))
        other = mixed.numpy()[2] == 1  # of the image before
        rows, columns = other.any((0, 2)), other.any((0, 1))
        assert other.sum() == 3 * rows.sum() * columns.sum()  # a rectangle, in all channels
        areas.append(other[0].mean())
        np.testing.assert_allclose(labels.numpy()[2], [0, areas[-1], 1 - areas[-1], 0], atol=1e-6)
    assert len(set(areas)) > 10


def test_what_cannot_be_mixed_is_refused():
    x, y = dt.rand(2, 3, 4, 4), dt.tensor([0, 1])
    with pytest.raises(ValueError, match="give num_classes"):
        v2.MixUp()(x, y)
    with pytest.raises(ValueError, match="floating point images"):
        v2.CutMix(num_classes=2)(dt.zeros(2, 3, 4, 4, dtype=dt.uint8), y)
    with pytest.raises(ValueError, match="2 images, but 3 labels"):
        v2.MixUp(num_classes=2)(x, dt.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="alpha must be positive"):
        v2.MixUp(alpha=0)
    with pytest.raises(ValueError, match="no labels"):
        v2.MixUp(num_classes=2)({"image": x})
