"""What a saved configuration gives back, and the settings of blocks."""

import json

import pytest

from sparse_engine.config.config import TRANSIENT, Config
from sparse_engine.config.flags import parse_flags
from sparse_engine.config.values import read_config_file
from sparse_engine.errors import InputError
from sparse_engine.layers.blocks import layer_block, parse_block
from sparse_engine.methods.registry import METHODS
from sparse_engine.methods.resolve import resolve


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def from_flags(*arguments: str) -> Config:
    return Config(**parse_flags(arguments, "description"))


def saved_to(path, config: Config) -> str:
    path.write_text(json.dumps(config.saved()))
    return str(path)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_configuration_starts_the_run_again(method, tmp_path):
    flags = ["--method", method, "--seed", "7", "--lr", "0.05", "--block", "4x4", "--epochs", "9"]
    flags += ["--dropout", "0.1"]
    flags += ["--teacher", "run"] if method == "kd-ticket" else []
    config = resolve(from_flags(*flags, "--out", str(tmp_path / "out"), "--device", "cpu"))
    again = Config(**read_config_file(saved_to(tmp_path / "config.json", config)))
    assert again.saved() == config.saved()
    assert resolve(again) == again
    assert again.out is None
    assert not set(TRANSIENT) & set(config.saved())


def test_flags_win_over_a_file(tmp_path):
    path = saved_to(tmp_path / "c.json", from_flags("--epochs", "5", "--lr", "0.3"))
    flags = parse_flags(["--config", path, "--epochs", "2"], "")
    config = Config(**{**read_config_file(flags["config"]), **flags})
    assert (config.epochs, config.lr) == (2, 0.3)


@pytest.mark.parametrize(
    "text", ["0x32", "32x0", "00x8", "32", "ax3", "-1x2", "1x2x3", "32X32", "8 x 8", "", "Auto"]
)
def test_bad_blocks(text):
    with pytest.raises(InputError, match="block must be BOxBC with positive sizes"):
        parse_block(text)
    if text:
        with pytest.raises(InputError, match="block must be BOxBC"):
            resolve(Config(block=text))


@pytest.mark.parametrize("digits", ["٠x8", "9" * 5000 + "x8"])
def test_strange_digits(digits):
    with pytest.raises(InputError, match="block must be"):
        parse_block(digits)


def test_blocks():
    assert parse_block("32x8") == (32, 8)
    assert parse_block("auto") == "auto"
    assert layer_block("auto", (640, 320, 3, 3)) == (128, 64)
    assert layer_block("auto", (10, 160)) == (32, 32)
    assert layer_block("16x4", (8, 8)) == layer_block([16, 4], (8, 8)) == (16, 4)
    for block in [(0, 4), (4,), (4, 4, 4), (4.0, 4), (-1, 1)]:
        with pytest.raises(InputError, match="two positive integers"):
            layer_block(block, (8, 8))
