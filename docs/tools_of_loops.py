"""Rows of the table about loops that update the topology; run by tools.py."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tool_rows import X, network, tool
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparse_engine import DynamicSparsity, dense_state_dict

TORCH = "torch"
STEPS = 12
Step = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], None]


def usual(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def in_parts(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    for own_x, own_y in zip(x.chunk(4), y.chunk(4)):
        (F.cross_entropy(model(own_x), own_y) / 4).backward()
    optimizer.step()
    optimizer.zero_grad()


def twice(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """As SAM does, whose first pass is only there to perturb the weights."""
    model(x).square().sum().backward()
    optimizer.zero_grad()
    usual(model, optimizer, x, y)


def by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient
    optimizer.step()


def scaled(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def blocks_after(step: Step) -> list[Tensor]:
    """Return the blocks after some updates of RigL in a loop of such steps."""
    model = network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamic = DynamicSparsity(model, optimizer, "rigl", 3, 0.5, schedule="constant")
    for number in range(STEPS):
        x = torch.randn(16, 16, generator=torch.Generator().manual_seed(number))
        step(model, optimizer, x, torch.arange(16) % 8)
        dynamic.step()
    return [model.get_submodule(name).layout.mask() for name in ("0", "2")]


@tool(
    "loops: several backward passes",
    TORCH,
    "accumulation, a pass that `zero_grad` throws away (SAM), `torch.autograd.grad`, `GradScaler`",
)
def passes() -> str:
    right = blocks_after(usual)
    for step in (in_parts, twice, by_hand, scaled):
        assert all(map(torch.equal, blocks_after(step), right)), step.__name__
    return "RigL grows the blocks that it grows with one pass of the full batch"


def averaged(make: Callable[[nn.Module], tuple[nn.Module, Callable[[], None]]]) -> None:
    """Train with an average across updates; compare with the average of dense weights."""
    model = network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average, update = make(model)
    dynamic = DynamicSparsity(model, optimizer, "rigl", 3, averages=[average])
    right = dense_state_dict(copy.deepcopy(model))
    for number in range(STEPS):
        usual(model, optimizer, X, torch.arange(4))
        dynamic.step()
        update()
        for name, value in dense_state_dict(model).items():
            share = 1.0 if number == 0 and isinstance(average, AveragedModel) else 0.1
            right[name] = torch.lerp(right[name], value, share)
            if name.endswith("weight"):
                mask = model.get_submodule(name.partition(".")[0]).block_mask()
                right[name] *= mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
    for name, value in dense_state_dict(getattr(average, "module", average)).items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-5)


@tool(
    "averages across updates",
    TORCH,
    "`AveragedModel` and a mean teacher, in `DynamicSparsity(averages=[...])`",
)
def averages() -> str:
    def ema(model: nn.Module) -> tuple[nn.Module, Callable[[], None]]:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        return average, lambda: average.update_parameters(model)

    def teacher(model: nn.Module) -> tuple[nn.Module, Callable[[], None]]:
        own = copy.deepcopy(model)

        @torch.no_grad()
        def update() -> None:
            for mean, new in zip(own.parameters(), model.parameters()):
                mean.lerp_(new, 0.1)

        return own, update

    averaged(ema)
    averaged(teacher)
    return "the average is that of the dense weights on the present blocks"


@tool(
    "timm's averages across updates",
    "timm",
    "`ModelEmaV2`, `ModelEmaV3`, their `.module` in `DynamicSparsity(averages=[...])`",
)
def timm_averages() -> str:
    from timm.utils import ModelEmaV2, ModelEmaV3

    def make(kind: type) -> Callable[[nn.Module], tuple[nn.Module, Callable[[], None]]]:
        def made(model: nn.Module) -> tuple[nn.Module, Callable[[], None]]:
            average = kind(model, decay=0.9)
            return average.module, lambda: average.update(model)

        return made

    averaged(make(ModelEmaV2))
    averaged(make(ModelEmaV3))
    return "the average is that of the dense weights on the present blocks"


@tool(
    "optimizers",
    TORCH,
    "Adam, RMSprop, Adagrad, Rprop, NAdam, Adafactor; LBFGS",
)
def optimizers() -> str:
    kinds = {
        "Adam": {},
        "RMSprop": {},
        "Adagrad": {"initial_accumulator_value": 0.3},
        "Rprop": {},
        "NAdam": {},
        "Adafactor": {},
    }
    for name, options in kinds.items():
        model = network(0)
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, **options)
        fresh = getattr(torch.optim, name)([nn.Parameter(torch.zeros(1, 8, 8))], lr=0.01, **options)
        fresh.param_groups[0]["params"][0].grad = torch.zeros(1, 8, 8)
        fresh.step()
        (begin,) = fresh.state.values()
        dynamic = DynamicSparsity(model, optimizer, "set", 3, schedule="constant")
        for _ in range(3):
            ids = model[0].block_ids.clone()
            usual(model, optimizer, X, torch.arange(4))
            dynamic.step()
        grown = model[0].block_ids != ids
        for key, state in optimizer.state[model[0].values].items():
            if torch.is_tensor(state) and state.ndim:
                assert torch.equal(state[grown], begin[key].expand_as(state[grown])), (name, key)
    try:
        model = network(0)
        DynamicSparsity(model, torch.optim.LBFGS(model.parameters()))
    except ValueError:
        return "grown blocks begin with the optimizer's own initial state; LBFGS is refused"
    raise AssertionError("LBFGS is not refused")
