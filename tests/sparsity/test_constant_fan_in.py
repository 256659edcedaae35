"""Constant fan-in against a naive loop, and what must hold after every update."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparse_engine import DynamicSparsity, SparseConv2d, SparseLinear, densify, sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.runs.files import load_file
from sparse_engine.sparsity.constant_fan_in import assert_constant, fill_rows, select_rows
from sparse_engine.sparsity.criteria import Criteria
from sparse_engine.sparsity.drop_and_grow import swap_blocks
from sparse_engine.sparsity.topology import Topology
from sparse_engine.train import main
from sparse_kernels import BlockLayout

CONSTANT = Criteria(fan_in="constant")


def naive_fill(rows, width, drop, grow, survivors, active):
    """Choose groups row by row; drop and grow are distinct scores by group."""

    def strength(b):
        return b in survivors, drop[b] if b in survivors else grow[b]

    blocks = [range(row * width, (row + 1) * width) for row in range(rows)]
    ranked = [sorted(row, key=strength, reverse=True) for row in blocks]
    share, more = divmod(active, rows)
    chosen = {b for row in ranked for b in row[:share]}
    following = sorted((row[share] for row in ranked if share < width), key=strength, reverse=True)
    return chosen | set(following[:more])


@st.composite
def cases(draw):
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    total = rows * width
    active = draw(st.integers(1, total))
    ids = draw(st.permutations(range(total)))[:active] + [total] * draw(st.integers(0, 4))
    ids = draw(st.permutations(ids[:total]))
    drop, grow = draw(st.permutations(range(len(ids)))), draw(st.permutations(range(total)))
    dropped = draw(st.integers(0, active))
    grown = draw(st.integers(0 if dropped < active else 1, len(ids) - active + dropped))
    return (rows, width), ids, active, drop, grow, dropped, grown


@settings(max_examples=200, deadline=None)
@given(cases())
def test_an_update_equals_a_naive_one(case):
    (rows, width), ids, active, drop, grow, dropped, grown = case
    total = rows * width
    layout = BlockLayout((rows, width), (1, 1), torch.tensor(ids), active)
    if not dropped and not grown:
        return
    scores = torch.tensor(drop).float(), torch.tensor(grow).float()
    layer = SparseLinear(width, rows, layout=layout)
    with torch.no_grad():
        layer.values.fill_(1)
    slots, new = select_rows(layout, *scores, dropped, grown)
    after = active - dropped + grown
    swap_blocks(layer, None, slots, new, after)

    used = [slot for slot, block in enumerate(ids) if block < total]
    lasting = sorted(used, key=lambda slot: -drop[slot])[: active - dropped]
    survivors = {ids[slot] for slot in lasting}
    by_block = {block: drop[slot] for slot, block in enumerate(ids)}
    wanted = naive_fill(rows, width, by_block, grow, survivors, after)
    found = layout.block_ids.tolist()
    assert {b for b in found if b < total} == wanted
    assert layout.validate(layout.block_ids) == layout.active == after
    assert_constant(layout)
    for slot in range(len(ids)):
        stays = slot in lasting and ids[slot] in wanted
        assert bool(layer.values[slot].all()) == stays
        assert not stays or found[slot] == ids[slot]


def test_rows_with_too_much_keep_their_best():
    kept = torch.tensor([[4.0, 1.0, 3.0, 2.0], [-torch.inf] * 4])
    grow = torch.tensor([[9.0] * 4, [1.0, 4.0, 3.0, 2.0]])
    assert fill_rows(kept, grow, 4).int().tolist() == [[1, 0, 1, 0], [0, 1, 1, 0]]
    # Who has one more: a group that is kept goes before one that would be grown.
    assert fill_rows(kept, grow, 5).int().tolist() == [[1, 0, 1, 1], [0, 1, 1, 0]]


def network(**options) -> nn.Module:
    """Return a network with convolutions and linear layers, some blocks of which are ragged."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 22, 3, padding=1), nn.Tanh(), nn.Conv2d(22, 14, (3, 2)), nn.Tanh(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(56, 20), nn.Tanh(), nn.Linear(20, 10),
    ).double()  # fmt: skip
    options = {"fan_in": "constant", "init": "random", **options}
    sparsify(model, 0.7, "uniform", (4, 4), **options)
    return model


def layers(model) -> dict[str, SparseLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}


def fan_ins(model) -> dict[str, list[int]]:
    """Return the active groups of each row of each layer."""
    return {
        n: [c // m.layout.group for c in m.layout.mask().flatten(1).sum(1).tolist()]
        for n, m in layers(model).items()
    }


def train_step(model, optimizer, seed=0):
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    F.cross_entropy(model(x), torch.arange(6)).backward()
    optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3)


def spread(counts) -> int:
    return max(counts) - min(counts)


STARTS = {
    "random": {"init": "random"},
    "magnitude": {"init": "magnitude"},
    "denser": {"start_sparsity": 0.4},
    "spare slots": {"headroom": 0.25},
}


@pytest.mark.parametrize("taps", ["each", "all"])
@pytest.mark.parametrize("name", STARTS)
def test_the_first_blocks_are_as_many_in_each_row(name, taps):
    model, free = (network(**STARTS[name], taps=taps, fan_in=f) for f in ("constant", "free"))
    assert all(spread(counts) <= 1 for counts in fan_ins(model).values())
    assert any(spread(counts) > 1 for counts in fan_ins(free).values())
    counts = [[m.layout.active for m in layers(n).values()] for n in (model, free)]
    assert counts[0] == counts[1]


def test_scores_choose_counts_and_rows_are_equal():
    dense = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 16))
    strength = torch.arange(32.0)[:, None]
    scores = {"0": strength + torch.rand(32, 32), "1": strength[:16] + torch.rand(16, 32)}
    models = [copy.deepcopy(dense) for _ in range(2)]
    for model, fan_in in zip(models, ("free", "constant")):
        sparsify(model, 0.6, block=(4, 4), init=scores, fan_in=fan_in)
    free, constant = (fan_ins(model) for model in models)
    assert {n: sum(c) for n, c in free.items()} == {n: sum(c) for n, c in constant.items()}
    assert all(spread(counts) <= 1 for counts in constant.values())
    assert any(spread(counts) > 1 for counts in free.values())


def test_magnitude_keeps_the_strongest_of_each_row():
    conv = nn.Conv2d(8, 12, 1)
    model = nn.Sequential(copy.deepcopy(conv))
    sparsify(model, 0.5, "uniform", (4, 2), fan_in="constant")
    norms = conv.weight.detach().abs().view(3, 4, 4, 2).sum((1, 3))
    best = norms.topk(2).indices
    assert (
        torch.zeros(3, 4, dtype=torch.bool)
        .scatter(1, best, True)
        .equal(model[0].block_mask()[:, :, 0, 0])
    )


def test_random_blocks_depend_on_the_generator_alone():
    def ids(seed):
        model = network(generator=torch.Generator().manual_seed(seed))
        return torch.cat([m.layout.block_ids for m in layers(model).values()])

    assert ids(1).equal(ids(1))
    assert not ids(1).equal(ids(2))


@pytest.mark.parametrize("taps", ["each", "all"])
@pytest.mark.parametrize(
    ("rule", "start"),
    [("set", "random"), ("rigl", "random"), ("snfs", "spare slots"), ("granet", "denser")],
)
def test_every_update_keeps_rows_equal_and_counts_exact(rule, start, taps):
    model = network(**STARTS[start], taps=taps)
    optimizer = sgd(model)
    topology = Topology(model, optimizer, rule, criteria=CONSTANT)
    budget = sum(m.layout.active for m in layers(model).values())
    for seed, rate in enumerate((0.3, 0.8, 0.5, 1.0)):
        topology.arm()
        train_step(model, optimizer, seed)
        before = {n: m.layout.block_ids.clone() for n, m in layers(model).items()}
        topology.update(rate, (seed + 1) / 4)
        assert all(spread(counts) <= 1 for counts in fan_ins(model).values())
        assert any(not m.layout.block_ids.equal(before[n]) for n, m in layers(model).items())
        for layer in layers(model).values():
            assert layer.layout.validate(layer.layout.block_ids) == layer.layout.active
            assert rule != "granet" or seed < 3 or layer.layout.active == layer.final_active
    if rule in ("set", "rigl"):
        assert sum(m.layout.active for m in layers(model).values()) == budget
    train_step(model, optimizer)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), densify(copy.deepcopy(model))(x))


@pytest.mark.parametrize("rule", ["set", "rigl"])
def test_the_first_update_makes_any_start_equal(rule):
    model = network(fan_in="free")
    topology = Topology(model, sgd(model), rule, criteria=CONSTANT)
    topology.arm()
    train_step(model, topology.optimizer)
    counts = [sum(row) for row in fan_ins(model).values()]
    topology.update(0.2)
    assert [sum(row) for row in fan_ins(model).values()] == counts
    assert all(spread(row) <= 1 for row in fan_ins(model).values())


@pytest.mark.parametrize("taps", ["each", "all"])
def test_a_choice_never_asks_the_device_for_a_number(taps):
    with FakeTensorMode():
        ids = torch.cat([torch.arange(18), torch.full((18,), 144)])
        layout = BlockLayout((64, 64, 3, 3), (16, 16), ids, 18, taps)
        layer = SparseConv2d(64, 64, 3, layout=layout)
        scores = torch.rand(36), torch.rand(layout.total)
        swap_blocks(layer, None, *select_rows(layout, *scores, 2, 1, "max"), 18)


def test_rows_that_differ_are_seen():
    layout = BlockLayout((3, 4), (1, 1), torch.tensor([0, 1, 2, 4]))
    with pytest.raises(AssertionError, match="fan-in of rows differs"):
        assert_constant(layout)
    layout.update_(torch.tensor([0, 1, 4, 8]))
    assert_constant(layout)


def test_an_own_loop_continues_from_its_state():
    def made():
        model = network()
        options = {"fan_in": "constant", "score": "max"}
        optimizer = sgd(model)
        return model, optimizer, DynamicSparsity(model, optimizer, interval=2, **options)

    def train(model, optimizer, dynamic, steps):
        for seed in steps:
            train_step(model, optimizer, seed)
            dynamic.step()

    whole, begun, resumed = made(), made(), made()
    train(*whole, range(9))
    train(*begun, range(5))
    for part, other in zip(resumed, begun):
        part.load_state_dict(copy.deepcopy(other.state_dict()))
    train(*resumed, range(5, 9))
    states = whole[0].state_dict(), resumed[0].state_dict()
    assert all(value.equal(states[1][key]) for key, value in states[0].items())
    assert all(spread(counts) <= 1 for counts in fan_ins(whole[0]).values())


def test_an_own_loop_refuses_an_unknown_fan_in():
    model = network()
    with pytest.raises(InputError, match="unknown fan-in 'constnat'; did you mean 'constant'"):
        DynamicSparsity(model, sgd(model), fan_in="constnat")


def test_sparsify_refuses_an_unknown_fan_in():
    with pytest.raises(InputError, match="unknown fan-in 'konstant'"):
        sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5, fan_in="konstant")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "dense", "--fan-in", "constant"], "'dense' is dense: leave --fan-in"),
        (["--method", "snapshot", "--fan-in", "constant"], "'snapshot' is dense: leave --fan-in"),
        (["--method", "pf", "--fan-in", "constant"], "'pf' keeps the strongest blocks"),
        (["--method", "sup-tickets", "--fan-in", "constant"], "keeps the strongest blocks"),
    ],
)
def test_a_command_refuses(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(flags)
    assert not list(tmp_path.iterdir())


def rows_of_tickets(folder) -> dict[str, list[int]]:
    """Return the blocks (8x8) of each row of each layer of a run of `mlp` on digits."""
    found = {}
    for path in sorted(folder.glob("member_*.pt")):
        state = load_file(path, "model")["model"]
        for name, rows, columns in (("hidden1", 38, 8), ("hidden2", 13, 38), ("classifier", 2, 13)):
            if f"{name}.block_ids" in state:
                ids = state[f"{name}.block_ids"].long()
                found[f"{path.stem} {name}"] = (ids // columns).bincount(minlength=rows).tolist()
    return found


@pytest.mark.parametrize("start", ["random", "snip"])
@pytest.mark.parametrize("method", ["static", "set", "rigl", "snfs", "granet", "edst"])
def test_a_command_trains_with_constant_fan_in(method, start, tmp_path, capsys):
    if method == "granet":
        start = "random"
    flags = ["--model", "mlp", "--block", "8x8", "--batch-size", "512", "--epochs", "8"]
    out = tmp_path / "out"
    flags += ["--method", method, "--fan-in", "constant", "--start", start, "--device", "cpu"]
    main([*flags, "--out", str(out)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["method"] == method
    found = rows_of_tickets(out)
    assert len(found) > 1
    assert all(spread(counts) <= 1 for counts in found.values())
