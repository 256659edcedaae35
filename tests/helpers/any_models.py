"""Small members of many families of classifiers, by name; all take images [N, 3, 32, 32]."""

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    EfficientNet,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SwinTransformer,
    VisionTransformer,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import VGG, make_layers

from sparse_engine.layers.base import SparseLayer

CLASSES = 4
LAYERS = [1, 1, 1, 1]


class Encoder(nn.Module):
    """nn.TransformerEncoder on the rows of an image, with a token mask on request."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(48, 4, 64, 0.0, batch_first=batch_first)
        self.batch_first = batch_first
        self.embed = nn.Linear(96, 48)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Map images [N, 3, 32, 32] to logits; padding [N, 32] hides rows."""
        tokens = self.embed(x.permute(0, 2, 1, 3).flatten(2))
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        tokens = self.encoder(tokens, src_key_padding_mask=padding)
        return self.head(tokens.mean(1 if self.batch_first else 0))


def _mobilenet() -> nn.Module:
    block = partial(InvertedResidualConfig, width_mult=1.0, dilation=1)
    blocks = [
        block(16, 3, 32, 16, True, "RE", stride=2),
        block(16, 5, 48, 32, False, "HS", stride=1),
    ]
    return MobileNetV3(blocks, last_channel=64, num_classes=CLASSES, dropout=0.0)


def _efficientnet() -> nn.Module:
    block = partial(MBConvConfig, width_mult=1.0, depth_mult=1.0)
    blocks = [block(1, 3, 1, 32, 16, num_layers=1), block(4, 3, 2, 16, 32, num_layers=1)]
    return EfficientNet(
        blocks, dropout=0.0, stochastic_depth_prob=0.0, last_channel=64, num_classes=CLASSES
    )


def _convnext() -> nn.Module:
    blocks = [CNBlockConfig(32, 64, 1), CNBlockConfig(64, None, 1)]
    return ConvNeXt(blocks, num_classes=CLASSES)


def _regnet() -> nn.Module:
    sizes = BlockParams.from_init_params(
        depth=4, w_0=16, w_a=16.0, w_m=2.0, group_width=8, se_ratio=0.25
    )
    return RegNet(sizes, num_classes=CLASSES, stem_width=16)


def _vgg() -> nn.Module:
    # Without batch norm, so that ReLU works in place on what a convolution returns.
    features = make_layers([16, "M", 32, "M"], batch_norm=False)
    with torch.device("meta"):  # it makes a classifier of 100 million weights
        model = VGG(features, num_classes=CLASSES, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    return model


def _swin() -> nn.Module:
    return SwinTransformer(
        [4, 4], 16, [1, 1], [2, 2], [2, 2], stochastic_depth_prob=0.0, num_classes=CLASSES
    )


def _resnet(block: type[nn.Module], **options: int) -> nn.Module:
    return ResNet(block, LAYERS, num_classes=CLASSES, **options)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet": partial(_resnet, Bottleneck, width_per_group=8),
    "resnext": partial(_resnet, Bottleneck, groups=4, width_per_group=2),
    "densenet": lambda: DenseNet(8, (2, 2), 16, bn_size=2, num_classes=CLASSES),
    "mobilenet_v3": _mobilenet,
    "efficientnet": _efficientnet,
    "convnext": _convnext,
    "vit": lambda: VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=CLASSES),
    "swin": _swin,
    "vgg": _vgg,
    "regnet": _regnet,
    "shufflenet_v2": lambda: ShuffleNetV2([1, 1, 1], [16, 16, 32, 64, 64], num_classes=CLASSES),
    "encoder": lambda: Encoder(batch_first=True),
    "encoder, sequence first": lambda: Encoder(batch_first=False),
}


class Logits(nn.Module):
    """A Hugging Face classifier that gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, 32, 32] to logits."""
        return self.model(x).logits


def _timm(name: str, **options: int) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)


def _hugging_face_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    images = {"image_size": 32, "patch_size": 8, "intermediate_size": 64, "num_labels": CLASSES}
    return Logits(ViTForImageClassification(ViTConfig(**sizes, **images)))


# What is not installed is not in the list: a test that is skipped would look like one that ran.
if importlib.util.find_spec("timm"):
    MODELS["timm vit"] = partial(
        _timm, "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=1
    )
    MODELS["timm resnet"] = partial(_timm, "test_resnet")
if importlib.util.find_spec("transformers"):
    MODELS["transformers vit"] = _hugging_face_vit


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BLOCK = (4, 4)


def sparse_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
