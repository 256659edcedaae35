"""A study's trainings on other data: lengths, networks, and the commands that train them."""

import shlex

import pytest
from plan_rows import EDST, RIGL, row

from sparse_engine.config.config import Config
from sparse_engine.config.flags import parse_flags
from sparse_engine.errors import InputError
from sparse_engine.methods.resolve import resolve
from sparse_engine.planning.candidates import candidate, command, name_of


def dense(**settings):
    config = resolve(Config(method="dense", **settings))
    return resolve(Config(method="dense", epochs=config.dense_epochs, **settings))


def test_lengths_are_in_proportion_to_the_dense_run():
    assert candidate(row(EDST, epochs=450), dense(), 1437).config.epochs == 72
    assert candidate(row(epochs=125), dense(), 1437).config.epochs == 20
    config = candidate(row(EDST, epochs=450), dense(dataset="cifar10"), 50_000).config
    assert (config.epochs, config.dense_epochs, config.model) == (450, 250, "wrn28-10")
    assert candidate(row(epochs=1), dense(), 1437).config.epochs == 1
    assert candidate(row(EDST, epochs=450), dense(), 1437, epochs=9).config.epochs == 9


def test_what_the_recipe_would_decide_is_the_studys():
    # The recipe of digits is uniform.
    config = candidate(row(RIGL), dense(), 1437).config
    assert (config.distribution, config.block, config.sparsity) == ("erk", "16x16", 0.9)
    assert (config.batch_size, config.lr) == (128, 0.1)


def test_intervals_in_steps_scale_with_the_run():
    given = row({**RIGL, "update_interval": 390})  # of 39 * 250 steps
    assert candidate(given, dense(), 1437).config.update_interval == round(390 * 11 * 40 / 9750)


def test_a_narrower_network_is_as_much_narrower():
    narrow = row(network="wrn10-1", epochs=450)
    found = candidate(narrow, dense(model="wrn16-8"), 1437)
    assert (found.config.model, found.name) == ("wrn16-4", "dense wrn16-4")
    third = row(network="wrn10-1", model="wrn10-3")
    assert candidate(third, dense(model="wrn10-6"), 1437).config.model == "wrn10-2"
    with pytest.raises(InputError, match=r"resnet20 has no network 0.5 times as wide"):
        candidate(narrow, dense(model="resnet20"), 1437)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "dense"},
        {**EDST, "taps": "row"},
        {**RIGL, "update_interval": 390, "layer_blocks": {"*": "8x8"}},
        {"method": "edst", "members": 2, "block": "8x8", "distribution": "timed",
         "time_budget": 0.5},
        {"method": "sup-tickets", "topology": "set", "sparsity": 0.8, "block": "16x16",
         "distribution": "uniform", "permute_channels": False},
    ],
    ids=lambda settings: settings["method"],
)  # fmt: skip
@pytest.mark.parametrize("dataset", ["digits", "svhn"])
def test_the_command_trains_the_candidate(settings, dataset):
    found = candidate(row(settings), dense(dataset=dataset, dtype="bf16"), 2000)
    program, name, *arguments = shlex.split(command(found))
    assert (program, name) == ("sparse-engine", "train")
    flags = parse_flags(arguments, "")
    assert ("data_dir" in flags) == (dataset != "digits")
    assert resolve(Config(**{**flags, "data_dir": None})) == found.config
    assert command(found, threads=2) == f"OMP_NUM_THREADS=2 {command(found)}"


def test_names():
    assert name_of(row(), "wrn10-2") == "dense"
    assert name_of(row({**EDST, "taps": "row"}), "wrn10-2") == "edst of 3, 0.8, 16x16 taps row"
    timed = {"method": "rigl", "block": "8x8", "distribution": "timed", "time_budget": 0.5}
    assert name_of(row({**timed, "drop": 0.2}), "a") == "rigl, timed 0.5, 8x8, drop 0.2"
