"""Batches of arrays: pure in (seed, step), cropped and flipped as a plain loop would."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from sparse_engine.data.arrays import ImageArrays
from sparse_engine.data.load import dataset_info
from sparse_engine.data.loader import (
    ArrayLoader,
    crop_and_flip,
    evaluation_batches,
    seeded_generator,
    split_validation,
)
from sparse_engine.errors import InputError


def make_arrays(count, channels=3, height=32, width=32, classes=10):
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(
        0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8
    )
    return ImageArrays(images, torch.arange(count) % classes)


def loader(arrays, name="cifar10", batch_size=8, seed=0, **changes):
    return ArrayLoader(arrays, dataset_info(name), batch_size, "cpu", seed=seed, **changes)


def padded_window(image, down, right, flip, info):
    """The slow and obvious way: pad one image [C, H, W], cut a window, mirror it."""
    height, width, reach = *image.shape[1:], info.padding
    mode = {"reflect": "reflect", "zeros": "constant"}[info.padding_mode]
    wide = pad(image[None].float(), (reach,) * 4, mode)[0].to(torch.uint8)
    top, left = reach + down, reach + right
    window = wide[:, top : top + height, left : left + width]
    return window.flip(2) if flip else window


@given(
    mode=st.sampled_from(["reflect", "zeros"]),
    padding=st.integers(0, 4),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_crop_and_flip_equals_a_loop_over_images(mode, padding, height, width, seed):
    arrays = make_arrays(6, 3, height, width)
    info = replace(dataset_info("cifar10"), padding=padding, padding_mode=mode)
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randint(-padding, padding + 1, (2, 6), generator=generator)
    flips = torch.rand(6, generator=generator) < 0.5
    expected = [
        padded_window(image, int(down), int(right), bool(flip), info)
        for image, down, right, flip in zip(arrays.images, *shifts, flips, strict=True)
    ]
    found = crop_and_flip(arrays.images, shifts, flips, info)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.stack(expected))


def test_zero_padding_is_black_before_normalisation():
    info = dataset_info("cifar100")
    white = ImageArrays(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), torch.zeros(1).long())
    black = -torch.tensor(info.mean) / torch.tensor(info.std)
    corners = {
        tuple(batch[0][0, :, 0, 0].tolist())
        for batch in map(loader(white, "cifar100", batch_size=1).batch, range(20))
    }
    assert any(corner == pytest.approx(black.tolist(), abs=1e-5) for corner in corners)


def test_batch_is_a_pure_function_of_seed_and_step():
    arrays = make_arrays(50)
    in_order = loader(arrays)
    batches = [in_order.batch(step) for step in range(20)]
    jumping = loader(arrays)
    for step in (13, 2, 19, 0, 6, 5):
        for found, expected in zip(jumping.batch(step), batches[step], strict=True):
            assert torch.equal(found, expected)
    other = loader(arrays, seed=1).batch(0)
    assert not torch.equal(other[0], batches[0][0])


def test_batch_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    loader(make_arrays(20)).batch(3)
    assert torch.equal(state, torch.get_rng_state())


def test_epochs_are_reshuffled_and_drop_the_rest():
    arrays = ImageArrays(make_arrays(50).images, torch.arange(50))
    feed = loader(arrays, augment=False)
    assert feed.steps_per_epoch == 6
    epochs = [torch.cat([feed.batch(6 * e + s)[1] for s in range(6)]) for e in range(2)]
    assert all(len(epoch.unique()) == 48 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_batches_are_normalised():
    arrays, info = make_arrays(16), dataset_info("cifar10")
    arrays = ImageArrays(arrays.images, torch.arange(16))
    images, labels = loader(arrays, batch_size=16, augment=False).batch(0)
    mean = torch.tensor(info.mean)[:, None, None]
    std = torch.tensor(info.std)[:, None, None]
    expected = (arrays.images[labels].float() / 255 - mean) / std
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    torch.testing.assert_close(images, expected)


def test_augmented_batches_hold_the_images_of_their_labels():
    shades = torch.arange(16, dtype=torch.uint8)[:, None, None, None]
    arrays = ImageArrays(shades.expand(16, 3, 32, 32).contiguous(), torch.arange(16))
    info = dataset_info("cifar10")
    images, labels = loader(arrays, batch_size=16).batch(3)
    red = images[:, 0, 0, 0] * info.std[0] + info.mean[0]
    assert (red * 255).round().long().tolist() == labels.tolist()


@pytest.mark.parametrize("batch_size", [0, -3, 51])
def test_bad_batch_size(batch_size):
    with pytest.raises(
        InputError, match=r"from 50 training images; --batch-size 50 is the largest"
    ):
        loader(make_arrays(50), batch_size=batch_size)


def test_evaluation_keeps_order_and_the_last_part():
    arrays, info = make_arrays(21), dataset_info("cifar10")
    batches = list(evaluation_batches(arrays, info, 8, "cpu"))
    assert [len(labels) for _, labels in batches] == [8, 8, 5]
    assert torch.equal(torch.cat([labels for _, labels in batches]), arrays.labels)
    back = torch.cat([images for images, _ in batches]) * torch.tensor(info.std)[:, None, None]
    back = (back + torch.tensor(info.mean)[:, None, None]) * 255
    assert torch.equal(back.round().to(torch.uint8), arrays.images)


@given(count=st.integers(4, 200), fraction=st.floats(0.15, 0.85), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_validation_split_is_a_stratified_partition(count, fraction, seed):
    arrays = ImageArrays(make_arrays(count, 1, 1, 1).images, torch.arange(count))
    train, held_out = split_validation(arrays, fraction, seed)
    assert len(held_out) == round(count * fraction)
    assert sorted(torch.cat([train.labels, held_out.labels]).tolist()) == list(range(count))

    arrays = make_arrays(count, 1, 1, 1, classes=4)
    _, held_out = split_validation(arrays, fraction, seed)
    share = arrays.labels.bincount(minlength=4) * len(held_out) / count
    assert ((held_out.labels.bincount(minlength=4) - share).abs() < 1 + 1e-6).all()


def test_validation_split_follows_its_seed():
    arrays = make_arrays(40, 1, 4, 4)
    first, again, other = (split_validation(arrays, 0.5, seed)[1].images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, 0.001, 0.999, float("nan"), float("inf")])
def test_bad_validation_fraction(fraction):
    with pytest.raises(InputError, match="leaves one side of 40 images empty"):
        split_validation(make_arrays(40, 1, 1, 1), fraction, 0)


def test_generators_of_other_streams_differ():
    draws = {
        int(torch.randint(2**60, (), generator=seeded_generator(seed, stream)))
        for seed in (-1, 0, 1, 2**63)
        for stream in range(5)
    }
    assert len(draws) == 20


@pytest.mark.gpu
def test_a_step_never_waits_for_the_device():
    arrays = make_arrays(64)
    feed = ArrayLoader(arrays, dataset_info("cifar10"), 8, "cuda", seed=0)
    first = feed.batch(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        feed.batch(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for found, expected in zip(first, loader(arrays).batch(0), strict=True):
        torch.testing.assert_close(found.cpu(), expected)
