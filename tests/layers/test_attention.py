"""Attention in models of others, which read the weight of its sparse projections."""

import copy

import torch
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

from sparse_engine import SparseConv2d, SparseLinear, densify, sparsify


def test_multi_head_attention_reads_the_weight():
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    sparsify(attention, 0.5, block=(16, 16))
    assert isinstance(attention.out_proj, SparseLinear)
    dense = densify(copy.deepcopy(attention))
    x = torch.randn(2, 5, 32)
    for training in (True, False):
        found, wanted = (m.train(training)(x, x, x)[0] for m in (attention, dense))
        torch.testing.assert_close(found, wanted)
    attention(x, x, x)[0].sum().backward()
    assert attention.out_proj.values.grad.any()


def test_transformer_encoder_layer_in_training_and_on_its_fast_path():
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    sparsify(layer, 0.5, block=(16, 16))
    dense = densify(copy.deepcopy(layer))
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(layer(x), dense(x))
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), dense.eval()(x))


def test_swin_transformer_reads_the_weight():
    model = SwinTransformer(
        [4, 4], 16, [2, 1], [2, 2], [2, 2], stochastic_depth_prob=0.0, num_classes=10
    )
    sparsify(model, 0.5, "uniform", (4, 4))
    dense = densify(copy.deepcopy(model))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), dense.eval()(x))
    model.train()(x).square().sum().backward()
    layers = [m for m in model.modules() if isinstance(m, SparseConv2d | SparseLinear)]
    assert any(m.kernel_size == (4, 4) for m in layers if isinstance(m, SparseConv2d))
    assert all(m.values.grad.any() for m in layers)
