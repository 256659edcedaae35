"""Settings from flags, and the one line that every error is."""

import inspect
import re

import pytest

from sparse_engine import DynamicSparsity
from sparse_engine.config.config import FIELDS
from sparse_engine.config.flags import parse_flags, run_command
from sparse_engine.config.help import USUAL
from sparse_engine.config.values import ARGUMENTS, check_values
from sparse_engine.errors import InputError, RunFailure, Stopped
from sparse_engine.train import main as train

NUMBERS = {n: f.metadata["kind"] for n, f in FIELDS.items() if f.metadata["kind"] in (int, float)}
MAY_BE_ZERO = {
    *("seed", "workers", "dropout", "sparsity", "momentum", "weight_decay", "label_smoothing"),
    *("start_sparsity", "downsample_rate", "rewind_point", "input_repetition"),
    *("skip_nonfinite", "erk_power", "warmup"),
}
CHOICES = {n: f.metadata["choices"] for n, f in FIELDS.items() if "choices" in f.metadata}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_flags_become_typed_settings():
    flags = ["--method", "rigl", "--epochs", "3", "--lr", "1", "--dry-run", "--data-dir", "a b"]
    assert parse_flags(flags, "") == {
        "method": "rigl",
        "epochs": 3,
        "lr": 1.0,
        "dry_run": True,
        "data_dir": "a b",
    }
    assert isinstance(parse_flags(["--lr", "1"], "")["lr"], float)
    assert parse_flags([], "") == {}


def help_of(capsys, *arguments):
    """Return what is printed for flags that ask for help."""
    with pytest.raises(SystemExit) as stop:
        train(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


def flags_in(shown):
    """Return the settings whose flags help has a line for."""
    told = set(re.findall("^  --([a-z-]+)", shown, re.MULTILINE))
    return {name for name in FIELDS if flag(name)[2:] in told}


def test_help_has_two_levels(capsys):
    usual, whole = help_of(capsys, "--help"), help_of(capsys, "--help-all")
    assert usual.splitlines()[0] == "usage: sparse-engine train [flags]"
    assert flags_in(usual) == set(USUAL)
    assert len(USUAL) <= 24
    assert f"All {len(FIELDS)}: sparse-engine train --help-all" in usual
    assert flags_in(whole) == set(FIELDS)


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ([], ["of --method edst on --dataset digits.", "in all, over all phases [72]"]),
        (["--dataset", "cifar100"], ["--dataset cifar100.", "[450]", "[wrn28-10]", "[32x32]"]),
        (["--dataset", "imagenet", "--method", "dense"], ["[torchvision/resnet50]", "[150]"]),
        (["--config", "kd-tickets/kd-ticket-resnet56-cifar10"], ["--method kd-ticket", "[182]"]),
        (["--method", "edts"], ["--method edst on", "with what was given: unknown method 'edts'"]),
    ],
)
def test_help_shows_defaults_of_what_was_chosen(arguments, lines, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = help_of(capsys, "-h", *arguments)
    assert [line for line in lines if line not in shown] == []
    if "edts" not in arguments:
        assert "with what was given" not in shown


@pytest.mark.parametrize(("other", "name"), ARGUMENTS.items())
def test_settings_by_the_names_of_arguments(other, name):
    assert other in inspect.signature(DynamicSparsity).parameters
    value = CHOICES[name][0] if name in CHOICES else 3
    assert parse_flags([flag(other), str(value)], "") == {name: value}
    assert check_values({other: value}, "file") == {name: value}
    with pytest.raises(InputError, match=f"file: {other} is another name of {name}; leave it out"):
        check_values({other: value, name: value}, "file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsty", "0.5"], "unknown flag '--sparsty'; did you mean '--sparsity'?; see --help"),
        (["--lerning-rat=1"], "unknown flag '--lerning-rat'"),
        (["--epoch", "3"], "unknown flag '--epoch'; did you mean '--epochs'?; see --help"),
        (["rigl"], "unknown argument 'rigl'; see --help"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--epochs", "two"], "argument --epochs: takes a whole number, found 'two'"),
        (["--epochs", "1.5"], "argument --epochs: takes a whole number, found '1.5'"),
        (["--epochs", ""], "argument --epochs: takes a whole number, found ''"),
        (["--lr", "1e-x"], "argument --lr: takes a number, found '1e-x'"),
        (["--dry-run=yes"], "argument --dry-run: ignored explicit argument 'yes'"),
    ],
)
def test_bad_flags(arguments, message):
    with pytest.raises(InputError) as error:
        parse_flags(arguments, "")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "1" + "0" * 400])
def test_numbers_that_cannot_be(name, text):
    with pytest.raises(InputError, match=f"{name}|{flag(name)}"):
        parse_flags([f"{flag(name)}={text}"], "")


@pytest.mark.parametrize("name", NUMBERS)
def test_zero(name):
    if name in MAY_BE_ZERO:
        assert parse_flags([flag(name), "0"], "") == {name: 0}
        return
    with pytest.raises(
        InputError, match=rf"flags: {name} must be (above 0|at least [18]), found 0"
    ):
        parse_flags([flag(name), "0"], "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparsity", "1"),
        ("sparsity", "1.5"),
        ("dropout", "1"),
        ("drop", "1.1"),
        ("stop", "2"),
        ("escape", "1.01"),
        ("validation", "0.9"),
        ("momentum", "1"),
        ("label_smoothing", "1"),
        ("members", "100000"),
        ("seed", "99999999999"),
    ],
)
def test_numbers_that_are_too_large(name, value):
    with pytest.raises(InputError, match=f"flags: {name} must be at most"):
        parse_flags([flag(name), value], "")


@pytest.mark.parametrize("name", CHOICES)
def test_choices_name_the_nearest(name):
    choice = CHOICES[name][-1]
    for own in CHOICES[name]:
        assert parse_flags([flag(name), own], "") == {name: own}
    with pytest.raises(InputError) as error:
        parse_flags([flag(name), choice + "x"], "")
    text = ", ".join(CHOICES[name])
    assert str(error.value) == (
        f"flags: {name} should be one of {text}, found '{choice}x'; did you mean '{choice}'?"
    )


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (InputError("bad\n  name"), 2, "error: bad name\n"),
        (RunFailure("loss is nan"), 1, "failed: loss is nan\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped("at step 3;\ncontinue", 15), 143, "stopped: at step 3; continue"),
    ],
)
def test_errors_are_one_line(raised, code, line, capsys):
    def command(arguments):
        raise raised

    with pytest.raises(SystemExit) as stop:
        run_command(command)
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out) == (code, "")
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == 1


def test_a_command_that_ends_well():
    with pytest.raises(SystemExit) as stop:
        run_command(lambda arguments: None)
    assert stop.value.code == 0
