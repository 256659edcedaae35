"""Our networks: shapes, sizes, gradients, and names that are none."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.models import catalog
from sparse_engine.models.build import build_model

FAMILIES = ["wrn10-2", "resnet18", "resnet50", "resnet20", "vgg16", "mlp"]
DIGITS = {"classes": 10, "channels": 1, "height": 8, "width": 8}
CIFAR = {"classes": 10, "channels": 3, "height": 32, "width": 32}
IMAGENET = {"classes": 1000, "channels": 3, "height": 224, "width": 224}


def on_meta(name: str, **image: int) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, **image)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("image", [DIGITS, CIFAR, {**CIFAR, "height": 28, "width": 17}])
@pytest.mark.parametrize("name", FAMILIES)
def test_forward_gives_one_logit_per_class(name, image):
    images = torch.randn(2, image["channels"], image["height"], image["width"])
    logits = build_model(name, **image)(images)
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", [*FAMILIES, "torchvision/resnet18"])
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    model = build_model(name, **DIGITS)
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("wrn28-10", 36_479_194),
        ("wrn16-2", 691_674),
        ("resnet18", 11_173_962),
        ("resnet50", 23_520_842),
        # Of the paper's 0.27 and 1.7 million, and 2,752 for the two projection shortcuts.
        ("resnet20", 269_722 + 2_752),
        ("resnet110", 1_727_962 + 2_752),
        ("vgg16", 14_724_042),
        ("mlp", 3072 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10),
    ],
)
def test_parameter_count(name, count):
    assert parameter_count(on_meta(name, **CIFAR)) == count


def test_every_example_name_builds():
    for name in catalog.names():
        assert parameter_count(on_meta(name, **CIFAR)) > 0


def test_strides_shrink_images_where_the_papers_say():
    images = torch.empty(2, 3, 32, 32, device="meta")
    for name, shape in {
        "wrn16-2": (2, 128, 8, 8),
        "resnet18": (2, 512, 4, 4),
        "resnet50": (2, 2048, 4, 4),
        "resnet20": (2, 64, 8, 8),
    }.items():
        model = on_meta(name, **CIFAR)
        assert model.blocks(model.stem(images)).shape == shape


def test_wide_resnet_block_activates_before_its_projection():
    block = build_model("wrn10-1", **CIFAR).blocks[1].eval()
    images = -torch.rand(2, 16, 8, 8)
    # Fresh norms in evaluation change no sign, so the whole block sees only zeros.
    assert not block(images).any()


def test_convolutions_start_he_normal_over_the_fan_out():
    weight = build_model("resnet18", **CIFAR).blocks[2].conv1.weight
    assert weight.shape == (128, 64, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["wrn10-1", "resnet20", "vgg16", "mlp", "torchvision/alexnet"])
def test_dropout_is_random_in_training_only(name):
    model = build_model(name, **{**CIFAR, "height": 64, "width": 64}, dropout=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_torchvision_model_on_meta():
    model = on_meta("torchvision/resnet50", **IMAGENET)
    assert parameter_count(model) == 25_557_032
    assert model.training
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_torchvision_model_repeats_one_channel():
    model = build_model("torchvision/resnet18", **DIGITS).eval()
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(images), model.model(images.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("name", ["googlenet", "vit_b_32", "maxvit_t", "regnet_y_400mf"])
def test_torchvision_models_that_need_care(name):
    model = on_meta(f"torchvision/{name}", **{**CIFAR, "height": 224, "width": 224})
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt18", "unknown model 'resnt18'; did you mean 'resnet18'?"),
        ("WRN28x10", "unknown model 'WRN28x10'; did you mean 'wrn28-10'?"),
        ("wrn28-10\n", "unknown model 'wrn28-10\\n'; did you mean 'wrn28-10'?"),
        ("xyz", f"unknown model 'xyz'; choose one like {', '.join(catalog.names())}"),
        ("torchvision/", "unknown model 'torchvision/'; did you mean 'torchvision/resnet50'?"),
        ("wrn29-10", "model 'wrn29-10': depth 29 is not 6k + 4; the nearest is 28 or 34"),
        ("wrn4-1", "model 'wrn4-1': depth 4 is not 6k + 4; the nearest is 10"),
        ("wrn28-0", "model 'wrn28-0': the width must be at least 1, as in 'wrn28-2'"),
        (
            "resnet19",
            "model 'resnet19': depth 19 is not 6k + 2, nor one of 18, 34, 50, 101, 152; "
            "the nearest is 18 or 20",
        ),
    ],
)
def test_unknown_name(name, message):
    with pytest.raises(InputError) as caught:
        catalog.check_name(name)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", [*catalog.names(), "wrn10-1", "wrn40-4", "resnet8", "resnet152"])
def test_known_name(name):
    catalog.check_name(name)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("torchvision/resnet5", {}, "unknown torchvision classifier 'resnet5'; did you mean 'res"),
        ("torchvision/raft_small", {}, "unknown torchvision classifier 'raft_small'"),
        ("torchvision/resnet18", {"channels": 2}, "torchvision/resnet18 takes images of 1 or 3 ch"),
        (
            "torchvision/alexnet",
            {},
            "torchvision/alexnet cannot take images of 32x32 pixels (Given ",
        ),
        ("torchvision/resnet18", {"dropout": 0.1}, "torchvision/resnet18 has no dropout layers; "),
        ("mlp", {"classes": 0}, "classes must be at least 1, not 0"),
        ("mlp", {"height": -1}, "height must be at least 1, not -1"),
        ("mlp", {"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ("mlp", {"dropout": float("nan")}, "dropout must be at least 0 and below 1, not nan"),
    ],
)
def test_bad_arguments(name, changes, message):
    with pytest.raises(InputError) as caught:
        build_model(name, **{**CIFAR, **changes})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_catalog_imports_no_torch():
    program = "import sys, sparse_engine.models.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
