"""Averages of weights across topology updates, against averages of dense weights."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparse_engine import DynamicSparsity, dense_state_dict, sparsify
from sparse_engine.errors import InputError

DECAY = 0.9


class Mean:
    """An average by hand, over parameters() and perhaps buffers()."""

    def __init__(self, model: nn.Module, buffers: bool) -> None:
        self.module, self.buffers = copy.deepcopy(model), buffers

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move it on by one step."""
        for own, p in zip(self.module.parameters(), model.parameters()):
            own.data.mul_(DECAY).add_(p.data, alpha=1 - DECAY)
        for own, b in zip(self.module.buffers(), model.buffers()) if self.buffers else ():
            own.copy_(DECAY * own + (1 - DECAY) * b)


def ema(model, buffers):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=buffers)


AVERAGES = {
    "ema": lambda m: ema(m, False),
    "ema of buffers": lambda m: ema(m, True),
    "swa": AveragedModel,
    "by hand": lambda m: Mean(m, False),
    "by hand with buffers": lambda m: Mean(m, True),
}


def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8))
    sparsify(model, 0.5, "uniform", (8, 8))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    state = dense_state_dict(model)
    return {name: state[name].clone() for name in ("0.weight", "0.bias", "3.weight", "3.bias")}


def train(model, optimizer, dynamic, average, first: bool, steps: int = 30):
    """Train, with the average's update before dynamic.step() or after; return it done by hand."""
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(1))
    y, mean = x[:, :8].argmax(1), weights(model)
    for step in range(steps):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        share = 1 - DECAY if isinstance(average, Mean) or average.multi_avg_fn else 1 / (step + 1)
        if step == 0 and isinstance(average, AveragedModel):
            share = 1.0
        for averages in (True, False) if first else (False, True):
            now = weights(model)
            if averages:
                average.update_parameters(model)
                mean = {name: torch.lerp(mean[name], now[name], share) for name in now}
            else:
                dynamic.step()
                for name in ("0", "3"):
                    mask = model.get_submodule(name).block_mask()
                    whole = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
                    mean[f"{name}.weight"] = mean[f"{name}.weight"] * whole
    return mean


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", AVERAGES)
def test_a_named_average_is_that_of_dense_weights_on_the_present_blocks(kind, first):
    model, optimizer = made()
    before = model[0].layout.mask()
    average = AVERAGES[kind](model)
    options = {"total_steps": 40, "averages": [average.module]}
    dynamic = DynamicSparsity(model, optimizer, "rigl", 5, **options)
    expected = train(model, optimizer, dynamic, average, first)
    assert not before.equal(model[0].layout.mask())
    average.module(torch.randn(4, 16))
    torch.testing.assert_close(weights(average.module), expected, rtol=1e-4, atol=1e-6)
    assert average.module.state_dict()["0.block_ids"].equal(model[0].block_ids)


@pytest.mark.parametrize("kind", ["by hand", "ema", "swa"])
def test_an_average_that_is_not_named_is_warned_of_once(kind):
    model, optimizer = made()
    average = AVERAGES[kind](model)
    dynamic = DynamicSparsity(model, optimizer, "set", 5, total_steps=40)
    with pytest.warns(UserWarning, match=r"name it in DynamicSparsity\(averages=") as found:
        train(model, optimizer, dynamic, average, first=True)
    assert len(found) == 1
    assert found[0].filename == __file__


@pytest.mark.parametrize("kind", ["by hand with buffers", "ema of buffers"])
def test_averaged_ids_are_put_right_or_refused(kind):
    """Of a network whose blocks stay they are known; of another they are not."""
    for rule, ends in (("static", True), ("rigl", False)):
        model, optimizer = made()
        average = AVERAGES[kind](model)
        dynamic = DynamicSparsity(model, optimizer, rule, 5, total_steps=40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = train(model, optimizer, dynamic, average, first=False)
        if ends:
            torch.testing.assert_close(weights(average.module), expected)
            assert average.module[0].block_ids.equal(model[0].block_ids)
        else:
            with pytest.raises(InputError, match=r"name it in DynamicSparsity\(averages="):
                average.module(torch.randn(4, 16))


def test_copies_that_are_no_averages_are_left_alone():
    model, optimizer = made()
    snapshot, best = copy.deepcopy(model), copy.deepcopy(model)
    other = torch.optim.SGD(best.parameters(), lr=0.1)
    rules = [DynamicSparsity(m, o, "set", 5) for m, o in ((model, optimizer), (best, other))]
    for _ in range(10):
        for net, trained, dynamic in zip((model, best), (optimizer, other), rules):
            net(torch.randn(8, 16)).square().mean().backward()
            trained.step()
            trained.zero_grad()
            dynamic.step()
    snapshot(torch.randn(2, 16))
    best.load_state_dict(snapshot.state_dict())
    x = torch.randn(4, 16)
    assert torch.equal(best.eval()(x), snapshot.eval()(x))


def test_an_average_of_another_network_is_refused():
    model, optimizer = made()
    with pytest.raises(InputError, match=r"averages\[0\] has other sparse layers"):
        DynamicSparsity(model, optimizer, "set", 5, averages=[nn.Linear(2, 2)])
