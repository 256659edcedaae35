"""Attention in models of others, which read the weight of its sparse projections."""

import copy

import pytest
import torch
from any_models import BLOCK, IMAGES, Encoder, sparse_layers
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

from sparse_engine import (
    SparseConv2d,
    SparseLinear,
    densify,
    report,
    sparsify,
)
from sparse_engine.errors import InputError
from sparse_engine.layers.attention import ProjectedAttention


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


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_equals_the_dense_one(batch_first):
    sizes = {"kdim": 24, "vdim": 40} if batch_first else {}
    attention = nn.MultiheadAttention(32, 4, bias=not batch_first, batch_first=batch_first, **sizes)
    attention.in_proj_bias is None or nn.init.normal_(attention.in_proj_bias)
    model = nn.ModuleDict({"attention": attention})
    sparsify(model, 0.5, block=(8, 8))
    sparse = model["attention"]
    dense = densify(copy.deepcopy(model))["attention"]
    assert type(sparse) is ProjectedAttention
    assert type(dense) is nn.MultiheadAttention
    lengths = [(2, 5), (2, 7)] if batch_first else [(5, 2), (7, 2)]
    query = torch.randn(*lengths[0], 32)
    key, value = (torch.randn(*lengths[1], sizes.get(n, 32)) for n in ("kdim", "vdim"))
    padding = torch.arange(7) > torch.tensor([[3], [5]])
    hidden = torch.ones(5, 7, dtype=torch.bool).triu(3)
    each = torch.randn(8, 5, 7)
    for options in (
        {},
        {"need_weights": False, "key_padding_mask": padding},
        {"attn_mask": hidden, "average_attn_weights": False},
        {"attn_mask": each, "key_padding_mask": torch.zeros(2, 7), "need_weights": False},
    ):
        found, wanted = (m(query, key, value, **options) for m in (sparse, dense))
        torch.testing.assert_close(found, wanted)
    found, wanted = (m(query[0], key[0, :5], value[0, :5]) for m in (sparse, dense))
    torch.testing.assert_close(found, wanted)
    square = torch.ones(7, 7, dtype=torch.bool).triu(1)
    key, value = torch.randn(7, 32), torch.randn(7, sizes.get("vdim", 32))
    for weights in (True, False):
        options = {"attn_mask": square, "is_causal": True, "need_weights": weights}
        keys = key[:, : sizes.get("kdim", 32)]
        found, wanted = (m(key, keys, value, **options) for m in (sparse, dense))
        torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="give the mask too"):
        sparse(query, query, query, is_causal=True)


def test_attention_drops_out_in_training_alone():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 4, dropout=0.5)})
    sparsify(model, 0.5, block=(8, 8))
    attention, x = model["attention"], torch.randn(5, 2, 32)
    for weights in (True, False):
        torch.manual_seed(0)
        attention.eval()
        first, second = (attention(x, x, x, need_weights=weights)[0] for _ in range(2))
        assert torch.equal(first, second)
        attention.train()
        first, second = (attention(x, x, x, need_weights=weights)[0] for _ in range(2))
        assert not torch.allclose(first, second)
    assert densify(model)["attention"].dropout == 0.5


def test_an_encoder_with_padding_takes_no_path_around_its_sparse_layers():
    model = Encoder(batch_first=True).eval()
    padding = torch.arange(32) >= torch.tensor([[32], [20], [9], [1]])
    sparsify(model, 0.6, "uniform", BLOCK)
    with torch.no_grad():
        found = model(IMAGES, padding)
        assert {layer.ran_on for layer in sparse_layers(model).values()} <= {"native", "masked"}
        seen = model.encoder(model.embed(IMAGES.permute(0, 2, 1, 3).flatten(2)), None, padding)
    densify(model)  # with gradients, PyTorch takes no nested tensors, of which it warns
    wanted = model.encoder(model.embed(IMAGES.permute(0, 2, 1, 3).flatten(2)), None, padding)
    assert found.isfinite().all()
    torch.testing.assert_close(seen[~padding], wanted[~padding])


def test_attentions_that_stay_whole_are_put_back_or_explained():
    class Own(nn.MultiheadAttention):
        pass

    model = nn.ModuleDict(
        {
            "skipped": nn.MultiheadAttention(32, 4),
            "biased": nn.MultiheadAttention(32, 4, add_bias_kv=True),
            "zero": nn.MultiheadAttention(32, 4, add_zero_attn=True),
            "own": Own(32, 4),
            "first": nn.MultiheadAttention(32, 4),
            "second": nn.MultiheadAttention(32, 4),
            "cut": nn.MultiheadAttention(32, 4),
        }
    )
    model["second"].in_proj_weight = model["first"].in_proj_weight
    before = dict(model)
    notes = {r.name: r.note for r in sparsify(model, 0.5, block=(8, 8), skip=["skipped.*"]).rows}
    assert {n: notes.get(f"{n}.in_proj_weight") for n in model} == {
        "skipped": "skip",
        "biased": "add_bias_kv",
        "zero": "add_zero_attn",
        "own": "Own is a subclass",
        "first": "weight shared with another module",
        "second": "weight shared with another module",
        "cut": None,
    }
    assert [n for n in model if model[n] is not before[n]] == ["cut"]
    assert notes["cut.v_proj"] == ""
    assert {r.name: r.note for r in report(model).rows}["own.in_proj_weight"] == "Own is a subclass"
    unchanged = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 4)})
    for arguments in ({"sparsity": 0.0}, {"sparsity": 0.5, "distribution": "erq"}):
        try:
            sparsify(unchanged, **arguments)
        except InputError:
            assert arguments["sparsity"]
        assert type(unchanged["attention"]) is nn.MultiheadAttention
