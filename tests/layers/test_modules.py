"""SparseConv2d and SparseLinear against nn.Conv2d and nn.Linear."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

from sparse_engine import SparseConv2d, SparseLinear, dense_state_dict, densify, sparsify
from sparse_kernels import BlockLayout


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


CONVOLUTIONS = {
    "plain": (32, 48, 3),
    "tuples": (20, 33, (3, 2), (2, 1), (1, 0), (1, 2)),
    "same": (16, 16, (2, 3), 1, "same", (1, 2)),
    "valid": (16, 16, 3, 2, "valid"),
    "no bias": (16, 32, 3, 1, 1, 1, 1, False),
    **{
        f"{mode}, {padding}": (16, 20, (3, 4), 1, padding, 1, 1, True, mode)
        for mode in ("zeros", "reflect", "replicate", "circular")
        for padding in ((1, 2), "same", "valid")
    },
}
LAYERS = {
    "convolution": lambda **k: SparseConv2d(40, 24, 3, padding=1, density=0.3, block=(16, 16), **k),
    "linear": lambda **k: SparseLinear(40, 24, density=0.4, block=(16, 16), **k),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def input_of(layer):
    shape = (2, 40, 5, 5) if isinstance(layer, SparseConv2d) else (2, 40)
    return torch.randn(shape, dtype=layer.values.dtype)


def state(layer):
    """Return a copy of all that a layer holds."""
    return {k: v.clone() for k, v in layer.state_dict().items()}


def assert_same_state(layer, wanted):
    found = layer.state_dict()
    assert list(found) == list(wanted)
    assert all(found[k].equal(wanted[k]) for k in wanted)
    wanted_layout = BlockLayout(layer.layout.shape, layer.layout.block, wanted["block_ids"])
    assert layer.layout.mask().equal(wanted_layout.mask())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("shape", [(3, 9, 8), (9, 8)], ids=["batch", "one image"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_its_dense_form(name, shape):
    arguments = CONVOLUTIONS[name]
    sparse = SparseConv2d(*arguments, density=0.4, block=(16, 16)).double()
    dense = sparse.to_dense()
    assert isinstance(dense, nn.Conv2d)
    x = torch.randn(*shape[:-2], arguments[0], *shape[-2:], dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x), rtol=1e-12, atol=1e-12)
    reference = nn.Conv2d(*arguments)
    for attribute in ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size"):
        assert getattr(dense, attribute) == getattr(reference, attribute)
        assert getattr(sparse, attribute) == getattr(reference, attribute)
    assert dense.weight.shape == reference.weight.shape == sparse.dense_weight().shape
    assert (dense.bias is None) == (reference.bias is None)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_its_dense_form(bias):
    sparse = SparseLinear(33, 50, bias, dtype=torch.float64, density=0.5, block=(16, 16))
    dense = sparse.to_dense()
    x = torch.randn(2, 3, 33, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x), rtol=1e-12, atol=1e-12)
    assert (dense.in_features, dense.out_features) == (33, 50)


@each_layer
def test_full_density_keeps_a_dense_layer_exactly(make):
    dense = make().double().to_dense()
    nn.init.normal_(dense.weight)
    sparse_class = type(make())
    sparse = sparse_class.from_dense(dense.eval(), density=1, block=(16, 16))
    again = sparse.to_dense()
    assert not sparse.training
    assert not again.training
    for ours, theirs in zip(again.parameters(), dense.parameters()):
        assert ours.equal(theirs)
        assert ours.dtype == torch.float64
        assert ours.data_ptr() != theirs.data_ptr()


@each_layer
def test_from_dense_keeps_the_strongest_blocks(make):
    layer = make()
    dense = layer.to_dense()
    nn.init.normal_(dense.weight)
    dense.weight.requires_grad_(False)
    sparse = type(layer).from_dense(dense, density=0.3, block=(16, 16))
    mask = sparse.layout.mask()
    whole = type(layer).from_dense(dense, density=1, block=(16, 16))
    norms = whole.values.abs().sum((1, 2)).view(mask.shape)
    assert norms[mask].min() > norms[~mask].max()
    assert mask.sum() == round(0.3 * mask.numel())
    stored = sparse.dense_weight()
    assert stored[stored != 0].equal(dense.weight[stored != 0])
    assert not sparse.values.requires_grad
    assert not sparse.to_dense().weight.requires_grad


@each_layer
def test_dense_weight_is_differentiable_and_read_as_weight(make):
    layer = make()
    x = input_of(layer)
    layer(x).sum().backward()
    wanted = layer.values.grad.clone()
    layer.values.grad = None
    called = nn.functional.conv2d if x.ndim == 4 else nn.functional.linear
    arguments = {"padding": 1} if x.ndim == 4 else {}
    called(x, layer.weight, **arguments).sum().backward()
    torch.testing.assert_close(layer.values.grad, wanted)


@each_layer
def test_weight_cannot_be_assigned(make):
    layer = make()
    with pytest.raises(AttributeError, match=r"weight is made from its blocks .* change \.values"):
        layer.weight = nn.Parameter(torch.ones(24, 40))


@each_layer
def test_density_block_and_mask(make):
    layer = make()
    mask = layer.block_mask()
    grid = (2, 3, 3, 3) if isinstance(layer, SparseConv2d) else (2, 3)
    assert mask.shape == grid
    assert layer.density == mask.sum() / mask.numel() == layer.layout.active / mask.numel()
    assert layer.block == (16, 16)
    assert f"density={layer.density:.4g}, block=(16, 16)" in repr(layer)


@pytest.mark.parametrize(
    ("block", "wanted"),
    [((32, 32), (16, 16)), ((1, 1), (1, 1)), ("auto", (16, 16)), ((8, 8), (8, 8))],
)
def test_block_of_a_first_layer(block, wanted):
    layer = SparseConv2d(3, 16, 3, density=0.5, block=block)
    assert layer.block == wanted
    assert layer(torch.randn(2, 3, 5, 5)).shape == (2, 16, 3, 3)


def test_automatic_blocks_divide_the_channels():
    assert SparseConv2d(160, 640, 3, block="auto").block == (128, 32)
    assert SparseLinear(64, 100, block="auto").block == (32, 64)


def test_unstructured():
    layer = SparseConv2d(5, 7, 3, density=0.2, block=(1, 1))
    assert layer.values.shape == (63, 1, 1)
    assert (layer.dense_weight() != 0).sum() == 63


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseConv2d(32, 32, 3, groups=2), "supports groups=1 only, found groups=2"),
        (lambda: SparseConv2d(32, 32, 3, padding_mode="mirror"), "padding_mode='mirror'"),
        (lambda: SparseConv2d(32, 32, 3, padding="full"), "Invalid padding string 'full'"),
        (lambda: SparseConv2d(32, 32, 3, 2, "same"), "'same' is not supported for strided"),
        (lambda: SparseConv2d(32, 32, (3, 3, 3)), r"one or two integers, found \(3, 3, 3\)"),
        (lambda: SparseLinear(32, 32, density=0), "above 0 and at most 1, found 0"),
        (lambda: SparseLinear(32, 32, density=1.1), "above 0 and at most 1, found 1.1"),
        (lambda: SparseLinear(32, 32, density=float("nan")), "at most 1, found nan"),
        (lambda: SparseLinear(32, 32, block=(0, 4)), "two positive integers"),
        (lambda: SparseLinear(0, 32), "all positive"),
    ],
)
def test_arguments_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@each_layer
def test_a_dense_state_loads_and_leaves_again(make):
    layer, model = make(), nn.Sequential(make().to_dense())
    nn.init.normal_(model[0].weight)
    sparse = nn.Sequential(layer)
    sparse.load_state_dict(model.state_dict())
    wanted = type(layer).from_dense(model[0], density=layer.density, block=(16, 16))
    assert_same_state(layer, wanted.state_dict())
    model.load_state_dict(dense_state_dict(sparse))
    assert model[0].weight.equal(layer.dense_weight())
    assert model[0].bias.equal(layer.bias)


@each_layer
def test_own_state_round_trip_through_a_file(make):
    layer, other = make(), make()
    assert not layer.layout.block_ids.equal(other.layout.block_ids)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    addresses = [t.data_ptr() for t in (other.values, *other.layout.tensors())]
    other.load_state_dict(torch.load(file))
    assert_same_state(other, layer.state_dict())
    assert [t.data_ptr() for t in (other.values, *other.layout.tensors())] == addresses
    x = input_of(layer)
    assert layer(x).equal(other(x))


@each_layer
@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("values", lambda v: v[1:], "size mismatch for values"),
        ("values", lambda v: v.mT[:, 1:], "size mismatch for values"),
        ("bias", lambda v: v[1:], "size mismatch for bias"),
        ("block_ids", lambda v: v[1:], r"block_ids: block ids should be integer \["),
        ("block_ids", lambda v: v.float(), "found torch.float32"),
        ("block_ids", lambda v: v.fill_(1), "distinct"),
        ("block_ids", lambda v: v + 1000, "block ids should be from 0 to"),
        ("block_ids", lambda v: v - 1000, "block ids should be from 0 to"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(make, key, change, message):
    layer = make()
    before, bad = state(layer), state(make())
    bad[key] = change(bad[key])
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(bad)
    after, blocks = state(layer), ("values", "block_ids")
    assert after[key].equal(before[key])
    assert all(after[k].equal((bad if key == "bias" else before)[k]) for k in blocks)
    assert_same_state(layer, after)


@each_layer
@pytest.mark.parametrize("key", ["values", "bias", "block_ids"])
def test_a_missing_key(make, key):
    layer = make()
    before, bad = state(layer), state(make())
    del bad[key]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{key}"'):
        layer.load_state_dict(bad)
    after = state(layer)
    assert after[key].equal(before[key])
    kept = {**before, **bad} if key == "bias" else before
    assert all(after[k].equal(kept[k]) for k in ("values", "block_ids"))


@each_layer
def test_every_missing_key_is_told(make):
    result = make().load_state_dict({}, strict=False)
    assert sorted(result.missing_keys) == ["bias", "block_ids", "values"]


@each_layer
def test_an_unexpected_key(make):
    layer = make()
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"mask"'):
        layer.load_state_dict({**state(layer), "mask": torch.ones(1)})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"weight"'):
        layer.load_state_dict({**state(layer), "weight": layer.dense_weight()})


@each_layer
def test_a_dense_weight_of_another_shape(make):
    layer = make()
    before = state(layer)
    with pytest.raises(RuntimeError, match=r"weight should be \[24, 40.*found \[24, 39"):
        layer.load_state_dict({"weight": layer.weight[:, 1:], "bias": layer.bias})
    assert_same_state(layer, before)


@each_layer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_equal_and_its_own(make, copied):
    layer = make()
    layer.collect()
    other = copied(layer)
    x = input_of(layer)
    assert other(x).equal(layer(x))
    assert other._probe is None
    wanted = state(layer)
    other.load_state_dict(state(make()))
    assert_same_state(layer, wanted)


@each_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_moving_to_another_dtype(make, dtype):
    layer = make().to(dtype)
    assert layer.values.dtype == layer.bias.dtype == layer(input_of(layer)).dtype == dtype
    assert layer.layout.block_ids.dtype == torch.int32
    assert make(dtype=dtype).values.dtype == dtype


@each_layer
def test_from_the_meta_device(make):
    source, layer = make(), make(device="meta")
    assert layer.values.is_meta
    assert layer(input_of(source).to("meta")).is_meta
    assert layer.weight.is_meta
    assert layer.to_dense().weight.shape == layer.weight.shape == source.weight.shape
    layer.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = input_of(source)
    assert layer(x).equal(source(x))
    assert state(layer).keys() == state(source).keys()


@each_layer
@pytest.mark.parametrize("dense", [False, True])
def test_assigned_state(make, dense):
    source, layer = make(), make(device="meta")
    given = dense_state_dict(source) if dense else source.state_dict()
    layer.load_state_dict(given, assign=True)
    x = input_of(source)
    assert isinstance(layer.values, nn.Parameter)
    torch.testing.assert_close(layer(x), source(x))
    assert layer.bias.data_ptr() == source.bias.data_ptr()


@each_layer
def test_meta_as_the_default_device(make):
    with torch.device("meta"):
        layer = make()
    assert layer.values.is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(input_of(layer)).isfinite().all()


@each_layer
def test_a_generator_makes_equal_layers(make):
    first, second, third = (make(generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert_same_state(first, second.state_dict())
    assert not first.values.equal(third.values)
    assert not first.block_mask().equal(third.block_mask())


@each_layer
def test_initial_values_have_the_spread_of_a_dense_layer(make):
    layer = make()
    fan_in = layer.dense_weight()[0].numel()
    stored = layer.dense_weight().detach()
    stored = stored[stored != 0]
    assert stored.abs().max() <= fan_in**-0.5
    assert stored.std() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
    assert layer.bias.abs().max() <= fan_in**-0.5


@each_layer
@pytest.mark.parametrize(
    ("optimizer", "copies"), [({"lr": 0.1, "momentum": 0.9}, 1), ({"lr": 0.1}, 2)]
)
def test_bytes_fall_with_density(make, optimizer, copies):
    kind = torch.optim.SGD if "momentum" in optimizer else torch.optim.Adam
    for blocks in (1, 3, 6):
        ids = torch.arange(blocks)
        shape = (24, 40, 3, 3) if make is LAYERS["convolution"] else (24, 40)
        layer = make(layout=BlockLayout(shape, (16, 16), ids))
        stepper = kind(layer.parameters(), **optimizer)
        layer(input_of(layer)).sum().backward()
        stepper.step()
        wanted = blocks * 16 * 16 * 4
        assert layer.values.untyped_storage().nbytes() == wanted
        assert layer.values.grad.untyped_storage().nbytes() == wanted
        kept = [t for t in stepper.state[layer.values].values() if t.ndim]
        assert sum(t.untyped_storage().nbytes() for t in kept) == copies * wanted
        assert sum(p.numel() for p in layer.parameters()) == blocks * 256 + 24


@each_layer
def test_armed_scores_are_the_same_through_forward_and_weight(make):
    layer = make()
    x = input_of(layer)
    layer.collect()
    layer(x).sum().backward()
    forward = layer.stop()
    layer.collect()
    called = nn.functional.conv2d if x.ndim == 4 else nn.functional.linear
    y = called(x, layer.weight, padding=1) if x.ndim == 4 else called(x, layer.weight)
    y.sum().backward()
    torch.testing.assert_close(layer.stop(), forward)
    assert forward.shape == (layer.layout.total,)


def test_collecting_by_its_earlier_names():
    layer = LAYERS["linear"]()
    layer.arm()
    layer(input_of(layer)).sum().backward()
    assert layer.is_armed
    assert layer.disarm().shape == (layer.layout.total,)
    assert not layer.is_collecting


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
