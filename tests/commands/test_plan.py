"""The plan for a budget of seconds: its table, its choice, its line of JSON, what it refuses."""

import json
import shlex
from pathlib import Path

import pytest
from plan_rows import EDST, RIGL, row
from refusals import assert_refused_here, files

from sparse_engine import __main__ as commands
from sparse_engine.commands import plan
from sparse_engine.config.config import Config
from sparse_engine.config.flags import parse_flags
from sparse_engine.methods.resolve import resolve
from sparse_engine.planning import seconds
from sparse_engine.planning.candidates import candidate
from sparse_engine.planning.choice import Priced
from sparse_engine.planning.rows import write_rows
from sparse_kernels.timing import CoreWait

TINY = ("--model", "wrn10-1", "--batch-size", "64", "--device", "cpu", "--rows", "rows.csv")
ROWS = [
    row(),
    row(difference=-0.012, error=0.002, epochs=125),
    row({**EDST, "block": "8x8", "taps": "row"}, 0.007, 0.002, 450, nll=1.0, ece=0.03),
    row({**RIGL, "block": "8x8"}, -0.01, 0.003),
]


@pytest.fixture(autouse=True)
def few_rounds(own_folder, monkeypatch):
    monkeypatch.setattr(seconds, "MOST", 1)
    write_rows(Path("rows.csv"), ROWS)


def planned(capsys, *arguments):
    before = files()
    commands.run(["plan", *arguments])
    assert files() == before
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def line_of(lines, word):
    (line,) = [line for line in lines if line.startswith(f"{word}: ")]
    return line.removeprefix(f"{word}: ")


def test_with_time_enough_the_best_is_chosen(capsys):
    lines, result = planned(capsys, "--seconds", "1e6", *TINY)
    assert result["choice"]["name"] == "edst of 3, 0.8, 8x8 taps row"
    assert (result["choice"]["epochs"], result["choice"]["share"]) == (72, 1.0)
    assert "+0.70 ± 0.20 points to a dense network of 40 epochs" in line_of(lines, "expects")
    assert "NLL 1.000 and ECE 0.030 (dense 1.200 and 0.100)" in line_of(lines, "expects")
    assert line_of(lines, "train it") == result["command"]
    flags = parse_flags(shlex.split(result["command"])[2:], "")
    config = resolve(Config(**flags))
    assert (config.method, config.epochs, config.taps) == ("edst", 72, "row")
    assert (config.model, config.batch_size, config.distribution) == ("wrn10-1", 64, "erk")
    told = [line.removeprefix("extrapolates: ") for line in lines if "extrapolates" in line]
    assert told == result["extrapolates"]
    assert "images of 16x16 pixels in the study, 8x8 here" in told


def test_seconds_are_steps_and_updates_of_the_whole_training(capsys):
    lines, result = planned(capsys, "--seconds", "1e6", *TINY)
    whole, half, edst, rigl = result["candidates"]
    assert whole["seconds_per_step"] == half["seconds_per_step"]
    assert whole["seconds_per_step"] == result["dense_seconds_per_step"]
    assert whole["train_seconds"] == pytest.approx(40 * 22 * whole["seconds_per_step"])
    assert half["train_seconds"] == pytest.approx(whole["train_seconds"] / 2)
    for one, epochs in ((edst, 72), (rigl, 40)):
        assert one["epochs"] == epochs
        assert one["train_seconds"] != pytest.approx(epochs * 22 * one["seconds_per_step"])
    heading = next(n for n, line in enumerate(lines) if line.startswith("training  "))
    shown = [line.split()[-8] for line in lines[heading + 1 : heading + 5]]
    assert shown == [f"{s:.4g}" for s in sorted(c["train_seconds"] for c in result["candidates"])]


def test_with_little_time_all_are_shortened(capsys):
    _, result = planned(capsys, "--seconds", "1e6", *TINY)
    least = min(one["train_seconds"] / one["epochs"] for one in result["candidates"])
    lines, result = planned(capsys, "--seconds", f"{4 * least}", *TINY)
    choice = result["choice"]
    assert choice["share"] < 1
    assert f"--epochs {choice['epochs']}" in result["command"]
    assert any("of its length" in line for line in result["extrapolates"])
    assert line_of(lines, "why").startswith("no training fits whole")


def test_a_training_that_cannot_be_so_short_is_no_choice():
    dense = resolve(Config(method="dense", model="wrn10-1", batch_size=700))
    rows = [row(epochs=1250), row(EDST, 0.01, 0.002, 450)]
    priced = [Priced(candidate(one, dense, 1437), 0.5, 1.0) for one in rows]
    choice, found = plan._chosen(priced, 1.5, dense, 1437)
    # The least shortened is EDST, which has no two steps for three refinements.
    assert found.config.method == "dense"
    assert (choice.chosen.epochs, found.config.epochs) == (1, 1)
    with pytest.raises(plan.InputError, match="2 steps are too few for 4 phases"):
        plan._chosen(priced[1:], 1.5, dense, 1437)


def test_networks_that_share_their_times(capsys, monkeypatch):
    built = []
    build = seconds.build_network

    def counted(config, info, device):
        built.append(config.model)
        return build(config, info, device)

    monkeypatch.setattr(seconds, "build_network", counted)
    narrow = row(network="wrn10-1", model="wrn10-2", epochs=450, difference=-0.1)
    same = row({**EDST, "sparsity": 0.9, "block": "8x8"}, epochs=450)
    write_rows(Path("rows.csv"), [*ROWS, narrow, same])
    _, result = planned(capsys, "--seconds", "1e6", *TINY, "--model", "wrn10-2")
    assert sorted(built) == ["wrn10-1", *["wrn10-2"] * 3]
    *_, single, slim, several = result["candidates"]
    assert slim["name"] == "dense wrn10-1"
    assert several["seconds_per_step"] == single["seconds_per_step"]


def test_what_cannot_be_had_is_named(capsys):
    write_rows(Path("rows.csv"), [*ROWS, row(network="wrn10-1", epochs=450)])
    lines, result = planned(capsys, "--seconds", "1e6", *TINY)
    assert "dense wrn10-1 cannot be had here: wrn10-1 has no network 0.5 times as wide" in lines
    assert len(result["candidates"]) == len(ROWS)


def test_fewer_images_are_timed_where_a_batch_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(seconds, "timing_seconds", lambda budget: 0.0)
    _, result = planned(capsys, "--seconds", "1e6", *TINY, "--threads", "1")
    assert result["command"].startswith("OMP_NUM_THREADS=1 sparse-engine train --method edst")
    assert result["timed_images"] == 8
    assert result["extrapolates"][-1].startswith("steps were timed with up to 8 images")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds must be above 0 and finite, found 0"),
        (["--seconds", "-3"], "--seconds must be above 0 and finite, found -3"),
        (["--seconds", "nan"], "--seconds must be above 0 and finite, found nan"),
        (["--seconds", "ten"], "argument --seconds: invalid float value: 'ten'"),
        ([], "the following arguments are required: --seconds"),
        (["--seconds", "9", "--threads", "0"], "--threads must be at least 1, found 0"),
        (["--seconds", "9", "--batch-size", "0"], "batch_size must be at least 1, found 0"),
        (["--seconds", "9", "--model", "wrn10"], "unknown model 'wrn10'"),
        (["--seconds", "9", "--dataset", "own"], "unknown data set 'own'"),
        (["--seconds", "9", "--dataset", "cifar10", "--data-dir", "no"], "no is not a folder"),
        (["--seconds", "9", "--rows", "none.csv"], "rows 'none.csv' does not exist"),
        (["--seconds", "9", "--dtyp", "bf16"], "unknown flag '--dtyp'; did you mean '--dtype'?"),
        (["--seconds", "9", "--batch-size", "2000"], "--batch-size 1437 is the largest"),
        (
            ["--seconds", "9", "--model", "mlp", "--batch-size", "1437", "--dense-epochs", "1"],
            "edst of 3, 0.8, 8x8 taps row cannot be had here: 2 steps are too few for 4 phases",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, message, monkeypatch, capfd):
    flags = [] if "--rows" in arguments else ["--rows", "rows.csv"]
    assert_refused_here(message, monkeypatch, capfd, plan.main, *arguments, *flags)


def test_no_plan_is_made_of_disturbed_times(monkeypatch, capsys):
    monkeypatch.setattr(CoreWait, "share", lambda wait: 0.66)
    with pytest.raises(plan.RunFailure, match=r"a core in 66% of their time.*say --threads 1,"):
        planned(capsys, "--seconds", "1e6", *TINY)


def test_a_budget_without_an_epoch(monkeypatch, capsys):
    with pytest.raises(
        plan.InputError, match=r"one epoch of the cheapest, .*, takes .*; give more"
    ):
        planned(capsys, "--seconds", "1e-6", *TINY)


def test_a_study_without_rows(monkeypatch, capfd):
    write_rows(Path("empty.csv"), [])
    flags = ("--seconds", "9", "--rows", "empty.csv")
    assert_refused_here("has no row yet", monkeypatch, capfd, plan.main, *flags)
