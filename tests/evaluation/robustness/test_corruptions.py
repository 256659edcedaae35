"""The families of corruption: seeded, of any size, each with the property that names it."""

import pytest
import torch
from torch.nn.functional import interpolate

from sparse_engine.evaluation.robustness.corruptions import FAMILIES, SEVERITIES, corrupt
from sparse_engine.evaluation.robustness.image_filters import (
    correlate,
    disk,
    gaussian_blur,
    motion_kernels,
)

STOCHASTIC = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur"),
    *("snow", "frost", "fog", "elastic_transform"),
}


def smooth_images(count=8, channels=3, height=32, width=32):
    """Return images with structure, as photographs have it, and edges of both kinds."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6, generator=generator)
    return interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


def test_there_are_fifteen_families_of_five_severities():
    assert len(FAMILIES) == 15
    assert all(len(family.levels) == len(SEVERITIES) == 5 for family in FAMILIES.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 32, 32), (1, 4, 17, 40)])
def test_any_shape_gives_stored_pixels_that_differ(family, shape):
    images = smooth_images(*shape)
    for severity in (1, 5):
        found = corrupt(images, family, severity, seed=0)
        assert found.shape == images.shape
        assert found.min() >= 0
        assert found.max() <= 1
        torch.testing.assert_close(found * 255, (found * 255).round())
        assert not torch.equal(found, (images * 255).round() / 255)


@pytest.mark.parametrize("family", FAMILIES)
def test_seeds_decide(family):
    images = smooth_images()
    first = corrupt(images, family, 3, seed=1)
    assert torch.equal(first, corrupt(images, family, 3, seed=1))
    assert torch.equal(first, corrupt(images, family, 3, seed=2)) == (family not in STOCHASTIC)


# What the other families change does not grow pixel by pixel: they warp, or darken as they cover.
@pytest.mark.parametrize(
    "family",
    [
        *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "zoom_blur", "snow"),
        *("fog", "brightness", "contrast", "jpeg_compression"),
    ],
)
def test_severity_grows(family):
    images = smooth_images()
    changes = [(corrupt(images, family, s, 0) - images).abs().mean().item() for s in SEVERITIES]
    assert changes == sorted(changes)
    assert changes[4] > 1.2 * changes[0]


@pytest.mark.parametrize("family", ["gaussian_noise", "shot_noise"])
def test_noise_has_the_deviation_of_its_name(family):
    images = torch.full((20, 3, 32, 32), 0.5)
    wanted = {"gaussian_noise": 0.06, "shot_noise": (0.5 / 250) ** 0.5}[family]
    noise = corrupt(images, family, 2, 0) - images
    assert noise.std().item() == pytest.approx(wanted, rel=0.03)
    assert abs(noise.mean().item()) < 0.002


def test_impulses_are_black_or_white_in_equal_shares():
    images = torch.full((20, 3, 32, 32), 0.5)
    found = corrupt(images, "impulse_noise", 5, 0)
    shares = [(found == value).float().mean().item() for value in (0, 1)]
    assert shares == pytest.approx([0.035, 0.035], rel=0.1)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "blur" in name])
def test_a_blur_keeps_an_even_image(family):
    images = torch.full((2, 3, 32, 32), 102 / 255)
    torch.testing.assert_close(corrupt(images, family, 5, 0), images)


def test_contrast_and_brightness_by_hand():
    images = torch.tensor([0.2, 0.6]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    grey = corrupt(images, "contrast", 5, 0)[0, 0, 0]
    torch.testing.assert_close(grey, torch.tensor([0.37, 0.43]), atol=0.002, rtol=0)
    bright = corrupt(images, "brightness", 5, 0)[0, 0, 0]
    torch.testing.assert_close(bright, torch.tensor([0.5, 0.9]), atol=0.002, rtol=0)


def test_brightness_keeps_the_hue():
    image = torch.tensor([0.1, 0.2, 0.4]).view(1, 3, 1, 1)
    found = corrupt(image, "brightness", 3, 0).flatten()
    torch.testing.assert_close(found, 0.55 / 0.4 * image.flatten(), atol=0.003, rtol=0)


def test_pixelate_has_fewer_pixels():
    rows = corrupt(smooth_images(1), "pixelate", 5, 0)[0, 0].unique(dim=0)
    assert len(rows) == int(32 * 0.65)


def test_a_kernel_of_its_own_filters_each_image():
    images = smooth_images(3, 2, 9, 11)
    kernels = torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(1))
    apart = [correlate(images[i : i + 1], kernels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(correlate(images, kernels), torch.cat(apart))


def test_kernels_sum_to_one_and_lie_where_they_should():
    angles = torch.tensor([0.0, torch.pi / 2, 0.3])
    motion = motion_kernels(angles, radius=4, sigma=2.0)
    torch.testing.assert_close(motion.sum((1, 2)), torch.ones(3))
    assert motion[0, 4, 4:].gt(0).all()
    assert motion[0].count_nonzero() == 5
    torch.testing.assert_close(motion[1], motion[0].T, atol=1e-6, rtol=0)
    assert disk(1)[0].count_nonzero() == 5
    torch.testing.assert_close(disk(2.5).sum(), torch.tensor(1.0))


def test_gaussian_blur_has_the_wanted_variance():
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    places = torch.arange(41.0) - 20
    variance = (gaussian_blur(point, 2.0)[0, 0].sum(0) * places**2).sum()
    assert variance.item() == pytest.approx(4, rel=0.05)
