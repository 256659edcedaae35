"""The stages of a model, one after another, are the model."""

import pytest
import torch

from sparse_engine.errors import InputError
from sparse_engine.models.build import build_model
from sparse_engine.models.catalog import stage_count
from sparse_engine.models.stages import split_stages


@pytest.mark.parametrize(
    ("name", "stages", "size"),
    [
        ("wrn10-1", 3, 8),
        ("wrn16-2", 3, 8),
        ("resnet14", 3, 8),
        ("resnet18", 4, 8),
        ("resnet50", 4, 8),
        ("vgg16", 5, 32),
        ("vgg16", 5, 8),
        ("mlp", 2, 8),
        ("torchvision/resnet18", 4, 32),
    ],
)
def test_stages_one_after_another_are_the_model(name, stages, size):
    torch.manual_seed(0)
    dropout = 0.0 if name.startswith("torchvision") else 0.4
    model = build_model(
        name, classes=5, channels=3, height=size, width=size, dropout=dropout
    ).train()
    x = torch.randn(3, 3, size, size)
    torch.manual_seed(1)
    expected = model(x)
    found = split_stages(model, name)
    assert len(found) - 1 == stages == stage_count(name)
    torch.manual_seed(1)
    for stage in found:
        x = stage(x)
    torch.testing.assert_close(x, expected)
    counted = sum(p.numel() for stage in found for p in stage.parameters())
    assert counted == sum(p.numel() for p in model.parameters())
    assert all(next(stage.parameters(), None) is not None for stage in found)


@pytest.mark.parametrize(
    ("name", "channels"), [("torchvision/vgg11", 3), ("torchvision/resnet18", 1)]
)
def test_other_models_have_no_stages(name, channels):
    with torch.device("meta"):
        model = build_model(name, classes=5, channels=channels, height=32, width=32)
    with pytest.raises(InputError, match=f"{name} has no stages to share; choose wrnD-W"):
        split_stages(model, name)
