"""Random command lines and configurations end well or in one line, and write nothing."""

import json
import math
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from fuzzing import FLAGS, contents, outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_engine import evaluate, train
from sparse_engine.config.config import FIELDS
from sparse_engine.evaluation.robustness import assess
from sparse_engine.methods.registry import METHODS

CASES = [300, pytest.param(10_000, marks=pytest.mark.slow)]
OPTIONS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}
ODD_NUMBERS = ["0.8", "2147483648", str(10**18), "1" * 400, "0x10", "1_0", "٣", "half"]
NUMBERS = st.sampled_from(
    [
        *ODD_NUMBERS,
        "0",
        "1",
        "2",
        "3",
        "7",
        "0.3",
        "0.5",
        "0.99",
        "1.0",
        "-1",
        "nan",
        "inf",
        "1e-9",
        "1e308",
        "",
    ]
)
WORDS = st.text(max_size=12) | st.sampled_from(
    ["none", ".", "run", "8x8", "1x1", "auto", "{}", "\0", "\ud800", "a" * 300, "a/" * 3000]
)
USUAL = {
    "method": st.sampled_from(list(METHODS)),
    "model": st.sampled_from(["mlp", "mlp", "mlp", "wrn10-1", "resnet20", "wrn0-0", "wrn9", "vgg"]),
    "block": st.sampled_from(["8x8", "1x1", "3x40", "auto", "0x8", "99999x1", "8x"]),
    "dataset": st.sampled_from(["digits", "digits", "own", "cut", "cifar10", "imagefolder:data"]),
    "data_dir": st.sampled_from(["data", ".", "none", "data/own.npz"]),
    "config": st.sampled_from(["good.json", "list.json", "none.json", ".", "data/own.npz"]),
    "resume": st.sampled_from(["run", "other", "none", "data", ""]),
    "teacher": st.sampled_from(["run", "other", "none"]),
    "out": st.sampled_from(["new", "run", "data/own.npz", "new/new", "\0", "a" * 300]),
    "densities": st.sampled_from(["{}", '{"hidden1": 0.5}', '{"a": "b"}', "[]", "1", "{"]),
    "layer_blocks": st.sampled_from(["{}", '{"h*1": "dense"}', '{"*": "4x4"}', '{"x": 1}', "[]"]),
    "checkpoint_every": st.sampled_from(["5", "60s", "0", "s", "nan"]),
    "epochs": st.sampled_from(["1", "2", "9", "60", "0"]),
    "evaluate_every": st.sampled_from(["1", "2", "9", "60", "0"]),
}


def usual(name):
    """Return a strategy for a setting's values, mostly of the right kind."""
    spec = FIELDS[name].metadata
    if name in USUAL:
        return USUAL[name] | WORDS
    if "choices" in spec:
        return st.sampled_from(spec["choices"]) | WORDS
    return NUMBERS


@st.composite
def command_lines(draw):
    """Draw flags of train, of a small model unless they say another."""
    arguments = list(FLAGS) if draw(st.booleans()) else ["--model", "mlp"]
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=5)):
        arguments.append("--" + name.replace("_", "-"))
        if FIELDS[name].metadata["kind"] is not bool or draw(st.integers(0, 20)) == 0:
            arguments.append(draw(usual(name)))
    if draw(st.integers(0, 9)) == 0:
        arguments.insert(draw(st.integers(0, len(arguments))), draw(WORDS))
    if draw(st.booleans()):
        arguments.append("--dry-run")
    return arguments


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
JSON = st.recursive(
    SCALARS | st.sampled_from([10**400, -(10**18), 0, 1, 2, 0.5, "rigl", "1x1"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def configurations(draw):
    """Draw the text of a JSON file."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text(max_size=40) | JSON.map(json.dumps))
    settings_ = {"model": "mlp", "batch_size": 256, "block": "8x8", "device": "cpu"}
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), min_size=1, max_size=4)):
        kind = FIELDS[name].metadata["kind"]
        value = draw(st.booleans() | JSON if kind is bool else usual(name))
        value = draw(JSON) if kind is dict else value
        if draw(st.integers(0, 5)) == 0:
            value = draw(JSON)
        elif kind in (int, float) and isinstance(value, str):
            value = number(value, kind)
        settings_[name] = value
    if draw(st.integers(0, 9)) == 0:
        settings_[draw(st.text(max_size=9))] = draw(JSON)
    return json.dumps(settings_)


def number(text, kind):
    try:
        found = kind(text)
    except ValueError:
        return text
    return found if kind is int or math.isfinite(found) else text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a finished run, one not begun, and files good and bad."""
    import numpy as np

    path = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert (
            outcome(
                train.main,
                [*FLAGS, "--method", "dense", "--epochs", "1", "--out", "run"],
                begins=True,
            )
            == "done"
        )
        Path("other").mkdir()
        Path("other/config.json").write_text('{"method": "rigl", "model": "mlp"}')
        Path("good.json").write_text('{"method": "set", "model": "mlp", "lr": 0.01}')
        Path("list.json").write_text("[1]")
        Path("data").mkdir()
        arrays = {"images": np.zeros((300, 8, 8), np.uint8), "labels": np.arange(300) % 2}
        np.savez(
            "data/own.npz", **{f"{s}_{k}": v for s in ("train", "test") for k, v in arrays.items()}
        )
        Path("data/cut.npz").write_bytes(Path("data/own.npz").read_bytes()[:500])
    return path


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run_all(cases, strategy, run):
    """Run cases; return how often each outcome was found."""
    before, found = contents(), Counter()

    @settings(max_examples=cases, **OPTIONS)
    @given(strategy)
    def check(drawn):
        found[run(drawn)] += 1

    check()
    assert contents() == before
    print(f"{sum(found.values())} cases: {dict(found)}")
    return found


@pytest.mark.parametrize("cases", CASES)
def test_command_lines_of_train(cases):
    found = run_all(cases, command_lines(), lambda drawn: outcome(train.main, drawn))
    assert found["refused"] > cases / 10
    assert found["done"] + found["accepted"] > cases / 20
    assert not found["failed"]


@pytest.mark.parametrize("cases", CASES)
def test_configurations(cases):
    def run(text):
        Path("drawn.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            found = outcome(train.main, ["--config", "drawn.json", "--dry-run"])
        finally:
            Path("drawn.json").unlink()
        return found

    found = run_all(cases, configurations(), run)
    assert found["refused"] > cases / 10
    assert found["done"] > cases / 20
    assert not found["failed"]


RUNS = st.sampled_from(["run", "run", "run", "other", "none", "data", "run/config.json", ""])
EVALUATE = {
    "--corruptions": st.none(),
    "--severities": st.sampled_from(["1,3", "6", "", "a", "1,", "٣"]),
    "--ood": st.sampled_from(["noise", "digits", "own", "cifar10", "zzz", ""]),
    "--attack": st.sampled_from(["fgsm", "pgd,fgsm", "gpd", ""]),
    "--epsilon": st.sampled_from(["8/255", "0", "1/0", "nan", "0.1", "1e400", "x"]),
    "--attack-steps": NUMBERS,
    "--attack-images": NUMBERS,
    "--out": st.sampled_from(["run/config.json", "none/a.json", "\0"]),
    "--device": st.sampled_from(["cpu", "auto", "gpu", "cuda"]),
    "--data-dir": USUAL["data_dir"],
}


@st.composite
def evaluations(draw):
    """Draw flags of evaluate."""
    arguments = draw(st.lists(RUNS, min_size=0, max_size=2))
    for flag in draw(st.lists(st.sampled_from(list(EVALUATE)), max_size=4)):
        # A word would be a file that may be written.
        value = draw(
            EVALUATE[flag] if flag in ("--out", "--corruptions") else EVALUATE[flag] | WORDS
        )
        arguments += [flag] if value is None else [flag, value]
    return arguments


@pytest.mark.parametrize("cases", CASES)
def test_command_lines_of_evaluate(cases):
    with mock.patch.object(assess, "assess", return_value={}):
        found = run_all(cases, evaluations(), lambda drawn: outcome(evaluate.main, drawn))
    assert found["refused"] > cases / 10
    assert found["done"] > cases / 100
