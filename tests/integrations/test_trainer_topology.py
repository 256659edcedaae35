"""What callbacks share, without any of the trainers."""

import importlib
import sys

import pytest
import torch
from torch import nn

from sparse_engine import SparseLinear, sparsify
from sparse_engine.errors import InputError
from sparse_engine.integrations.block_moves import BlockMoves
from sparse_engine.integrations.trainer_topology import TrainerTopology
from sparse_kernels import BlockLayout


def test_block_moves_count_blocks():
    # Four blocks of a weight 16 x 64, of which two are active.
    ids = torch.tensor([0, 1], dtype=torch.int32)
    layer = SparseLinear(64, 16, layout=BlockLayout((16, 64), (16, 16), ids))
    moves = BlockMoves({"layer": layer})
    layer.change_blocks_(torch.tensor([0, 2], dtype=torch.int32))
    metrics = moves.after_update()
    assert metrics == {"sparsity/density": 0.5, "sparsity/exchanged": 0.5}
    kept = moves.state_dict()
    layer.change_blocks_(torch.tensor([3, 1], dtype=torch.int32))
    assert moves.after_update() == {
        "sparsity/density": 0.5,
        "sparsity/exchanged": 1.0,
        "sparsity/survival": 0.0,
    }
    again = BlockMoves({"layer": layer})
    again.load_state_dict(kept)
    layer.change_blocks_(torch.tensor([3, 2], dtype=torch.int32))
    assert again.after_update()["sparsity/survival"] == 1.0


def test_a_run_goes_on_from_its_state():
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
    sparsify(model, 0.5, "uniform", (4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = TrainerTopology("set", 2, 0.5)
    assert topology.run_state() == {}
    topology.begin(model, optimizer, 20)
    for step in range(3):
        model(torch.randn(4, 16)).sum().backward()
        optimizer.step()
        assert bool(topology.after_step()) == (step == 1)
    state = topology.run_state()
    other = TrainerTopology("set", 2, 0.5)
    other.keep(state)
    assert other.run_state() == state
    other.begin(model, optimizer, 20, steps=3)
    assert other.dynamic.steps == 3
    assert other.dynamic.topology.updates == 1
    late = TrainerTopology("set", 2, 0.5)
    late.begin(model, optimizer, 20, steps=7)
    assert (late.dynamic.steps, late.dynamic.topology.updates) == (7, 0)


def test_averages_must_be_modules():
    with pytest.raises(InputError, match="averages must be modules"):
        TrainerTopology(averages=["not saved"])


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_framework_that_is_not_installed_is_named(name, monkeypatch):
    for package in ("lightning", "pytorch_lightning", "transformers"):
        for module in [m for m in sys.modules if m.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"sparse_engine.integrations.{name}", raising=False)
    with pytest.raises(InputError, match=rf"needs {name}.*sparse-engine\[integration\]"):
        importlib.import_module(f"sparse_engine.integrations.{name}")
