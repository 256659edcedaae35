"""Open settings of a run, decided; names and contradictions."""

from dataclasses import replace

import pytest
from method_phases import config_for

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.methods.recipes import RECIPES, recipe_for
from sparse_engine.methods.registry import METHODS
from sparse_engine.methods.resolve import resolve, warmup_share
from sparse_engine.sparsity.erdos_renyi import ErdosRenyi


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rigll"}, "unknown method 'rigll'; did you mean 'rigl'"),
        ({"method": "EDST"}, "unknown method 'EDST'"),
        ({"select": "validation", "evaluate_every": 2}, "chooses among all epochs"),
        ({"dataset": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
        ({"model": "wrn16_2"}, "unknown model 'wrn16_2'; did you mean 'wrn16-2'"),
        ({"model": "wrn17-2"}, "model 'wrn17-2': depth 17 is not"),
        ({"method": "dense", "sparsity": 0.5}, "method 'dense' has no sparsity"),
        ({"method": "rigl", "members": 3}, "'rigl' trains one network, found members 3"),
        ({"method": "set", "topology": "rigl"}, "'set' and --topology rigl contradict"),
        ({"method": "dense", "topology": "static"}, "'dense' and --topology static contradict"),
        (
            {"method": "dense", "start": "snip"},
            "--start snip chooses sparse first blocks, method 'd",
        ),
        ({"method": "granet", "start": "snip"}, "sparse first blocks, topology 'granet' has none"),
        ({"method": "lottery", "start": "grasp"}, "sparse first blocks, method 'lottery' has none"),
        ({"method": "pf", "weight_init": "fan-in"}, "--weight-init fan-in .* 'pf' starts dense"),
        ({"method": "static", "cover": True}, "--cover is of updates .* 'static' has none"),
        ({"method": "edst", "topology": "static", "cover": True}, "--cover is of updates"),
        ({"method": "rigl", "start_sparsity": 0.5}, "--start-sparsity is of topology 'granet'"),
        (
            {"distribution": "uniform", "erk_power": 2.0},
            "--erk-power 2 is of distributions erk",
        ),
        ({"method": "dense", "erk_power": 2.0}, "'dense' is dense, and --erk-power 2 of sparse"),
        ({"method": "rigl", "start": "snip", "erk_power": 2.0}, "itself: leave --erk-power 2 out"),
        ({"method": "pf", "block": "1x1", "erk_power": 0.5}, "use --prune-scope layer"),
        ({"method": "granet", "sparsity": 0.5}, "from --start-sparsity 0.5 to --sparsity 0.5"),
    ],
)
def test_names_and_contradictions(settings, message):
    with pytest.raises(InputError, match=message):
        resolve(Config(**settings))


def test_the_defaults_are_a_small_edst():
    config = resolve(Config())
    assert (config.method, config.dataset, config.members) == ("edst", "digits", 3)
    assert (config.topology, config.sparsity, config.epochs) == ("rigl", 0.8, 72)
    assert config.dense_epochs == 40
    assert None not in (config.model, config.block, config.batch_size, config.lr)


@pytest.mark.parametrize(
    ("settings", "epochs", "dense_epochs"),
    [
        ({"method": "edst"}, 450, 250),
        ({"method": "edst", "members": 7}, 850, 250),
        ({"method": "dst-ensemble"}, 750, 250),
        ({"method": "rigl"}, 250, 250),
        ({"method": "edst", "dataset": "imagenet", "members": 4}, 310, 150),
        ({"method": "edst", "dataset": "mnist"}, 54, 30),
        ({"method": "edst", "dataset": "imagefolder:images", "members": 2}, 126, 90),
        ({"method": "rigl", "dataset": "mnist", "epochs": 7}, 7, 30),
        ({"method": "rigl", "epochs": 7, "dense_epochs": 9}, 7, 9),
    ],
)
def test_epochs_of_recipes(settings, epochs, dense_epochs):
    config = resolve(Config(**{"dataset": "cifar10", **settings}))
    assert (config.epochs, config.dense_epochs) == (epochs, dense_epochs)


def test_given_settings_win_over_the_recipe():
    given = {"lr": 0.7, "weight_decay": 0.0, "label_smoothing": 0.0, "batch_size": 3}
    config = resolve(Config(dataset="imagenet", sparsity=0.5, block="1x1", **given))
    assert {name: getattr(config, name) for name in given} == given
    assert (config.sparsity, config.block) == (0.5, "1x1")


@pytest.mark.parametrize("method", ["edst", "set", "rigl", "snfs", "granet"])
def test_sparsity_zero_leaves_nothing_to_update(method):
    with pytest.raises(InputError, match="no blocks to update at sparsity 0"):
        resolve(Config(method=method, sparsity=0.0))


def test_a_power_of_the_densities():
    assert resolve(Config(erk_power=0.5)).layer_densities == ErdosRenyi(power=0.5)
    assert resolve(Config(erk_power=2.0, distribution="er")).layer_densities.kernel is False
    assert resolve(Config(dataset="cifar10")).layer_densities == "erk"
    assert resolve(Config()).layer_densities == "uniform"


def test_an_ensemble_may_be_of_dense_networks():
    config = resolve(Config(method="dst-ensemble", topology="static", sparsity=0.0))
    assert config.sparsity == 0


def test_recipes_are_complete():
    for name in RECIPES:
        config = resolve(Config(dataset=name))
        assert recipe_for(name).lr == config.lr == 0.1
        assert warmup_share(config) == pytest.approx(5 / 170 if name == "imagenet" else 0)


OPTIONS = {name: set(method.options) for name, method in METHODS.items()}
OWNED = set().union(*OPTIONS.values())


@pytest.mark.parametrize("method", [name for name, own in OPTIONS.items() if own])
def test_settings_of_some_methods_are_decided_there_and_refused_elsewhere(method):
    given = {"teacher": "run"} if method == "kd-ticket" else {}
    config = resolve(Config(method=method, dropout=0.1, **given))
    assert all(getattr(config, name) is not None for name in OPTIONS[method])
    assert all(getattr(config, n) is None for n in OWNED if n not in OPTIONS[method])
    for name in OPTIONS[method]:
        flag = "--" + name.replace("_", "-")
        with pytest.raises(InputError, match=f"'static' has no {flag}, which belongs to"):
            resolve(Config(method="static", **{name: getattr(config, name)}))


@pytest.mark.parametrize(("block", "scope"), [("1x1", "global"), ("8x8", "layer"), (None, "layer")])
def test_single_weights_are_ranked_over_all_layers_and_blocks_within_each(block, scope):
    assert resolve(Config(method="pf", block=block)).prune_scope == scope
    assert resolve(Config(method="pf", block=block, prune_scope="global")).prune_scope == "global"


def test_lottery_rounds_take_a_fifth_each():
    assert config_for(method="lottery").rounds == 8
    assert config_for(method="lottery", sparsity=0.2).rounds == 1
    assert config_for(method="lottery", sparsity=1 - 0.8**3).rounds == 3


@pytest.mark.parametrize(
    ("method", "settings", "epochs"),
    [
        ("lottery", {"rounds": 2, "rewind_point": 0.0}, 750),
        ("lottery", {"rounds": 2, "rewind_point": 0.1}, 700),
        ("ltr", {"members": 4}, 250 + 4 * 237.5),
        ("pf", {"members": 3}, 1500),
        ("kd-ticket", {}, 250),
        ("sup-tickets", {}, 250),
    ],
)
def test_lengths_in_dense_runs(method, settings, epochs):
    assert config_for(method=method, **settings).epochs == epochs


def test_a_scale_is_used_once():
    config = config_for(method="edst", scale=0.1, update_interval=500)
    assert (config.epochs, config.dense_epochs, config.update_interval) == (45, 25, 50)
    assert resolve(config) == config
    assert "scale" not in config.saved()


@pytest.mark.parametrize(
    ("settings", "lr", "warmup"),
    [
        ({}, 0.1, 0),
        ({"batch_size": 128}, 0.1, 0),
        ({"batch_size": 32}, 0.025, 0),
        ({"batch_size": 32, "lr": 0.1}, 0.1, 0),
        ({"batch_size": 512}, 0.4, 5 / 90),
        ({"batch_size": 512, "lr": 0.4}, 0.4, 0),
        ({"batch_size": 512, "warmup": 0.0}, 0.4, 0),
        ({"batch_size": 512, "method": "dst-ensemble", "members": 2}, 0.4, 5 / 180),
        ({"dataset": "imagefolder:x", "batch_size": 32}, 0.025, 5 / 90),
    ],
)
def test_the_learning_rate_fits_the_batch(settings, lr, warmup):
    given = {"dataset": "cifar10", "method": "rigl", **settings}
    config = resolve(Config(**given))
    assert (config.lr, warmup_share(config)) == pytest.approx((lr, warmup))
    assert resolve(config) == config
    earlier = replace(config, warmup=None)  # as earlier versions resolved it
    assert resolve(earlier) == earlier


def test_a_warmup_longer_than_half_a_network():
    with pytest.raises(InputError, match=r"--warmup 0.3 is of the whole run, of which one network"):
        resolve(Config(method="dst-ensemble", members=3, warmup=0.3))
