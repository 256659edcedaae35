"""Runs whose actions are recorded, and checks of the tickets that they leave."""

from pathlib import Path

import pytest
import torch
from finished_runs import config_of

from sparse_engine.data.catalog import TABLE
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.state_dict import load_state
from sparse_engine.layers.surgery import model_density, used_layouts
from sparse_engine.runs.files import load_file
from sparse_engine.sparsity.sparsify import dense_state_dict
from sparse_engine.training.network import dense_model

BLOCKS = pytest.mark.parametrize("block", ["1x1", "8x8"])


def watch(monkeypatch, kind):
    """Record the run, the dense weights before and after each call of an action's class."""
    seen, call = [], kind.__call__

    def record(self, run):
        before = weights_of(run.network.model) if hasattr(run, "network") else None
        call(self, run)
        seen.append((self, before, weights_of(run.network.model), masks_of(run.network.model)))

    monkeypatch.setattr(kind, "__call__", record)
    return seen


def weights_of(model):
    return {n: v.clone() for n, v in dense_state_dict(model).items()}


def masks_of(model):
    return {n: None if o is None else o.mask() for n, o in used_layouts(model).items()}


def ticket_models(out):
    config, models = config_of(out), []
    for path in sorted(Path(out).glob("member_*.pt")):
        model = dense_model(config, TABLE["digits"])
        load_state(model, load_file(path, "model")["model"])
        models.append(model)
    return models


def assert_on_blocks(model, weights):
    """Check that a model has the given dense weights on its blocks, and all else."""
    for name, value in weights_of(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, SparseLayer) and name.endswith("weight"):
            assert torch.equal(value, weights[name] * (value != 0))
            assert (value != 0).any()
        else:
            assert torch.equal(value, weights[name])


def assert_same_masks(first, second):
    assert first.keys() == second.keys()
    assert any(mask is not None for mask in first.values())
    for name, mask in first.items():
        other = second[name]
        assert mask is other is None or torch.equal(mask, other)


def assert_exact_budget(model, sparsity):
    layouts = [o for o in used_layouts(model).values() if o is not None]
    total = sum(p.numel() for n, p in dense_state_dict(model).items() if n.endswith("weight"))
    left = (1 - sparsity - model_density(model)) * total
    smallest = min(o.shape[0] * o.shape[1] / o.total for o in layouts)
    assert -1e-3 < left < smallest + 1e-3
