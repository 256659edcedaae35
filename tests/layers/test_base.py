"""What sparse layers hold: states that load or do not, copies, devices, bytes and scores."""

import copy
import io
import pickle

import pytest
import torch
from sparse_layers import LAYERS, call_dense, each_layer, input_of
from torch import nn

from sparse_engine import SparseConv2d, dense_state_dict
from sparse_engine.errors import EARLIER_NAMES_GO_IN
from sparse_kernels import BlockLayout


def state(layer):
    """Return a copy of all that a layer holds."""
    return {k: v.clone() for k, v in layer.state_dict().items()}


def assert_same_state(layer, wanted):
    found = layer.state_dict()
    assert list(found) == list(wanted)
    assert all(found[k].equal(wanted[k]) for k in wanted)
    wanted_layout = BlockLayout(layer.layout.shape, layer.layout.block, wanted["block_ids"])
    assert layer.layout.mask().equal(wanted_layout.mask())


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
    layer = make()
    torch.manual_seed(3)
    other = make()
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
    missing = layer.load_state_dict({}, strict=False).missing_keys
    assert sorted(missing) == sorted(before.keys() - {"block_check"})  # earlier states lack it


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


@pytest.mark.parametrize(
    ("saved", "taps", "size"), [("each", "row", 2), ("each", "all", 6), ("row", "all", 6)]
)
def test_blocks_of_other_taps_do_not_load_where_more_go_together(saved, taps, size):
    single = SparseConv2d(10, 13, (3, 2), density=0.5, block=(4, 4), taps=saved).double()
    layer = SparseConv2d(10, 13, (3, 2), density=0.4, block=(4, 4), taps=taps).double()
    state = single.state_dict()
    count = layer.layout.slots
    state["values"], state["block_ids"] = state["values"][:count], state["block_ids"][:count]
    with pytest.raises(
        RuntimeError, match=f"whole groups of {size} taps in order, as taps='{taps}'"
    ):
        layer.load_state_dict(state)


@each_layer
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_equal_and_its_own(make, copied, accumulate):
    layer = make()
    layer.collect(accumulate=accumulate)
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
    first, second, third = (make(generator=torch.Generator().manual_seed(s)) for s in (1, 1, 3))
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
@pytest.mark.parametrize("accumulate", [False, True])
def test_collected_scores_are_the_same_through_forward_and_weight(make, accumulate):
    layer = make()
    x = input_of(layer)
    layer.collect()
    layer(x).sum().backward()
    forward = layer.stop()
    layer.zero_grad()
    layer.collect(accumulate=accumulate)
    call_dense(layer, x).sum().backward()
    torch.testing.assert_close(layer.stop(), forward)
    assert forward.shape == (layer.layout.total,)


def test_a_layer_that_collects_goes_on_below_a_memory_of_one_and_begins_anew_at_one():
    layer = LAYERS["linear"]()
    layer.collect(memory=0.5, accumulate=True)
    first = layer.probe
    layer.collect(memory=0.5, accumulate=True)
    assert layer.probe is first
    layer.collect(scores=torch.ones(layer.layout.total), accumulate=True)
    assert layer.probe is not first
    assert len(layer.values._backward_hooks) == 1
    assert layer.stop().equal(torch.ones(layer.layout.total))
    assert layer.probe is None


def test_collecting_by_its_earlier_names():
    layer = LAYERS["linear"]()
    goes = f"now; the earlier name goes in {EARLIER_NAMES_GO_IN}"
    with pytest.warns(DeprecationWarning, match=f"SparseLayer.arm is SparseLayer.collect {goes}"):
        layer.arm()
    layer(input_of(layer)).sum().backward()
    with pytest.warns(DeprecationWarning, match=f"is_armed is SparseLayer.is_collecting {goes}"):
        assert layer.is_armed
    with pytest.warns(DeprecationWarning, match=f"disarm is SparseLayer.stop {goes}") as warned:
        assert layer.disarm().shape == (layer.layout.total,)
    assert warned[0].filename == __file__  # it names the line that has to change
    assert not layer.is_collecting
