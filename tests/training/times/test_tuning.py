"""Break-even densities that were measured: how one is found, kept, and used by `auto`."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.training.times import tuning
from sparse_engine.training.times.tuning import crossing, tune_native
from sparse_kernels.dispatch import cost_model
from sparse_kernels.dispatch.backend import choose_backend
from sparse_kernels.dispatch.cost_model import native_is_faster

CPU = torch.device("cpu")
SIZES = (64, 64, 3, 3, 16, 16)


pytestmark = pytest.mark.usefixtures("own_cache")


def tune(monkeypatch, slope):
    """Tune a convolution whose masked path takes a second, and native `slope` times its density."""

    def measure(plan, problem, module, counts, device, dtype, backends):
        assert (type(module), module.weight.is_meta) == (nn.Conv2d, True)
        seconds = {"native": lambda count: slope * count / plan.total, "masked": lambda count: 1.0}
        return [*(seconds[b](n) for b, n in zip(backends, counts[:-1], strict=True)), 0.9]

    monkeypatch.setattr(tuning, "measure", measure)
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1))
    plans = [LayerPlan.full(name, (64, 64, 3, 3), (16, 16)) for name in ("0", "1")]
    sparse = [replace(plan, active=plan.total // 5) for plan in plans]
    return tune_native(sparse, model.to("meta"), (64, 8, 8), 4, torch.float32)


def choice(density, positions=4 * 64):
    return choose_backend(CPU, torch.float32, SIZES, density, positions)


@pytest.mark.parametrize("slope", [2.0, 4.0])
def test_auto_takes_native_up_to_the_density_that_was_measured(slope, monkeypatch):
    expected = choice(0.99, 4 * 65)
    [density] = tune(monkeypatch, slope).values()
    assert density == pytest.approx(0.95 / slope, rel=0.02)
    for _ in range(2):
        assert choice(density) == "native"
        assert choice(density + 1e-3) == "masked"
        # Another number of images was not measured, and is expected as before.
        assert choice(0.99, 4 * 65) == expected
        # The second time from the file, as a later process.
        cost_model.kept_limits.cache_clear()


def test_what_was_not_measured_is_expected():
    for density in (0.05, 0.3, 0.6):
        faster = native_is_faster(torch.float32, SIZES, density, 256, torch.get_num_threads())
        assert choice(density) == ("native" if faster else "masked")


def test_layers_of_one_kind_are_measured_once(monkeypatch):
    assert len(tune(monkeypatch, 3.0)) == 1


def test_a_data_type_without_kernels_has_nothing_to_tune():
    plan = replace(LayerPlan.full("0", (64, 64), (8, 8)), active=3)
    with pytest.raises(InputError, match="so there is nothing to tune"):
        tune_native([plan], nn.Sequential(), (1, 8, 8), 4, torch.float64)


def test_the_crossing_lies_on_a_line():
    densities = (0.1, 0.3, 0.5)
    assert crossing(densities, (1.0, 2.0, 4.0), 3.0) == pytest.approx(0.4)
    assert crossing(densities, (1.0, 2.0, 4.0), 0.5) == 0.0
    assert crossing(densities, (1.0, 2.0, 4.0), 5.0) == 0.5
